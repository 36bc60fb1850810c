"""Which batch norms of a network are seen by their signs alone: found by following its forward pass with torch.fx."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn

from kernels.binary import BinaryConv2d, BinaryLinear

# What keeps the order of numbers, so that it can be before a threshold as after it.
_ORDERED = (nn.MaxPool1d, nn.MaxPool2d, nn.Identity, nn.Dropout, nn.Dropout2d)
# What keeps signs, or moves them without mixing them.
_SIGNED = (*_ORDERED, nn.Hardtanh, nn.Tanh, nn.Flatten, nn.Unflatten)
_SIGNED_FUNCTIONS = {torch.flatten, torch.tanh, F.tanh, F.max_pool2d, F.dropout}
_SIGNED_METHODS = {"flatten", "view", "reshape", "tanh", "contiguous"}


def foldable(model: nn.Module) -> tuple[dict[str, str], str | None]:
    """Binary layer -> the batch norm that its sums go to, where binary layers only see what comes of that.

    Max pooling may be on the way, and Hardtanh behind the norm. Layers that are used twice are left out.
    Returns: also why the forward pass could not be followed, in which case nothing is found, or None.
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # what torch.fx raises is whatever the forward pass does with a stand-in
        return {}, f"{type(error).__name__}: {error}".splitlines()[0]
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = [modules[node.target] for node in graph.nodes if node.op == "call_module"]
    found: dict[str, str] = {}
    for node in graph.nodes:
        layer = _module(node, modules)
        if isinstance(layer, BinaryConv2d | BinaryLinear) and calls.count(layer) == 1:
            norm = _norm_behind(node, layer, modules)
            if norm is not None and calls.count(modules[norm.target]) == 1 and _only_signs_are_seen(norm, modules):
                found[node.target] = norm.target
    return found, None


class _Tracer(fx.Tracer):
    """Follows a model down to the modules without modules in them."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _module(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module | None:
    return modules[str(node.target)] if node.op == "call_module" else None


def _norm_behind(node: fx.Node, layer: nn.Module, modules: dict[str, nn.Module]) -> Any:
    while len(node.users) == 1:
        (node,) = node.users
        module = _module(node, modules)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            return node if _fits(layer, module) else None
        if not isinstance(module, _ORDERED):
            return None
    return None


def _fits(layer: nn.Module, norm: Any) -> bool:
    """Whether the norm is one of the layer's channels, by averages of training."""
    if isinstance(layer, nn.Conv2d):
        fits = isinstance(norm, nn.BatchNorm2d)
    else:
        fits = isinstance(norm, nn.BatchNorm1d) and norm.num_features == layer.out_features
    return fits and norm.running_mean is not None and not norm.training


def _only_signs_are_seen(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    if not node.users:
        return False
    for user in node.users:
        module = _module(user, modules)
        if isinstance(module, BinaryConv2d | BinaryLinear):
            continue
        if not (_keeps_signs(user, module) and _only_signs_are_seen(user, modules)):
            return False
    return True


def _keeps_signs(node: fx.Node, module: nn.Module | None) -> bool:
    if isinstance(module, nn.Hardtanh):  # ReLU6 is one too, from 0 to 6
        return module.min_val < 0 <= module.max_val
    if module is not None:
        return isinstance(module, _SIGNED)
    if node.target is F.hardtanh:  # relu6 is another function
        options: dict[str, Any] = dict(node.kwargs)
        return bool(options["min_val"] < 0 <= options["max_val"])
    if node.op == "call_function":
        return node.target in _SIGNED_FUNCTIONS
    return node.op == "call_method" and node.target in _SIGNED_METHODS

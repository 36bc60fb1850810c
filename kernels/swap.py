"""Have a model's convolutions, and linear layers over pixels, computed by chosen algorithms, in place."""

import difflib
import fnmatch
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from kernels.algorithms import ALGORITHMS, check_name, takes
from kernels.conv import Conv2d
from kernels.linear import Linear
from kernels.passes import AUTO, VENDOR
from kernels.shapes import ConvShape, UnsupportedShape, pair

DEFAULT = "default"
_OURS: dict[type[nn.Module], Any] = {nn.Conv2d: Conv2d, Conv2d: Conv2d, nn.Linear: Linear, Linear: Linear}


def replace_convs(model: nn.Module, choice: str | Mapping[str, str]) -> dict[str, str]:
    """Turn every nn.Conv2d of a model into `kernels.conv.Conv2d`, and every nn.Linear into `kernels.linear.Linear`,
    which over pixels is a 1 x 1 convolution; parameters, hooks and state_dict keys stay.

    `choice`: the name of an algorithm or 'auto', for every layer that it takes (the others stay PyTorch's); or names by
    glob of module names, such as {"default": "vendor", "layer3.*": "winograd"}: the last that matches, for layers that
    it must take.
    Returns: module name -> algorithm, of every convolution.
    Raises: ValueError for an unknown algorithm or a glob that matches no convolution; UnsupportedShape.
    """
    choices = {DEFAULT: choice} if isinstance(choice, str) else {DEFAULT: VENDOR} | dict(choice)
    for name in choices.values():
        check_name(name)
    # a class of one's own made from nn.Conv2d computes something else
    convs = {name: module for name, module in model.named_modules() if type(module) in _OURS}
    for glob in choices:
        _check_glob(glob, convs)
    chosen = {name: _chosen(name, conv, choices) for name, conv in convs.items()}
    for name, conv in convs.items():
        if chosen[name] != VENDOR or isinstance(conv, Conv2d | Linear):
            conv.__class__ = _OURS[type(conv)]
            conv.algorithm = chosen[name]
    return chosen


def _chosen(name: str, conv: nn.Module, choices: Mapping[str, str]) -> str:
    shape = _shape(conv)
    globs = [glob for glob in choices if glob != DEFAULT and fnmatch.fnmatchcase(name, glob)]
    if not globs:
        algorithm = choices[DEFAULT]
        return algorithm if algorithm == AUTO or takes(algorithm, shape) else VENDOR
    algorithm = choices[globs[-1]]
    if algorithm != AUTO:
        try:
            ALGORITHMS[algorithm].check(shape)
        except UnsupportedShape as reason:
            raise UnsupportedShape(f"{globs[-1]!r}, which is {name}: {reason}") from reason
    return algorithm


def _check_glob(glob: str, names: Mapping[str, nn.Module]) -> None:
    if glob != DEFAULT and not fnmatch.filter(names, glob):
        near = difflib.get_close_matches(glob, names, n=1) or list(names)[:1]
        hint = f"Did you mean {near[0]!r}?" if near else "Leave it out: the model has none."
        raise ValueError(f"got {glob!r}, must be 'default' or match the name of a convolution. {hint}")


def _shape(conv: nn.Module) -> ConvShape:
    """Of an image that is large enough: what an algorithm takes hangs on the filter."""
    if isinstance(conv, nn.Linear):
        return ConvShape.of_linear(conv, torch.empty(1, 32, 32, conv.in_features, device="meta"))
    assert isinstance(conv, nn.Conv2d)
    (r, s), (rows, columns) = pair(conv.kernel_size), pair(conv.dilation)
    return ConvShape(
        n=1, c=conv.in_channels, h=rows * r + 32, w=columns * s + 32, k=conv.out_channels, r=r, s=s,
        stride=pair(conv.stride), dilation=(rows, columns), groups=conv.groups,
    )  # fmt: skip

"""Every network that an experiment can name: ours, and torchvision's for classification.

Networks come without trained weights. What the data decides (classes, channels, image size) is not an option.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from kernels import rewrite
from orchestrator.config.experiment import Experiment, ModelConfig
from orchestrator.config.mistake import did_you_mean, either, show
from orchestrator.errors import InputError
from orchestrator.models.binarynet import BinaryNet
from orchestrator.models.cifar_resnet import CIFAR_RESNETS
from orchestrator.models.mlp import Mlp
from orchestrator.models.small import SmallResNet

# To add a network: a class that takes (num_classes, channels, image_size, *, its options), and a line here.
OURS: dict[str, Callable[..., nn.Module]] = {
    "small_resnet": SmallResNet,
    **CIFAR_RESNETS,
    "mlp": Mlp,
    "binarynet": BinaryNet,
}

FROM_DATA = {"num_classes", "channels", "image_size", "input_size"}
# Set here: no trained weights; not the auxiliary outputs of GoogLeNet and Inception, which have no loss.
FIXED = {"weights", "progress", "aux_logits"}

# What a builder raises for options or image sizes that do not suit it.
REFUSALS = (TypeError, ValueError, AssertionError, ArithmeticError, RuntimeError)


def build_model(config: ModelConfig, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build the network that `config` names; its weights depend on torch's seed and nothing else.

    Returns: images (N, channels, image_size, image_size) -> logits (N, num_classes).
    Raises: InputError if there is no such network or it does not take these options or this image size.
    """
    check_model(config)
    try:
        if config.name in OURS:
            model = OURS[config.name](num_classes, channels, image_size, **config.options)
        else:
            given = _given_by_data(config.name, image_size) | config.options
            model = _torchvision().get_model(config.name, weights=None, num_classes=num_classes, **given)
            adapt_input_channels(model, channels)
    except REFUSALS as refusal:
        raise _refused(config, image_size, refusal) from refusal
    if config.rewrite.name != "none":
        try:
            rewrite.apply(model, config.rewrite.name, config.rewrite.where)
        except ValueError as refusal:
            raise InputError(f"model.rewrite: {refusal}") from refusal
    return model


def outline(config: ModelConfig, *, num_classes: int, channels: int, image_size: int) -> nn.Module:
    """Build the network without memory for its weights (on torch's meta device) and try it on two images.

    This takes well under a second for networks of any size and draws no random numbers.
    Raises: InputError as `build_model`, and if images of this size are too small for the network.
    """
    with _ParametersOnMeta():
        model = build_model(config, num_classes=num_classes, channels=channels, image_size=image_size)
    model.to("meta")
    try:
        with torch.device("meta"), torch.no_grad():
            model(torch.empty(2, channels, image_size, image_size))
    except REFUSALS as refusal:
        raise _refused(config, image_size, refusal) from refusal
    return model


def outline_of(experiment: Experiment, width: int) -> nn.Module:
    """The network of an experiment, which puts out `width` numbers, as `outline` builds it."""
    data = experiment.data
    return outline(experiment.model, num_classes=width, channels=data.channels, image_size=data.image_size)


def model_names() -> list[str]:
    """All names that `model.name` can have, ours first."""
    return [*OURS, *_torchvision().list_models(module=_torchvision())]


def check_model(config: ModelConfig) -> None:
    """Raises: InputError if there is no such network, or its builder takes no option of such a name."""
    if config.name not in OURS and config.name not in (names := model_names()):
        raise InputError(
            f"model.name: got {show(config.name)}, must be {', '.join(OURS)} or a classification network of "
            f"torchvision such as resnet18{did_you_mean(config.name.lower(), names)}"
        )
    for option in config.options:
        _check_option(config.name, option, config.options[option])


def _torchvision() -> Any:
    # Takes two seconds to import, most of it torch's compiler: not in a worker that trains a network of ours.
    import torchvision.models

    return torchvision.models


def _check_option(name: str, option: str, value: object) -> None:
    if option in FROM_DATA:
        raise InputError(
            f"model.options.{option}: got {show(value)}, but the data decides it. Leave it out; "
            "data.channels and data.image_size say what the network is built for."
        )
    taken = _parameters(name)
    if option not in taken or option in FIXED:
        plain = [key for key in taken if _is_plain(taken[key]) and key not in FROM_DATA | FIXED]
        allowed = f"takes {either(plain, last='and')}" if plain else "takes no options"
        raise InputError(
            f"model.options.{option}: got {show(value)}, but {name} {allowed}{did_you_mean(option, plain)}"
        )


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    """The arguments of a network's class, which torchvision's builder functions pass on to it."""
    make = OURS.get(name)
    if make is None:
        make = inspect.signature(_torchvision().get_model_builder(name)).return_annotation
    parameters = inspect.signature(make).parameters
    return {key: p for key, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def _is_plain(parameter: inspect.Parameter) -> bool:
    """Whether YAML can say it. In torchvision, what has no default is implied by the network's name."""
    return isinstance(parameter.default, bool | int | float | str | list | tuple)


def _given_by_data(name: str, image_size: int) -> dict[str, Any]:
    parameters = _parameters(name)
    given: dict[str, Any] = {}
    if "image_size" in parameters:
        given["image_size"] = image_size
    if "input_size" in parameters:
        given["input_size"] = (image_size, image_size)
    if "aux_logits" in parameters:
        # torchvision warns where init_weights is left open.
        given |= {"aux_logits": False, "init_weights": True}
    return given


def adapt_input_channels(model: nn.Module, channels: int) -> None:
    """Make a network's first convolution read `channels` instead of 3, in place, from the weights it has.

    A grey image counts as one with three equal colours: its filter is the sum of theirs, whose variance is
    also the one that a third of the inputs calls for. Other numbers of channels take the colours' filters
    in turn, scaled by 3 / channels.
    Source: `adapt_input_conv` in timm (Wightman 2019), timm/models/_manipulate.py.
    """
    conv = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    if conv.in_channels != channels:
        conv.weight = nn.Parameter(_for_channels(conv.weight.detach(), channels))
        conv.in_channels = channels


def _for_channels(weight: Tensor, channels: int) -> Tensor:
    colours = weight.shape[1]
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    repeats = -(-channels // colours)
    return weight.repeat(1, repeats, 1, 1)[:, :channels] * (colours / channels)


class _ParametersOnMeta(TorchFunctionMode):
    """Makes what layers take for parameters without memory, and nothing else.

    `torch.device("meta")` would take more: RegNet's builder computes its widths with tensors and reads them.
    """

    MAKERS = (torch.empty, torch.zeros, torch.ones)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        placed = {"device": "meta"} if func in self.MAKERS else {}
        return func(*args, **((kwargs or {}) | placed))


def _refused(config: ModelConfig, image_size: int, refusal: Exception) -> InputError:
    reason = (str(refusal).strip() or type(refusal).__name__).splitlines()[0].rstrip(".!")
    return InputError(
        f"model.name: got {config.name}, which does not work with model.options={show(config.options)} and "
        f"data.image_size={image_size}: {reason}. Change one of the three."
    )

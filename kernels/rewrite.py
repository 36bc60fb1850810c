"""Ways to restack a convolution: the same receptive field and output size, fewer parameters and multiply-adds.

For training from scratch: what a rewrite puts in has new weights (He et al. 2015, arXiv:1502.01852, eq. 10), and an
activation between its parts. Where C = K, of the parameters and multiply-adds of an N x N filter there remain

    stack3x3             N x N -> (N - 1) / 2 times 3 x 3       9 (N - 1) / 2 of N^2: 18/25, 27/49
                         Simonyan & Zisserman 2014 (arXiv:1409.1556), section 2.3
    factorize            N x N -> 1 x N, N x 1                  2 of N: 6/9
                         Szegedy et al. 2015 (arXiv:1512.00567), section 3.2
    bottleneck           N x N -> 1 x 1 to K / 2, N x N, 1 x 1  1/4 + 1/N^2: 3.25/9
                         He et al. 2015 (arXiv:1512.03385), section 4.1
    depthwise_separable  N x N -> N x N in each channel, 1 x 1  1/C + 1/N^2
                         Howard et al. 2017 (arXiv:1704.04861), section 3.1

for a stride of 1. A stride stays where the receptive field needs it: in the last part of a stack, whose others then
work at the full resolution. No norms are added.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from kernels.shapes import UnsupportedShape

MakeActivation = Callable[[], nn.Module]
Parts = list[nn.Conv2d]

# A model's own, if it is one of these that need no argument.
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.GELU, nn.Hardswish, nn.LeakyReLU, nn.ELU, nn.Mish, nn.Sigmoid, nn.Tanh)


def apply(model: nn.Module, name: str, where: str = "*") -> list[str]:
    """Rewrite in place every convolution of a model that the rewrite takes and whose name matches the glob `where`.

    Between the parts stands the activation that the model has most of, ReLU if it has none as a module.
    Returns: the names of the convolutions that were rewritten, as in named_modules.
    Raises: ValueError if there is no such rewrite, or no convolution that matches is taken: the reason for the first.
    """
    _check_name(name)
    make = activation_of(model)
    reasons: list[str] = []
    paths: list[str] = []
    stacks: dict[nn.Conv2d, nn.Sequential] = {}  # one that stands in two places stays one
    for path, conv in list(_convolutions(model)):
        if not fnmatchcase(path, where):
            continue
        try:
            stack = stacks.get(conv) or stacks.setdefault(conv, rewritten(conv, name, make))
        except UnsupportedShape as refusal:
            reasons.append(f"{path}: {refusal}")
        else:
            model.set_submodule(path, stack)
            paths.append(path)
    if not paths:
        raise ValueError(_nothing_to_do(name, where, reasons, [path for path, _ in _convolutions(model)]))
    return paths


def rewritten(conv: nn.Conv2d, name: str, activation: MakeActivation = nn.ReLU) -> nn.Sequential:
    """The convolutions that replace `conv`, with activations between them; not after the last.

    They lie on its device in its dtype, each with a bias if it has one.
    Shapes: (N, C, H, W) -> (N, K, H', W'), as `conv`.
    Raises: UnsupportedShape if the rewrite does not take it; ValueError if there is no such rewrite.
    """
    _check_name(name)
    if conv.groups > 1:
        raise UnsupportedShape(
            f"{name}: got groups={conv.groups}, must be 1. Leave out this convolution, or build it without groups."
        )
    parts = REWRITES[name](conv)
    layers: list[nn.Module] = []
    for part in parts:
        nn.init.kaiming_normal_(part.weight, nonlinearity="relu")
        if part.bias is not None:
            nn.init.zeros_(part.bias)
        layers += [activation(), part]
    return nn.Sequential(*layers[1:]).train(conv.training)


def activation_of(model: nn.Module) -> MakeActivation:
    """What makes the activation that a model has most of, ReLU if it has none as a module."""
    found = Counter(type(module) for module in model.modules() if type(module) in ACTIVATIONS)
    return found.most_common(1)[0][0] if found else nn.ReLU


def _stack3x3(conv: nn.Conv2d) -> Parts:
    size, columns = conv.kernel_size
    if size != columns or size % 2 == 0 or size < 5:
        raise _refused("stack3x3", conv, "N x N with N odd and >= 5")
    number = (size - 1) // 2
    paddings = zip(*(_shared(padding, number) for padding in _paddings(conv)), strict=True)
    parts = []
    for index, padding in enumerate(paddings):
        last = index == number - 1
        parts.append(
            _like(
                conv,
                conv.out_channels if index else conv.in_channels,
                conv.out_channels,
                kernel_size=3,
                stride=conv.stride if last else 1,
                padding=conv.padding if isinstance(conv.padding, str) else padding,
                dilation=conv.dilation,
            )
        )
    return parts


def _factorize(conv: nn.Conv2d) -> Parts:
    if min(conv.kernel_size) < 2:
        raise _refused("factorize", conv, "R x S with both > 1")
    (rows, columns), (down, across), (above, left) = conv.kernel_size, conv.stride, _paddings(conv)
    (spread_rows, spread_columns), same = conv.dilation, isinstance(conv.padding, str)
    return [
        _like(
            conv,
            conv.in_channels,
            conv.out_channels,
            kernel_size=(1, columns),
            stride=(1, across),
            padding=conv.padding if same else (0, left),
            dilation=(1, spread_columns),
        ),
        _like(
            conv,
            conv.out_channels,
            conv.out_channels,
            kernel_size=(rows, 1),
            stride=(down, 1),
            padding=conv.padding if same else (above, 0),
            dilation=(spread_rows, 1),
        ),
    ]


def _bottleneck(conv: nn.Conv2d) -> Parts:
    if max(conv.kernel_size) < 2 or conv.out_channels < 2:
        raise _refused("bottleneck", conv, "larger than 1 x 1, with 2 channels or more behind it")
    inside = conv.out_channels // 2
    return [
        _like(conv, conv.in_channels, inside, kernel_size=1),
        _like(conv, inside, inside, **_window(conv)),
        _like(conv, inside, conv.out_channels, kernel_size=1),
    ]


def _depthwise_separable(conv: nn.Conv2d) -> Parts:
    if max(conv.kernel_size) < 2:
        raise _refused("depthwise_separable", conv, "larger than 1 x 1")
    channels = conv.in_channels
    return [
        _like(conv, channels, channels, groups=channels, **_window(conv)),
        _like(conv, channels, conv.out_channels, kernel_size=1),
    ]


REWRITES: dict[str, Callable[[nn.Conv2d], Parts]] = {
    "stack3x3": _stack3x3,
    "factorize": _factorize,
    "bottleneck": _bottleneck,
    "depthwise_separable": _depthwise_separable,
}


def _like(conv: nn.Conv2d, in_channels: int, out_channels: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(
        in_channels,
        out_channels,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
        **options,
    )


def _window(conv: nn.Conv2d) -> dict[str, Any]:
    return {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}


def _paddings(conv: nn.Conv2d) -> tuple[int, int]:
    """Above and left; what words say is left to the parts."""
    if isinstance(conv.padding, str):
        return 0, 0
    above, left = conv.padding
    return above, left


def _shared(padding: int, number: int) -> list[int]:
    """The padding of each of `number` parts, which add up to it; the first get what is left over."""
    return [padding // number + (index < padding % number) for index in range(number)]


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv2d]]:
    for path, module in model.named_modules(remove_duplicate=False):
        if path and isinstance(module, nn.Conv2d):
            yield path, module


def _refused(name: str, conv: nn.Conv2d, allowed: str) -> UnsupportedShape:
    rows, columns = conv.kernel_size
    return UnsupportedShape(
        f"{name}: got a filter of {rows} x {columns} with {conv.out_channels} channels behind it, must be {allowed}. "
        "Use another rewrite."
    )


def _check_name(name: str) -> None:
    if name not in REWRITES:
        raise ValueError(f"rewrite: got {name!r}, must be one of {', '.join(REWRITES)}. Correct the name.")


def _nothing_to_do(name: str, where: str, reasons: Sequence[str], paths: Sequence[str]) -> str:
    if reasons:
        return f"rewrite: got {name} where {where!r}, but none of {len(reasons)} convolutions is taken; {reasons[0]}"
    named = f"a glob such as {paths[0]}" if paths else "left out: the model has none"
    return f"where: got {where!r}, which is the name of no convolution, must be {named}. Correct it."

"""A trained network of binary layers, for evaluation: its filters as bits, its batch norms as whole numbers.

`pack_for_evaluation` replaces every binary layer by one that keeps the signs of its weights, 32 a word: 1/32 of the
memory. Where a binary layer goes to a batch norm, maybe by a max pooling, and what comes out goes to binary layers
only, nothing but the sign of the norm is seen. That is a comparison of the layer's sum of products, a whole number,
with a threshold for each channel, which replaces the norm and the layer's own bias and scale.

Predictions stay the same bit for bit. A norm computed in fp32 is monotone in its input, roundings included, so that its
sign changes at most once; where, is found by bisection with the norm itself. So thresholds hold for norms by powers of
two (`shift_norm.py`) too, and for the device that packs: another may round differently.

Source: Umuroglu et al. 2017, "FINN" (arXiv:1612.07119), section 4.2.2, for thresholds; Courbariaux et al. 2016
(arXiv:1602.02830), section 1 and Algorithm 5, for the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kernels.binary import BinaryConv2d, BinaryLinear, convolve_bits
from kernels.binary_bits import bits_of
from kernels.binary_graph import foldable
from kernels.conv import options_of
from kernels.shapes import ConvShape, geometry_of

Binary = BinaryConv2d | BinaryLinear


@dataclass(frozen=True)
class Packing:
    """What became of a model: `layers`, packed, by name; `folded`, of those with a threshold, layer -> norm.

    `untraced`: why nothing could be folded, where the model's forward could not be followed; else None.
    """

    layers: tuple[str, ...]
    folded: dict[str, str]
    untraced: str | None


def pack_for_evaluation(model: nn.Module) -> Packing:
    """Replace a model's binary layers, and the norms between them, in place; it cannot be trained any more.

    What is folded depends on the network alone, not on its weights: the state_dict of one packed model loads into
    another.
    Raises: ValueError if the model is in training mode.
    """
    if model.training:
        raise ValueError("model: got one in training mode, must be in evaluation mode. Call model.eval() first.")
    binary = {
        name: module
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, BinaryConv2d | BinaryLinear)
    }
    folded, untraced = foldable(model)
    norms = {name: model.get_submodule(norm) for name, norm in folded.items()}
    made: dict[nn.Module, Packed] = {}
    for name, layer in binary.items():
        if layer not in made:
            made[layer] = _packed(layer)
        if name in folded:
            model.set_submodule(folded[name], _threshold(made[layer], norms[name]))
            made[layer].scale = made[layer].bias = None
        model.set_submodule(name, made[layer])
    return Packing(tuple(binary), folded, untraced)


class Packed(nn.Module):
    """What of a binary layer is left: `bits` (K, R S, ceil(C / 32)); `scale` and `bias` (K,), real or None."""

    bits: Tensor
    scale: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: Binary, filters: Tensor, geometry: list[int]) -> None:
        super().__init__()
        self._geometry = geometry
        self.size = (filters.shape[0], filters.shape[1], filters.shape[2], filters.shape[3])
        self.register_buffer("bits", bits_of(filters))
        # as in the layers' own forward, or the last bit of a mean may differ
        scale = layer.weight.detach().abs().mean(list(range(1, layer.weight.dim()))) if layer.scaled else None
        self.register_buffer("scale", scale)
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().clone())

    @property
    def most(self) -> int:
        """The largest size of a sum: the number of products."""
        _, c, r, s = self.size
        return c * r * s

    def finished(self, sums: Tensor) -> Tensor:
        """Sums with scale and bias. Shapes: (N, K, ...) -> the same."""
        along = (-1, *[1] * (sums.dim() - 2))
        if self.scale is not None:
            sums = sums * self.scale.view(along)
        return sums if self.bias is None else sums + self.bias.view(along)

    def _sums(self, images: Tensor) -> Tensor:
        """Shapes: (N, C, H, W) -> (N, K, H', W')."""
        shape = ConvShape.between(images.shape, self.size, self._geometry)
        with torch.autocast(images.device.type, enabled=False):
            return convolve_bits(images.float(), self.bits, shape)

    def extra_repr(self) -> str:
        return " x ".join(map(str, self.size))


class PackedConv2d(Packed):
    """Shapes: (N, C, H, W) -> (N, K, H', W'): BinaryConv2d's results, or its sums where a threshold follows."""

    def __init__(self, layer: BinaryConv2d) -> None:
        rows, columns = layer.weight.shape[2:]
        super().__init__(layer, layer.weight, geometry_of((rows, columns), *options_of(layer)))

    def forward(self, input: Tensor) -> Tensor:
        return self.finished(self._sums(input))


class PackedLinear(Packed):
    """Shapes: (..., in) -> (..., out): BinaryLinear's results, or its sums where a threshold follows."""

    def __init__(self, layer: BinaryLinear) -> None:
        super().__init__(layer, layer.weight[:, :, None, None], geometry_of((1, 1), 1, 0, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        k, c, _, _ = self.size
        sums = self._sums(input.reshape(-1, c, 1, 1)).view(-1, k)
        return self.finished(sums).view(*input.shape[:-1], k)


class Threshold(nn.Module):
    """1 where a sum reaches its channel's threshold, else -1; the other way round where it is `falling`.

    `images`: whether sums are (N, K, H, W), else (N, K). `thresholds`: (K,), int32; `falling`: (K,), bool.
    Shapes: sums -> the same.
    Raises: ValueError for sums of another number of dimensions.
    """

    thresholds: Tensor
    falling: Tensor

    def __init__(self, thresholds: Tensor, falling: Tensor, *, images: bool) -> None:
        super().__init__()
        self._along = (-1, 1, 1) if images else (-1,)
        self.register_buffer("thresholds", thresholds.to(torch.int32))
        self.register_buffer("falling", falling)

    def forward(self, sums: Tensor) -> Tensor:
        if sums.dim() != len(self._along) + 1:
            raise ValueError(
                f"sums: got {sums.dim()} dimensions, must be {len(self._along) + 1}, of which the second are channels. "
                "A norm over other dimensions cannot be packed: evaluate the model as it was."
            )
        reached = sums >= self.thresholds.view(self._along)
        return torch.where(reached != self.falling.view(self._along), 1.0, -1.0)


def _packed(layer: Binary) -> Packed:
    return PackedConv2d(layer) if isinstance(layer, BinaryConv2d) else PackedLinear(layer)


@torch.no_grad()
def _threshold(layer: Packed, norm: nn.Module) -> Threshold:
    """What the norm makes of the layer's sums, as far as signs go."""
    images = isinstance(norm, nn.BatchNorm2d)

    def positive(sums: Tensor) -> Tensor:
        values = layer.finished(sums.float()[None, :])
        return norm(values[:, :, None, None] if images else values).flatten() >= 0

    changes = first_change(positive, layer.most, layer.bits.new_ones(layer.size[0]))
    return Threshold(*changes, images=images)


def first_change(positive: Callable[[Tensor], Tensor], most: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Where the sign of a function that is monotone in each channel changes, on the whole numbers of size <= `most`.

    Returns: thresholds t and whether the function falls, each of the shape of `like`, one a channel: it is >= 0 where
    (s >= t) != falling.
    """
    low, high = torch.full_like(like, -most), torch.full_like(like, most)
    at_low = positive(low)
    changes = positive(high) != at_low
    for _ in range((2 * most).bit_length()):
        middle = torch.div(low + high, 2, rounding_mode="floor")
        changed = positive(middle) != at_low
        low, high = torch.where(changed, low, middle), torch.where(changed, middle, high)
    # without a change: never below the lowest sum, or never above the highest
    high = torch.where(changes, high, torch.where(at_low, -most, most + 1))
    return high, changes & at_low

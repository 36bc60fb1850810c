"""What a network costs, layer by layer: parameters, multiply-adds, bytes, receptive field, arithmetic intensity.

One forward pass on torch's meta device, where tensors have sizes and no memory, is followed operation by operation. So
what a module computes by functions (F.relu, a mean over all pixels) is found too, and a layer that runs twice costs
twice, but for its parameters.

Multiply-adds are those of convolutions and matrix products, as the literature counts them; norms, pooling and
activations have only bytes to move. Receptive fields are those of convolutional networks; after attention, which
looks wherever it likes, there is none.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from kernels.shapes import Pair


@dataclass(frozen=True)
class Field:
    """The part of the image that one value depends on, (rows, columns) in pixels; padding counts as image.

    `size`: how far it reaches. `jump`: how far the fields of two neighbouring values are apart.
    Where branches meet, the largest. What all positions share does not count: the gates of squeeze and excitation, the
    statistics of norms.
    Source: Araujo, Norris & Sim 2019, "Computing receptive fields of convolutional neural networks" (Distill), eq. 2.
    """

    size: Pair = (1, 1)
    jump: Pair = (1, 1)

    def through(self, window: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1)) -> "Field":
        """The field behind a layer whose values each see `window` values of this one."""
        reach = [spread * (length - 1) for length, spread in zip(window, dilation, strict=True)]
        return Field(
            size=(self.size[0] + reach[0] * self.jump[0], self.size[1] + reach[1] * self.jump[1]),
            jump=(self.jump[0] * stride[0], self.jump[1] * stride[1]),
        )


@dataclass(frozen=True, kw_only=True)
class LayerCost:
    """One layer that ran, for one image.

    `name`: of the module, as in named_modules. `kind`: conv, linear, matmul, norm, pool, activation, or parameters for
        those of a module that are used by no such layer. `detail`: a window's size, stride and groups.
    `output_size`: without the batch.
    `field`: of its output; None where it is not known.
    """

    name: str
    kind: str
    detail: str = ""
    output_size: tuple[int, ...] = ()
    parameters: int = 0
    multiply_adds: int = 0
    parameter_bytes: int = 0
    input_bytes: int = 0
    output_bytes: int = 0
    field: Field | None = None

    @property
    def intensity(self) -> float:
        """Operations, a multiply-add being two, for each byte of parameters, input and output; as in `ConvShape`."""
        moved = self.parameter_bytes + self.input_bytes + self.output_bytes
        return 2 * self.multiply_adds / moved if moved else 0.0


def of_model(model: nn.Module, input_size: tuple[int, int, int]) -> list[LayerCost]:
    """The layers of a model in the order in which they run in evaluation, for one image (C, H, W).

    The model may lie on any device; it is not changed. The rows' parameters add up to those of the model.
    Raises: whatever the model does for images that do not suit it.
    """
    tensors = {name: tensor.detach().to("meta") for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    dtype = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)
    images = torch.empty(1, *input_size, dtype=dtype, device="meta")
    trace = _Trace(model, images)
    with _in_evaluation(model), trace.following_modules(), torch.device("meta"), torch.no_grad(), trace:
        functional_call(model, tensors, (images,))
    return [*trace.rows, *trace.unused_parameters()]


def total(rows: Sequence[LayerCost], name: str = "total") -> LayerCost:
    """All rows as one, without a field."""
    added = ("parameters", "multiply_adds", "parameter_bytes", "input_bytes", "output_bytes")
    return LayerCost(name=name, kind="total", **{each: sum(getattr(row, each) for row in rows) for each in added})


class _Place(NamedTuple):
    """Where in the image the values of a tensor come from: their field, and how many there are of it."""

    field: Field | None
    map_size: Pair

    @property
    def num_positions(self) -> int:
        return self.map_size[0] * self.map_size[1]

    def through(
        self, window: Sequence[int], stride: Sequence[int], output: Tensor, *dilation: Sequence[int]
    ) -> "_Place":
        return _Place(self.field and self.field.through(window, stride, *dilation), _last_two(output))

    @property
    def everywhere(self) -> "_Place":
        """Every value depends on all of this."""
        return _Place(self.field and self.field.through(self.map_size, self.map_size), (1, 1))


class _Layer(NamedTuple):
    """What an operation is as a layer."""

    kind: str
    place: _Place
    detail: str = ""
    multiply_adds: int = 0


class _Trace(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Writes a row for each operation that is a layer, and follows receptive fields through all of them."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: list[LayerCost] = []
        self._model = model
        self._modules = [""]  # that run, the innermost last
        self._places: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._places[images] = _Place(Field(), _last_two(images))
        self._unused: dict[str, list[Tensor]] = {}
        for name, parameter in model.named_parameters():
            self._unused.setdefault(name.rpartition(".")[0], []).append(parameter)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        inputs = [tensor for tensor in _tensors(args) if tensor in self._places]
        as_layer = LAYERS.get(func.overloadpacket.__name__.removesuffix("_"))
        outputs = list(_tensors(result))
        if outputs and (inputs or as_layer):
            place = _meeting([self._places[tensor] for tensor in inputs])
            layer = as_layer(args, outputs[0], place) if as_layer else None
            self._places.update(dict.fromkeys(outputs, layer.place if layer else place))
            if layer:
                self._write(layer, inputs, outputs[0])
        return result

    def _write(self, layer: _Layer, inputs: list[Tensor], output: Tensor) -> None:
        module = self._modules[-1]
        parameters = self._unused.pop(module, [])
        self.rows.append(
            LayerCost(
                name=module,
                kind=layer.kind,
                detail=layer.detail,
                output_size=tuple(output.shape[1:]),
                parameters=sum(tensor.numel() for tensor in parameters),
                multiply_adds=layer.multiply_adds,
                parameter_bytes=_bytes(parameters),
                input_bytes=_bytes(inputs),
                output_bytes=_bytes([output]),
                field=layer.place.field,
            )
        )

    @contextmanager
    def following_modules(self) -> Iterator[None]:
        """Know which module runs."""
        handles = []
        for name, module in self._model.named_modules():
            handles.append(module.register_forward_pre_hook(lambda *_, name=name: self._modules.append(name)))
            handles.append(module.register_forward_hook(lambda *_: self._modules.pop() and None, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def unused_parameters(self) -> Iterator[LayerCost]:
        for name, tensors in self._unused.items():
            number = sum(tensor.numel() for tensor in tensors)
            yield LayerCost(name=name, kind="parameters", parameters=number, parameter_bytes=_bytes(tensors))


def _convolution(args: tuple[Any, ...], output: Tensor, place: _Place) -> _Layer:
    input, weight, _, stride, _, dilation, transposed, _, groups = args
    positions = (input if transposed else output).shape[2:].numel()
    window = weight.shape[2:]
    if transposed or len(window) != 2:
        behind = _Place(None, _last_two(output))
    else:
        behind = place.through(window, stride, output, dilation)
    detail = _window(window, stride, dilation)
    if groups > 1:
        detail += " depthwise" if groups == input.shape[1] else f" {groups} groups"
    return _Layer("conv", behind, detail, weight.numel() * positions)


def _linear(args: tuple[Any, ...], output: Tensor, place: _Place) -> _Layer:
    left, _ = args[-2:]
    # as many rows as positions: a layer on channels; fewer: it sees the whole map, flattened
    behind = place if left.shape[0] >= place.num_positions else place.everywhere
    return _Layer("linear", behind, multiply_adds=output.numel() * left.shape[-1])


def _product(args: tuple[Any, ...], output: Tensor, place: _Place) -> _Layer:
    return _Layer("matmul", _Place(None, place.map_size), multiply_adds=output.numel() * args[-1].shape[-2])


def _norm(args: tuple[Any, ...], output: Tensor, place: _Place) -> _Layer:
    del args, output
    return _Layer("norm", place)


def _activation(args: tuple[Any, ...], output: Tensor, place: _Place) -> _Layer:
    del args, output
    return _Layer("activation", place)


def _max_pool(args: tuple[Any, ...], output: Tensor, place: _Place) -> _Layer:
    window = _two(args[1])
    stride, dilation = _stride(args, window), _two(args[4]) if len(args) > 4 else (1, 1)
    behind = place.through(window, stride, output, dilation)
    return _Layer("pool", behind, f"max {_window(window, stride, dilation)}")


def _average_pool(args: tuple[Any, ...], output: Tensor, place: _Place) -> _Layer:
    window = _two(args[1])
    stride = _stride(args, window)
    return _Layer("pool", place.through(window, stride, output), f"mean {_window(window, stride)}")


def _stride(args: tuple[Any, ...], window: Sequence[int]) -> Sequence[int]:
    """A pool's: its window, if it is not given."""
    return _two(args[2]) if len(args) > 2 and args[2] else window


def _adaptive_pool(args: tuple[Any, ...], output: Tensor, place: _Place) -> _Layer:
    del args
    sizes = list(zip(place.map_size, _last_two(output), strict=True))
    window = [max(-(-(i + 1) * n // m) - i * n // m for i in range(m)) for n, m in sizes]
    stride = [max(1, n // m) for n, m in sizes]
    return _Layer("pool", place.through(window, stride, output), f"to {output.shape[-2]}x{output.shape[-1]}")


def _mean(args: tuple[Any, ...], output: Tensor, place: _Place) -> _Layer | None:
    """A mean over all pixels, as what pools to one pixel becomes."""
    del output
    input, dims = args[0], args[1]
    if input.dim() != 4 or {dim % 4 for dim in dims or ()} != {2, 3}:
        return None
    return _Layer("pool", place.everywhere, "mean of all")


# Names of ATen's operations, without the underscore at the end that says in place.
LAYERS: dict[str, Callable[[tuple[Any, ...], Tensor, _Place], _Layer | None]] = {
    "convolution": _convolution,
    "addmm": _linear,
    "mm": _linear,
    "bmm": _product,
    "baddbmm": _product,
    "max_pool2d_with_indices": _max_pool,
    "avg_pool2d": _average_pool,
    "_adaptive_avg_pool2d": _adaptive_pool,
    "adaptive_max_pool2d": _adaptive_pool,
    "mean": _mean,
    **dict.fromkeys(
        ("native_batch_norm", "_native_batch_norm_legit_no_training", "native_layer_norm", "native_group_norm"), _norm
    ),
    **dict.fromkeys(
        (
            "elu", "gelu", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "mish", "_prelu_kernel", "relu",
            "_safe_softmax", "sigmoid", "silu", "_softmax", "softplus", "tanh",
        ),
        _activation,
    ),
}  # fmt: skip


def _meeting(places: list[_Place]) -> _Place:
    """The place of values made from all of these: those with the most positions decide, the largest field of them.

    Values made from parameters alone, as tables of relative positions are, have none.
    """
    if not places:
        return _Place(None, (1, 1))
    most = max(place.num_positions for place in places)
    decisive = [place for place in places if place.num_positions == most]
    fields = [place.field for place in decisive if place.field]
    return _Place(_larger(fields) if len(fields) == len(decisive) else None, decisive[0].map_size)


def _larger(fields: Sequence[Field]) -> Field:
    rows, columns = (max(field.size[axis] for field in fields) for axis in (0, 1))
    down, across = (max(field.jump[axis] for field in fields) for axis in (0, 1))
    return Field((rows, columns), (down, across))


@contextmanager
def _in_evaluation(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _last_two(tensor: Tensor) -> Pair:
    *_, rows, columns = tensor.shape
    return rows, columns


def _two(value: int | Sequence[int]) -> Sequence[int]:
    numbers = [value] if isinstance(value, int) else value
    return [numbers[0], numbers[-1]]


def _window(window: Sequence[int], stride: Sequence[int], dilation: Sequence[int] = (1, 1)) -> str:
    """Such as `3x3 /2`: the window, and its stride and dilation (`*2`) where they are not 1."""
    text = "x".join(map(str, window))
    for mark, values in (("/", stride), ("*", dilation)):
        if max(values) > 1:
            text += f" {mark}{values[0]}" if len(set(values)) == 1 else f" {mark}{'x'.join(map(str, values))}"
    return text

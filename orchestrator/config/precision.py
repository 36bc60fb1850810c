"""The section `precision`: the numbers that layers compute with, and those that weights are kept in."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, Strict, model_validator

from orchestrator.config.section import Section
from pipelines.augment.shorthand import ShorthandSchema, expand_shorthand

MOST_BITS = 24  # that fp32, in which fixed point is computed, holds
NAMES = frozenset({"fp32", "tf32", "bf16", "fp16", "fp8", "fixed", "dynamic_fixed", "binary", "shift"})
WITH_SETTINGS = frozenset({"fixed", "dynamic_fixed"})
"""Formats of which something must be said beside the name."""
OF_ALL = {
    "fp16": "the loss is scaled for all layers or none. bf16 needs no scale.",
    "tf32": "a device has it on or off. bf16 can be of some layers.",
}
"""Formats that all layers have or none, and why."""
Bare = Literal["fp32", "tf32", "bf16", "fp16", "fp8", "binary", "shift"]
Role = Literal["weights", "activations", "gradients"]
ROLES: tuple[Role, ...] = ("weights", "activations", "gradients")


class _Float(Section):
    name: str

    def __str__(self) -> str:
        return self.name


class Fp32(_Float):
    """Single precision."""

    name: Literal["fp32"] = "fp32"


class Tf32(_Float):
    """Products of factors of fp32's exponent and 10 bits behind the point, summed in fp32: of all layers or none."""

    name: Literal["tf32"] = "tf32"


class Bf16(_Float):
    """Products of factors in bfloat16, summed in fp32; weights in fp32."""

    name: Literal["bf16"] = "bf16"


class Fp16(_Float):
    """As bf16, in half precision, with dynamic loss scaling: of all layers or none."""

    name: Literal["fp16"] = "fp16"


class Fp8(_Float):
    """Products of linear layers in 8 bits, by torchao; all other layers compute in bf16."""

    name: Literal["fp8"] = "fp8"


class OnGrid(Section):
    """Numbers on a grid, computed in fp32.

    `rounding`: `stochastic`, whose mean is the number, or `nearest`.
    `of`: what is on the grid: a layer's weights after each update, its outputs (`activations`), and the gradients of
        both.
    """

    rounding: Literal["stochastic", "nearest"] = "stochastic"
    of: Annotated[tuple[Role, ...], Strict(False), Field(min_length=1)] = ROLES

    def _what(self) -> str:
        return self.rounding + ("" if self.of == ROLES else f" of {' and '.join(self.of)}")


class Fixed(OnGrid):
    """Fixed point <IL, FL> (Gupta et al. 2015, arXiv:1502.02551, section 3).

    `integer_bits`: IL, with the sign.
    `fraction_bits`: FL; with IL 24 at most.
    `gradient_scale`: a power of two that gradients of outputs are multiplied by on their way back, as by a scale of the
        loss: those of a mean over a batch are often smaller than 2^-FL. The sums that are the gradients of weights are
        divided by it before they are rounded.
    """

    name: Literal["fixed"] = "fixed"
    integer_bits: int = Field(ge=1, le=MOST_BITS)
    fraction_bits: int = Field(ge=0, lt=MOST_BITS)
    gradient_scale: int = Field(default=1, ge=1, le=2**MOST_BITS)

    @model_validator(mode="after")
    def _check(self) -> "Fixed":
        if self.gradient_scale.bit_count() != 1:
            raise ValueError(
                f"gradient_scale: got {self.gradient_scale}, must be a power of two. Set "
                f"{2 ** (self.gradient_scale.bit_length() - 1)}."
            )
        if self.integer_bits + self.fraction_bits > MOST_BITS:
            raise ValueError(
                f"fraction_bits: got {self.fraction_bits} with integer_bits={self.integer_bits}, must be at most "
                f"{MOST_BITS - self.integer_bits}: fp32, in which it is computed, holds {MOST_BITS} bits."
            )
        return self

    def __str__(self) -> str:
        scaled = f", gradients times {self.gradient_scale}" if self.gradient_scale > 1 else ""
        return f"fixed <{self.integer_bits}, {self.fraction_bits}> {self._what()}{scaled}"


class DynamicFixed(OnGrid):
    """Fixed point whose point moves: each tensor has its own, by how many of its numbers are outside of the grid.

    If more than `max_overflow` of them were, since it was last looked at, the grid becomes twice as wide; if no more
    would have been on half of the width, half as wide (Courbariaux et al. 2014, arXiv:1412.7024, sections 5 and 7).

    `bits`: with the sign.
    `weight_bits`: those of weights, which collect small steps; as many as `bits` unless given.
    `integer_bits`: of them before the point at first, with the sign.
    `max_overflow`: a share of a tensor's numbers.
    `every`: updates between two looks; the first `every` updates have one each.
    """

    name: Literal["dynamic_fixed"] = "dynamic_fixed"
    bits: int = Field(ge=1, le=MOST_BITS)
    weight_bits: int | None = Field(default=None, ge=1, le=MOST_BITS)
    integer_bits: int = Field(default=4, ge=-MOST_BITS, le=MOST_BITS)
    max_overflow: float = Field(default=1e-4, ge=0.0, lt=1.0)
    every: int = Field(default=20, ge=1)

    def __str__(self) -> str:
        weights = "" if self.weight_bits in (None, self.bits) else f", {self.weight_bits} of weights,"
        return f"dynamic_fixed {self.bits} bits{weights} {self._what()}"


class Binary(_Float):
    """Signs of weights and activations (kernels/binary.py), of convolutions and linear layers; others stay fp32.

    Weights are kept as real numbers within [-1, 1]. As `default` it spares the first and the last of those layers.

    `scaled`: results times the mean size of their filter's weights, XNOR-Net's alpha.
    """

    name: Literal["binary"] = "binary"
    scaled: bool = False


class Shift(_Float):
    """Batch norms by powers of two (kernels/shift_norm.py), of batch norms; as `default`, others stay fp32."""

    name: Literal["shift"] = "shift"


Format = Annotated[
    Fp32 | Tf32 | Bf16 | Fp16 | Fp8 | Fixed | DynamicFixed | Binary | Shift,
    Field(discriminator="name"),
    BeforeValidator(expand_shorthand),
    ShorthandSchema("formats (docs/precision.md)", bare=NAMES - WITH_SETTINGS),
]


class GuardConfig(Section):
    """When a layer goes on in a wider format: after `steps` updates in a row in which the gradients of its weights
    overflow or vanish.

    `overflow`: the share of them that is outside of the layer's grid, infinite or NaN.
    `vanish`: the share of those that are not zero which becomes zero; of gradients that are not rounded, the share of
        zeros.
    """

    steps: int = Field(default=20, ge=1)
    overflow: float = Field(default=0.01, gt=0.0, le=1.0)
    vanish: float = Field(default=0.99, gt=0.0, le=1.0)


class WeightsConfig(Section):
    """In which numbers the optimizer keeps weights.

    `weights`: `fp32`, or `bf16` without a copy in fp32, of all layers that compute in bf16; norms and biases stay fp32.
    `rounding`: of weights in bf16 after an update: `stochastic`, or `nearest`, which loses small steps.
    `state`: of momentum and the like, for weights in bf16.
    """

    weights: Literal["fp32", "bf16"] = "fp32"
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    state: Literal["fp32", "bf16"] = "fp32"


class PrecisionConfig(Section):
    """In which numbers to train: a format for all layers, or rules.

    `default`: of layers that no rule names.
    `layers`: formats by glob of module names, of which the first that matches counts. Globs may stand beside `default`
        too, as they mostly do.
    `optimizer`: the numbers that weights are kept in.
    `guard`: gives layers wider formats where their gradients do not fit; none unless given.
    """

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})  # globs

    default: Format = Fp32()
    layers: dict[str, Format] = {}  # noqa: RUF012  # pydantic copies it
    optimizer: WeightsConfig = WeightsConfig()
    guard: GuardConfig | None = None

    @model_validator(mode="after")
    def _check(self) -> "PrecisionConfig":
        for glob, chosen in self.layers.items():
            if chosen.name in OF_ALL and chosen.name != self.default.name:
                raise ValueError(
                    f"layers: got {chosen.name} for {glob!r} with default={self.default.name}, must be another there, "
                    f"or default: {chosen.name} too: {OF_ALL[chosen.name]}"
                )
        if self.guard is not None and self.optimizer.weights == "bf16":
            raise ValueError("guard: got one with optimizer.weights=bf16, must be none. Keep weights in fp32.")
        if self.optimizer.weights == "bf16" and all(chosen.name != "bf16" for chosen in self.formats):
            raise ValueError(
                f"optimizer.weights: got bf16 with default={self.default.name}, must be fp32 where no layer computes "
                "in bf16. Set precision.default: bf16."
            )
        return self

    @property
    def formats(self) -> tuple[Format, ...]:
        return self.default, *self.layers.values()

    @property
    def is_by_layer(self) -> bool:
        """Whether layers may have formats that differ."""
        return bool(self.layers) or isinstance(self.default, Binary | Fp8 | Shift)

    @property
    def suits_any_strategy(self) -> bool:
        """Whether nothing but an optimizer changes weights, and formats do not hang on what happens in training."""
        changed = any(
            isinstance(chosen, Binary | DynamicFixed) or (isinstance(chosen, Fixed) and "weights" in chosen.of)
            for chosen in self.formats
        )
        return self.optimizer.weights == "fp32" and self.guard is None and not changed

    @property
    def is_traced(self) -> bool:
        """Whether torch.compile can follow all of it."""
        return self.guard is None and not any(isinstance(chosen, OnGrid | Binary | Shift) for chosen in self.formats)


def gather_globs(value: Any) -> Any:
    """A format is that of all layers; globs beside the settings belong into `layers`."""
    if not isinstance(value, dict) or "name" in value or (len(value) == 1 and set(value) <= NAMES):
        return {"default": value}
    globs = {key: part for key, part in value.items() if key not in PrecisionConfig.model_fields}
    if not globs or not isinstance(value.get("layers", {}), dict):
        return value
    settings = {key: part for key, part in value.items() if key not in globs}
    return settings | {"layers": {**globs, **settings.get("layers", {})}}


Precision = Annotated[
    PrecisionConfig,
    BeforeValidator(gather_globs, json_schema_input_type=PrecisionConfig | Bare),
]

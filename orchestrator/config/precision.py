"""The section `precision`: the numbers that layers compute with, and those that weights are kept in."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, Strict, model_validator

from orchestrator.config.section import Section
from pipelines.augment.shorthand import ShorthandSchema, expand_shorthand

MOST_BITS = 24  # that fp32, in which fixed point is computed, holds
NAMES = frozenset({"fp32", "bf16", "fp16", "fixed", "binary", "shift"})
Role = Literal["weights", "activations", "gradients"]
ROLES: tuple[Role, ...] = ("weights", "activations", "gradients")


class _Float(Section):
    name: str

    def __str__(self) -> str:
        return self.name


class Fp32(_Float):
    """Single precision."""

    name: Literal["fp32"] = "fp32"


class Bf16(_Float):
    """Products of factors in bfloat16, summed in fp32; weights in fp32."""

    name: Literal["bf16"] = "bf16"


class Fp16(_Float):
    """As bf16, in half precision, with dynamic loss scaling: of all layers or none."""

    name: Literal["fp16"] = "fp16"


class Fixed(Section):
    """Fixed point <IL, FL>, computed in fp32 (Gupta et al. 2015, arXiv:1502.02551, section 3).

    `integer_bits`: IL, with the sign.
    `fraction_bits`: FL; with IL 24 at most.
    `rounding`: `stochastic`, whose mean is the number, or `nearest`.
    `of`: what is on the grid: a layer's weights after each update, its outputs (`activations`), and the gradients of
        both.
    """

    name: Literal["fixed"] = "fixed"
    integer_bits: int = Field(ge=1, le=MOST_BITS)
    fraction_bits: int = Field(ge=0, lt=MOST_BITS)
    rounding: Literal["stochastic", "nearest"] = "stochastic"
    of: Annotated[tuple[Role, ...], Strict(False), Field(min_length=1)] = ROLES

    @model_validator(mode="after")
    def _check(self) -> "Fixed":
        if self.integer_bits + self.fraction_bits > MOST_BITS:
            raise ValueError(
                f"fraction_bits: got {self.fraction_bits} with integer_bits={self.integer_bits}, must be at most "
                f"{MOST_BITS - self.integer_bits}: fp32, in which it is computed, holds {MOST_BITS} bits."
            )
        return self

    def __str__(self) -> str:
        which = "" if self.of == ROLES else f" of {' and '.join(self.of)}"
        return f"fixed <{self.integer_bits}, {self.fraction_bits}> {self.rounding}{which}"


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
    Fp32 | Bf16 | Fp16 | Fixed | Binary | Shift,
    Field(discriminator="name"),
    BeforeValidator(expand_shorthand),
    ShorthandSchema("formats (docs/precision.md)", bare=NAMES - {"fixed"}),
]


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
    """

    model_config = ConfigDict(json_schema_extra={"additionalProperties": True})  # globs

    default: Format = Fp32()
    layers: dict[str, Format] = {}  # noqa: RUF012  # pydantic copies it
    optimizer: WeightsConfig = WeightsConfig()

    @model_validator(mode="after")
    def _check(self) -> "PrecisionConfig":
        for glob, chosen in self.layers.items():
            if chosen.name == "fp16" != self.default.name:
                raise ValueError(
                    f"layers: got fp16 for {glob!r} with default={self.default.name}, must be another there, or "
                    "default: fp16 too: the loss is scaled for all layers or none. bf16 needs no scale."
                )
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
        return bool(self.layers) or isinstance(self.default, Binary | Shift)

    @property
    def keeps_weights_in_fp32(self) -> bool:
        """Whether nothing but an optimizer changes weights."""
        changed = any(
            isinstance(chosen, Binary) or (isinstance(chosen, Fixed) and "weights" in chosen.of)
            for chosen in self.formats
        )
        return self.optimizer.weights == "fp32" and not changed


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
    BeforeValidator(
        gather_globs, json_schema_input_type=PrecisionConfig | Literal["fp32", "bf16", "fp16", "binary", "shift"]
    ),
]

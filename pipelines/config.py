"""What a pipeline is: the `data` section of an experiment file."""

from typing import Annotated, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Strict,
    Tag,
    field_validator,
    model_validator,
)

from pipelines.augment.colour import ColourJitter
from pipelines.augment.framing import CenterCrop, RandomResizedCrop, ScaleJitter
from pipelines.augment.mixing import Cutmix, Mixup
from pipelines.augment.normalize import Normalize
from pipelines.augment.pca import PcaColour
from pipelines.augment.program import check_forms, compile_program
from pipelines.augment.random_mix import RandomMix
from pipelines.augment.random_mixing import RandomMixing
from pipelines.augment.shorthand import ShorthandSchema, expand_shorthand
from pipelines.augment.table import Operation
from pipelines.quarantine import Share
from pipelines.resize import Resize

# The one table of augmentations: an experiment names them by the `name` field of their class.
Augmentation = Annotated[
    RandomResizedCrop
    | ScaleJitter
    | CenterCrop
    | Operation
    | RandomMix
    | ColourJitter
    | PcaColour
    | Normalize
    | Mixup
    | Cutmix
    | RandomMixing,
    Field(discriminator="name"),
]

# `auto`, a number, or [min, max]. The tags keep pydantic from reporting a mistake once for each member of the union.
Actors = Annotated[
    Annotated[Literal["auto"], Tag("auto")]
    | Annotated[int, Field(ge=1), Tag("number")]
    | Annotated[
        tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]],
        Strict(False),
        Field(title="[min, max]"),
        Tag("range"),
    ],
    Discriminator(lambda value: {str: "auto", list: "range", tuple: "range"}.get(type(value), "number")),
]


class PipelineConfig(BaseModel):
    """Where the samples come from and what is done to them.

    `train`, `val`: a source: `digits`, or `imagefolder:PATH`, `tar:PATH`, `parquet:PATH`, `shards:PATH`, options
        behind `?` (docs/data.md).
    `image_size`: pixels a side; an image of another size is scaled by its short side and cropped in the
        centre.
    `channels`: 1 grey, 3 RGB.
    `augment`: in order of execution; those that draw nothing (normalize) are applied in evaluation too.
    `resize`: antialias, or linear: faster, and coarser where images get smaller.
    `window`: 0 shuffles all samples. Otherwise the source's files (shards, tars, row groups) are shuffled and samples
        within so many files at a time, so that reads stay in long runs: for disks and object stores.
    `max_bad`: what share of an epoch's samples may be unreadable (and replaced by others) before the run stops.
    `actors`: processes that make the training samples, where Ray runs: `auto`, a number, or [min, max], between which
        they grow and shrink with the work and the cluster.
    `prefetch_mib`: how much a worker holds ready beside the batch it is on, on the CPU.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    train: str
    val: str
    image_size: int = Field(ge=1, le=4096)
    channels: Literal[1, 3] = 3
    augment: Annotated[
        tuple[Annotated[Augmentation, BeforeValidator(expand_shorthand), ShorthandSchema()], ...],
        Strict(False),
    ] = ()
    resize: Resize = "antialias"
    window: int = Field(default=0, ge=0)
    max_bad: Share = 0.001
    actors: Actors = "auto"
    prefetch_mib: int = Field(default=256, ge=1)

    @field_validator("actors")
    @classmethod
    def _check_actors(cls, value: Literal["auto"] | int | tuple[int, int]) -> Literal["auto"] | int | tuple[int, int]:
        if isinstance(value, tuple) and value[0] > value[1]:
            raise ValueError(f"got {list(value)}, the first must be <= the second: [min, max].")
        return value

    @model_validator(mode="after")
    def _check_augment(self) -> "PipelineConfig":
        compile_program(self.augment)
        check_forms(self.augment, self.channels, self.image_size)
        return self

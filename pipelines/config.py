"""What a pipeline is: the `data` section of an experiment file."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict, model_validator

from pipelines.augment.colour import ColourJitter
from pipelines.augment.framing import CenterCrop, RandomResizedCrop, ScaleJitter
from pipelines.augment.mixing import Cutmix, Mixup
from pipelines.augment.normalize import Normalize
from pipelines.augment.pca import PcaColour
from pipelines.augment.program import check_forms, compile_program
from pipelines.augment.random_mix import RandomMix
from pipelines.augment.shorthand import ShorthandSchema, expand_shorthand
from pipelines.augment.table import Operation

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
    | Cutmix,
    Field(discriminator="name"),
]


class PipelineConfig(BaseModel):
    """Where the samples come from and what is done to them.

    `train`, `val`: a source: `digits`, `imagefolder:PATH` or `tar:PATH`, class folders inside.
    `image_size`: pixels a side; an image of another size is scaled by its short side and cropped in the
        centre.
    `channels`: 1 grey, 3 RGB.
    `augment`: in order of execution; those that draw nothing (normalize) are applied in evaluation too.
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

    @model_validator(mode="after")
    def _check_augment(self) -> "PipelineConfig":
        compile_program(self.augment)
        check_forms(self.augment, self.channels, self.image_size)
        return self

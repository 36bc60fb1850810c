"""What a pipeline is: the `data` section of an experiment file."""

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    Strict,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from pipelines.augment.crop import RandomCrop
from pipelines.augment.flip import HorizontalFlip
from pipelines.augment.normalize import Normalize

# The one table of augmentations: an experiment names them by the `name` field of their class.
Augmentation = Annotated[RandomCrop | HorizontalFlip | Normalize, Field(discriminator="name")]


def expand_shorthand(value: Any) -> Any:
    """Turn `horizontal_flip` and `{random_crop: {padding: 4}}` into `{name: ..., options...}`.

    What has neither form is returned as it is, for pydantic to refuse.
    """
    if isinstance(value, str):
        return {"name": value}
    if isinstance(value, dict) and len(value) == 1 and "name" not in value:
        ((name, options),) = value.items()
        if options is None or (isinstance(options, dict) and "name" not in options):
            return {"name": name, **(options or {})}
    return value


class ShorthandSchema:
    """Adds the forms that `expand_shorthand` reads to the JSON schema of a union."""

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        union = handler(core_schema)
        models: dict[str, str] = union["discriminator"]["mapping"]
        forms: list[JsonSchemaValue] = []
        for name, ref in models.items():
            options: JsonSchemaValue = {"$ref": ref, "not": {"required": ["name"]}}
            if not handler.resolve_ref_schema({"$ref": ref}).get("required"):
                forms.append({"const": name})
                options = {"anyOf": [options, {"type": "null"}]}
            forms.append(
                {
                    "type": "object",
                    "properties": {name: options},
                    "required": [name],
                    "additionalProperties": False,
                }
            )
        *most, last = models
        return {
            "title": f"{', '.join(most)} or {last}, with options as {{NAME: {{...}}}} or {{name: NAME, ...}}",
            "discriminator": union["discriminator"],
            "anyOf": [*forms, *union["oneOf"]],
        }


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
        for index, augmentation in enumerate(self.augment):
            if isinstance(augmentation, Normalize):
                if index != len(self.augment) - 1:
                    raise ValueError(
                        f"augment.{index}: got normalize as number {index + 1} of {len(self.augment)}, "
                        "must be the last, because pixels stay uint8 until the device. "
                        "Move it to the end of the list."
                    )
                if len(augmentation.mean) != self.channels:
                    raise ValueError(
                        f"augment.{index}.normalize.mean: got {list(augmentation.mean)}, must have one value "
                        f"for each of data.channels={self.channels}. Give as many values as channels."
                    )
        return self

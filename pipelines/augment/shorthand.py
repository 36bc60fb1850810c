"""The short forms in which an experiment may write an augmentation or a format of numbers, and their JSON schema."""

from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema


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


@dataclass(frozen=True)
class ShorthandSchema:
    """Adds the forms that `expand_shorthand` reads to the JSON schema of a union.

    `what`: many of its members. `bare`: names of those that need no options, for a union that is used more than once,
    whose members pydantic has not described yet when it asks; None finds them itself.
    """

    what: str = "augmentations (docs/augmentation.md)"
    bare: frozenset[str] | None = None

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        union = handler(core_schema)
        models: dict[str, str] = union["discriminator"]["mapping"]
        forms: list[JsonSchemaValue] = []
        for name, ref in models.items():
            options: JsonSchemaValue = {"$ref": ref, "not": {"required": ["name"]}}
            is_bare = (
                name in self.bare if self.bare is not None else _is_bare(handler.resolve_ref_schema({"$ref": ref}))
            )
            if is_bare:
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
        return {
            "title": f"one of {len(models)} {self.what}, with options as {{NAME: {{...}}}} or {{name: NAME, ...}}",
            "discriminator": union["discriminator"],
            "anyOf": [*forms, *union["oneOf"]],
        }


def _is_bare(member: JsonSchemaValue) -> bool:
    return not member.get("required")

"""The short forms in which an experiment may write an augmentation, and their JSON schema."""

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
        return {
            "title": f"one of {len(models)} augmentations (docs/augmentation.md), "
            "with options as {NAME: {...}} or {name: NAME, ...}",
            "discriminator": union["discriminator"],
            "anyOf": [*forms, *union["oneOf"]],
        }

"""The JSON Schema (2020-12) of an experiment file: for editors, and for the words of mistakes.

It is what pydantic derives from the models, with three changes: a field's line in the docstring of its class
becomes its description, generated titles are left out, and where a section's `name` chooses its kind, the
name is required, as it is when a file is loaded, but for the strategy's.
"""

import re
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from orchestrator.config.experiment import Experiment
from orchestrator.config.strategy import IMPLIED

Schema = dict[str, Any]

# "`a`, `b`: text" up to the next such, an empty line, or the end.
_FIELD = r"`\w+`(?:, `\w+`)*:\s"
_FIELD_LINE = re.compile(rf"(?P<names>{_FIELD})(?P<text>.*?)(?=\s+{_FIELD}|\n\s*\n|\Z)", re.DOTALL)


def experiment_schema() -> Schema:
    """Describe every section and field of an experiment file, its shorthand forms included."""
    schema = Experiment.model_json_schema(schema_generator=_Generator)
    return {"$schema": _Generator.schema_dialect, "title": "Convoy experiment", **schema}


def describe_fields(docstring: str) -> dict[str, str]:
    """Give what a class docstring says in lines of the form "`field`, `other`: text" of each field."""
    return {
        name: " ".join(match["text"].split())
        for match in _FIELD_LINE.finditer(docstring)
        for name in re.findall(r"\w+", match["names"])
    }


class _Generator(GenerateJsonSchema):
    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:  # noqa: ARG002
        return value  # the models' own order is the better one to read

    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002
        return False

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        section = super().model_schema(schema)
        section.pop("title", None)
        described = describe_fields(section.get("description", ""))
        for name, field in section.get("properties", {}).items():
            if name in described:
                field.setdefault("description", described[name])
        return section

    def tagged_union_schema(self, schema: core_schema.TaggedUnionSchema) -> JsonSchemaValue:
        union = super().tagged_union_schema(schema)
        if "discriminator" in union:
            tag = union["discriminator"]["propertyName"]
            implied = union["discriminator"]["mapping"].get(IMPLIED)
            union["oneOf"] = [
                member if member["$ref"] == implied else {**member, "required": [tag]} for member in union["oneOf"]
            ]
        return union

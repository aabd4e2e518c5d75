"""The configuration as a JSON Schema, for editors: descriptions, choices, ranges and completion."""

from __future__ import annotations

from typing import Any

from pydicom.datadict import keyword_dict

from pacs_node.config.attributes import ASSOCIATION, kind_of
from pacs_node.config.model import Config


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of pacs-node.yaml."""
    schema = Config.model_json_schema(by_alias=True)
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "pacs-node.yaml",
        **{key: value for key, value in schema.items() if key != "title"},
    }
    definitions = schema["$defs"]
    for section in (schema, *definitions.values()):
        for name, field in section.get("properties", {}).items():
            if "$ref" in field or field.get("type") in ("object", "array"):
                # A section whose lines are all commented out is null
                section["properties"][name] = {
                    "anyOf": [{k: v for k, v in field.items() if k != "description"}, {"type": "null"}],
                    "description": field.get("description", ""),
                }
    condition = {
        "anyOf": [
            {"$ref": "#/$defs/Condition"},
            {"type": ["string", "number", "boolean"]},
            {"type": "array", "items": {"type": ["string", "number", "boolean"]}, "minItems": 1},
        ]
    }
    definitions["Condition"]["properties"]["not"] = {
        **condition,
        "description": definitions["Condition"]["properties"]["not"]["description"],
    }
    when = definitions["Rule"]["properties"]["when"]["anyOf"][0]
    when["additionalProperties"] = condition
    when["propertyNames"] = {"enum": [*ASSOCIATION, *sorted(k for k in keyword_dict if k and kind_of(k))]}
    return schema

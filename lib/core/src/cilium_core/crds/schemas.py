"""JSON schemas of models, in the structural form that Kubernetes asks of definitions.

References are written out, "or null" is left out (an absent field says as much), and what only
tools for people use is dropped. Pure functions.
"""

from __future__ import annotations

from typing import Any, Final

from pydantic import TypeAdapter

Schema = dict[str, Any]

_KEPT: Final = (
    "description",
    "type",
    "format",
    "enum",
    "pattern",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
    "required",
    "oneOf",
    "anyOf",
    "allOf",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
)
_MAX_DEPTH: Final = 40


def schema_of(model: Any) -> Schema:
    """The structural schema of a model, or of any type that pydantic understands."""
    whole = TypeAdapter(model).json_schema(by_alias=True, mode="validation")
    return _structural(whole, whole.get("$defs", {}), 0)


def _structural(schema: Schema, definitions: dict[str, Schema], depth: int) -> Schema:
    if depth > _MAX_DEPTH:
        raise RecursionError("a model contains itself, which no definition can say")
    schema = _written_out(schema, definitions)
    if not schema or set(schema) <= {"description", "title", "default"}:
        return {
            **_description(schema),
            "type": "object",
            "x-kubernetes-preserve-unknown-fields": True,
        }
    found: Schema = {key: schema[key] for key in _KEPT if key in schema}
    if "properties" in schema:
        found["properties"] = {
            name: _structural(part, definitions, depth + 1)
            for name, part in schema["properties"].items()
        }
        if schema.get("additionalProperties") is True:
            found["x-kubernetes-preserve-unknown-fields"] = True
    elif isinstance(schema.get("additionalProperties"), dict):
        inner = schema["additionalProperties"]
        found["additionalProperties"] = _structural(inner, definitions, depth + 1)
    elif schema.get("type") == "object" and "additionalProperties" in schema:
        found["x-kubernetes-preserve-unknown-fields"] = True
    if "items" in schema:
        found["items"] = _structural(schema["items"], definitions, depth + 1)
    return found


def _written_out(schema: Schema, definitions: dict[str, Schema]) -> Schema:
    """A schema without reference, "or null" and constant."""
    while True:
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            rest = {key: part for key, part in schema.items() if key != "$ref"}
            schema = {**definitions[name], **_kept_beside(rest)}
        elif "x-kubernetes-int-or-string" in schema:
            return schema
        elif (parts := _without_null(schema.get("anyOf"))) is not None:
            rest = {key: part for key, part in schema.items() if key != "anyOf"}
            schema = {**parts[0], **_kept_beside(rest)}
        elif "const" in schema:
            schema = {**schema, "enum": [schema["const"]]}
            del schema["const"]
        else:
            return schema


def _without_null(parts: list[Schema] | None) -> list[Schema] | None:
    """The one alternative beside null; None when the alternatives are of another sort."""
    if parts is None:
        return None
    rest = [part for part in parts if part.get("type") != "null"]
    return rest if len(rest) == 1 and (len(rest) < len(parts) or "type" in rest[0]) else None


def _kept_beside(schema: Schema) -> Schema:
    """What counts of that which stands beside a reference."""
    return {
        key: part
        for key, part in schema.items()
        if key in _KEPT and (key == "description" or key.startswith("x-"))
    }


def _description(schema: Schema) -> Schema:
    return {"description": schema["description"]} if "description" in schema else {}

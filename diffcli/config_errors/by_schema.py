"""Mistakes of a raw tree that the JSON schema of a config proves, found by pydantic's core without the config itself.

A config takes more forms than its schema tells, such as one value for a list of it. So only the value of a key counts that has
the right form and is refused: out of bounds, not one of the choices, no number, or a key that does not exist.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import CoreSchema, SchemaValidator, core_schema

from diffcli.config import no_switch
from diffcli.config_errors.explaining import Mistake, mistakes
from diffcli.config_errors.schema_paths import Described, schema_of, value_at

NAMES = {"extra_forbidden", "union_tag_invalid"}  # mistakes of a key or kind, whatever its value
VALUES = {"literal_error", "greater_than_equal", "greater_than", "less_than_equal", "less_than", "finite_number"}
VALUES |= {"int_type", "int_parsing", "int_from_float", "float_type", "float_parsing", "bool_type", "bool_parsing"}


def certain_mistakes(tree: dict[str, Any], model: Described, keys: Sequence[str]) -> list[Mistake]:
    """All mistakes of a tree, as `explaining.mistakes` words them, where each is certain and at or below a dotted key of `keys`.

    None where there are others: whether these are mistakes, and what contradicts them, the config alone can tell.
    """
    try:
        _validator(model).validate_python(tree)
    except ValidationError as error:
        found = mistakes(error, tree, model)
        return found if all(_below(each, keys) and _certain(each, tree) for each in found) else []
    return []


def _below(mistake: Mistake, keys: Sequence[str]) -> bool:
    path = ".".join(map(str, [*mistake.path, "kind"] if mistake.type == "union_tag_invalid" else mistake.path)) + "."
    made = mistake.type == "extra_forbidden"  # by a key below it, perhaps
    return any(path.startswith(f"{key}.") or (made and f"{key}.".startswith(path)) for key in keys)


def _certain(mistake: Mistake, tree: dict[str, Any]) -> bool:
    """Whether no form of a value is taken, also by a config that takes more forms than its schema has."""
    value = value_at(tree, mistake.path)
    return mistake.type in NAMES or (mistake.type in VALUES and not isinstance(value, dict | list))


@cache
def _validator(model: Described) -> SchemaValidator:
    schema = schema_of(model)
    definitions: dict[str, Any] = schema.get("$defs", {})
    named: list[Any] = [{**_core(node, definitions), "ref": name} for name, node in definitions.items()]
    return SchemaValidator(core_schema.definitions_schema(_core(schema, definitions), named))


def _core(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> CoreSchema:
    """pydantic's core schema of a JSON schema, as pydantic writes these; anything goes for a choice of several forms."""

    def core(inner: Mapping[str, Any]) -> CoreSchema:
        return _core(inner, definitions)

    match node:
        case {"$ref": _}:
            return core_schema.definition_reference_schema(_name(node))
        case {"const": _} | {"enum": _}:
            choices = core_schema.literal_schema(_values(node))
            return choices if any(isinstance(each, bool) for each in _values(node)) else _number(choices)
        case {"discriminator": {"propertyName": key}, "oneOf": forms}:
            tags = {tag: core(form) for form in forms for tag in _values(definitions[_name(form)]["properties"][key])}
            return core_schema.tagged_union_schema(tags, key)
        case {"anyOf": [form, {"type": "null"}]}:
            return core_schema.nullable_schema(core(form))
        case {"type": "boolean"}:
            return core_schema.bool_schema()
        case {"type": "integer"}:
            return _number(core_schema.int_schema(**_bounds(node)))
        case {"type": "number"}:
            return _number(core_schema.float_schema(**_bounds(node), allow_inf_nan=False))
        case {"type": "string"}:
            return core_schema.str_schema()
        case {"type": "array", "prefixItems": items}:
            return core_schema.tuple_schema([core(each) for each in items])
        case {"type": "array"}:
            return core_schema.tuple_variable_schema(core(node.get("items", {})))
        case {"type": "object", "properties": properties}:
            fields = {
                name: core_schema.typed_dict_field(core(each), required=name in node.get("required", ()))
                for name, each in properties.items()
            }
            return core_schema.typed_dict_schema(fields, extra_behavior="forbid")
        case {"type": "object"}:
            return core_schema.dict_schema(values_schema=core(node.get("additionalProperties") or {}))
    return core_schema.any_schema()


def _name(node: Mapping[str, Any]) -> str:
    """That of the definition which a node refers to."""
    return str(node["$ref"]).rsplit("/", 1)[-1]


def _values(node: Mapping[str, Any]) -> list[Any]:
    """The choices of a node."""
    return [node["const"]] if "const" in node else list(node["enum"])


def _bounds(node: Mapping[str, Any]) -> dict[str, Any]:
    names = {"minimum": "ge", "exclusiveMinimum": "gt", "maximum": "le", "exclusiveMaximum": "lt"}
    return {own: node[name] for name, own in names.items() if name in node}


def _number(schema: CoreSchema) -> CoreSchema:
    return core_schema.no_info_before_validator_function(no_switch, schema)

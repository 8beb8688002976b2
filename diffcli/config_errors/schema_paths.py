"""Paths into the JSON schema of a config: which values each key may have, and examples.

A path is a sequence of keys and list indices of the tree; unions are followed by the `kind` that the tree gives.
"""

import json
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel

Place = Sequence[int | str]
Node = dict[str, Any]
WIDE = 10**6  # letters of a line that YAML must not break


class SchemaFile(NamedTuple):
    """A file that stands for the config which it describes."""

    path: Path

    def model_json_schema(self) -> Node:
        """The JSON schema."""
        found: Node = json.loads(self.path.read_text(encoding="utf-8"))
        return found


Described = type[BaseModel] | SchemaFile


def known_keys(model: Described, tree: Any, path: Place) -> list[str]:
    """The keys that the schema allows at a path, following each node's `kind`."""
    return list(_at(model, tree, path).get("properties", {}))


def forms(model: Described, tree: Any, path: Place) -> dict[str, Node]:
    """The schema of each key at a path, without its default and description: equal for keys with the same values."""
    notes = ("default", "description", "title", "examples")
    keys: dict[str, Node] = _at(model, tree, path).get("properties", {})
    return {name: {part: value for part, value in node.items() if part not in notes} for name, node in keys.items()}


def default_kind(model: Described, tree: Any, path: Place) -> str | None:
    """The `kind` that a key takes where the file leaves it out; None where it has none."""
    field = _at(model, tree, path[:-1]).get("properties", {}).get(path[-1], {})
    default = field.get("default")
    return default.get("kind") if isinstance(default, dict) else None


def kinds(model: Described, tree: Any, path: Place) -> list[str]:
    """The values of `kind` at a path; empty if there is no choice."""
    return list(_mapping(_at(model, tree, path)))


def length(model: Described, tree: Any, path: Place) -> int | None:
    """The length of the list at a path, if the schema fixes it."""
    return len(_array(_at(model, tree, path)).get("prefixItems", ())) or None


def listed(model: Described, tree: Any, path: Place, value: Any) -> list[Any]:
    """A list that the schema takes at a path, made of a value that was meant where it is not None and can be one of it."""
    items = _resolve(_array(_at(model, tree, path)).get("items", {}), _definitions(model), value)
    types = {form["type"] for form in (items, *items.get("anyOf", ())) if "type" in form}
    numeric = bool(types) and types <= {"integer", "number"}
    if numeric and value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
        default = taken(model, tree, path)
        return default if isinstance(default, list) else listed(model, tree, path, None)
    example = _example(_array(_at(model, tree, path)), value, _definitions(model))
    field = _at(model, tree, path[:-1]).get("properties", {}).get(path[-1], {})
    known = next((each for each in (field.get("default"), *field.get("examples", ())) if each), None)
    if isinstance(example, list) and None not in example:
        return example
    return list(known) if isinstance(known, list | tuple) else [value]  # of words, the schema knows no others


def taken(model: Described, tree: Any, path: Place) -> Any:
    """A value that the schema takes at a path: its default, an example, or one within its limits; None where there is none."""
    field = _at(model, tree, path[:-1]).get("properties", {}).get(path[-1], {})
    node = _at(model, tree, path)
    for told in (field, node):
        known = [told.get("default"), *told.get("examples", ())]
        if (value := next((each for each in known if each is not None), None)) is not None:
            return value
    return listed(model, tree, path, None) if node.get("type") == "array" else _simple(node)


def record(model: Described, tree: Any, path: Place, name: object) -> Node:
    """KEY: VALUE pairs that the schema accepts at a path, one if possible; name: of the entry, if every name is allowed."""
    node = _at(model, tree, path)
    if "properties" in node:
        return _pair(node, _definitions(model))
    if not isinstance(name, str) or not name:
        return {}
    pair = _pair(_resolve(node.get("additionalProperties") or {}, _definitions(model), None), _definitions(model))
    return {name: pair} if pair else {}


def stand_in(model: Described, tree: Any, path: Place) -> Any:
    """A value that the schema may take at a path, without the keys that a record needs; None where none is known."""
    node = _at(model, tree, path)
    if choice := list(_mapping(node)):
        return {"kind": choice[0]}
    if "properties" in node:
        return {}
    return "x" if node.get("type") == "string" else _example(node, None, _definitions(model))


def setting(tree: Any, path: Place, value: Any) -> str:
    """`KEY=VALUE` for --set that puts a value at a path, quoted for a shell. A list is written whole, a single key alone."""
    path = list(path)
    while isinstance(value, dict) and len(value) == 1 and not any(isinstance(part, int) for part in path):
        path.append(*value)
        value = value[path[-1]]
    while any(isinstance(part, int) for part in path):
        last = path.pop()
        holder = value_at(tree, path)
        if isinstance(last, int):
            value = [*holder[:last], value, *holder[last + 1 :]]
        else:
            value = {**(holder or {}), last: value}
    text = yaml.safe_dump(value, default_flow_style=True, width=WIDE, sort_keys=False).removesuffix("...\n").strip()
    return shlex.quote(".".join(map(str, path)) + "=" + text)


def value_at(tree: Any, path: Place) -> Any:
    """The value of a tree at a path; None if there is none."""
    for part in path:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _at(model: Described, tree: Any, path: Place) -> Node:
    schema = schema_of(model)
    node, definitions = schema, _definitions(model)
    for part in path:
        tree = value_at(tree, [part])
        if isinstance(part, int):
            node = node.get("items", {}) if "items" in node else _item(node, part)
        else:  # a key of a record, or any key of a mapping
            node = node.get("properties", {}).get(part, node.get("additionalProperties") or {})
        node = _resolve(node, definitions, tree)
    return node


@cache
def schema_of(model: Described) -> Node:
    """The JSON schema of a config."""
    return model.model_json_schema()


def _definitions(model: Described) -> Node:
    return schema_of(model).get("$defs", {})


def _item(node: Node, number: int) -> Node:
    items = node.get("prefixItems", [])
    return items[number] if number < len(items) else {}


def _mapping(node: Node) -> Any:
    return node.get("discriminator", {}).get("mapping", {})


def _array(node: Node) -> Any:
    """The form of a node that is a list, where it has several."""
    forms: Any = node.get("oneOf") or node.get("anyOf") or []
    return next((form for form in forms if form.get("type") == "array"), node)


def _resolve(node: Node, definitions: Node, tree: Any) -> Node:
    given = [form for form in node.get("anyOf", []) if form.get("type") != "null"]
    node = {**given[0], **_advice(node)} if len(given) == 1 else node  # what may be left out, by null
    default = node.get("default")
    left_out = default.get("kind") if isinstance(default, dict) else None
    kind = tree.get("kind", left_out) if isinstance(tree, dict) else None
    mapping = _mapping(node)
    forms = [form for form in node.get("oneOf", []) if "$ref" in form]
    if isinstance(tree, dict) and not mapping and len(forms) == 1:  # a number, a list or this one record
        node = forms[0]
    if isinstance(kind, str) and kind in mapping:
        node = {"$ref": mapping[kind]}
    if "$ref" in node:
        node = definitions.get(node["$ref"].rsplit("/", 1)[-1], {})
    return node


def _advice(node: Node) -> Node:
    """The keys of a field's schema beside its forms."""
    return {key: node[key] for key in ("default", "examples") if node.get(key) is not None}


def _example(node: Node, value: Any, definitions: Node) -> Any:
    """A value that a schema takes; see `listed`."""
    node = _resolve(node, definitions, value)
    if node.get("type") == "array":
        items = node.get("prefixItems")
        if items:
            example: Any = node.get("examples", [node.get("default")])[0]
            return list(example) if example else [_example(item, value, definitions) for item in items]
        return [_example(node.get("items", {}), value, definitions)]
    choice = list(_mapping(node))
    if choice and not isinstance(value, dict):
        return {"kind": value if value in choice else choice[0]}
    return _simple(node) if value is None else value


def _pair(node: Node, definitions: Node) -> Node:
    """One key of a record with a value that it takes, a number where it has one; empty where it has no key of one value."""
    found = {}
    for key, inner in node.get("properties", {}).items():
        default = inner.get("default")
        value = default if isinstance(default, int | float | str) else _simple(_resolve(inner, definitions, None))
        if key != "kind" and value is not None:
            found[key] = value
    numbers = [key for key, value in found.items() if isinstance(value, int | float) and not isinstance(value, bool)]
    key = next(iter(numbers), next(iter(found), None))
    return {} if key is None else {key: found[key]}


def _simple(node: Node) -> Any:
    """A value that a schema of one number, word or switch takes; None for any other."""
    if node.get("enum"):
        return node["enum"][0]
    if node.get("anyOf"):
        return next((value for form in node["anyOf"] if (value := _simple(form)) is not None), None)
    lowest: Any = node.get("minimum", node.get("exclusiveMinimum", 0))
    match node.get("type"):
        case "integer":
            return max(1, lowest)
        case "number" if "exclusiveMaximum" in node:
            return (lowest + node["exclusiveMaximum"]) / 2
        case "number":
            return node.get("maximum", lowest + 1)
        case "boolean":
            return True
    return None

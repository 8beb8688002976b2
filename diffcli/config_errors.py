"""Pydantic's verdict on a preset, as one `error:` that names file, key and value and one `hint:` that says what to type."""

from collections.abc import Sequence
from functools import cache
from typing import Any

from pydantic import BaseModel, ValidationError

from diffcli.config import UserError, did_you_mean

TEXTS = {
    "missing": ("{key} is missing", "add it to the file, or --set {key}=VALUE"),
    "extra_forbidden": ("{key} is not a known key", "{guess}"),
    "union_tag_invalid": ("{key}.kind is {tag!r}", "{guess}"),
    "union_tag_not_found": ("{key} has no kind", "add kind: {guess}"),
    "literal_error": ("{key} is {value!r}", "{guess}"),
}


def explain(
    error: ValidationError, tree: dict[str, Any], model: type[BaseModel], source: str, changed: Sequence[str]
) -> UserError:
    """The first error of a validation, with the number of others. `changed`: keys that --set gave."""
    first = error.errors(include_url=False)[0]
    path = plain_path(tree, first["loc"])
    key, value, context = ".".join(map(str, path)), first.get("input"), first.get("ctx", {})
    known = known_keys(model, tree, path[:-1])
    problem, hint = TEXTS.get(
        first["type"], ("{key} is {value!r}: {message}", "change {key}, for example with --set {key}=VALUE")
    )
    expected = context.get("expected_tags", context.get("expected", "")).replace(" or ", ", ")
    tags = [t.strip(" '") for t in expected.split(",")]
    words = {
        "key": key,
        "value": value,
        "message": first["msg"],
        "tag": context.get("tag"),
        "guess": did_you_mean(str(context.get("tag") or (path[-1] if path else "")), tags if tags != [""] else known),
    }
    if first["type"] == "literal_error":
        words["guess"] = did_you_mean(str(value), tags)
    if first["type"] == "union_tag_not_found":
        words["guess"] = "one of the kinds that `diffcli presets schema` lists"
    if first["type"] == "value_error":  # a contradiction that a config found: "what is wrong; what to do"
        message, _, remedy = str(context["error"]).partition("; ")
        problem, hint = (f"{key}: " if key else "") + message, remedy
        return UserError(_where(source, key, changed) + problem, hint)
    others = error.error_count() - 1
    more = f" (and {others} more mistake{'s' if others > 1 else ''})" if others else ""
    return UserError(_where(source, key, changed) + problem.format(**words) + more, hint.format(**words))


def plain_path(tree: Any, loc: Sequence[int | str]) -> list[int | str]:
    """pydantic's location without the tags of unions, which are no keys of the file."""
    path: list[int | str] = []
    node = tree
    for i, part in enumerate(loc):
        if isinstance(node, dict):
            tag = part not in node and (part == node.get("kind") or i + 1 < len(loc))
        else:
            tag = isinstance(part, str) and node is not None  # the form of a number or list
        if tag:
            continue
        path.append(part)
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
    return path


def known_keys(model: type[BaseModel], tree: Any, path: Sequence[int | str]) -> list[str]:
    """The keys that the schema allows at a path, following each node's `kind`."""
    return list(_schema_at(model, tree, path).get("properties", {}))


def default_kind(model: type[BaseModel], tree: Any, path: Sequence[int | str]) -> str | None:
    """The `kind` that a key takes where the file leaves it out; None where it has none."""
    field = _schema_at(model, tree, path[:-1]).get("properties", {}).get(path[-1], {})
    default = field.get("default")
    return default.get("kind") if isinstance(default, dict) else None


def _schema_at(model: type[BaseModel], tree: Any, path: Sequence[int | str]) -> dict[str, Any]:
    schema = _schema(model)
    node, definitions = schema, schema.get("$defs", {})
    for part in path:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            tree = None
        if isinstance(part, int):
            node = node.get("items", {})
        else:  # a key of a record, or any key of a mapping
            node = node.get("properties", {}).get(part, node.get("additionalProperties") or {})
        node = _resolve(node, definitions, tree)
    return node


@cache
def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return model.model_json_schema()


def _resolve(node: dict[str, Any], definitions: dict[str, Any], tree: Any) -> dict[str, Any]:
    given = [form for form in node.get("anyOf", []) if form.get("type") != "null"]
    node = given[0] if len(given) == 1 else node  # what may be left out, by null
    default = node.get("default")
    left_out = default.get("kind") if isinstance(default, dict) else None
    kind = tree.get("kind", left_out) if isinstance(tree, dict) else None
    mapping = node.get("discriminator", {}).get("mapping", {})
    forms = [form for form in node.get("oneOf", []) if "$ref" in form]
    if isinstance(tree, dict) and not mapping and len(forms) == 1:  # a number, a list or this one record
        node = forms[0]
    if isinstance(kind, str) and kind in mapping:
        node = {"$ref": mapping[kind]}
    if "$ref" in node:
        node = definitions.get(node["$ref"].rsplit("/", 1)[-1], {})
    return node


def _where(source: str, key: str, changed: Sequence[str]) -> str:
    from_flag = any(key == c or key.startswith(c + ".") or c.startswith(key + ".") for c in changed if key)
    return f"{source} with --set: " if from_flag else f"{source}: "

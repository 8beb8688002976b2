"""Pydantic's verdict on a preset, as one `error:` that names file, key and value and one `hint:` that says what to type."""

import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from diffcli.config import UserError, did_you_mean

Place = Sequence[int | str]
Node = dict[str, Any]
WIDE = 10**6  # letters of a line that YAML must not break
TEXTS = {
    "missing": ("{key} is missing", "add it to the file, or --set {key}=VALUE"),
    "extra_forbidden": ("{key} is not a known key", "{guess}"),
    "union_tag_invalid": ("{key}.kind is {tag!r}", "{guess}"),
    "union_tag_not_found": ("{key} has no kind", "add kind: {guess}"),
    "literal_error": ("{key} is {shown}", "{guess}"),
}
WHOLE_NUMBER, NUMBER, SWITCH = "must be a whole number", "must be a number", "must be true or false"
LISTS = {"tuple_type", "list_type", "too_short"}  # mistakes of a value that must be a list
RECORDS = {"dict_type", "model_type", "model_attributes_type"}  # of one that must consist of keys
DEMANDS = {  # of a value, by pydantic's name for the mistake
    "int_type": WHOLE_NUMBER,
    "int_parsing": WHOLE_NUMBER,
    "int_from_float": WHOLE_NUMBER,
    "float_type": NUMBER,
    "float_parsing": NUMBER,
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be above {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be below {lt}",
    "string_type": "must be a text",
    "bool_type": SWITCH,
    "bool_parsing": SWITCH,
    "path_type": "must be a path",
    "too_long": "must be a list of {max_length} at most",
}


def explain(
    error: ValidationError, tree: dict[str, Any], model: type[BaseModel], source: str, changed: Sequence[str]
) -> UserError:
    """The first error of a validation, with the number of others. `changed`: keys that --set gave."""
    first = _nearest(error, tree)
    path = plain_path(tree, first["loc"])
    key, value, context = ".".join(map(str, path)), first.get("input"), first.get("ctx", {})
    known = known_keys(model, tree, path[:-1])
    problem, hint = TEXTS.get(
        first["type"], ("{key} is {shown}: {message}", "change {key}, for example with --set {key}=VALUE")
    )
    expected = context.get("expected_tags", context.get("expected", "")).replace(" or ", ", ")
    tags = [t.strip(" '") for t in expected.split(",")]
    words = {
        "key": key,
        "shown": _shown(value),
        "message": demand(first),
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
    reshaped = _reshaped(first, path, model, tree)
    problem, hint = reshaped or (problem.format(**words), hint.format(**words))
    others = error.error_count() - 1
    if reshaped:  # every form that the value might have is a mistake of its own
        place = path[:-1] if first["type"] == "missing" else path
        others = sum(plain_path(tree, each["loc"])[: len(place)] != place for each in error.errors())
    more = f" (and {others} more mistake{'s' if others > 1 else ''})" if others else ""
    return UserError(_where(source, key, changed) + problem + more, hint)


def demand(mistake: Mapping[str, Any]) -> str:
    """What one of pydantic's errors asks of a value: "must be at least 1"; pydantic's own words where there are no others."""
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    wanted = DEMANDS.get(mistake["type"])
    return mistake["msg"] if wanted is None else wanted.format(**mistake.get("ctx", {}))


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


def _nearest(error: ValidationError, tree: dict[str, Any]) -> dict[str, Any]:
    """The first error; of a value that may be a number or a list, that of the form which it has."""
    found: list[Any] = error.errors(include_url=False)
    first = found[0]
    if not isinstance(first.get("input"), list) or first["type"] in LISTS:
        return first
    path = plain_path(tree, first["loc"])
    below = (each for each in found if (place := plain_path(tree, each["loc"])) != path and place[: len(path)] == path)
    return next(below, first)


def _reshaped(
    mistake: Mapping[str, Any], path: Sequence[int | str], model: type[BaseModel], tree: dict[str, Any]
) -> tuple[str, str] | None:
    """Problem and hint of a value that must be a list, of a certain length perhaps, or a record, and is none; else None."""
    kind = mistake["type"]
    if kind == "missing" and path and isinstance(path[-1], int):
        path, kind = path[:-1], "too_short"
    value = value_at(tree, path)
    found = f"{'.'.join(map(str, path))} is {_shown(value)}"
    if kind in LISTS:
        meant = next(iter(value), None) if isinstance(value, list | tuple) else value
        example = listed(model, tree, path, meant)
        fixed = length(model, tree, path)
        size = f" of {fixed}" if fixed else " of 1 or more" if kind == "too_short" else ""
        return f"{found}: must be a list{size}", f"write a list: --set {setting(tree, path, example)}"
    if kind not in RECORDS:
        return None
    problem, choice = f"{found}: must be KEY: VALUE pairs", kinds(model, tree, path)
    if value in choice:
        return problem, f"use --set {setting(tree, path, {'kind': value})}"
    if choice:
        return (
            problem,
            f"name its kind, --set {setting(tree, path, {'kind': 'KIND'})}: {did_you_mean(str(value), choice)}",
        )
    pairs = record(model, tree, path, value)
    if not pairs and (keys := known_keys(model, tree, path)):
        return problem, f"write KEY: VALUE pairs, of the keys {', '.join(keys)}"
    return problem, f"write KEY: VALUE pairs, as in --set {setting(tree, path, pairs)}"


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _where(source: str, key: str, changed: Sequence[str]) -> str:
    from_flag = any(key == c or key.startswith(c + ".") or c.startswith(key + ".") for c in changed if key)
    return f"{source} with --set: " if from_flag else f"{source}: "


def known_keys(model: type[BaseModel], tree: Any, path: Place) -> list[str]:
    """The keys that the schema allows at a path, following each node's `kind`."""
    return list(_at(model, tree, path).get("properties", {}))


def forms(model: type[BaseModel], tree: Any, path: Place) -> dict[str, Node]:
    """What each key at a path may hold, without its default and description: equal for keys that hold the same."""
    told = ("default", "description", "title", "examples")
    keys: dict[str, Node] = _at(model, tree, path).get("properties", {})
    return {name: {part: value for part, value in node.items() if part not in told} for name, node in keys.items()}


def default_kind(model: type[BaseModel], tree: Any, path: Place) -> str | None:
    """The `kind` that a key takes where the file leaves it out; None where it has none."""
    field = _at(model, tree, path[:-1]).get("properties", {}).get(path[-1], {})
    default = field.get("default")
    return default.get("kind") if isinstance(default, dict) else None


def kinds(model: type[BaseModel], tree: Any, path: Place) -> list[str]:
    """What `kind` may be at a path; empty where there is no choice."""
    return list(_mapping(_at(model, tree, path)))


def length(model: type[BaseModel], tree: Any, path: Place) -> int | None:
    """Of the list at a path, where the schema fixes it."""
    return len(_array(_at(model, tree, path)).get("prefixItems", ())) or None


def listed(model: type[BaseModel], tree: Any, path: Place, value: Any) -> list[Any]:
    """A list that the schema takes at a path, made of a value that was meant where it is not None."""
    return _example(_array(_at(model, tree, path)), value, _definitions(model))


def record(model: type[BaseModel], tree: Any, path: Place, name: object) -> Node:
    """KEY: VALUE pairs that the schema takes at a path, one if it can be; name: of the entry, where any name may be."""
    node = _at(model, tree, path)
    if "properties" in node:
        return _pair(node, _definitions(model))
    if not isinstance(name, str) or not name:
        return {}
    pair = _pair(_resolve(node.get("additionalProperties") or {}, _definitions(model), None), _definitions(model))
    return {name: pair} if pair else {}


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
    """What a tree holds at a path; None where it holds nothing."""
    for part in path:
        try:
            tree = tree[part]
        except (KeyError, IndexError, TypeError):
            return None
    return tree


def _at(model: type[BaseModel], tree: Any, path: Place) -> Node:
    schema = _schema(model)
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
def _schema(model: type[BaseModel]) -> Node:
    return model.model_json_schema()


def _definitions(model: type[BaseModel]) -> Node:
    return _schema(model).get("$defs", {})


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
    """What a field says beside its forms."""
    return {key: node[key] for key in ("default", "examples") if node.get(key) is not None}


def _example(node: Node, value: Any, definitions: Node) -> Any:
    """A value that a schema takes; see `listed`."""
    node = _resolve(node, definitions, value)
    if node.get("type") == "array":
        items = node.get("prefixItems")
        if items:
            told: Any = node.get("examples", [node.get("default")])[0]
            return list(told) if told else [_example(item, value, definitions) for item in items]
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

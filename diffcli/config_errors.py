"""Pydantic's verdict on a preset, as one `error:` that names file, key and value and one `hint:` that says what to type."""

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from diffcli import config_schema
from diffcli.config import UserError, did_you_mean
from diffcli.config_schema import known_keys, setting, value_at

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
        example = config_schema.listed(model, tree, path, meant)
        fixed = config_schema.length(model, tree, path)
        size = f" of {fixed}" if fixed else " of 1 or more" if kind == "too_short" else ""
        return f"{found}: must be a list{size}", f"write a list: --set {setting(tree, path, example)}"
    if kind not in RECORDS:
        return None
    problem, kinds = f"{found}: must be KEY: VALUE pairs", config_schema.kinds(model, tree, path)
    if value in kinds:
        return problem, f"use --set {setting(tree, path, {'kind': value})}"
    if kinds:
        return (
            problem,
            f"name its kind, --set {setting(tree, path, {'kind': 'KIND'})}: {did_you_mean(str(value), kinds)}",
        )
    pairs = config_schema.record(model, tree, path, value)
    if not pairs and (keys := known_keys(model, tree, path)):
        return problem, f"write KEY: VALUE pairs, of the keys {', '.join(keys)}"
    return problem, f"write KEY: VALUE pairs, as in --set {setting(tree, path, pairs)}"


def _shown(value: Any) -> str:
    return "null" if value is None else repr(value)


def _where(source: str, key: str, changed: Sequence[str]) -> str:
    from_flag = any(key == c or key.startswith(c + ".") or c.startswith(key + ".") for c in changed if key)
    return f"{source} with --set: " if from_flag else f"{source}: "

"""Turns pydantic's errors about a preset into a UserError with file, key, value and remedy of each mistake."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from diffcli.config import UserError, did_you_mean
from diffcli.config_errors.agreements import contradictions
from diffcli.config_errors.schema_paths import (
    Described,
    kinds,
    known_keys,
    length,
    listed,
    record,
    setting,
    taken,
    value_at,
)

TEXTS = {
    "missing": ("{key} is missing", "add it to the file, or --set {setting}"),
    "extra_forbidden": ("{key} is not a known key", "{guess}"),
    "union_tag_invalid": ("{key}.kind is {tag!r}", "{guess}"),
    "union_tag_not_found": ("{key} has no kind", "add kind: {guess}"),
    "literal_error": ("{key} is {shown}", "{guess}"),
}
ABSENT = object()  # below a key that a tree does not have
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


class Mistake(NamedTuple):
    """One thing that is wrong with a tree: at which path, what it is, and what to type.

    between: the keys below the path are right by themselves and contradict each other. type: pydantic's name for it.
    """

    path: list[int | str]
    problem: str
    hint: str
    between: bool = False
    type: str = ""


def explain(
    error: ValidationError, tree: dict[str, Any], model: type[BaseModel], source: str, changed: Sequence[str]
) -> UserError:
    """All mistakes of a tree that a validation refused. source: its name; changed: keys that --set gave."""
    return in_one(all_mistakes(error, tree, model), source, changed)


def in_one(found: Sequence[Mistake], source: str, changed: Sequence[str]) -> UserError:
    """One error of several mistakes, the first in full. source, changed: see `explain`."""
    first, *others = found
    begins = _where(source, first.path, changed)
    more = f" (and {len(others)} more mistake{'s' if len(others) > 1 else ''})" if others else ""
    also = []
    for other in others:
        where = _where(source, other.path, changed)
        also.append(f"{where if where != begins else ''}{other.problem}; {other.hint}")
    return UserError(begins + first.problem + more, first.hint, also)


def all_mistakes(error: ValidationError, tree: dict[str, Any], model: type[BaseModel]) -> list[Mistake]:
    """What a validation found, and the contradictions between keys that it did not come to."""
    found = mistakes(error, tree, model)
    wrong = [each.path for each in found if not each.between]
    hidden = (_disagreement(*each) for each in contradictions(tree, model, wrong))
    return [*found, *(each for each in hidden if each not in found)]


def mistakes(error: ValidationError, tree: dict[str, Any], model: Described) -> list[Mistake]:
    """One mistake for each wrong value, also if pydantic tried it in several forms."""
    found: list[Mistake] = []
    seen: list[list[int | str]] = []
    for each in _meant(error, tree):
        path = plain_path(tree, each)
        if any(path[: len(place)] == place for place in seen):
            continue
        reshaped = _reshaped(each, path, model, tree)
        seen.append(path[:-1] if reshaped and each["type"] == "missing" else path)
        if each["type"] == "value_error" and isinstance(value_at(tree, path), Mapping):
            found.append(_disagreement(path, str(each["ctx"]["error"])))
        else:
            problem, hint = reshaped or _told(each, path, model, tree)
            found.append(Mistake(path, problem, hint, type=each["type"]))
    return found


def _disagreement(path: list[int | str], message: str) -> Mistake:
    """message: "what is wrong; what to do" of keys below a path."""
    problem, _, remedy = message.partition("; ")
    return Mistake(path, ".".join(map(str, path)) + ": " * bool(path) + problem, remedy, between=True)


def _told(
    mistake: Mapping[str, Any], path: Sequence[int | str], model: Described, tree: dict[str, Any]
) -> tuple[str, str]:
    """Problem and hint of a wrong value whose form is right."""
    key, kind, context = ".".join(map(str, path)), mistake["type"], mistake.get("ctx", {})
    if kind == "value_error":  # "what is wrong; what to do", of one value
        message, _, remedy = str(context["error"]).partition("; ")
        return (f"{key}: " if key else "") + message, remedy
    problem, hint = TEXTS.get(kind, ("{key} is {shown}: {message}", "change {key}, for example with --set {setting}"))
    expected = context.get("expected_tags", context.get("expected", "")).replace(" or ", ", ")
    tags = [t.strip(" '") for t in expected.split(",")]
    choice = tags if tags != [""] else known_keys(model, tree, path[:-1])
    if kind == "missing" and path and taken(model, tree, path) is None:  # a part of a file, of many keys
        hint = "add it to the file; `diffcli presets show digits` prints one that is whole"
    words = {
        "key": key,
        "shown": _shown(mistake.get("input")),
        "message": demand(mistake),
        "tag": context.get("tag"),
        "setting": _setting(model, tree, path),
        "guess": did_you_mean(str(context.get("tag") or (path[-1] if path else "")), choice),
    }
    if kind == "literal_error":
        words["guess"] = did_you_mean(str(mistake.get("input")), tags)
    if kind == "union_tag_not_found":
        words["guess"] = "one of the kinds that `diffcli presets schema` lists"
    return problem.format(**words), hint.format(**words)


def _setting(model: Described, tree: dict[str, Any], path: Sequence[int | str]) -> str:
    """`KEY=VALUE` for --set with a value that the key takes; VALUE itself where the schema tells none, as of a name."""
    value = taken(model, tree, path) if path else None
    return f"{'.'.join(map(str, path))}=VALUE" if value is None else setting(tree, path, value)


def demand(mistake: Mapping[str, Any]) -> str:
    """The condition that a value violates, such as "must be at least 1"; pydantic's own message if diffcli has none."""
    if mistake["type"] == "value_error":
        return str(mistake["ctx"]["error"])
    wanted = DEMANDS.get(mistake["type"])
    return mistake["msg"] if wanted is None else wanted.format(**mistake.get("ctx", {}))


def plain_path(tree: Any, mistake: Mapping[str, Any]) -> list[int | str]:
    """Where one of pydantic's errors is, without the tags of unions and forms of values, which are no keys of the file."""
    path: list[int | str] = []
    node, loc = tree, mistake["loc"]
    for i, part in enumerate(loc):
        if isinstance(node, dict):
            absent = i + 1 == len(loc) and mistake["type"] == "missing"
            tag = part not in node and not absent
        else:
            tag = isinstance(part, str) and node is not ABSENT
        if tag:
            continue
        path.append(part)
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = ABSENT
    return path


def _meant(error: ValidationError, tree: dict[str, Any]) -> list[dict[str, Any]]:
    """The errors without those for forms that the value does not have: for a list, errors about numbers, for example."""
    found: list[Any] = error.errors(include_url=False)
    paths = [plain_path(tree, each) for each in found]

    def meant(each: dict[str, Any], path: list[int | str]) -> bool:
        deeper = any(other[: len(path)] == path and other != path for other in paths)
        return not (deeper and isinstance(each.get("input"), list | dict))

    return [each for each, path in zip(found, paths, strict=True) if meant(each, path)]


def _reshaped(
    mistake: Mapping[str, Any], path: Sequence[int | str], model: Described, tree: dict[str, Any]
) -> tuple[str, str] | None:
    """Problem and hint of a value that must be a list, perhaps of a certain length, or a record, and is not; else None."""
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


def _where(source: str, path: Sequence[int | str], changed: Sequence[str]) -> str:
    key = ".".join(map(str, path))
    from_flag = any(key == c or key.startswith(c + ".") or c.startswith(key + ".") for c in changed if key)
    return f"{source} with --set: " if from_flag else f"{source}: "

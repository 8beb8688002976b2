"""Contradictions between the keys of a tree that has other mistakes, too, so that all of them are shown at once.

Wrong values are taken out of a copy of the tree, which leaves defaults or stand-ins in their place, and the copy is validated.
A contradiction counts if it is there without reading any key whose value was wrong.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from diffcli.config import Agreement
from diffcli.config_errors.schema_paths import Place, stand_in, value_at

ROUNDS = 8  # of stand-ins: a record that is missing may need keys, and these may be records


class Contradiction(NamedTuple):
    """Keys below a path that do not agree. message: "what is wrong; what to do"."""

    path: list[int | str]
    message: str


def contradictions(tree: Any, model: type[BaseModel], wrong: Sequence[Place]) -> list[Contradiction]:
    """All that are certain, whatever the right values at the paths `wrong` are; none where no stand-in is known for these."""
    whole = _without(tree, model, wrong)
    if whole is None:
        return []
    config, agreements = whole
    places = {id(each): path for path, each in _configs(config, [])}
    found = [(places[id(each.config)], each.check) for each in agreements if id(each.config) in places]
    gap = config.model_copy(deep=True)
    for path in wrong:
        _take_out(gap, path)
    configs = {tuple(path): each for path, each in _configs(gap, [])}
    return [
        Contradiction(path, message)
        for path, check in found
        if tuple(path) in configs
        for message in Agreement(configs[tuple(path)], check).contradictions
    ]


def _without(tree: Any, model: type[BaseModel], wrong: Sequence[Place]) -> tuple[BaseModel, list[Agreement]] | None:
    """The config of a tree whose wrong values are left out, and what contradicts itself in it; None where none is found."""
    tree = copy.deepcopy(tree)
    for path in wrong:
        _remove(tree, path)
    for _ in range(ROUNDS):
        agreements: list[Agreement] = []
        try:
            return model.model_validate(tree, context=agreements), agreements
        except ValidationError as error:
            for each in error.errors(include_url=False):
                path = _keys(tree, each["loc"])
                if each["type"] != "missing" or not _put(tree, path, stand_in(model, tree, path)):
                    return None
    return None


def _remove(tree: Any, path: Place) -> None:
    """Takes the key at a path out; of a list, which would count anew, all items."""
    names = [i for i, part in enumerate(path) if isinstance(part, str)]
    if names:
        last = names[-1]
        holder = value_at(tree, path[:last])
        if isinstance(holder, dict):
            holder.pop(path[last], None)


def _put(tree: Any, path: Place, value: Any) -> bool:
    holder = value_at(tree, path[:-1])
    if value is None or not path or not isinstance(holder, dict):
        return False
    holder[path[-1]] = value
    return True


def _keys(tree: Any, loc: Sequence[int | str]) -> list[int | str]:
    """pydantic's location of a missing key, without the kinds of unions, which are no keys."""
    path: list[int | str] = []
    for part in loc[:-1]:
        node = value_at(tree, path)
        there = part in node if isinstance(node, Mapping) else isinstance(part, int)
        if there:
            path.append(part)
    return [*path, *loc[-1:]]


def _configs(value: Any, path: list[int | str]) -> Iterator[tuple[list[int | str], BaseModel]]:
    """Every config of a tree of configs, with the path to it."""
    if isinstance(value, BaseModel):
        yield path, value
        items: Iterator[tuple[int | str, Any]] = iter(vars(value).items())
    elif isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, tuple | list):
        items = iter(enumerate(value))
    else:
        return
    for key, each in items:
        yield from _configs(each, [*path, key])


def _take_out(config: BaseModel, path: Place) -> None:
    """Lets the config that holds the value at a path have none there, so that reading it is an AttributeError.

    A key that no config has was meant for one that the tree leaves out: that of the nearest name, or any.
    """
    holder, name, node = config, "", config
    for part in path:
        if isinstance(node, BaseModel):
            holder, name = node, str(part)
            node = vars(node).get(name)  # type: ignore[assignment]
        else:
            node = value_at(node, [part])
    if name not in vars(holder):
        left_out = [each for each in vars(holder) if each not in holder.model_fields_set]
        for each in get_close_matches(name, left_out) or left_out:
            vars(holder).pop(each)
    vars(holder).pop(name, None)

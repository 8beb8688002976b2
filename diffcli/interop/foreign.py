"""Configuration files of other libraries: read with their defaults, and refused by key if diffcli has no equivalent."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffcli.config import UserError


class Foreign:
    """A configuration of theirs: `get` fills in their defaults, `refuse` names the file, the key and the value found."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], source: str) -> None:
        self.values = values
        self.defaults = defaults
        self.source = source

    def get(self, key: str) -> Any:
        return self.values.get(key, self.defaults.get(key))

    def refuse(self, key: str, why: str, hint: str = "use it with the library that wrote it") -> UserError:
        return UserError(f"{self.source}: {key} is {json.dumps(self.get(key))}, {why}", hint)

    def demand(self, allowed: Mapping[str, tuple[Any, ...]]) -> None:
        """Raises UserError for a key whose value diffcli cannot express."""
        for key, values in allowed.items():
            if self.get(key) not in values:
                shown = " or ".join(json.dumps(value) for value in values)
                raise self.refuse(key, f"which diffcli cannot express (it can {shown})")


def one_sided(attends: Sequence[tuple[bool, bool]], down: str, up: str) -> list[str]:
    """Prefixes of the attention that ours has and theirs lacks, if only one side attends at a level.

    attends: whether the way down and the way up attend at each level, the finest first. down, up: prefixes of their levels.
    """
    found, last = [], len(attends) - 1
    for level, (on_the_way_down, on_the_way_up) in enumerate(attends):
        if on_the_way_up and not on_the_way_down:
            found.append(f"{down}{level}.attentions.")
        if on_the_way_down and not on_the_way_up:
            found.append(f"{up}{last - level}.attentions.")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})", "download the folder again, whole") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {type(found).__name__}, not an object", "download the folder again, whole")
    return found

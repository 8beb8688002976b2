"""The records beside outputs: where they lie and what they hold. Imports nothing heavy."""

import json
from pathlib import Path
from typing import Any

from diffcli.config import UserError

OURS = {"checkpoint", "version"}  # keys that every record has


def sidecar(path: Path) -> Path:
    """The record of an output."""
    return path.with_name(f"{path.name}.json")


def read_record(path: Path) -> dict[str, Any]:
    """The record that a path names: itself, or that of an output. Raises UserError."""
    places = [path] if path.suffix == ".json" else [sidecar(path), path.with_suffix(".json")]
    found = next((record for place in places if (record := raw_record(place)).keys() >= OURS), None)
    if found is None:
        hint = "give an output of `diffcli sample` or `gif` beside its record, or the record itself, for example samples.png.json"
        raise UserError(f"--like {path}: {'is no record' if path.exists() else 'there is no such record'}", hint)
    return found


def raw_record(path: Path) -> dict[str, Any]:
    """The object in a file of JSON; empty where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}

"""The command info."""

import json
from pathlib import Path
from typing import Annotated

import typer


def info(
    path: Annotated[
        Path, typer.Argument(help="A run, a checkpoint, an export, a LoRA, or a set that prep-data wrote.")
    ],
    as_json: Annotated[bool, typer.Option("--json/--no-json", help="Print one JSON object.")] = False,
) -> None:
    """Describe what is at a path: steps, size, classes, data and what to type next; reads no weights."""
    from diffcli.lookup.given_paths import check_described

    check_described(path)
    from diffcli.engine.about import about, lines

    found = about(path)
    if as_json:
        print(json.dumps(found))
        return
    facts = lines(found)
    width = max(map(len, facts)) + 1
    for name, value in facts.items():
        print(f"{name + ':':<{width}} {value}")

"""The options of pictures that lead a model: runs whose branches are added, and how much each counts; imports no torch."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from diffcli.cli.options import PICTURES

Control = Annotated[
    list[str] | None,
    typer.Option(
        "--control",
        metavar="RUN[:SCALE]",
        help="Run of task.control whose branch leads the model, too; both must be of the same weights. Repeatable.",
        show_default="none",
        rich_help_panel=PICTURES,
    ),
]
ControlScale = Annotated[
    str | None,
    typer.Option(
        "--control-scale",
        metavar="S|NAME=S,...",
        help="How much the pictures that lead the model count, all or that of a field: 0 not at all, 1 as trained.",
        show_default="1",
        rich_help_panel=PICTURES,
    ),
]


def scaled_paths(items: Sequence[str | Path] | None, flag: str) -> tuple[tuple[Path, float], ...]:
    """(path, scale) of each `PATH[:SCALE]`, 1 where it says none. What stands there under the whole name has no scale."""
    return tuple(_scaled(str(item), flag) for item in items or ())


def _scaled(item: str, flag: str) -> tuple[Path, float]:
    path, sign, last = item.rpartition(":")
    if not sign or not path or Path(item).exists() or any(c in last for c in "/\\"):
        return Path(item), 1.0
    return Path(path), _number(last, f"{item} ends in no scale", flag)


def named_scales(text: str | None) -> tuple[tuple[str | None, float], ...]:
    """(field, scale) of each part of `S|NAME=S,...`; None for all fields."""
    flag, found = "--control-scale", list[tuple[str | None, float]]()
    for part in text.split(",") if text is not None else ():
        name, sign, value = part.rpartition("=")
        if sign and not name:
            raise typer.BadParameter(f"{part} names no field", param_hint=flag)
        found.append((name if sign else None, _number(value, f"{part} is neither a number nor NAME=NUMBER", flag)))
    return tuple(found)


def _number(text: str, fault: str, flag: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise typer.BadParameter(fault, param_hint=flag)
    return value

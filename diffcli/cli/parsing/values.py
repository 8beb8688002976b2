"""Values of options that take more than a type to check; imports no torch."""

import math
from pathlib import Path

import typer


def finite(value: float | None) -> float | None:
    """Refuses nan and inf, which every range check lets pass."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is not a finite number")
    return value


def share(value: float | None) -> float | None:
    """Refuses what is not in (0, 1]; the parser's own ranges cannot leave 0 out without leaving 1 out."""
    if value is not None and not 0 < value <= 1:
        raise typer.BadParameter(f"{value} is not above 0 and at most 1")
    return value


def sides(text: str | None) -> tuple[int, int] | None:
    """(height, width) of `HxW` or `N`."""
    if text is None:
        return None
    parts = text.lower().split("x")
    if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise typer.BadParameter(f"{text} is neither a number of pixels nor two, as 256x384", param_hint="--size")
    return int(parts[0]), int(parts[-1])


def named_files(items: list[str] | None) -> tuple[tuple[str, tuple[Path, ...]], ...]:
    """(NAME, the one path) of each `NAME=FILE`."""
    found = []
    for item in items or ():
        name, sign, path = item.partition("=")
        if not (name and sign and path):
            raise typer.BadParameter(f"{item} is no NAME=FILE, as sketch=a.png", param_hint="--field")
        found.append((name, (Path(path),)))
    return tuple(found)

"""Classes as --class names them. Imports nothing heavy."""

from difflib import get_close_matches

from diffcli.config import UserError, did_you_mean
from diffcli.data.naming import alike

FEW_CLASSES = 20  # that a hint can still list


def class_id(which: str | int, classes: tuple[str, ...] | None, count: int) -> int:
    """The number of a class given by name (exact, then without case) or by number; an int is always a number."""
    names = [alike(name) for name in classes or ()] if isinstance(which, str) else []
    which = alike(str(which))
    for known in (names, [name.lower() for name in names]):
        if which in known or which.lower() in known:
            return known.index(which if which in known else which.lower())
    if which.isdecimal() and int(which) < count:
        return int(which)
    if which.lstrip("-").isdecimal():
        raise UserError(
            f"--class {which}: the model has the classes 0 to {count - 1}", f"use 0 to {count - 1}, all or random"
        )
    shown = names if len(names) <= FEW_CLASSES else get_close_matches(which, names, n=5, cutoff=0.3)
    raise UserError(f"--class {which or repr(which)}: no such class", did_you_mean(which, [*shown, "all", "random"]))

"""The conditions that a model takes, as the record of its checkpoint says, so that others are refused early.

Imports nothing heavy.

Records are looked at as far as they tell for certain; the model itself is asked the same when it is loaded.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

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


def check_class(record: Mapping[str, Any], name: str) -> None:
    """Raises UserError for a class that a model conditioned on classes does not have."""
    count = next((each.get("num_classes") for each in _conditioners(record) if each.get("kind") == "class"), None)
    names = record.get("classes")
    if isinstance(count, int) and (names is None or isinstance(names, list)):
        class_id(name, None if names is None else tuple(names), count)


def without_texts(flag: str, prompt: str, path: Path) -> UserError:
    """The error for a prompt that a model cannot read."""
    return UserError(
        f"{flag} {prompt!r}: {path} was not trained on texts",
        f"leave {flag} out, or give the checkpoint of a model with a conditioner of texts or embeddings",
    )


def check_prompts(record: Mapping[str, Any], path: Path, given: Mapping[str, str | None]) -> None:
    """Raises UserError for a prompt where a diffusion model is conditioned on nothing, or on classes alone. given: by flag."""
    kinds = {each.get("kind") for each in _conditioners(record)}
    if _task(record).get("kind") == "diffusion" and kinds <= {"class"}:
        for flag, prompt in given.items():
            if prompt is not None:
                raise without_texts(flag, prompt, path)


def without_clips(flag: str, value: float | str, path: Path) -> UserError:
    """The error for an option of clips, for a model that draws none."""
    shown = f"{value:g}" if isinstance(value, float) else value
    return UserError(f"{flag} {shown}: {path} draws still images, no clips", f"leave {flag} out")


def check_clips(record: Mapping[str, Any], path: Path, given: Mapping[str, float | str | None]) -> None:
    """Raises UserError for an option of clips where a diffusion model draws images. given: by flag."""
    task, fields = _task(record), record.get("fields")
    modelled = fields.get(task.get("field", "image")) if isinstance(fields, Mapping) else None
    if task.get("kind") == "diffusion" and isinstance(modelled, Mapping) and modelled.get("kind") == "image":
        for flag, value in given.items():
            if value is not None:
                raise without_clips(flag, value, path)


def _task(record: Mapping[str, Any]) -> Mapping[str, Any]:
    preset = record.get("preset")
    task = preset.get("task") if isinstance(preset, Mapping) else None
    return task if isinstance(task, Mapping) else {}


def _conditioners(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [each for each in _task(record).get("conditioners") or () if isinstance(each, Mapping)]

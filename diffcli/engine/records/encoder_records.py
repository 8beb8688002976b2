"""The pretrained encoders of a run: checkpoints name them with the digest of their weights, which must not change.

A checkpoint's record says `encoders: {"task.conditioners.0": {model, library, sha256}, "data.clip_image": {model, sha256}}`:
those that its conditioners name, and those that made the embeddings it was trained on.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffcli.config import UserError
from diffcli.data.columns import Vectors
from diffcli.data.images import ImageData
from diffcli.data.shards import FieldNote
from diffcli.tasks.task import Task

MOVED = re.compile(r"task\.conditioners\.\d+\.encoder\.model=")


def moves(item: str) -> bool:
    """Whether a `--set` item gives a new place of an encoder; its weights must be the same."""
    return MOVED.match(item) is not None


def agreed(task: Task, data: ImageData, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """`encoders` for the record of a run, or nothing where it has none; before: the record that it goes on from.

    Raises UserError where the weights of an encoder are not those of the data's embeddings, or not those of before. Where the
    data tell the digest, their encoder is not loaded, but for a folder of another name, which may be another encoder.
    """
    known = _known(before)
    found: dict[str, dict[str, str | None]] = {}
    stored = {name: note for name, note in _notes(data).items() if name in task.reads and note.sha256 is not None}
    for name, note in stored.items():
        key = f"data.{name}"
        if known.get(key, note.sha256) != note.sha256:
            raise UserError(
                f"data: '{name}' was made by weights {str(note.sha256)[:12]}..., the run was trained on {known[key][:12]}...",
                "give the data of the run: --set data.root=FOLDER",
            )
        found[key] = {"model": note.encoder, "sha256": note.sha256}
    for key, conditioner in task.named_conditioners.items():
        encoder, name = conditioner.encoder, next(iter(conditioner.reads))
        if encoder is None:
            continue
        encoder.promise(known.get(key), "the run")
        sha256 = stored[name].sha256 if name in stored else None
        encoder.promise(sha256, f"the data's '{name}'")
        renamed = name in stored and encoder.config.name != stored[name].encoder
        if sha256 is None or (renamed and encoder.config.origin.folder):
            sha256 = encoder.digest  # of a wrong one only a prompt, after training, would tell
        found[key] = {"model": encoder.config.model, "library": encoder.config.library, "sha256": sha256}
    return {"encoders": found} if found else {}


def promise(task: Task, record: Mapping[str, Any], path: Path) -> None:
    """Binds the encoders of a checkpoint's task to the weights that its record names; they are compared when loaded."""
    known = _known(record)
    for key, conditioner in task.named_conditioners.items():
        if conditioner.encoder is not None:
            conditioner.encoder.promise(known.get(key), str(path))


def _known(record: Mapping[str, Any] | None) -> dict[str, str]:
    return {key: entry["sha256"] for key, entry in (record or {}).get("encoders", {}).items()}


def _notes(data: ImageData) -> dict[str, FieldNote]:
    return {name: column.note for name, column in data.columns.items() if isinstance(column, Vectors) and column.note}

"""The pretrained encoders of a run: checkpoints name them with the digest of their weights, which must not change.

A checkpoint's record says `encoders: {"task.conditioners.0": {model, library, sha256}, "data.clip_image": {model, sha256}}`:
those that its conditioners name, and those that made the embeddings it was trained on.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffcli.config import UserError
from diffcli.data.columns import Vectors
from diffcli.data.field_notes import FieldNote
from diffcli.data.images import ImageData
from diffcli.encoders.encoder import EncoderConfig
from diffcli.tasks.conditioners.pretrained import PretrainedConditioner
from diffcli.tasks.task import Task


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
        for each in conditioner.reads.keys() & stored.keys():
            if conditioner.kind == "pretrained" or stored[each].empty is not None:  # or an earlier version made it
                _check_reading(key, each, encoder.config, stored[each])
            encoder.promise(stored[each].sha256, f"the data's '{each}'")
        sha256 = stored[name].sha256 if name in stored else None
        renamed = name in stored and encoder.config.name != stored[name].encoder
        if sha256 is None or (renamed and encoder.config.origin.folder):
            sha256 = encoder.digest  # of a wrong one only a prompt, after training, would tell
        found[key] = {"model": encoder.config.model, "library": encoder.config.library, "sha256": sha256}
    return {"encoders": found} if found else {}


def install(task: Task, data: ImageData) -> None:
    """Gives conditioners that read what was stored of captions what the data have of a text without a word."""
    empty = {
        name: row
        for name, column in data.columns.items()
        if isinstance(column, Vectors) and name in task.reads and (row := column.empty(name)) is not None
    }
    for conditioner in task.named_conditioners.values():
        if isinstance(conditioner, PretrainedConditioner):
            conditioner.know(empty, next(task.parameters()).device)


def _check_reading(key: str, name: str, config: EncoderConfig, note: FieldNote) -> None:
    """Raises UserError where prompts would be read in another way than the captions of the data were."""
    own = (config.layer, config.padding, config.length) if note.kind == "tokens" else (-1, "masked", config.length)
    if own != note.reads():
        words = "layer {}, padding {}, length {}".format(*own)
        raise UserError(
            f"{key}.encoder reads texts with {words}, but the data's '{name}' was made with {note.reading}",
            "embed the set by the model itself: diffcli prep-data shards --out SET --embed ... --encoder RUN; or set "
            f"{key}.encoder.layer, padding and length to those of the data",
        )


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

"""The other checkpoints that a run goes on needing, each with its role, and the marks that keep them from being removed.

The role is a key of the preset. A run of `train.lora` or `train.embedding` stores nothing of the model that it changes. The
models of `guide.weaker`, `guide.classifier`, `prior` and `train.score.features` are read again where images are drawn or the run
goes on; such a key that names a run means its newest checkpoint, whichever that is, and none is marked. Of `from` without
changes, `task.codec.from`, `task.control.from` and `task.perceptual.run` nothing is needed any more: checkpoints hold it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from diffcli.config import UserError
from diffcli.engine.lora import lora_bases
from diffcli.engine.lora.lora_training import changing
from diffcli.lookup.dependents import Dependent, add_dependent, holder
from diffcli.preset import Preset


class NeededSource(NamedTuple):
    """A checkpoint that a run needs. sha256: the digest by which its records name the weights, if they do."""

    role: str
    path: Path
    sha256: str | None = None


def needed_sources(preset: Preset, record: Mapping[str, Any]) -> list[NeededSource]:
    """Those of a run by its preset and the record of its checkpoints."""
    base, key = lora_bases.named(record), changing(preset.train)
    found = [] if base is None or key is None else [NeededSource(key, Path(base["path"]), base["sha256"])]
    named = dict(preset.drawing.named)
    if preset.train.every.score:
        named["train.score.features"] = Path(preset.train.score.features)
    return found + [
        NeededSource(role, path.expanduser().absolute()) for role, path in named.items() if holder(path.expanduser())
    ]


def mark(sources: Iterable[NeededSource], by: Path) -> list[str]:
    """Writes beside each source that a run, or a checkpoint made of one, needs it. Returns a note for each that cannot be.

    Raises UserError where one has been removed since it was read.
    """
    notes = []
    for source in sources:
        folder = holder(source.path)
        if folder is None and source.path.is_file():
            continue  # a file by itself, which no run cleans up
        try:
            if folder is None:
                raise FileNotFoundError(source.path)
            add_dependent(folder, Dependent(source.role, by.absolute(), source.sha256))
        except OSError as error:
            if folder is None or holder(folder) is None:
                raise UserError(
                    f"{source.role}: {source.path} was removed while this run began", "type the same again"
                ) from error
            notes.append(
                f"{folder} cannot be marked as needed by {by} ({error.strerror or error}): keep it, as its run may remove it"
            )
    return notes

"""The model that a checkpoint of low-rank changes was trained on: named in its record, read from where it lies.

A record says `base: {path, beside, step, weights, sha256}`: the checkpoint of the base, also as seen from the run, so that both
may move together; its step; which of its weights, ema or raw; and their digest, which does not depend on where they lie.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from diffcli import checkpoint
from diffcli.config import UserError, quoted
from diffcli.engine.loading import read_to_sample
from diffcli.tasks.task import Task

RECORD = "base"  # key of a checkpoint's record
SHOWN = 12  # digits of a digest

WeightsName = Literal["ema", "raw"]


class BaseWeights(NamedTuple):
    """A base as it was read. digest: of all its tensors, names and values, in whatever files they lie."""

    path: Path
    tensors: dict[str, Tensor]
    digest: str


def named(record: Mapping[str, Any]) -> dict[str, Any] | None:
    """What the record of a checkpoint says of its base; None where it is a whole model."""
    found = record.get(RECORD)
    return found if isinstance(found, dict) else None


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over name, shape and values of tensors, by name."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def noted(base: BaseWeights, step: int, weights: WeightsName, run: Path) -> dict[str, Any]:
    """The entry of a record, for a run in a directory."""
    path = base.path.absolute()
    beside = os.path.relpath(path, run.absolute())
    return {"path": str(path), "beside": beside, "step": step, "weights": weights, "sha256": base.digest}


def places(entry: Mapping[str, Any], found: Path) -> list[Path]:
    """Where the base of a located checkpoint may lie: where it lay, and where it lies as seen from the run."""
    inside_run = found.is_dir() and found.parent.name == "checkpoints"
    run = found.absolute().parent.parent if inside_run else found.absolute().parent
    return [Path(str(entry["path"])), run / str(entry.get("beside", ""))]


def located(entry: Mapping[str, Any], found: Path, given: Path | None = None) -> Path:
    """The checkpoint of the base of another. given: what --base names. Raises UserError where it is not there."""
    if given is not None:
        try:
            return checkpoint.locate(given.expanduser())
        except UserError as error:
            raise UserError(f"--base {error.problem}", error.hint) from None
    there = next((path for path in places(entry, found) if path.exists()), None)
    if there is None:
        raise UserError(
            f"{found}: is a change of {entry['path']}, which is not there",
            f"say where that model lies now: --base PATH (step {entry['step']}, weights {str(entry['sha256'])[:SHOWN]}...)",
        )
    return checkpoint.locate(there)


def read(task: Task, entry: Mapping[str, Any], found: Path, given: Path | None = None) -> BaseWeights:
    """The weights of the base of a located checkpoint, whose task this is. Raises UserError where they have changed."""
    path = located(entry, found, given)
    base = of_checkpoint(task, path, entry["weights"])
    if base.digest != entry["sha256"]:
        raise UserError(
            f"{found}: is a change of weights {str(entry['sha256'])[:SHOWN]}..., but {path} has {base.digest[:SHOWN]}...",
            f"say where the model of {quoted(entry['path'])} at step {entry['step']} lies now: --base PATH",
        )
    return base


def of_checkpoint(task: Task, path: Path, weights: WeightsName) -> BaseWeights:
    """The weights of a located checkpoint that others may be changes of. Raises UserError where it is a change itself."""
    record = checkpoint.read_record(path)
    check_whole(path, record)
    tensors, _ = read_to_sample(task, path, record, weights == "ema")
    return BaseWeights(path, tensors, digest_of(tensors))


def check_whole(path: Path, record: Mapping[str, Any]) -> None:
    """Raises UserError where a located checkpoint with this record is a change of another model."""
    if named(record) is not None:
        raise UserError(
            f"{path}: is itself a change of {record[RECORD]['path']}, no whole model",
            f"merge it first: diffcli export {quoted(path)} --merge --out DIR",
        )

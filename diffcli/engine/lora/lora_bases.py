"""The model that a checkpoint of low-rank changes was trained on: named in its record, read from where it lies.

A record says `base: {path, beside, step, weights, sha256}`: the checkpoint of the base, also as seen from the run, so that both
may move together; its step; which of its weights, ema or raw; and their digest, which does not depend on where they lie. A base
that is not there any more, or is another by now, is sought by its digest among the checkpoints beside it.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from diffcli import checkpoint
from diffcli.config import UserError, quoted
from diffcli.engine.loading import read_to_sample
from diffcli.lookup.dependents import beside, holder, is_there, same_weights
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
    path = (holder(base.path) or base.path).absolute()
    from_run = os.path.relpath(path, run.absolute())
    return {"path": str(path), "beside": from_run, "step": step, "weights": weights, "sha256": base.digest}


def places(entry: Mapping[str, Any], found: Path) -> list[Path]:
    """Where the base of a located checkpoint may lie: where it lay, and where it lies as seen from the run."""
    inside_run = found.is_dir() and found.parent.name == "checkpoints"
    run = found.absolute().parent.parent if inside_run else found.absolute().parent
    return [Path(str(entry["path"])), Path(os.path.normpath(run / str(entry.get("beside", ""))))]


def candidates(entry: Mapping[str, Any], found: Path) -> Iterator[Path]:
    """The checkpoints that may be the base of a located one, likeliest first: where it lay, and where it may have been moved."""
    known = places(entry, found)
    yield from (path for path in known if is_there(path))
    for place in known:
        yield from same_weights(place, str(entry["sha256"]))
    for path in (each for place in known for each in beside(place)):
        try:
            if checkpoint.read_record(path).get("step") == entry["step"]:
                yield path
        except UserError:
            continue


def present(entry: Mapping[str, Any], found: Path) -> Path | None:
    """Where the base of a located checkpoint lies, as far as can be said without its weights; None: nowhere."""
    known = places(entry, found)
    marked = [path for place in known for path in same_weights(place, str(entry["sha256"]))]
    return next((path for path in known if path in marked), None) or next(
        iter([*marked, *(path for path in known if is_there(path))]), None
    )


def given_base(given: Path) -> Path:
    """The checkpoint that --base names. Raises UserError."""
    try:
        return checkpoint.locate(given.expanduser())
    except UserError as error:
        raise UserError(f"--base {error.problem}", error.hint) from None


def read(task: Task, entry: Mapping[str, Any], found: Path, given: Path | None = None) -> BaseWeights:
    """The weights of the base of a located checkpoint, whose task this is. given: what --base names.

    Raises UserError where they are not there, or have changed.
    """
    tried: dict[Path, BaseWeights | UserError] = {}
    for path in candidates(entry, found) if given is None else [given_base(given)]:
        if path in tried:
            continue
        try:
            base = of_checkpoint(task, path, entry["weights"])
        except UserError as error:
            tried[path] = error
            continue
        if base.digest == entry["sha256"]:
            return base
        tried[path] = base
    digest, lay = f"weights {str(entry['sha256'])[:SHOWN]}...", Path(str(entry["path"]))
    first = next((other for path, other in tried.items() if given is not None or path in places(entry, found)), None)
    if isinstance(first, UserError):
        raise first
    if first is not None:
        raise UserError(
            f"{found}: is a change of {digest}, but {first.path} has {first.digest[:SHOWN]}...",
            f"say where the model of {quoted(lay)} at step {entry['step']} lies now: --base PATH",
        )
    others = f"; no checkpoint in {lay.parent} has them" if lay.parent.is_dir() else ""
    raise UserError(
        f"{found}: is a change of {lay}, which is not there",
        f"say where that model lies now: --base PATH (step {entry['step']}, {digest}{others})",
    )


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

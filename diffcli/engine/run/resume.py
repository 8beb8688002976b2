"""Resuming a run: the checkpoint to continue from, and the changes to its preset."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from diffcli import checkpoint, preset
from diffcli.config import UserError, quoted
from diffcli.engine.distributed import speaks
from diffcli.engine.run.phases import phases_of, rate
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import build_on_meta, same_state
from diffcli.lookup.changeable import check_resuming, may_change, moves_encoder
from diffcli.lookup.checkpoint_files import run_directory
from diffcli.lookup.dependents import is_marked, needing
from diffcli.lookup.run_folders import nothing_to_do
from diffcli.preset import Preset

AS_DATA = re.compile(r"--data (PATH|DIR|FOLDER)")  # of a hint


class Edits(NamedTuple):
    """The user's changes to RUN/preset.yaml since the newest checkpoint.

    tree: the values that changed, by section and key; moved: `KEY=VALUE` of encoders that lie elsewhere; notes: each change.
    """

    tree: dict[str, dict[str, Any]]
    moved: list[str]
    notes: list[str]

    def applied(self, raw: Any) -> Any:
        """A raw preset with these values."""
        if not isinstance(raw, Mapping):
            return raw
        return {**raw, **{section: {**raw.get(section, {}), **values} for section, values in self.tree.items()}}


def reopen(path: Path, from_step: int | None, overrides: Sequence[str]) -> tuple[Preset, RunDir, Path]:
    """The preset, the run and the checkpoint to continue from. Raises UserError if the run cannot continue with these options.

    Only the record is read here; every process checks the digests of the files when it loads them, before the run is changed.
    """
    run = RunDir(run_directory(path))
    check_resuming(overrides)
    try:
        start = choose(run, from_step)
    except UserError:
        if run.held:  # by one who has not saved yet, which says more
            with run.locked():
                pass
        raise
    if speaks():  # before its workers are started, one of which will hold it
        with run.locked():
            pass
    record = checkpoint.read_record(start)
    edited = edits(run)
    raw = edited.applied(record.get("preset"))
    resolved = preset.build(raw, f"{start}/{checkpoint.RECORD}", [*edited.moved, *overrides])
    if record["step"] >= resolved.train.steps:
        raise nothing_to_do(path, record["step"], resolved.train.steps)
    return resolved, run, start


@contextmanager
def hints_to_resume() -> Iterator[None]:
    """Errors about data of a new run, in the words of `resume`, which has no --data; the commands in them stay."""
    try:
        yield
    except UserError as error:
        parts = error.hint.split("`")
        parts[::2] = (AS_DATA.sub(r"--set data.root=\1", part) for part in parts[::2])
        if parts == error.hint.split("`"):
            raise
        hint = "`".join(parts).replace(" (or --set data.root=PATH)", "")
        raise UserError(error.problem, hint, error.also) from error


def edits(run: RunDir) -> Edits:
    """The changes to RUN/preset.yaml, which a run writes at every start.

    Raises UserError if the file is not a preset any more, or if a resumed run cannot apply a change.
    """
    kept = checkpoint.checkpoints(run.checkpoints)
    if not kept or not run.preset.is_file():
        return Edits({}, [], [])
    record = checkpoint.read_record(kept[-1])
    was = preset.build(record.get("preset"), f"{kept[-1]}/{checkpoint.RECORD}").model_dump(mode="json")
    now = preset.build(preset.read(run.preset), str(run.preset)).model_dump(mode="json")
    before, after = dict(_leaves(was)), dict(_leaves(now))
    changed = [key for key in {**after, **before} if before.get(key) != after.get(key)]
    found = Edits({}, [], [])
    for key in changed:
        item = f"{key}={json.dumps(after.get(key))}"
        if not may_change(item):
            raise UserError(
                f"{run.preset}: {key} is {after.get(key)!r}, was {before.get(key)!r}; a resumed run changes train.* only",
                f"put {key} back, or train another run: diffcli train --preset {quoted(run.preset)} --run-dir ANOTHER",
            )
        found.notes.append(f"{run.preset}: {key} is {after.get(key)!r}, was {before.get(key)!r}")
        section, name, *_ = key.split(".")
        if moves_encoder(item):
            found.moved.append(item)
        else:
            found.tree.setdefault(section, {})[name] = now[section][name]
    return found


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Each single value of a tree with its dotted key."""
    inner = list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ())
    if not inner:
        yield key, node
    for name, value in inner:
        yield from _leaves(value, f"{key}.{name}" if key else str(name))


def choose(run: RunDir, from_step: int | None) -> Path:
    """The run's newest checkpoint, or that of --from STEP; never one of a folder that is not a run."""
    kept = checkpoint.checkpoints(run.checkpoints)
    if not kept:
        raise _not_a_run(run.path)
    if from_step is None:
        return kept[-1]
    found = checkpoint.step_dir(run.checkpoints, from_step)
    if not found.is_dir():
        steps = [str(int(p.name[5:])) for p in kept]
        raise UserError(f"--from {from_step}: {run.path} has no such checkpoint", f"choose one of {', '.join(steps)}")
    return found


def _not_a_run(path: Path) -> UserError:
    """The error for a `path` without checkpoints: what it is instead, and what to type."""
    place = path.absolute()
    if (path / checkpoint.RECORD).is_file():
        step = f" --from {int(place.name[5:])}" if place.name[5:].isdecimal() else ""
        run = place.parent.parent if place.parent.name == "checkpoints" else "RUN"
        return UserError(f"{path}: is a checkpoint, not a run", f"type `diffcli resume {quoted(run)}{step}`")
    if place.name == "checkpoints" and checkpoint.checkpoints(path):
        return UserError(
            f"{path}: is the folder of a run's checkpoints, not the run",
            f"type `diffcli resume {quoted(place.parent)}`",
        )
    return UserError(
        f"{path}: holds no whole checkpoint of a run",
        "give the run directory that `diffcli train` printed; a run that has saved nothing is trained anew",
    )


def changes(changed: Preset, start: Path) -> list[str]:
    """Notes for the user on the effects of a changed preset from the checkpoint `start` on."""
    record = checkpoint.read_record(start)
    earlier, step = preset.build(record.get("preset"), f"{start}/{checkpoint.RECORD}"), record["step"]
    was, now = earlier.train, changed.train
    notes = []
    before, after = phases_of(build_on_meta(earlier), was), phases_of(build_on_meta(changed), now)
    for old, new in zip(before, after, strict=True):  # those of one task
        if old.networks != new.networks:
            notes.append(
                f"train.phases.{new.name}.networks is {', '.join(new.networks)}, was {', '.join(old.networks)}: "
                "networks that are no longer trained keep their weights, newly trained ones start from theirs"
            )
        assert new.curve is not None
        assert old.optimizer is not None
        assert new.optimizer is not None
        if not same_state(old, new):
            notes.append(
                f"the optimizer of the phase {new.name} is {new.optimizer.kind}, was {old.optimizer.kind}: its state from "
                "earlier gradients is discarded"
            )
        stretched = was.steps != now.steps and new.curve.kind not in ("constant", "inverse_sqrt")
        if stretched and step >= max(old.first, new.first):
            of_phase = f" of the phase {new.name}" if len(after) > 1 else ""
            notes.append(
                f"train.steps is {now.steps}, was {was.steps}: the {new.curve.kind} learning-rate curve{of_phase} is stretched: "
                f"the rate jumps from {rate(old, step, was.steps):.4g} to {rate(new, step + 1, now.steps):.4g}"
            )
    if was.freeze != now.freeze:
        notes.append(
            f"train.freeze is {list(now.freeze)}, was {list(was.freeze)}: what is frozen stays as it is, without an average of "
            "its own; what is trained anew begins there, with fresh moments"
        )
    if was.batch_size != now.batch_size and changed.data.kind != "stream":  # whose order continues at its position
        notes.append(
            f"train.batch_size is {now.batch_size}, was {was.batch_size}: the order of the data shifts: after "
            f"{step * was.batch_size} images it goes on at image {step * now.batch_size}, and epochs count from there"
        )
    return notes


def set_aside(root: Path, start: Path) -> list[str]:
    """Moves checkpoints below `root` that are newer than `start` away, so that the newest one always belongs to this run.

    Returns a note for each that other runs need.
    """
    notes = []
    for path in checkpoint.checkpoints(root):
        if path.name > start.name:
            kept = checkpoint.set_aside(path)
            if is_marked(kept):
                notes.append(f"{path} is moved to {kept}, where those that need it find it: {needing(kept)}")
    return notes

"""Reopening a run: which checkpoint to go on from, and with what changes to its preset."""

from collections.abc import Sequence
from pathlib import Path

from diffcli import checkpoint, preset
from diffcli.config import UserError
from diffcli.engine.runlog import RunDir
from diffcli.preset import Preset

SUPERSEDED = "superseded"  # where checkpoints go that a run resumed from an older one leaves behind


def reopen(path: Path, from_step: int | None, overrides: Sequence[str]) -> tuple[Preset, RunDir, Path]:
    """The preset, the run and the checkpoint to go on from. Raises UserError where the run cannot go on as asked."""
    run = RunDir(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such run directory", "give the directory that `diffcli train` printed")
    for item in overrides:
        if not item.startswith("train."):
            raise UserError(
                f"--set {item}: a resumed run changes train.* keys only; its data, task and seed stay",
                "train into another --run-dir to change them",
            )
    start = choose(run, from_step)
    record = checkpoint.read_record(start)
    if not checkpoint.is_whole(start):
        checkpoint.read_part(start, "ema", record)
        checkpoint.read_part(start, "task", record)
        checkpoint.read_part(start, "optimizer", record)
    resolved = preset.build(record.get("preset"), f"{start}/{checkpoint.RECORD}", overrides)
    if record["step"] >= resolved.train.steps:
        raise UserError(
            f"{path}: is at step {record['step']} of {resolved.train.steps}: there is nothing left to do",
            f"give more: diffcli resume {path} --steps {record['step'] * 2}",
        )
    return resolved, run, start


def choose(run: RunDir, from_step: int | None) -> Path:
    """The newest checkpoint, or that of --from STEP."""
    if from_step is None:
        return checkpoint.locate(run.path)
    found = checkpoint.step_dir(run.checkpoints, from_step)
    if not found.is_dir():
        steps = [str(int(p.name[5:])) for p in checkpoint.checkpoints(run.checkpoints)]
        raise UserError(
            f"--from {from_step}: {run.path} has no such checkpoint", f"choose one of {', '.join(steps) or 'none'}"
        )
    return found


def set_aside(root: Path, start: Path) -> None:
    """Moves the checkpoints below `root` that are newer than `start` away, so that the newest is always the run's own."""
    for path in checkpoint.checkpoints(root):
        if path.name > start.name:
            kept = root / SUPERSEDED / path.name
            kept.parent.mkdir(exist_ok=True)
            number = 0
            while kept.exists():
                number += 1
                kept = kept.with_name(f"{path.name}-{number}")
            path.rename(kept)

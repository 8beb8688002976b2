"""Further averages of a run's weights: their snapshots, and checkpoints made from them.

RUN/snapshots/step-00001000-std-0.050.safetensors ...    each by itself a checkpoint to sample from
OUT/std-0.070/  ema.safetensors  checkpoint.json         an average reconstructed from them, or taken from a checkpoint
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcli import checkpoint, preset
from diffcli.config import UserError, quoted
from diffcli.ema import Ema, PowerEma, Profile, coefficients, exponential, power
from diffcli.engine.lora.lora_training import to_write
from diffcli.engine.lora.lora_weights import warn
from diffcli.engine.records.needed_sources import mark, needed_sources
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import below, build_on_meta, saved_averages, unaveraged_keys
from diffcli.lookup.widths import check_widths
from diffcli.tasks.task import Task

Record = dict[str, Any]


class Snapshot(NamedTuple):
    """A power average as it stood at some step."""

    path: Path
    record: Record
    profile: Profile


def store(run: RunDir, step: int, emas: Sequence[Ema], config: PowerEma, record: Record) -> Path:
    """Writes a snapshot of each average. Returns their folder."""
    for ema, std in zip(emas, config.stds, strict=True):
        about = {"kind": "power", "std": std}
        path = run.snapshots / f"step-{step:08d}-{ema.average.name}.safetensors"
        assert isinstance(ema.module, Task)
        weights = to_write(ema.module, ema.module.sampled_state())
        checkpoint.export(path, weights, {**record, "step": step, "average": about})
    return run.snapshots


def snapshots(run: RunDir) -> list[Snapshot]:
    """All snapshots of a run, oldest first."""
    found = []
    for path in sorted(run.snapshots.glob("step-*.safetensors")):
        record = checkpoint.read_record(path)
        found.append(Snapshot(path, record, Profile(record["step"], record["average"]["std"])))
    return found


def set_aside_snapshots(run: RunDir, step: int) -> None:
    """Moves snapshots after `step` away, because a run resumed there writes its own."""
    for path in run.snapshots.glob("step-*.safetensors"):
        if int(path.name.split("-")[1]) > step:
            checkpoint.set_aside(path)


def write_averages(path: Path, stds: Sequence[float], rates: Sequence[float], out: Path) -> Iterator[Path]:
    """Checkpoints below `out` with the power averages of these widths and the exponential ones of these rates."""
    if not stds and not rates:
        raise UserError("--std: missing", "name the averages to make, for example --std 0.05,0.1 or --rate 0.999")
    check_widths(stds)
    names = [power(std).name for std in stds]
    for std, name in zip(stds, names, strict=True):
        if names.count(name) > 1:
            raise UserError(
                f"--std {std}: would be written to {out / name} twice, widths count to three decimals", "give each once"
            )
    run = RunDir(path)
    newest = checkpoint.locate(path)
    record = checkpoint.read_record(newest)
    chosen = [pick(newest, record, rate) for rate in rates]
    kept = usable_snapshots(run, record) if stds else []
    for name, weights in chosen:
        yield _written(out / name, weights, {**record, "average": {"kind": "rate", "name": name}})
    for i, weights in enumerate(reconstruct(kept, stds) if stds else []):
        about = {"kind": "power", "std": stds[i], "snapshots": [s.path.name for s in kept]}
        yield _written(out / names[i], weights, {**kept[-1].record, "average": about})


def _written(place: Path, weights: dict[str, Tensor], record: Record) -> Path:
    """A checkpoint for sampling; one of changes of another model needs that, as its run does."""
    made = checkpoint.save_average(place, weights, record)
    warn(mark(needed_sources(preset.build(record.get("preset"), str(place)), record), place))
    return made


def pick(path: Path, record: Record, rate: float) -> tuple[str, dict[str, Tensor]]:
    """Name and tensors of an exponential average that a checkpoint keeps."""
    names, name = saved_averages(record), exponential(rate).name
    if name not in names:
        raise UserError(f"--rate {rate}: {path} keeps no such average", f"it keeps {', '.join(names)}")
    if name == names[0]:
        return name, checkpoint.read_part(path, "ema", record)
    kept = below(
        name, checkpoint.read_part(path, "optimizer", record)
    )  # of what is averaged; the rest is in the other file
    return name, checkpoint.read_part(path, "ema", record) | kept


def usable_snapshots(run: RunDir, record: Record) -> list[Snapshot]:
    """A run's snapshots, at two steps or more."""
    kept = snapshots(run)
    steps = {s.profile.step for s in kept}
    ema = preset.build(record["preset"], str(run.path)).train.ema
    if not steps and not isinstance(ema, PowerEma):
        raise UserError(
            f"{run.path}: has no snapshots to make a width from, because its train.ema is {ema}",
            "train with --set 'train.ema={kind: power, stds: [0.05, 0.1], every: 1000}', or take a kept rate with --rate",
        )
    if len(steps) < 2:
        often = ema.every if isinstance(ema, PowerEma) else record["step"]
        raise UserError(
            f"{run.path}: has snapshots of {len(steps)} steps, and a reconstruction takes at least 2",
            f"train on, they come every {often} steps (train.ema.every): "
            f"diffcli resume {quoted(run.path)} --steps {max(record['step'], 2 * often) + often}",
        )
    return kept


def reconstruct(kept: Sequence[Snapshot], stds: Sequence[float]) -> list[dict[str, Tensor]]:
    """The power averages of widths `stds` at the step of the last snapshot: linear combinations of all, read one at a time.

    Sums are float64; what is no averaged parameter is taken from the last.
    """
    last = kept[-1]
    profiles = [s.profile for s in kept]
    weights = [coefficients(profiles, Profile(last.profile.step, std)) for std in stds]
    task = build_on_meta(preset.build(last.record["preset"], str(last.path)))
    left_out = unaveraged_keys(task)
    averaged = [name for name, _ in task.named_parameters() if name not in left_out]
    tensors = checkpoint.read_part(last.path, "ema", last.record)
    sums = [{name: torch.zeros_like(tensors[name], dtype=torch.float64) for name in averaged} for _ in stds]
    for i, snapshot in enumerate(kept):
        stored = checkpoint.read_part(snapshot.path, "ema", snapshot.record)
        for total, weight in zip(sums, weights, strict=True):
            for name, value in total.items():
                value.add_(stored[name], alpha=float(weight[i]))
    return [tensors | {name: value.to(tensors[name].dtype) for name, value in total.items()} for total in sums]

"""A checkpoint made ready to use: its preset read, its task built, its weights loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from diffcli import checkpoint, preset
from diffcli.config import UserError
from diffcli.digest import sha256
from diffcli.engine import encoder_records
from diffcli.engine.run.state import load_to_sample, place
from diffcli.engine.tuning import tune_allocator
from diffcli.preset import Preset
from diffcli.tasks.task import Task


@dataclass(frozen=True)
class Model:
    """A checkpoint made ready to use."""

    path: Path
    step: int
    preset: Preset
    task: Task
    classes: tuple[str, ...] | None
    ema: bool
    digest: str  # of the weights in use


def load_model(path: Path, device: torch.device, use_ema: bool = True, overrides: Sequence[str] = ()) -> Model:
    """The newest whole checkpoint at PATH, in eval mode. Raises UserError where there is none or it is damaged.

    overrides: KEY=VALUE, of which those that say where a pretrained encoder lies now are heeded.
    """
    tune_allocator()
    found = checkpoint.locate(path)
    record = checkpoint.read_record(found)
    moved = filter(encoder_records.moves, overrides)
    resolved = preset.build(record.get("preset"), f"{found}/{checkpoint.RECORD}", moved)
    part = "ema" if use_ema else "task"
    if not checkpoint.holds(part, found, record) and checkpoint.holds("ema", found, record):
        raise UserError(f"--no-ema: {found} holds an average only", "leave --no-ema out")
    with torch.random.fork_rng(devices=[]):  # its initial weights are thrown away
        built = resolved.task.build(resolved.data.shape)
    load_to_sample(built, found, record, use_ema)
    encoder_records.promise(built, record, found)
    task = place(built, device, "fp32").eval().requires_grad_(False)
    file = found if found.is_file() else found / f"{part}.safetensors"
    classes = tuple(record["classes"]) if record.get("classes") else None
    return Model(found, record["step"], resolved, task, classes, use_ema, sha256(file))

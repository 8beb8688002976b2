"""Everything that a training step changes, how it starts, and how it becomes the tensors of a checkpoint and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.engine.tuning import auto_precision, memory_format
from diffcli.optim import Ema, optimizer_tensors, restore_optimizer
from diffcli.preset import Preset
from diffcli.tasks.task import Task


@dataclass
class State:
    """Everything that a step changes."""

    task: Task
    ema: Ema
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    names: dict[nn.Parameter, str]

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint."""
        moments = {
            f"{phase}/{name}": value
            for phase, optimizer in self.optimizers.items()
            for name, value in optimizer_tensors(optimizer, self.names).items()
        }
        for key, value in self.scaler.state_dict().items():
            moments[f"scaler/{key}"] = torch.tensor(float(value))
        return {"ema": self.ema.module.state_dict(), "task": self.task.state_dict(), "optimizer": moments}

    def restore(self, path: Path, record: dict[str, Any]) -> None:
        """Puts a checkpoint's tensors back."""
        load_weights(self.task, checkpoint.read_part(path, "task", record), path)
        load_weights(self.ema.module, checkpoint.read_part(path, "ema", record), path)
        saved = checkpoint.read_part(path, "optimizer", record)
        for phase, optimizer in self.optimizers.items():
            own = {k.removeprefix(f"{phase}/"): v for k, v in saved.items() if k.startswith(f"{phase}/")}
            restore_optimizer(optimizer, self.names, own)
        scale = {k.removeprefix("scaler/"): v.item() for k, v in saved.items() if k.startswith("scaler/")}
        if scale:
            kinds = {name: type(value) for name, value in self.scaler.state_dict().items()}  # some are counts
            self.scaler.load_state_dict({name: kinds.get(name, float)(value) for name, value in scale.items()})


def load_weights(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Strictly loads a state dict. Raises UserError naming the first keys that do not fit."""
    try:
        module.load_state_dict(tensors)
    except RuntimeError as error:
        first = " ".join(str(error).split()[:40])
        raise UserError(
            f"{path}: weights do not fit the network of its preset ({first})",
            "the checkpoint was changed by hand or written by another version: use the diffcli that wrote it",
        ) from error


def resolved(preset: Preset, device: torch.device) -> Preset:
    """The preset with what depends on machine and folder decided, so that a run resumed from anywhere decides the same."""
    train, data = preset.train, preset.data
    if train.precision == "auto":
        train = train.model_copy(update={"precision": auto_precision(device)})
    if data.root is not None:
        data = data.model_copy(update={"root": data.root.expanduser().absolute()})
    return preset.model_copy(update={"train": train, "data": data})


def place(task: Task, device: torch.device, precision: str) -> Task:
    """The task on a device, its convolutions in the layout that is fastest there."""
    layout: Any = {"memory_format": memory_format(device, precision)}  # an argument that torch's annotations leave out
    return task.to(device).to(**layout)


def build_state(preset: Preset, device: torch.device) -> State:
    """Fresh weights drawn from the preset's seed, their average and the optimizers."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(preset.seed)  # the same weights on every device and rank
        built = preset.task.build(preset.data.shape)
    task = place(built, device, preset.train.precision)
    ema = Ema(task, preset.train.ema)
    optimizers = {phase: preset.train.optimizer.build(task.trained(phase)) for phase in task.phases}
    scaler = torch.amp.GradScaler(device.type, enabled=preset.train.precision == "fp16")
    return State(task, ema, optimizers, scaler, {p: name for name, p in task.named_parameters()})

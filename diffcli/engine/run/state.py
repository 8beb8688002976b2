"""Everything that a training step changes, how it starts, and how it becomes the tensors of a checkpoint and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.ema import AnyEma, Ema, averages
from diffcli.engine.tuning import auto_precision, memory_format
from diffcli.optim import optimizer_tensors, restore_optimizer
from diffcli.preset import Preset
from diffcli.tasks.task import Task


@dataclass
class State:
    """Everything that a step changes."""

    task: Task
    emas: list[Ema]  # the first is the one to sample from
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    names: dict[nn.Parameter, str]

    @property
    def ema(self) -> Ema:
        return self.emas[0]

    def average(self, step: int) -> None:
        """Takes the weights after update `step` into every average."""
        for ema in self.emas:
            ema.update(step)

    def parts(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint."""
        moments = {
            f"{phase}/{name}": value
            for phase, optimizer in self.optimizers.items()
            for name, value in optimizer_tensors(optimizer, self.names).items()
        }
        for key, value in self.scaler.state_dict().items():
            moments[f"scaler/{key}"] = torch.tensor(float(value))
        for ema in self.emas[1:]:
            moments |= {f"{ema.average.name}/{name}": value for name, value in ema.module.state_dict().items()}
        return {"ema": self.ema.module.state_dict(), "task": self.task.state_dict(), "optimizer": moments}

    def restore(self, path: Path, record: dict[str, Any]) -> None:
        """Puts a checkpoint's tensors back."""
        check_averages([ema.average.name for ema in self.emas], path, record)
        load_weights(self.task, checkpoint.read_part(path, "task", record), path)
        load_weights(self.ema.module, checkpoint.read_part(path, "ema", record), path)
        saved = checkpoint.read_part(path, "optimizer", record)
        for phase, optimizer in self.optimizers.items():
            restore_optimizer(optimizer, self.names, below(phase, saved))
        for ema in self.emas[1:]:
            load_weights(ema.module, below(ema.average.name, saved), path)
        scale = {name: value.item() for name, value in below("scaler", saved).items()}
        if scale:
            kinds = {name: type(value) for name, value in self.scaler.state_dict().items()}  # some are counts
            self.scaler.load_state_dict({name: kinds.get(name, float)(value) for name, value in scale.items()})


def below(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose keys begin with `name/`, without that."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def saved_averages(record: dict[str, Any]) -> list[str]:
    """The names of the averages that a checkpoint holds, the one in ema.safetensors first."""
    ema = TypeAdapter(AnyEma).validate_python(record["preset"]["train"]["ema"])
    return [average.name for average in averages(ema)]


def check_averages(wanted: list[str], path: Path, record: dict[str, Any]) -> None:
    """Raises UserError where a run shall go on with an average that it has not kept so far. A sole rate may change."""
    saved = saved_averages(record)
    one_rate = len(wanted) == len(saved) == 1 and all(name.startswith("rate-") for name in wanted + saved)
    if not one_rate and (wanted[0] != saved[0] or not set(wanted) <= set(saved)):
        raise UserError(
            f"train.ema: asks for {', '.join(wanted)}, but {path} holds {', '.join(saved)}",
            "resume with the train.ema of the run, or without some of those after the first",
        )


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
    train = preset.train
    if train.precision == "auto":
        train = train.model_copy(update={"precision": auto_precision(device)})
    guide = preset.guide.model_copy(
        update={name: path.expanduser().absolute() for name, path in preset.guide.models.items()}
    )
    prior = None if preset.prior is None else preset.prior.expanduser().absolute()
    found = {"data": preset.data.absolute(), "task": preset.task.resolved(), "guide": guide, "prior": prior}
    return preset.model_copy(update={"train": train, **found})


def place(task: Task, device: torch.device, precision: str) -> Task:
    """The task on a device, its convolutions in the layout that is fastest there."""
    layout: Any = {"memory_format": memory_format(device, precision)}  # an argument that torch's annotations leave out
    return task.to(device).to(**layout)


def build_on_meta(preset: Preset) -> Task:
    """The task without memory for its weights. Raises UserError where its parts contradict each other."""
    with torch.device("meta"):
        return preset.task.build(preset.data.shape)


def build_state(preset: Preset, device: torch.device) -> State:
    """Fresh weights drawn from the preset's seed, their average and the optimizers."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(preset.seed)  # the same weights on every device and rank
        built = preset.task.build(preset.data.shape)
    task = place(built, device, preset.train.precision)
    emas = [Ema(task, average) for average in averages(preset.train.ema)]
    optimizers = {phase: preset.train.optimizer.build(task.trained(phase), task.hidden()) for phase in task.phases}
    scaler = torch.amp.GradScaler(device.type, enabled=preset.train.precision == "fp16")
    return State(task, emas, optimizers, scaler, {p: name for name, p in task.named_parameters()})

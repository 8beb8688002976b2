"""Everything that a training step changes: its start, and its conversion to the tensors of a checkpoint and back."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.ema import AnyEma, Ema, averages
from diffcli.engine.loading import completed, load_weights, place
from diffcli.engine.lora.lora_training import adapt, kept_constant, to_write
from diffcli.engine.run.phases import phases_of
from diffcli.engine.run.roles.parameter_roles import check_parameters, frozen_names, rate_factors
from diffcli.engine.tuning import auto_precision
from diffcli.engine.words.word_training import prepared
from diffcli.fields import Specs
from diffcli.networks.lora import Lora
from diffcli.networks.weightless import weightless
from diffcli.optim import optimizer_tensors, restore_optimizer, scale_rates
from diffcli.preset import Preset, TrainConfig
from diffcli.tasks.task import Phase, Task


@dataclass
class State:
    """Everything that a step changes, and the phases that do so, their optimizers by name."""

    task: Task
    phases: tuple[Phase, ...]
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
        """The tensors of a checkpoint.

        ema: all that sampling needs, averaged where that is wanted. task: what is trained, the state, and the frozen networks
        that sampling does not need. Parameters of trained networks that are constants one by one stand in both.
        """
        moments = {
            f"{phase}/{name}": value
            for phase, optimizer in self.optimizers.items()
            for name, value in optimizer_tensors(optimizer, self.names).items()
        }
        for key, value in self.scaler.state_dict().items():
            moments[f"scaler/{key}"] = torch.tensor(float(value))
        shared = unaveraged_keys(self.task)
        for ema in self.emas[1:]:
            tensors = ema.module.state_dict()
            moments |= {f"{ema.average.name}/{name}": tensors[name] for name in tensors if name not in shared}
        only_sampled = self.task.keys_of(n.name for n in self.task.networks if n.name in self.task.still and n.samples)
        current = {name: value for name, value in self.task.state_dict().items() if name not in only_sampled}
        parts = {"ema": self.averaged.sampled_state(), "task": current}
        return {name: to_write(self.task, tensors) for name, tensors in parts.items()} | {"optimizer": moments}

    @property
    def averaged(self) -> Task:
        """The task that would be sampled from."""
        task = self.ema.module
        assert isinstance(task, Task)
        return task

    def restore(self, path: Path, record: dict[str, Any], under: Mapping[str, Tensor] = {}) -> None:
        """Puts a checkpoint's tensors back. What has changed its role since goes on with the weights that it had.

        under: the tensors of the base, of which a checkpoint of low-rank changes holds none.
        """
        check_averages([ema.average.name for ema in self.emas], path, record)
        to_sample = {**under, **checkpoint.read_part(path, "ema", record)}
        current = {**under, **checkpoint.read_part(path, "task", record)}
        load_weights(self.task, completed(self.task, current, to_sample), path)
        earlier, shared = TrainConfig.model_validate(record["preset"]["train"]), unaveraged_keys(self.task)
        now = self.task.state_dict()
        constants = {name: now[name] for name in self.task.fixed | frozen_names(self.task, earlier)}
        saved = checkpoint.read_part(path, "optimizer", record)
        kept = [to_sample, *(below(ema.average.name, saved) for ema in self.emas[1:])]
        for ema, tensors in zip(self.emas, kept, strict=True):
            own = {name: value for name, value in tensors.items() if name not in shared}
            load_weights(ema.module, completed(self.task, constants | own, now), path)
        going_on = {
            new.name
            for old, new in zip(phases_of(self.task, earlier), self.phases, strict=True)
            if same_state(old, new)
        }
        for phase, optimizer in self.optimizers.items():
            if phase not in going_on:
                continue
            trained = {self.names[p] for group in optimizer.param_groups for p in group["params"]}
            resting = set(self.names.values()) - trained
            moments = below(phase, saved)
            moments = {key: value for key, value in moments.items() if key.rpartition(":")[0] not in resting}
            restore_optimizer(optimizer, self.names, moments)
        scale = {name: value.item() for name, value in below("scaler", saved).items()}
        if scale:
            kinds = {name: type(value) for name, value in self.scaler.state_dict().items()}  # some are counts
            self.scaler.load_state_dict({name: kinds.get(name, float)(value) for name, value in scale.items()})


def same_state(old: Phase, new: Phase) -> bool:
    """Whether the optimizer of a phase of `phases_of` can continue from the state of the other's."""
    assert old.optimizer is not None
    assert new.optimizer is not None
    return old.optimizer.remembers == new.optimizer.remembers


def unaveraged(task: Task) -> list[str]:
    """The networks of a task without a copy in an average: frozen ones, those with averaged=False, and unsampled ones."""
    return [n.name for n in task.networks if n.name in task.still or not n.averaged or not n.samples]


def unaveraged_keys(task: Task) -> set[str]:
    """The keys of a task's state of which an average holds no copy: those of whole networks, and single constants."""
    return task.keys_of(unaveraged(task)) | task.fixed


def below(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose keys begin with `name/`, without that."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}


def saved_averages(record: dict[str, Any]) -> list[str]:
    """The names of the averages that a checkpoint holds, the one in ema.safetensors first."""
    ema = TypeAdapter(AnyEma).validate_python(record["preset"]["train"]["ema"])
    return [average.name for average in averages(ema)]


def check_averages(wanted: list[str], path: Path, record: dict[str, Any]) -> None:
    """Raises UserError if a resumed run needs an average that its checkpoint lacks. A single rate may change."""
    saved = saved_averages(record)
    one_rate = len(wanted) == len(saved) == 1 and all(name.startswith("rate-") for name in wanted + saved)
    if not one_rate and (wanted[0] != saved[0] or not set(wanted) <= set(saved)):
        raise UserError(
            f"train.ema: asks for {', '.join(wanted)}, but {path} holds {', '.join(saved)}",
            "resume with the train.ema of the run, or without some of those after the first",
        )


def resolved(preset: Preset, device: torch.device) -> Preset:
    """The preset with values that depend on machine and folder resolved, so that a resumed run has the same."""
    train = preset.train
    if train.precision == "auto":
        train = train.model_copy(update={"precision": auto_precision(device)})
    guide = preset.guide.model_copy(
        update={name: path.expanduser().absolute() for name, path in preset.guide.models.items()}
    )
    prior = None if preset.prior is None else preset.prior.expanduser().absolute()
    origin = None if preset.origin is None else preset.origin.absolute()
    found = {
        "data": preset.data.absolute(),
        "task": preset.task.resolved(),
        "guide": guide,
        "prior": prior,
        "origin": origin,
    }
    return preset.model_copy(update={"train": train, **found})


def build_on_meta(preset: Preset, specs: Specs | None = None) -> Task:
    """The task without memory for its weights. Raises UserError where its parts or its phases contradict each other.

    specs: the fields of its data; None: what the preset alone says of them.
    """
    with weightless():
        task = preset.task.build(preset.specs if specs is None else specs)
        change(task, preset)
    freeze_rest(task, phases_of(task, preset.train), preset.train)
    return task


def change(task: Task, preset: Preset) -> None:
    """Gives a task the new word and the low-rank changes that the preset wants. Raises UserError as `prepared` and `adapt`."""
    prepared(task, preset.train)
    if preset.train.lora is not None:
        adapt(task, preset.train, {name for phase in phases_of(task, preset.train) for name in phase.networks})


def freeze_rest(task: Task, phases: tuple[Phase, ...], cfg: TrainConfig) -> None:
    """Makes constants of the networks that no phase trains, and of what `train.freeze` names.

    Raises UserError where `train.freeze` or `train.lr_scale` names nothing, or leaves a phase nothing to train.
    """
    trained = {name for phase in phases for name in phase.networks}
    still = [network.name for network in task.networks if network.name not in trained]
    task.inherited = kept_constant(task, cfg)
    task.freeze(still, frozen_names(task, cfg) | task.inherited)
    check_parameters(task, phases, cfg)


def check_optimizers(task: Task, phases: tuple[Phase, ...], device: torch.device) -> None:
    """Raises UserError where the optimizer of a phase of `phases_of` cannot be built for the parameters of a task on a device."""
    for phase in phases:
        assert phase.optimizer is not None
        phase.optimizer.check(task.trained_in(phase.networks), device)


def build_state(
    preset: Preset, device: torch.device, specs: Specs | None = None, begin: Callable[[Task], None] | None = None
) -> State:
    """Fresh weights drawn from the preset's seed, their average and the optimizers. specs: see `build_on_meta`.

    begin: called with the task on its device before it is averaged, to change its initial weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(preset.seed)  # the same weights on every device and rank
        built = preset.task.build(preset.specs if specs is None else specs)
        change(built, preset)
    phases = phases_of(built, preset.train)
    task = place(built, device, preset.train.precision, training=True)
    freeze_rest(task, phases, preset.train)
    check_optimizers(task, phases, device)
    if begin is not None:
        begin(task)
    names = set(unaveraged(task))
    kept = [network.module for network in task.networks if network.name in names]
    shared = [tensor for module in kept for tensor in chain(module.parameters(), module.buffers())]
    shared += [task.get_parameter(name) for name in task.fixed]
    shared += [module.alpha for module in task.modules() if isinstance(module, Lora)]
    emas = [Ema(task, average, shared) for average in averages(preset.train.ema)]
    hidden, factors, optimizers = task.hidden(), rate_factors(task, preset.train), {}
    for phase in phases:
        assert phase.optimizer is not None
        optimizers[phase.name] = phase.optimizer.build(task.trained_in(phase.networks), hidden)
        if factors:
            scale_rates(optimizers[phase.name], factors)
    scaler = torch.amp.GradScaler(device.type, enabled=preset.train.precision == "fp16")
    return State(task, phases, emas, optimizers, scaler, {p: name for name, p in task.named_parameters()})

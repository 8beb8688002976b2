"""The phases of a run: those of its task, as the preset's `train.phases` changes them."""

from collections import Counter

from diffcli.config import UserError, did_you_mean
from diffcli.preset import TrainConfig
from diffcli.tasks.task import Phase, Task


def phases_of(task: Task, cfg: TrainConfig) -> tuple[Phase, ...]:
    """The phases of a run, each with its own networks, optimizer and curve. Raises UserError if they contradict each other."""
    check_networks(task)
    phases = task.phases
    for name in cfg.phases:
        if name not in [phase.name for phase in phases]:
            raise UserError(
                f"train.phases.{name}: the task has no such phase", did_you_mean(name, [phase.name for phase in phases])
            )
    decided = tuple(_decided(phase, cfg) for phase in phases)
    for phase in decided:
        _check_trains(phase, task)
    _check_apart(decided)
    if not any(phase.due(1) for phase in decided):
        begins = ", ".join(f"{phase.name} begins at step {phase.first}" for phase in decided)
        raise UserError(
            f"train.phases: no phase is due at step 1 ({begins})", f"use --set train.phases.{decided[0].name}.first=1"
        )
    return decided


def rate(phase: Phase, step: int, steps: int) -> float:
    """The learning rate of a phase of `phases_of` at a step of 1..steps that it is due at."""
    assert phase.optimizer is not None
    assert phase.curve is not None
    return phase.curve.factor(phase.updates(step), phase.updates(steps)) * phase.optimizer.lr


def check_networks(task: Task) -> None:
    """Raises TypeError where a parameter lies in no network of the task, or in several: a mistake of its author."""
    found = Counter(id(p) for network in task.networks for p in network.module.parameters())
    for name, p in task.named_parameters():
        if found[id(p)] != 1:
            raise TypeError(f"{type(task).__name__}.networks: {name} lies in {found[id(p)]} of them, not in one")


def _decided(phase: Phase, cfg: TrainConfig) -> Phase:
    changes = cfg.phases.get(phase.name)
    if changes is not None:
        if phase.first_key is not None and changes.first not in (None, phase.first):
            raise UserError(
                f"train.phases.{phase.name}.first is {changes.first}, but this phase begins at the step that {phase.first_key} "
                f"names, {phase.first}",
                f"set train.phases.{phase.name}.first to null, and use --set {phase.first_key}={changes.first}",
            )
        named = {name: getattr(changes, name) for name in type(changes).model_fields}
        phase = phase._replace(**{name: value for name, value in named.items() if value is not None})
    return phase._replace(optimizer=phase.optimizer or cfg.optimizer, curve=phase.curve or cfg.curve)


def _check_trains(phase: Phase, task: Task) -> None:
    """A phase trains networks that exist, may be trained and have weights."""
    key, there = f"train.phases.{phase.name}.networks", {network.name: network for network in task.networks}
    for name in phase.networks:
        if name not in there:
            raise UserError(f"{key} names '{name}', a network that the task does not have", did_you_mean(name, there))
        if there[name].frozen:
            free = [other for other, network in there.items() if not network.frozen]
            raise UserError(
                f"{key} names '{name}', but that network is frozen",
                f"leave it out, or choose of {', '.join(free)}",
            )
    if not task.parameters_of(phase.networks):
        given = f"names {', '.join(phase.networks)}, which have no weights" if phase.networks else "is empty"
        raise UserError(
            f"{key} {given}: there is nothing to train",
            f"name a network that has weights; to begin later, set {phase.first_key or f'train.phases.{phase.name}.first'}",
        )


def _check_apart(phases: tuple[Phase, ...]) -> None:
    """Refuses two phases that train one network, because each optimizer's state assumes that no other one changes it."""
    trained: dict[str, str] = {}
    for phase in phases:
        for name in dict.fromkeys(phase.networks):
            if name in trained:
                raise UserError(
                    f"train.phases.{phase.name}.networks names '{name}', which the phase {trained[name]} trains, too",
                    f"take it out of train.phases.{phase.name}.networks or of train.phases.{trained[name]}.networks",
                )
            trained[name] = phase.name

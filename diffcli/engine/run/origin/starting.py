"""A run that starts from another model: what the preset names is read once, before the first step, and then needed no more.

The record of every checkpoint has `from: {path, sha256, step, weights, taken}`: which file it was, and what was taken of it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffcli.engine.model import Model
from diffcli.engine.run.origin import taking
from diffcli.engine.run.origin.correspondence import Classes
from diffcli.engine.run.origin.source_reading import KEY, SourceModel, described, read
from diffcli.engine.stage_reading import FirstStage, codec_of, digest_of
from diffcli.networks.lora import of_change
from diffcli.preset import Preset
from diffcli.tasks.starting_point import StartingPoint, check_weights_of
from diffcli.tasks.task import Task

FIRST_STAGE = "codec.first_stage."  # in front of its weights in a model of latents


class Begun:
    """The model that a new run starts from, and after `install` what was taken of it.

    record: for the run's checkpoints. facts: for people, by what they are about. notes: what is probably not meant.
    """

    def __init__(self, start: StartingPoint, source: SourceModel) -> None:
        self.start, self.source = start, source
        self.record: dict[str, Any] = {}
        self.facts: dict[str, str] = {}
        self.notes: tuple[str, ...] = ()

    def install(self, task: Task, classes: Classes, stage: FirstStage | None) -> bool:
        """Gives a task on its device the weights that it takes. Returns whether with them all that a task measures of its data.

        stage: the first stage that the task already has. Raises UserError where too little fits.
        """
        model, tensors = self.source.model, self.source.tensors
        own = stage is None or stage.digest == self._stage_digest(stage)
        found = taking.matched(task, model, classes, tensors, own)
        taking.take(task, found, tensors)
        self.facts = taking.told(task, model, found, classes)
        self.notes = (*taking.warnings(task, model.task), *([] if own else [ANOTHER_STAGE]))
        self.record = {KEY: {**self.source.record(self.start.weights), "taken": self.facts}}
        inside = task.keys_of(network.name for network in task.networks)
        kept = task.state_dict().keys()
        buffers = [name for name, _ in task.named_buffers() if not of_change(name)]
        return found.covers(name for name in buffers if name in inside and name in kept)

    def _stage_digest(self, stage: FirstStage) -> str:
        """That of the source's first stage, if it is made as this one."""
        weights = {
            name.removeprefix(FIRST_STAGE): value
            for name, value in self.source.tensors.items()
            if name.startswith(FIRST_STAGE)
        }
        return digest_of(stage.config, weights)


ANOTHER_STAGE = (
    f"task.codec.from names another first stage than that of the model in {KEY}: its network saw other latents; "
    "leave task.codec.from out to keep its own"
)


def begun(preset: Preset) -> Begun | None:
    """The model that a new run of a resolved preset starts from, its weights read; None where it names none."""
    return None if preset.origin is None else Begun(preset.origin, read(preset.origin))


def recorded(before: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the record of a run says of where it started, once it goes on from a checkpoint with the record `before`."""
    return {KEY: before[KEY]} if before and KEY in before else {}


def planned(preset: Preset, task: Task, classes: Classes) -> tuple[dict[str, str], list[str]]:
    """What a run would take, and what is probably not meant; reads no weights. Raises UserError as `Begun.install` does."""
    if preset.origin is None:
        return {}, []
    model = described(preset.origin)
    found = taking.matched(task, model, classes, model.task.state_dict(), _same_stage(preset, model))
    return taking.told(task, model, found, classes), taking.warnings(task, model.task)


def _same_stage(preset: Preset, model: Model) -> bool:
    """Whether the first stage of a preset is that of the model as far as their configs tell."""
    mine, other = codec_of(preset), codec_of(model.preset)
    return mine is None or other is None or mine.first_stage == other.first_stage


def starting_from(preset: Preset, path: Path | None, weights: str | None) -> Preset:
    """The preset with what the flags say of the model to start from. Raises UserError for weights of none."""
    if path is None and weights is None:
        return preset
    place = path or (None if preset.origin is None else preset.origin.path)
    check_weights_of(weights, place)
    assert place is not None
    known = preset.origin.weights if preset.origin and path is None else "ema"
    return preset.model_copy(update={"origin": StartingPoint(path=place, weights=weights or known)})

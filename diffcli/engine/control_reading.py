"""The model that a run of `task.control` leads: read before the first step, compared with the preset, and never changed.

Its weights go into the task, of which a copy of its first part becomes each branch; its digest goes into the record of every
checkpoint, under `control: {from, sha256, step}`. Branches of several runs fit together where they lead the same weights.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffcli import checkpoint, preset
from diffcli.config import UserError
from diffcli.data.description import DataDescription
from diffcli.engine.data_records import check_classes
from diffcli.engine.loading import load_weights
from diffcli.engine.lora import lora_bases
from diffcli.engine.model import specs_of
from diffcli.fields import listed
from diffcli.preset import Preset
from diffcli.tasks.control.controlled_task import ControlledTask
from diffcli.tasks.control.filling import KEY, preset_of
from diffcli.tasks.control.led_weights import digest_of, in_control, own_tensors
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.task import Task

RECORD = "control"  # key of a checkpoint's record
LED = (
    "target",
    "learn_variance",
    "schedule",
    "network",
    "codec",
    "conditioners",
    "field",
)  # keys that must be the model's
FREE = (
    "dropout",
    "save_memory",
    "from",
    "tile",
    "sample_posterior",
    "cached",
)  # of these, what does not change what it computes
SHOWN = 3  # differences that an error names


class Led(NamedTuple):
    """A model that is led, as a checkpoint holds it. tensors: by the names that they have in a task without control."""

    path: Path
    record: Mapping[str, Any]
    preset: Preset
    tensors: dict[str, Tensor]

    @property
    def task(self) -> DiffusionConfig:
        assert isinstance(self.preset.task, DiffusionConfig)
        return self.preset.task

    @property
    def note(self) -> dict[str, Any]:
        """For the record of a run that leads it."""
        return {"from": str(self.path), "sha256": digest_of(self.tensors), "step": self.record.get("step", 0)}


def source_of(chosen: Preset) -> Path | None:
    """The checkpoint that a preset leads; None where it leads none. Raises UserError where it does not name it."""
    controls = chosen.task.control if isinstance(chosen.task, DiffusionConfig) else ()
    if not controls:
        return None
    named = next((each.source for each in controls if each.source is not None), None)
    if named is None:
        raise UserError(
            f"{KEY} is missing: a new run leads a trained model, which it takes from there",
            "name its run: --set 'task.control=[{from: runs/digits, field: edges}]'",
        )
    return named.expanduser()


def described(path: Path) -> tuple[Path, dict[str, Any], Preset]:
    """The checkpoint of a model that is to be led, its record and preset, without weights. Raises UserError."""
    preset_of(path)
    found = checkpoint.locate(path)
    record = checkpoint.read_record(found)
    try:
        lora_bases.check_whole(found, record)
    except UserError as error:
        raise UserError(f"{KEY}: {error.problem}", error.hint) from None
    return found, record, preset.build(record.get("preset"), f"{found}/{checkpoint.RECORD}")


def begun(chosen: Preset) -> Led | None:
    """The model that a new run of a resolved preset leads, once it agrees with the preset; None where it leads none."""
    source = source_of(chosen)
    if source is None:
        return None
    check_alone(chosen)
    found, record, led = described(source)
    check_agrees(chosen, led, source)
    weights = checkpoint.read_part(found, "ema", record)
    return Led(source, record, led, own_tensors(weights))


def check_planned(chosen: Preset) -> None:
    """Raises UserError where a resolved preset says otherwise than what it leads. One that is not there yet is passed over."""
    source = source_of(chosen)
    if source is None:
        return
    check_alone(chosen)
    if source.exists():
        check_agrees(chosen, described(source)[2], source)


def check_alone(chosen: Preset) -> None:
    """Raises UserError where a preset also names a model to start from, which would say otherwise what the weights are."""
    if chosen.origin is not None:
        raise UserError(
            f"from is {chosen.origin.path}, but with task.control the model and its branches begin as {KEY} says",
            "leave from out: --set from=null",
        )


def check_agrees(chosen: Preset, led: Preset, path: Path) -> None:
    """Raises UserError naming the first keys of `task` in which a preset contradicts what it leads."""
    own, theirs = (flat({key: value for key, value in _task(p).items() if key in LED}, "task") for p in (chosen, led))
    keys = [key for key in {**theirs, **own} if own.get(key) != theirs.get(key) and key.rpartition(".")[2] not in FREE]
    if keys:
        several = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
        shown = "; ".join(f"{key} is {own.get(key)!r}, there {theirs.get(key)!r}" for key in keys[:SHOWN])
        raise UserError(
            f"{KEY}: {path} is another model than the preset says: {shown}{several}",
            "leave task.network, schedule, target and conditioners out of the preset: all is then that of the model",
        )


def check_fits(task: Task, led: Led, holds: DataDescription) -> None:
    """Raises UserError where the model draws images of another size or channels, or knows other classes than the data have."""
    assert isinstance(task, ControlledTask)
    there = specs_of(led.record, led.preset, led.path).get(task.field)
    if there is not None and there.fixed and there.shape != task.spec.shape:
        raise UserError(
            f"{KEY}: {led.path} draws '{task.field}' of {listed(there.shape)}, but the data's is {listed(task.spec.shape)}",
            f"use --set data.size={there.sides[-1]}"
            if there.sides[0] == task.spec.sides[0]
            else "choose data of that shape",
        )
    try:
        check_classes(task, holds, led.record)
    except UserError as error:
        raise UserError(
            f"{KEY}: {led.path}: {error.problem}", "give data with the classes of the model, in that order"
        ) from None


def install(task: Task, led: Led) -> None:
    """Gives a task on its device the weights that it leads, and each branch its copy. Raises UserError where they do not fit."""
    assert isinstance(task, ControlledTask)
    whole = in_control(led.tensors)
    wanted = task.keys_of(["base", "conditioners", "codec"])
    own = task.state_dict()
    strange = [
        f"{name} is {_shape(own, name)}, there {_shape(whole, name)}"
        for name in sorted(wanted | whole.keys(), key=lambda name: (name not in wanted & whole.keys(), name))
        if _shape(own if name in wanted else {}, name) != _shape(whole, name)
    ]
    if strange:
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        problem = f"{KEY}: the weights of {led.path} are those of another model: {'; '.join(strange[:SHOWN])}{more}"
        raise UserError(problem, "name a run whose network is that of the preset, or leave task.network out")
    load_weights(task, {name: whole.get(name, tensor) for name, tensor in own.items()}, led.path)
    task.controlled.begin_as_base()


def agreed(task: Task, led: Led | None, before: Mapping[str, Any] | None) -> dict[str, Any]:
    """`control` for the record of a run, or nothing. before: the record that it goes on from."""
    if not isinstance(task, ControlledTask):
        return {}
    if led is None:
        return {RECORD: (before or {}).get(RECORD)}
    stage = led.record.get("first_stage")
    return {RECORD: led.note} | ({} if stage is None else {"first_stage": stage})


def flat(tree: Any, place: str) -> dict[str, Any]:
    """The leaves of a tree of JSON values by their keys, as a preset names them."""
    items = tree.items() if isinstance(tree, Mapping) else enumerate(tree) if isinstance(tree, list) and tree else ()
    found = {key: value for name, node in items for key, value in flat(node, f"{place}.{name}").items()}
    return found or {place: tree}


def _task(chosen: Preset) -> dict[str, Any]:
    return chosen.task.resolved().model_dump(mode="json")


def _shape(tensors: Mapping[str, Tensor], name: str) -> str:
    return listed(tuple(tensors[name].shape)) or "a number" if name in tensors else "absent"

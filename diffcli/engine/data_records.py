"""The data of a run: completing its preset, their description, the record in checkpoints, and the comparison on resuming.

A checkpoint's record says `data`: a DataDescription. What a class number means must not change while a run goes on.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from diffcli.config import UserError
from diffcli.data.dataset import DataConfig
from diffcli.data.description import DataDescription, describe, differences, first_in_colour
from diffcli.data.fitting import fitted
from diffcli.data.images import EncodedFiles, ImageData
from diffcli.data.latent_data import LatentImages
from diffcli.data.naming import alike
from diffcli.data.stream.stream_data import StreamData
from diffcli.preset import Preset
from diffcli.tasks.task import Task

RECORD = "data"
SHOWN = 5  # classes that a message lists


def fitted_to_data(preset: Preset) -> Preset:
    """The preset, completed from its data; a complete preset is returned without reading data.

    Raises UserError if the data do not determine a key: sizes differ, or there are no classes to count.
    """
    data = fitted(preset.data)
    if data is not preset.data:
        preset = preset.model_copy(update={"data": data})
    if preset.task.leaves_classes_out:
        specs = data.model_copy(update={"in_memory": False}).build("train").specs
        count = specs["label"].class_count if "label" in specs else None
        if count is not None:
            preset = preset.model_copy(update={"task": preset.task.of_classes(count)})
    return preset


def described(config: DataConfig, data: ImageData) -> DataDescription:
    """The description of the training data of a preset. data: as `config` builds them."""
    return describe(data, place=data.urls[0] if isinstance(data, StreamData) else config.root)


def recorded(record: Mapping[str, Any] | None) -> DataDescription | None:
    """The description in the record of a checkpoint; None where earlier versions wrote it, or it is garbled."""
    try:
        return DataDescription.model_validate((record or {}).get(RECORD))
    except ValidationError:
        return None


def untrained(record: Mapping[str, Any]) -> frozenset[int]:
    """The classes without an image in the data of a run, according to its record."""
    holds = recorded(record)
    return frozenset(holds.empty_classes) if holds else frozenset()


def check_colours(config: DataConfig, task: Task, data: ImageData) -> None:
    """Raises UserError if a new run would turn colour images grey although the preset does not ask for it."""
    files = data.origin.files if data.origin else None
    if config.channels != 1 or config.grey or "image" not in task.reads or isinstance(data, LatentImages):
        return
    if isinstance(files, EncodedFiles) and (name := first_in_colour(files)):
        raise UserError(
            f"data.channels is 1, but images are in colour: {name}",
            "use --set data.channels=3, or --set data.grey=true to train on their grey values",
        )


def check_classes(task: Task, now: DataDescription, before: Mapping[str, Any]) -> None:
    """Raises UserError if class numbers would mean other classes than in the record of the checkpoint."""
    was, names = before.get("classes"), now.classes
    if "label" not in task.reads or was is None or names is None:
        return
    if [alike(name) for name in was] != [alike(name) for name in names]:
        raise UserError(
            f"data: the {len(names)} classes are {_listed(names, was)}, the run was trained on {len(was)}: {_listed(was, names)}",
            "give the data of the run: --set data.root=FOLDER; or train on these into another run: diffcli train --run-dir DIR",
        )


def changes_of(now: DataDescription, before: Mapping[str, Any]) -> list[str]:
    """Changes of the data since the checkpoint that the user should know, one sentence each."""
    then = recorded(before)
    if then is None:
        return []
    found = differences(then, now)
    if then.classes != now.classes:
        found.append(f"classes: {_listed(now.classes or ('none',), ())}, were {_listed(then.classes or ('none',), ())}")
    if not found:
        return []
    return [f"the data changed since step {before.get('step')}: {'; '.join(found)}; epochs count on from these data"]


def _listed(names: tuple[str, ...] | list[str], others: tuple[str, ...] | list[str]) -> str:
    """A few names; those that the other list lacks come first."""
    own = sorted(names, key=lambda name: name in others) if others else list(names)
    return ", ".join(own[:SHOWN]) + ", ..." * (len(own) > SHOWN)

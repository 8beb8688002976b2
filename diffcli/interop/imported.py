"""An imported model, and the checks of presets that all importers share."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.interop import pipelines
from diffcli.interop.first_stages import ForeignStage
from diffcli.interop.weight_files import ForeignTensors
from diffcli.networks.weightless import weightless
from diffcli.preset import Preset
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig

STAGE_SIZE = 256  # of the images of a first stage, which takes any size
STEPS = 100_000  # a preset says how long a run is; files of weights do not


class Imported(NamedTuple):
    """An imported model."""

    preset: Preset
    tensors: dict[str, Tensor]  # of the task
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]  # assumptions about what the files do not contain
    record: Mapping[str, Any] = {}  # entries of the checkpoint's record: the digests of encoders


def stage_alone(stage: ForeignStage, path: Path) -> Imported:
    """A first stage as the checkpoint of an autoencoder."""
    task = {"kind": "autoencoder", **stage.config.model_dump(mode="json", include={"network", "bottleneck"})}
    data = {"kind": "none", "size": STAGE_SIZE, "channels": stage.config.channels}
    preset = built({"name": slug(path), "data": data, "task": task}, path)
    return Imported(preset, {f"{pipelines.ALONE}.{name}": tensor for name, tensor in stage.tensors.items()}, None, ())


def null_row(preset: Preset, theirs: ForeignTensors, labels: str, path: Path) -> bool:
    """Whether their table of classes has a row for "no class" after those of the preset's classes."""
    found = ((i, c.num_classes) for i, c in enumerate(diffusion(preset).conditioners) if c.kind == "class")
    place, count = next(found, (0, None))
    if count is None or labels not in theirs:
        return False
    dropped = int(diffusion(preset).drop_condition > 0)
    rows = len(theirs[labels])
    if rows not in (count, count + 1):
        raise UserError(
            f"{path}: {labels} has {rows} rows, one a class and perhaps one for none, but --as {preset.name} has "
            f"task.conditioners.{place}.num_classes {count}",
            f"write a preset with --as FILE whose task.conditioners.{place}.num_classes is {rows - dropped}",
        )
    null = rows == count + 1
    if not null and diffusion(preset).drop_condition > 0:
        raise UserError(
            f"{path}: {labels} has {rows} rows, but --as {preset.name} has {count} classes and "
            f"task.drop_condition {diffusion(preset).drop_condition:g}, which needs one more for no class",
            "set task.drop_condition to 0 in that preset",
        )
    return null


def on_meta(preset: Preset) -> DiffusionTask:
    """The preset's task without memory for its weights. Raises UserError if it is no diffusion model."""
    diffusion(preset)
    with weightless():
        task = preset.task.build(preset.specs)
    assert isinstance(task, DiffusionTask)
    return task


def diffusion(preset: Preset) -> DiffusionConfig:
    if not isinstance(preset.task, DiffusionConfig):
        raise UserError(
            f"--as {preset.name}: task.kind is '{preset.task.kind}'", "name the preset of a diffusion model"
        )
    return preset.task


def network_of(preset: Preset) -> dict[str, Any]:
    return diffusion(preset).network.model_dump()


def built(raw: Mapping[str, Any], source: Path) -> Preset:
    """The preset for an imported configuration."""
    return presets.build({**raw, "train": {"steps": STEPS}}, str(source))


def slug(path: Path) -> str:
    """The name of a preset from that of a file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).lstrip("._-") or "imported"

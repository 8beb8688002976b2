"""Checkpoints of tiny models under pictures, their weights random, so that what they are told shows in what they draw."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffcli import __version__, checkpoint
from diffcli import preset as presets
from diffcli.engine.model import Model, load_model
from tests.conftest import changed
from tests.engine.draw.making import FREE, random_model
from tests.engine.one_level import SMALL

LOW: dict[str, Any] = {"kind": "spatial", "field": "low_res", "channels": 1}
EDGES: dict[str, Any] = {"kind": "spatial", "field": "edges", "channels": 1}
CLASSES: dict[str, Any] = {"kind": "class", "num_classes": 10, "dim": 8}
CPU = torch.device("cpu")


def upscaler(**keys: Any) -> dict[str, Any]:
    """The preset of a model that makes 16x16 out of 8x8; keys as in `changed`, such as data__size=32."""
    derived = [{"kind": "low_res", "factor": 2}]
    made = {"data__size": 16, "data__derived": derived, "task__conditioners": [LOW], "sampler__steps": 2}
    return changed(SMALL, **{**FREE, "task__conditioners": [LOW], **made, **keys})


def from_edges(**keys: Any) -> dict[str, Any]:
    """The preset of a model that makes 8x8 images of their edges."""
    told = {"data__derived": [{"kind": "edges"}], "task__conditioners": [EDGES], "sampler__steps": 2}
    return changed(SMALL, **{**FREE, **told, **keys})


def saved(folder: Path, tree: dict[str, Any], classes: tuple[str, ...] | None = None) -> Path:
    """A checkpoint of what a preset builds, its weights random."""
    built = presets.build(tree, f"{folder.name}.yaml")
    weights = random_model(built, folder.name).task.state_dict()
    record = {"step": 0, "preset": built.model_dump(mode="json"), "classes": classes, "version": __version__}
    return checkpoint.save_average(checkpoint.step_dir(folder, 0), weights, record)


def opened(folder: Path, tree: dict[str, Any]) -> Model:
    return load_model(saved(folder, tree), CPU)


def picture(path: Path, height: int = 8, width: int | None = None, seed: int = 0) -> Path:
    """A random grey picture file."""
    levels = np.random.default_rng(seed).integers(0, 256, (height, width or height), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(levels).save(path)
    return path

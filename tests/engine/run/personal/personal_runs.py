"""What tests of personalisation share: a tiny model of texts, pictures of one thing, and runs that begin from the model."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.engine.distributed import join
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import train
from tests.conftest import changed
from tests.engine.one_level import SMALL

TEXTS: dict[str, Any] = {
    "data__captions": {"templates": ["a {name}"]},
    "task__conditioners": [{"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 32, "neighbours": 3}],
    "task__network__middle": ["res", "cross_attention"],
    "train__log": [],
}


def trained_to(path: Path, tree: dict[str, Any], given: Path | None = None) -> Path:
    """Trains a preset into a run, from its newest checkpoint where there is one; returns the run."""
    run = RunDir(path)
    kept = checkpoint.checkpoints(run.checkpoints)
    with join("cpu") as group:
        for _ in train(presets.build(tree, "tiny.yaml"), run, group, kept[-1] if kept else None, given):
            pass
    return path


def of_texts(path: Path, **keys: Any) -> Path:
    """A run of a model that is trained on digits and their captions."""
    return trained_to(path, changed(SMALL, **{**TEXTS, **keys}))


def thing(folder: Path, count: int = 4) -> Path:
    """A folder of grey noise, 8x8."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (8, 8), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def personal_tree(base: Path | None, root: Path, **keys: Any) -> dict[str, Any]:
    """A preset that learns the thing in a folder, from a model of texts."""
    data = {
        "kind": "personal",
        "root": str(root),
        "size": 8,
        "channels": 1,
        "token": "sks",
        "prompts": ["a sks [seven|7]"],
    }
    begins = {} if base is None else {"from": str(base)}
    return changed(SMALL, **{**TEXTS, "data": data, "train__batch_size": 4, "data__captions": None, **begins, **keys})


def last(run: Path) -> Path:
    return checkpoint.checkpoints(run / "checkpoints")[-1]


def part(run: Path, name: str) -> dict[str, Tensor]:
    return load_file(last(run) / f"{name}.safetensors")

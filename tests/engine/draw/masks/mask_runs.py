"""Two tiny runs that tell masks of digits on clutter: by diffusion, and in one step."""

import copy
from pathlib import Path
from typing import Any

from diffcli.engine.distributed import join
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import train
from diffcli.preset import Preset
from tests.engine.one_level import SMALL

SIZE = 8


def tree(kind: str, classes: int = 2) -> dict[str, Any]:
    """The preset of a run of one of the two kinds of tasks."""
    found = copy.deepcopy(SMALL) | {"guidance": 1}
    found["data"] = {"kind": "digits_segmentation", "size": SIZE}
    network = found["task"]["network"]
    if kind == "segmentation":
        found["task"] = {"kind": kind, "classes": classes, "network": network}
        return found
    codec = {"kind": "one_hot", "classes": classes}
    conditioners = [{"kind": "spatial", "field": "image", "channels": 1}]
    task = {"kind": "diffusion", "field": "mask", "target": "v", "network": network}
    found["task"] = task | {"codec": codec, "conditioners": conditioners}
    return found


def trained(folder: Path, kind: str, classes: int = 2) -> Path:
    """The run directory of two steps."""
    made = tree(kind, classes)
    made["train"] |= {"steps": 2}
    with join("cpu") as group:
        list(train(Preset.model_validate(made), RunDir(folder / f"{kind}{classes}"), group))
    return folder / f"{kind}{classes}"

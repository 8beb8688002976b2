"""Classifiers of guided-diffusion: the encoder of a U-Net with a pool of attention, as a table of renamings.

Source: Dhariwal & Nichol 2021 (arXiv 2105.05233); the layout of their code.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from diffcli.config import UserError
from diffcli.interop.imported import Imported
from diffcli.interop.unets.openai import ENDS, openai_rules
from diffcli.interop.unets.places import NETWORK
from diffcli.interop.weight_files import ForeignTensors, Rule, read
from diffcli.networks.trunk import Trunk
from diffcli.networks.weightless import weightless
from diffcli.preset import Preset
from diffcli.tasks.classifier import ClassifierTask

MARK = "out.2.c_proj.weight"  # a name by which their files are known
PLACE = "network.unet"  # where a classifier keeps its trunk
POOL = {
    "network.pool.qkv.weight": "out.2.qkv_proj.weight",
    "network.pool.qkv.bias": "out.2.qkv_proj.bias",
    "network.head.weight": "out.2.c_proj.weight",
    "network.head.bias": "out.2.c_proj.bias",
}


def classifier(theirs: ForeignTensors, path: Path, given: Preset | None) -> Imported:
    """The classifier in a state dict. Raises UserError without a preset, or with one of another model."""
    if given is None:
        raise UserError(
            f"{path}: a classifier of guided-diffusion does not contain its flags (heads, schedule, ...)",
            "name the preset that has them, such as --as imagenet64-adm-classifier",
        )
    with weightless():
        task = given.task.build(given.specs)
    if not isinstance(task, ClassifierTask) or not isinstance(task.network, Trunk) or task.schedule is None:
        raise UserError(
            f"{path}: holds a classifier of noisy images, but --as {given.name} describes another model",
            "name a preset with task.kind classifier, a task.schedule and task.network.kind trunk",
        )
    ours = task.state_dict()
    inside = {name.replace(PLACE, NETWORK, 1): tensor for name, tensor in ours.items()}
    ends = {name: other for name, other in ENDS.items() if name != "head"}
    rules = [*openai_rules(task.network.unet, inside, ends=ends), *pool_rules()]
    found = read(rules, theirs, inside, str(path))
    return Imported(given, {name.replace(NETWORK, PLACE, 1): tensor for name, tensor in found.items()}, None, ())


def pool_rules() -> list[Rule]:
    """Their layers on positions are convolutions of size 1, ours linear."""

    def take(tensor: Tensor) -> list[Tensor]:
        return [tensor[..., 0] if tensor.ndim == 3 else tensor]

    def give(tensor: Tensor) -> list[Any]:
        return [tensor[..., None] if tensor.ndim == 2 else tensor]

    rules = [Rule((mine,), (other,), take, give) for mine, other in POOL.items()]
    return [Rule(("network.pool.position",), ("out.2.positional_embedding",)), *rules]

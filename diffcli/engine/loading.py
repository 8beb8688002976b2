"""Weights on their way from a checkpoint into a task, and the task on its way to a device."""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.engine.tuning import memory_format
from diffcli.tasks.task import Task

LoadedTensors = Mapping[str, Tensor]


def read_to_sample(task: Task, path: Path, record: dict[str, Any], use_ema: bool) -> tuple[dict[str, Tensor], str]:
    """What a checkpoint holds of the tensors that sampling a task needs, averaged or as trained last.

    Also the SHA-256 of the file of these weights, which is read once. Raises UserError where the checkpoint is damaged.
    """
    unsampled = task.keys_of(network.name for network in task.networks if not network.samples)
    contents = checkpoint.read_contents(path, "ema" if use_ema else "task", record)
    tensors = contents.tensors
    if not use_ema and not task.state_dict().keys() <= tensors.keys():  # frozen networks stand in the other file alone
        tensors = completed(task, tensors, checkpoint.read_part(path, "ema", record))
    return {name: value for name, value in tensors.items() if name not in unsampled}, contents.sha256


def completed(task: Task, tensors: dict[str, Tensor], others: LoadedTensors) -> dict[str, Tensor]:
    """A file's tensors, and those of `others` for every network that the file lacks."""
    absent = [keys for n in task.networks if (keys := task.keys_of([n.name])).isdisjoint(tensors)]
    return tensors | {name: others[name] for keys in absent for name in keys if name in others}


def fill(module: nn.Module, tensors: LoadedTensors, path: Path) -> None:
    """Assigns these tensors to a module on the meta device. Raises UserError as `load_weights` does."""
    dtypes = {name: tensor.dtype for name, tensor in module.state_dict().items()}
    own = {name: tensor.to(dtypes.get(name, tensor.dtype)) for name, tensor in tensors.items()}
    load_weights(module, own, path, assign=True)
    for name, tensor in chain(module.named_parameters(), module.named_buffers()):
        assert not tensor.is_meta, f"{name} is made by the code of the network but kept in no checkpoint"


def load_weights(module: nn.Module, tensors: LoadedTensors, path: Path, assign: bool = False) -> None:
    """Strictly loads a state dict, copied or (assign) taken as it is. Raises UserError naming the first keys that do not fit."""
    try:
        module.load_state_dict(tensors, assign=assign)
    except RuntimeError as error:
        first = " ".join(str(error).split()[:40])
        raise UserError(
            f"{path}: weights do not fit the network of its preset ({first})",
            "the checkpoint was changed by hand or written by another version: use the diffcli that wrote it",
        ) from error


def place(task: Task, device: torch.device, precision: str, training: bool) -> Task:
    """The task on a device, with the fastest memory layout for its convolutions."""
    task = task.to(device)
    if memory_format(device, precision, training) is torch.channels_last:
        for module in task.modules():
            if isinstance(module, nn.Conv2d):  # torch's own conversion of a whole module refuses weights of Conv3d
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
    return task

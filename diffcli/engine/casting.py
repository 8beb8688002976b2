"""A loaded task made to compute its networks in half precision; everything around them stays as it is.

Networks run under autocast, as in training, so that norms, softmaxes and sums choose their own precision. Autocast casts a
weight that wants no gradient anew at every evaluation; so the weights of products are cast once, here. The embedding of the
time stays in float32: it costs nothing, and the times of neighbouring steps differ by less than bf16 can tell.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from diffcli.engine.tuning import HALVES
from diffcli.networks.clip_convnet import ClipConvNet
from diffcli.networks.convnet import ConvNet
from diffcli.networks.dit import PatchConv, TimeEmbedder
from diffcli.networks.layers import Embedding, EnlargingConv, Pointwise, PositionLinear
from diffcli.networks.trunk import Trunk
from diffcli.tasks.conditioners.conditioner import Conditioner
from diffcli.tasks.task import Task

PRODUCTS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    Pointwise,
    PositionLinear,
    EnlargingConv,
    PatchConv,
)  # these alone: others compute with their weights first


def run_in(task: Task, device: torch.device, precision: str) -> None:
    """Makes the networks of a task without gradients, and its conditioners, compute in bf16 or fp16; fp32 changes nothing.

    Their outputs may be in half precision; the task converts them to float32. Their weights differ from those of the file.
    """
    if precision not in HALVES:
        return
    dtype, networks = HALVES[precision], task.networks_in_use
    modules = [module for network in networks for module in network.modules()]
    exact = [part for module in modules for part in float32_parts(module)]
    kept = {id(layer) for part in exact for layer in part.modules()}
    for module in modules:
        if type(module) in PRODUCTS and id(module) not in kept:
            module.to(dtype)
    for part in exact:
        part.forward = under(part.forward, device, None)
    for module in (*networks, *(m for m in task.modules() if isinstance(m, Conditioner))):
        call_in(module, device, precision)


def call_in(module: nn.Module, device: torch.device, precision: str) -> None:
    """From now on a module computes under autocast to bf16 or fp16; fp32 is as is."""
    if precision in HALVES:
        module.forward = under(module.forward, device, HALVES[precision])


def suited(task: Task, precision: str) -> str:
    """The precision of the networks of a task: fp32 in place of fp16 if the range of fp16 is too narrow."""
    return "fp32" if precision == "fp16" and task.wide else precision


def float32_parts(module: nn.Module) -> list[nn.Module]:
    """The children of a module that stay in float32: embeddings of the time, and the output layer of a classifier."""
    match module:
        case Embedding():
            return [module.time]
        case TimeEmbedder():
            return [module.mlp]
        case ConvNet() | Trunk() | ClipConvNet():
            return [module.head]
    return []


def under(forward: Callable[..., Any], device: torch.device, dtype: torch.dtype | None) -> Callable[..., Any]:
    """`forward` under autocast to a dtype; with None without autocast, also inside of another autocast."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
            return forward(*args, **kwargs)

    return call

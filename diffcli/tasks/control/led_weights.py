"""The tensors of a model that is led, under the names of a task without control and of one with it, and their digest."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

NETWORK, BASE = "denoiser.network.", "denoiser.network.base."
BESIDE = ("conditioners.", "codec.")  # what else a model is made of


def own_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a model, led or not, by their names in a task without control, of all tensors of a checkpoint."""
    prefix = BASE if any(name.startswith(BASE) for name in tensors) else NETWORK
    own = {NETWORK + name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return own | {name: value for name, value in tensors.items() if name.startswith(BESIDE)}


def in_control(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model by their names in a task with control."""
    return {
        BASE + name.removeprefix(NETWORK) if name.startswith(NETWORK) else name: value for name, value in own.items()
    }


def digest_of(own: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and values of `own_tensors`, in order of their names."""
    digest = hashlib.sha256()
    for name in sorted(own):
        value = own[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()

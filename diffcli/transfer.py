"""Copies of small tensors from the host to a device, without waiting."""

import torch
from torch import Tensor


def moved(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device, in dtype if one is given; a copy from the CPU to CUDA goes through pinned memory and returns at once.

    A copy from pageable memory would wait until the device has finished its work. Conversion and pinning happen on the host, so x
    should be small or pinned already.
    """
    if x.device.type != "cpu" or device.type == "cpu":
        return x.to(device, dtype or x.dtype)
    return pinned(x.to(dtype or x.dtype), device).to(device, non_blocking=True)


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """x in pinned memory, from which a copy to this device runs in the background; x itself if the device has no such memory."""
    return x.pin_memory() if device.type == "cuda" else x

"""The way of small tensors from the host to a device, on which neither waits for the other."""

import torch
from torch import Tensor


def moved(x: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """x on a device, in dtype if one is given; a copy from the CPU to CUDA goes through pinned memory and returns at once.

    From pageable memory the host would wait for all that the device still has to do. Both conversion and pinning happen on
    the host, so x is small or already pinned.
    """
    if x.device.type != "cpu" or device.type == "cpu":
        return x.to(device, dtype or x.dtype)
    return pinned(x.to(dtype or x.dtype), device).to(device, non_blocking=True)


def pinned(x: Tensor, device: torch.device) -> Tensor:
    """x in memory that a copy to this device may read while the host goes on; x itself where there is no such memory."""
    return x.pin_memory() if device.type == "cuda" else x

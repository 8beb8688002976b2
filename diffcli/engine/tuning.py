"""Settings for speed that depend on the machine: allocator, precision, memory format and TF32.

Settings that change results are recorded: the precision, in a run's resolved preset and in the record of samples.
"""

import ctypes
import sys
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from diffcli.config import UserError, did_you_mean

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
FAST_BF16 = {"avx512_bf16", "amx_bf16"}  # CPU flags that say so: elsewhere bf16 is emulated and slower than float32


@cache
def tune_allocator() -> bool:
    """Lets glibc keep freed memory instead of returning it to the kernel; True if glibc accepted this.

    Every step needs the same large activations as the one before; returning memory costs page faults and zeroing. The memory of
    the process then stays at its peak. On other systems (musl, macOS, Windows) this does nothing.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))


def tune(device: torch.device) -> None:
    """Sets the allocator and TF32 for this process, before training or sampling."""
    tune_allocator()
    if has_tf32(device):
        torch.set_float32_matmul_precision("high")  # cuDNN's convolutions take TF32 as they are


def has_tf32(device: torch.device) -> bool:
    """Whether float32 products run on tensor cores there, which round their factors to 10 bits of mantissa."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def choose_precision(wish: str, device: torch.device) -> str:
    """fp32, bf16 or fp16: the meaning of `wish`, one of PRECISIONS, on a device. Raises UserError for other words."""
    if wish not in PRECISIONS:
        raise UserError(f"--precision {wish}: no such precision", did_you_mean(wish, PRECISIONS))
    return auto_precision(device) if wish == "auto" else wish


def auto_precision(device: torch.device) -> Literal["fp32", "bf16"]:
    """bf16 where the device multiplies it faster than float32, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    if device.type == "cpu":
        return "bf16" if FAST_BF16 & cpu_flags() else "fp32"
    return "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context for a network; float32 disables autocast."""
    dtype = HALVES.get(precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


@cache
def cpu_flags() -> frozenset[str]:
    """The features that Linux reports for the first CPU; empty elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return frozenset()
    flags = next((line.partition(":")[2] for line in lines if line.startswith("flags")), "")
    return frozenset(flags.split())


def memory_format(device: torch.device, precision: str, training: bool) -> torch.memory_format:
    """The layout in which convolutional networks are fastest.

    Tensor cores of CUDA need channels last. On the CPU, channels last makes convolutions faster, but the backward pass of torch's
    group norm slower; so there sampling uses channels last and training the contiguous layout.
    """
    if device.type == "cuda" and precision != "fp32":
        return torch.channels_last
    if device.type == "cpu" and not training:
        return torch.channels_last
    return torch.contiguous_format


def compile_network(network: nn.Module, **options: Any) -> None:
    """Compiles a network in place, so that no prefix reaches a checkpoint. options: see torch.compile.

    All inputs have the batch as their first dimension. It is marked as dynamic, so a smaller last batch uses the same graph.
    A batch of one sample has a graph of its own.
    """
    network.compile(**options)
    compiled = network._compiled_call_impl  # what nn.Module.compile leaves there, and calls in place of forward
    assert compiled is not None

    def marked(*inputs: Any, **named: Any) -> Any:
        for leaf in tree_leaves((inputs, named)):
            if isinstance(leaf, Tensor) and leaf.ndim:
                torch._dynamo.maybe_mark_dynamic(leaf, 0)
        return compiled(*inputs, **named)

    network._compiled_call_impl = marked

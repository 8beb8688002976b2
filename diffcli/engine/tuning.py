"""Choices that make a step fast on the machine at hand: precision, memory format, allocator."""

import torch


def tune_allocator() -> None:
    """Placeholder of the measured allocator settings."""


def auto_precision(device: torch.device) -> str:
    """bf16 where the processor multiplies it natively, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    if device.type == "cpu":
        return "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return "fp32"


def memory_format(device: torch.device, precision: str) -> torch.memory_format:
    """How convolution weights and activations lie in memory."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format

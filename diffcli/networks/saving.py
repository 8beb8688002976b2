"""Gradient checkpointing: a layer keeps its inputs alone, and what it computes inside is computed again on the way back.

Source: Chen et al. 2016 (arXiv 1604.06174).
"""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SAVE_MEMORY = "gradient checkpointing: blocks are computed again on the way back"


def run(layer: nn.Module, *inputs: object, save_memory: bool) -> Tensor:
    """layer(*inputs). Dropout follows from seeds, so no generator's state has to be kept for the second time."""
    if save_memory and torch.is_grad_enabled():
        y: Tensor = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return y
    y = layer(*inputs)
    return y

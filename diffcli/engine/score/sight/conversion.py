"""Images in the size and with the channels that a classifier was trained with."""

import torch.nn.functional as F
from torch import Tensor

from diffcli.config import ImageShape

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, Pillow's grey


def converted(x: Tensor, shape: ImageShape) -> Tensor:
    """Images (B, C, H, W) with C = 1 or 3 as (B, *shape): grey or repeated, resized bilinearly with antialiasing."""
    found = ImageShape(*x.shape[1:])
    if found.channels == 3 and shape.channels == 1:
        x = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    elif found.channels == 1:
        x = x.expand(-1, shape.channels, -1, -1)
    return x if found[1:] == shape[1:] else F.interpolate(x, shape[1:], mode="bilinear", antialias=True)

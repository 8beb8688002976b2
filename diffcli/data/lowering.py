"""Smaller pictures by named, antialiased kernels: the protocol of low-resolution conditions and of their scores."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli.lookup.kernels import Kernel

FILTERS = {
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "bilinear": Image.Resampling.BILINEAR,
    "box": Image.Resampling.BOX,
}


def lowered(images: Tensor, size: tuple[int, int], kernel: Kernel) -> Tensor:
    """uint8 (B, C, H, W) -> uint8 (B, C, h, w) of `size`, by Pillow's filter of that name, whose support grows with the factor.

    Also enlarges: the floor of super-resolution is `lowered` to a larger size.
    """
    width_first = size[1], size[0]
    made = np.empty((len(images), *size, images.shape[1]), np.uint8)
    for number, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        picture = Image.fromarray(np.ascontiguousarray(image[..., 0] if image.shape[2] == 1 else image))
        made[number] = np.asarray(picture.resize(width_first, FILTERS[kernel])).reshape(*size, -1)
    return torch.from_numpy(made).permute(0, 3, 1, 2).contiguous()

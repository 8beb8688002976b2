"""Images as bytes, grids and files. Inside, images are float (B, C, H, W) in [-1, 1]; bytes are rounded and clamped."""

import math
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from torch import Tensor

GAP = 2  # pixels between the images of a grid


def to_uint8(images: Tensor) -> Tensor:
    """Float in [-1, 1] -> uint8 on the CPU, same shape; rounds to the nearest level, clamps what is outside."""
    return ((images.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def grid(images: Tensor, columns: int | None = None) -> np.ndarray:
    """uint8 (B, C, H, W) -> one uint8 picture (H', W', C), row by row in order, on black."""
    n, channels, height, width = images.shape
    columns = min(columns or squarest(n), n)
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = GAP + (i // columns) * (height + GAP), GAP + (i % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def squarest(n: int) -> int:
    """Columns for n images: nearly a square, without a gap in the last row where that stays within two to one."""
    root = math.ceil(math.sqrt(n))
    return next((c for c in range(root, math.ceil(math.sqrt(2 * n)) + 1) if n % c == 0), root)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes a uint8 picture (H, W, C); one channel becomes a grey file."""
    imageio.imwrite(path, picture[..., 0] if picture.shape[-1] == 1 else picture, extension=".png")

"""Images as sequences of patches and back, and the positions of patches on the grid.

Patches run row by row; `sincos` is added to tokens, `rotation` turns queries and keys, `patchify` has `unpatchify` as its
exact inverse.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.networks.layers import Size, sinusoid


class Rotation(NamedTuple):
    """The rotation of each pair of a head's channels at each position; both (L, head_dim / 2) float32."""

    cos: Tensor
    sin: Tensor


def patchify(x: Tensor, patch: int) -> Tensor:
    """(B, C, H, W) -> (B, L, patch * patch * C), L = H / patch * W / patch; a patch's row, column, channel in this order."""
    grid = x.unflatten(3, (-1, patch)).unflatten(2, (-1, patch))  # (B, C, h, p, w, q)
    return grid.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(tokens: Tensor, patch: int, size: Size) -> Tensor:
    """(B, L, patch * patch * C) -> (B, C, H, W) with (H, W) = size: the exact inverse of `patchify`."""
    height, width = size
    grid = tokens.unflatten(2, (patch, patch, -1)).unflatten(1, (height // patch, width // patch))  # (B, h, w, p, q, C)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(len(tokens), -1, height, width)


def on_grid(by_row: Tensor, by_column: Tensor) -> tuple[Tensor, Tensor]:
    """(h, D) and (w, D) -> for each of the h * w positions the values of its row and of its column, (h * w, D) each."""
    h, w = len(by_row), len(by_column)
    return by_row.repeat_interleave(w, dim=0), by_column.repeat(h, 1)


def sincos(grid: Size, width: int, device: torch.device) -> Tensor:
    """Fixed embeddings (h * w, width) of the positions of a grid; width a multiple of 4, any grid.

    The first half tells the column, the second the row, each as sines, then cosines, of the integer coordinate.
    Source: Peebles & Xie 2022 (arXiv 2212.09748), in the order of its code; He et al. 2021 (arXiv 2111.06377).
    """
    rows, columns = (torch.arange(n, device=device) for n in grid)
    by_row, by_column = (
        sinusoid(n, width // 2).roll(width // 4, dims=1) for n in (rows, columns)
    )  # sines to the front
    row, column = on_grid(by_row, by_column)
    return torch.cat([column, row], dim=1)


def rotation(grid: Size, head_dim: int, device: torch.device) -> Rotation:
    """Angles of axial rotary embedding: half of a head's pairs turn with the row, half with the column.

    Source: Su et al. 2021 (arXiv 2104.09864), eq. 34; axes as in Heo et al. 2024 (arXiv 2403.13298), section 3.1.
    """
    rows, columns = (sinusoid(torch.arange(n, device=device), head_dim // 2) for n in grid)  # (n, head_dim / 2)
    row, column = on_grid(rows, columns)
    cos, sin = (torch.cat(pair, dim=1) for pair in zip(row.chunk(2, dim=1), column.chunk(2, dim=1), strict=True))
    return Rotation(cos, sin)


def rotate(x: Tensor, by: Rotation) -> Tensor:
    """x (..., L, head_dim) with channels i and i + head_dim / 2 turned as a pair: x_m . y_n then depends on m - n alone."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * by.cos - b * by.sin, a * by.sin + b * by.cos], dim=-1)

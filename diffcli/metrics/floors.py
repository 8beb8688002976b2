"""Floors for a first stage: the best linear code with as many numbers, and the best table of patches with as many bits.

Images are rows of squares: cut into cells of one size, the whole image being one cell at most. A floor maps rows in
[0, 1] to their reconstructions by such a code. Source: principal components, Eckart & Young 1936; k-means, Lloyd 1982.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.kmeans import lloyd, nearest, plus_plus
from diffcli.metrics.statistics import FeatureMoments
from diffcli.noise import Domain, Noise

Cell = tuple[int, int]
"""Height and width of what is coded by itself, in pixels; both divide those of the image."""

ROUNDS = 20  # of Lloyd's algorithm
BEGINNING = 64  # rows for each centre among which k-means++ looks for the first ones


class LinearFloor(NamedTuple):
    """The projection onto the first principal components of the rows that it was fitted to."""

    mean: Tensor  # (D,)
    basis: Tensor  # (D, k), orthonormal

    def __call__(self, rows: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        moved, basis = exact(rows - self.mean), exact(self.basis)
        return (moved @ basis @ basis.T).float() + self.mean


class TableFloor(NamedTuple):
    """The nearest of K rows."""

    centres: Tensor  # (K, D)

    def __call__(self, rows: Tensor) -> Tensor:
        """(N, D) -> (N, D)."""
        return self.centres[nearest(rows, self.centres)]


def exact(x: Tensor) -> Tensor:
    """A factor of a product in the precision of float32, which tensor cores do not have: beside the CPU, float64."""
    return x if x.device.type == "cpu" else x.double()


def linear(moments: FeatureMoments, k: int) -> LinearFloor:
    """The best linear code of k numbers for rows (N, D) by their moments: none has a smaller squared error on them."""
    mean, covariance = moments.fitted()
    _, vectors = torch.linalg.eigh(covariance.float())  # in rising order
    return LinearFloor(mean.float(), vectors[:, -k:].contiguous())


@torch.no_grad()
def table(rows: Tensor, k: int) -> TableFloor:
    """K-means of rows (N, D) float32: at least k of them. It begins with rows that are spread evenly over them."""
    draws = Noise(range(k), torch.device("cpu"), Domain.CODEBOOK).uniform()
    begun = plus_plus(rows[:: max(1, len(rows) // (BEGINNING * k))], draws.to(rows.device))
    return TableFloor(lloyd(rows, begun, ROUNDS))


def cells(images: Tensor, cell: Cell) -> Tensor:
    """(B, C, H, W) -> (B x H/h x W/w, C x h x w), one row for each cell, in reading order."""
    batch, channels, height, width = images.shape
    h, w = cell
    cut = images.reshape(batch, channels, height // h, h, width // w, w)
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels * h * w)


def joined(rows: Tensor, cell: Cell, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `cells`. shape: of one image (C, H, W)."""
    channels, height, width = shape
    h, w = cell
    cut = rows.reshape(-1, height // h, width // w, channels, h, w)
    return cut.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, height, width)

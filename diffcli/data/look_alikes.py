"""Groups of pictures that look alike, to take the place of classes: a model that no label taught can be led towards a group.

Sources: Hu et al. 2023, section 3 (self-guided diffusion, arXiv 2210.06462); Adaloglou et al. 2024 (arXiv 2403.00570).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.kmeans import kmeans, nearest
from diffcli.noise import Domain, derive

SEED = 1
ROUNDS = 25  # of Lloyd's algorithm


def centres_of(pictures: Tensor, count: int) -> Tensor:
    """The centres of so many groups of pictures (N, *S), each scaled to length 1: float32 (count, S)."""
    drawn = derive(SEED, Domain.CODEBOOK, torch.arange(count)).double() / 2**63
    return kmeans(directions(pictures), drawn, ROUNDS)


def group_of(pictures: Tensor, centres: Tensor) -> Tensor:
    """The group of each picture (N, *S), that of the nearest centre: int64 (N,)."""
    return nearest(directions(pictures), centres)


def directions(pictures: Tensor) -> Tensor:
    """Pictures (N, *S) as rows of length 1, so that bold and thin strokes of one shape are alike; black stays 0."""
    return F.normalize(pictures.flatten(1).float(), dim=1)

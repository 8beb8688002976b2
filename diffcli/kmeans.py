"""K-means, for the start of a codebook and for the floor of its PSNR.

Everything is computed in float32, in pieces of bounded memory. The only random numbers are those that the caller passes.
"""

import torch
from torch import Tensor

PIECE = 2**24  # distances that are held at once: 64 MiB
COARSE = ~0x1FFF  # the bits of a float32 that TF32 has


@torch.no_grad()
def nearest(rows: Tensor, centres: Tensor) -> Tensor:
    """The index of the centre (K, D) nearest to each row (N, D), the first of equals: (N,) int64.

    Both are moved by the mean of the centres: far from 0 the squares would leave nothing of the distances.
    """
    rows, centres = rows.float(), centres.float()
    middle = centres.mean(dim=0)
    moved = centres - middle
    squares = moved.square().sum(dim=1)  # (K,)
    right = factors(moved, 1).T
    device = "cpu" if rows.is_meta else rows.device.type
    with torch.autocast(device, enabled=False):
        pieces = (rows - middle).split(max(1, PIECE // len(centres)))
        return torch.cat([torch.addmm(squares, factors(piece, 2), right, alpha=-2).argmin(dim=1) for piece in pieces])


def factors(x: Tensor, low: int) -> Tensor:
    """(N, D) -> (N, 3D) such that the product of two of these, low = 1 and 2, is that of what they were made of.

    Tensor cores round the factors of float32 to 10 bits of mantissa. So each is split into what these bits hold and the rest,
    and the three products that matter are added: all but 2^-22 is left. low: which third has the rest. Elsewhere it is x itself.
    """
    if x.device.type != "cuda":
        return x
    high = (x.view(torch.int32) & COARSE).view(torch.float32)
    thirds = [high, high, high]
    thirds[low] = x - high
    return torch.cat(thirds, dim=1)


def sums_of(rows: Tensor, codes: Tensor, k: int) -> Tensor:
    """The sum of the rows (N, D) of each code in 0..k-1: (k, D). The same bits every time, on every device."""
    sums = rows.new_zeros(k, rows.shape[1])
    if rows.device.type == "cpu":
        return sums.index_add_(0, codes, rows)
    return sums.index_put_((codes,), rows, accumulate=True)  # sorts, where index_add_ adds in the order of arrival


def counts_of(codes: Tensor, k: int) -> Tensor:
    """The number of times that each of 0..k-1 occurs in codes, of any shape: (k,) int64. Nothing waits for the device."""
    flat = codes.flatten()
    return flat.new_zeros(k).scatter_add_(0, flat, torch.ones_like(flat))


@torch.no_grad()
def kmeans(rows: Tensor, uniform: Tensor, rounds: int) -> Tensor:
    """K centres (K, D) float32 of rows (N, D), by k-means++ and so many rounds of Lloyd's algorithm.

    uniform: (K,) float64 in [0, 1), one for each centre that k-means++ draws. A centre that loses all its rows stays.
    Source: Arthur and Vassilvitskii 2007; Lloyd 1982.
    """
    rows = rows.float()
    return lloyd(rows, plus_plus(rows, uniform.to(rows.device)), rounds)


@torch.no_grad()
def lloyd(rows: Tensor, centres: Tensor, rounds: int) -> Tensor:
    """The centres (K, D) after so many rounds of Lloyd's algorithm on rows (N, D) float32."""
    k = len(centres)
    for _ in range(rounds):
        codes = nearest(rows, centres)
        counts = counts_of(codes, k)[:, None]
        centres = torch.where(counts > 0, sums_of(rows, codes, k) / counts.clamp(min=1), centres)
    return centres


def plus_plus(rows: Tensor, uniform: Tensor) -> Tensor:
    """K of the rows (N, D), each drawn in proportion to its squared distance from those that were drawn before it.

    Where no row has a distance any more (fewer different rows than centres), they are drawn alike.
    """
    last = len(rows) - 1
    chosen = [(uniform[0] * len(rows)).long().clamp(max=last)]
    distance = torch.full((len(rows),), torch.inf, device=rows.device)
    for u in uniform[1:]:
        distance = torch.minimum(distance, (rows - rows[chosen[-1]]).square().sum(dim=1))
        weight = distance.double()
        weight = torch.where(weight.any(), weight, 1.0)
        total = weight.cumsum(0)
        chosen.append(torch.searchsorted(total, u * total[-1], right=True).clamp(max=last))
    return rows[torch.stack(chosen)]

"""Tokens that are no places: linear layers over all numbers of an image, before its latent and after it.

Neighbouring patches of a picture look alike, which a code of each patch for itself pays for again and again. Here every token is
a part of the whole image. At first the layers take an image apart into waves and put it together again: the strongest waves are
dealt to the tokens so that each has about as much to tell, and all others are left out. When training begins, the principal
components of its images take the place of the waves, which are the best that is linear; of large images they would take too long.
Source: Yu et al. 2024 (TiTok, arXiv 2406.07550) for tokens that are no places; Ahmed, Natarajan and Rao 1974 for the waves.
"""

import heapq
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.config import ImageShape, UserError

COLOUR = 7  # a difference of channels is as weak as a frequency whose square is so many times as high
FALL = 1.4  # the power of the squared frequency by which waves get weaker in pictures: Ruderman 1994 has about 1
IMAGES = 8192  # whose principal components are looked for,
NUMBERS = 4096  # where an image has no more numbers
LEAST = 1e-6  # of the strength of the strongest component: what rounding leaves of those that there are not


class Components(NamedTuple):
    """What images are taken apart into, the strongest first. strength: their variances (n,), or in proportion to these."""

    waves: Tensor  # (n, C, H, W), orthonormal
    strength: Tensor
    mean: Tensor  # (C, H, W)   of the images


class WholeImage(nn.Module):
    """x (B, *before), a part of all of whose numbers is in every number of the result (B, *after), each shape (C, h, w).

    The weight is stored `scale` times as large as it is used, so that its numbers are about as large as those of a convolution,
    and one learning rate fits both (Karras et al. 2017, section 4.1, arXiv 1710.10196).
    """

    def __init__(self, before: tuple[int, int, int], after: tuple[int, int, int]) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.scale = math.sqrt(max(math.prod(before), math.prod(after)))
        self.weight = nn.Parameter(torch.zeros(math.prod(after), math.prod(before)))
        self.bias = nn.Parameter(torch.zeros(math.prod(after)))

    def forward(self, x: Tensor) -> Tensor:
        """Raises UserError where x is of another size: what it was made of was no image of the one size that it knows."""
        if x.shape[1:] != self.before:
            known, found = ("x".join(map(str, shape)) for shape in (self.before[1:], x.shape[2:]))
            raise UserError(
                f"the first stage codes images as wholes, of {known} positions, but here are {found}",
                "give images of the size that it was trained on (task.network.whole)",
            )
        return F.linear(x.flatten(1), self.weight / self.scale, self.bias).unflatten(1, self.after)

    @torch.no_grad()
    def set(self, weight: Tensor, bias: Tensor) -> None:
        """Takes a weight (prod(after), prod(before)) as it is used, and a bias; rows of the result beyond those are 0."""
        self.weight.zero_()
        self.bias.zero_()
        self.weight[: len(weight)].copy_(weight * self.scale)
        self.bias[: len(bias)].copy_(bias)


class AroundLatent(NamedTuple):
    """The layers before and after a latent (latent, H / f, W / f), of and to patches (C f^2, H / f, W / f) of an image."""

    before: WholeImage
    after: WholeImage

    def start(self, found: Components) -> None:
        """Deals components to the tokens: as many as the latent has numbers."""
        latent, *grid = self.after.before
        tokens, factor = math.prod(grid), found.mean.shape[1] // grid[0]
        waves = found.waves[dealt(found.strength[: latent * tokens].tolist(), tokens).flatten()]
        rows, mean = (F.pixel_unshuffle(x, factor).flatten(1) for x in (waves, found.mean[None]))
        self.before.set(rows, -(rows @ mean[0]))
        self.after.set(rows.T, mean[0])


def whole_layers(image: ImageShape, factor: int, inputs: int, latent: int) -> AroundLatent:
    """The layers for images of this shape, begun with waves. inputs: channels that the bottleneck wants.

    Raises UserError where a latent has more numbers than an image.
    """
    grid = (image.height // factor, image.width // factor)
    numbers = latent * math.prod(grid)
    if numbers > math.prod(image):
        raise UserError(
            f"task.network.latent is {latent}, so a latent has {numbers} numbers, but an image {math.prod(image)}",
            f"use --set task.network.latent={image.channels * factor**2} or less, or --set task.network.whole=null",
        )
    patches = (image.channels * factor**2, *grid)
    layers = AroundLatent(WholeImage(patches, (inputs, *grid)), WholeImage((latent, *grid), patches))
    if not layers.before.weight.is_meta:
        layers.start(cosine_waves(image, numbers))
    return layers


def wanted(image: ImageShape) -> int:
    """How many images the principal components of images of this shape are taken of; 0: none, it would take too long."""
    return IMAGES if math.prod(image) <= NUMBERS else 0


def dealt(strength: list[float], tokens: int) -> Tensor:
    """Which component each number of a latent (n / tokens, tokens) is, for strengths (n,) that fall.

    Beginning with the strongest, one goes to the token that has least to tell yet and is not full. A component of a Gaussian has
    log(strength / level) / 2 nats to tell (reverse water-filling); here the weakest of all stands at the level.
    """
    room, full = [(0.0, token) for token in range(tokens)], len(strength) // tokens
    got: list[list[int]] = [[] for _ in range(tokens)]
    for i, each in enumerate(strength):
        told, token = heapq.heappop(room)
        got[token].append(i)
        if len(got[token]) < full:
            heapq.heappush(room, (told + math.log(each / strength[-1]), token))
    return torch.tensor(got, device="cpu").T


def principal(images: Tensor) -> Components:
    """The principal components of images (n, C, H, W), computed in float64 on the CPU: the same on every device."""
    rows = images.flatten(1).cpu().double()
    mean = rows.mean(dim=0)
    rows, shape = rows - mean, images.shape[1:]
    if len(rows) < len(mean):  # faster than through the covariance
        _, values, waves = torch.linalg.svd(rows)
        strength = F.pad(values.square() / len(rows), (0, len(mean) - len(rows)))
    else:
        strength, vectors = torch.linalg.eigh(rows.T @ rows / len(rows))
        strength, waves = strength.flip(0), vectors.T.flip(0)
    strength = strength.clamp(min=strength[0].item() * LEAST)
    return Components(waves.float().unflatten(1, shape), strength, mean.float().view(shape))


def cosine_waves(image: ImageShape, n: int) -> Components:
    """The n strongest waves of the cosine transform, and how strong they are in pictures; the mean is 0.

    Pictures have the less of a wave the higher its frequency is, and little of differences between channels.
    """
    with torch.device("cpu"):
        channels, height, width = image
        u, v = torch.arange(height)[:, None] / height, torch.arange(width)[None] / width
        squared = u.square() + v.square() + 1 / (height * width)
        weakness = torch.stack([squared * (COLOUR if c else 1) for c in range(channels)]).flatten()
        chosen = weakness.argsort(stable=True)[:n]
        places = torch.unravel_index(chosen, tuple(image))
        channel, row, column = (cosines(size)[place] for size, place in zip(image, places, strict=True))
        waves = channel[:, :, None, None] * row[:, None, :, None] * column[:, None, None, :]
        return Components(waves, weakness[chosen] ** -FALL, torch.zeros(tuple(image)))


def cosines(n: int) -> Tensor:
    """The orthonormal cosine transform (DCT-II) of n numbers: row k is the wave of k half periods. (n, n) float32."""
    k, i = torch.arange(n, dtype=torch.float64)[:, None], torch.arange(n, dtype=torch.float64)[None]
    waves = torch.cos(math.pi * k * (i + 0.5) / n) * math.sqrt(2 / n)
    waves[0] /= math.sqrt(2)
    return waves.float()

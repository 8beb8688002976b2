"""Digits on textured clutter with the masks of four annotators who disagree on the border: computed data for segmentation.

An image follows from its number among the digits that ship with diffcli. The digit is on a texture of two scales with stripes,
beside fainter pieces of itself. An annotator marks the pixels where its ink, slightly blurred, exceeds a level. Each annotator
has a different level, from generous to tight, which varies smoothly along the border.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from diffcli.config import keys_agree
from diffcli.data import mnist
from diffcli.data.annotators import HeldMasks, annotated, consensus
from diffcli.data.dataset import DataConfig
from diffcli.data.digits_file import read_digits
from diffcli.data.images import ImageData, MemoryImages
from diffcli.data.listing import Split
from diffcli.data.naming import no_root
from diffcli.fields import FieldSpec
from diffcli.noise import Domain, Noise, derive

SEED = 10
CHUNK = 500  # images made at once
CLASSES = 2
LEVELS = 0.24, 0.38, 0.5, 0.64  # of blurred ink, above which an annotator marks
WAVER = 0.07  # deviation of a level along the border
FAINTEST = 0.08  # that anybody marks
SHARE = 28 / 32  # of the shorter side that a digit takes
PIECES, PIECE = 3, 9  # cut from the middle of the digit, and their edge in pixels of a digit


class DigitsSegmentation(DataConfig):
    """Digits on clutter, grey, with four annotators: 9,000 images in `train`, 1,000 in `test`.

    Fields: image, label (the digit), mask (two classes), masks (of all annotators).
    """

    kind: Literal["digits_segmentation"] = "digits_segmentation"
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 32
    channels: Literal[1, 3] = 1

    @keys_agree
    def _embedded(self) -> Iterator[str]:
        if self.root is not None:
            yield no_root(self.kind)

    @property
    def specs(self) -> dict[str, FieldSpec]:
        return super().specs | {"mask": FieldSpec("mask", (1, *self.shape[1:]), CLASSES)}

    def build(self, split: Split) -> ImageData:
        images, masks, labels = scenes(split, self.shape[1:])
        columns = annotated(
            [HeldMasks(masks[:, a : a + 1], CLASSES) for a in range(len(LEVELS))],
            HeldMasks(consensus(masks), CLASSES),
        )
        pixels = images.expand(-1, self.channels, -1, -1)
        return self._with_made(MemoryImages(pixels, labels, mnist.DIGITS, columns))


@lru_cache(maxsize=4)
def scenes(split: Split, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Images uint8 (N, 1, H, W), masks uint8 (N, A, H, W) of 0 and 1, and labels int64 (N,) of a split, not to be changed."""
    digits, labels, numbers = read_digits(split)
    ink = torch.from_numpy(digits).float() / 255
    seeds = derive(SEED, Domain.AUGMENT, torch.from_numpy(numbers))
    made = [scene(some, of, size) for some, of in zip(ink.split(CHUNK), seeds.split(CHUNK), strict=True)]
    images, masks = (torch.cat(parts) for parts in zip(*made, strict=True))
    return images, masks, torch.from_numpy(labels)


def scene(ink: Tensor, seeds: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Images (B, 1, H, W) and masks (B, A, H, W), both uint8, of digits (B, 1, 28, 28) in [0, 1]; image i follows from seed i."""
    noise = Noise(seeds, seeds.device)
    edge = max(1, round(min(size) * SHARE))
    digits = ink if edge == ink.shape[-1] else F.interpolate(ink, (edge, edge), mode="bilinear", antialias=True)
    placed = scattered(digits, size, noise)
    pieces = torch.zeros_like(placed)
    for _ in range(PIECES):
        pieces = torch.maximum(pieces, scattered(piece(digits, noise), size, noise))
    level = 0.68 + 0.24 * _uniform(noise, 1)
    faint = 0.45 + 0.1 * _uniform(noise, 1)
    ground = texture(noise, size)
    ground = ground + pieces * (faint - ground) * (placed == 0)
    image = ground + placed * (level - ground) + 0.03 * noise(placed)
    waver = smooth(noise(placed.expand(-1, len(LEVELS), -1, -1)), 2.0)
    levels = torch.tensor(LEVELS).view(-1, 1, 1)
    soft = blurred(placed, 0.6)
    masks = (soft > levels + WAVER * waver) & (soft > FAINTEST)
    return (image.clamp(0, 1) * 255).round().to(torch.uint8), masks.to(torch.uint8)


def scattered(pictures: Tensor, size: tuple[int, int], noise: Noise) -> Tensor:
    """Each of (B, 1, h, w) at a random place of black (B, 1, H, W)."""
    h, w = pictures.shape[2:]
    places = (_uniform(noise, 2) * torch.tensor([size[0] - h + 1, size[1] - w + 1]).view(2, 1, 1)).long().flatten(1)
    found = pictures.new_zeros(len(pictures), 1, *size)
    for row, picture, (top, left) in zip(found, pictures, places.tolist(), strict=True):
        row[:, top : top + h, left : left + w] = picture
    return found


def piece(digits: Tensor, noise: Noise) -> Tensor:
    """A square cut from each digit, turned by half a circle: (B, 1, h, h)."""
    edge = digits.shape[-1]
    part = max(1, round(PIECE * edge / 28))
    first = (edge - part) // 2
    moved = ((_uniform(noise, 2) - 0.5) * first).long().flatten(1).tolist()
    cut = [
        d[:, first + y : first + y + part, first + x : first + x + part]
        for d, (y, x) in zip(digits, moved, strict=True)
    ]
    return torch.stack(cut).flip(2, 3)


def texture(noise: Noise, size: tuple[int, int]) -> Tensor:
    """A ground between black and grey, (B, 1, H, W)."""
    like = torch.empty(len(noise.key), 1, *size)
    amount, turn, phase, width = _uniform(noise, 4).split(1, dim=1)
    y, x = torch.arange(size[0]).view(1, 1, -1, 1), torch.arange(size[1]).view(1, 1, 1, -1)
    angle, wave = torch.pi * turn, 2 * torch.pi * (0.05 + 0.15 * width)
    stripes = (wave * (x * angle.cos() + y * angle.sin()) + 2 * torch.pi * phase).sin()
    return 0.3 + 0.08 * amount * stripes + 0.07 * smooth(noise(like), 2.5) + 0.05 * smooth(noise(like), 0.8)


def smooth(x: Tensor, sigma: float) -> Tensor:
    """White noise (B, C, H, W), blurred, of deviation 1 again."""
    line = gaussian(sigma)
    return blurred(x, sigma) / line.square().sum()


def blurred(x: Tensor, sigma: float) -> Tensor:
    """Convolved with a Gaussian of this deviation in pixels; the border is repeated."""
    line = gaussian(sigma)
    reach = len(line) // 2
    wide = F.pad(x.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(wide, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1)).view(x.shape)


def gaussian(sigma: float) -> Tensor:
    """The weights of a blur, which add up to 1."""
    reach = max(1, round(3 * sigma))
    line = torch.exp(-(torch.arange(-reach, reach + 1) / sigma).square() / 2)
    return line / line.sum()


def _uniform(noise: Noise, count: int) -> Tensor:
    """Numbers in [0, 1), (B, count, 1, 1)."""
    return torch.stack([noise.uniform().float() for _ in range(count)], 1)[..., None, None]

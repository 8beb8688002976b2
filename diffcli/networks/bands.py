"""The decoder of a first stage in bands of rows: the exact result of the whole, in a fraction of its memory.

Convolutions are local, so a band with enough rows around it (its halo) gives exact results for its own rows. Group norms are not
local: each takes its statistics from one pass over all bands, before the pass that uses them. The input of a block stays in
memory as a whole, its inner results do not. Attention needs every position; it is computed on whole images, at the coarse
levels that have it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.networks.autoencoder import Autoencoder
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.image_coder import Aside, CoderBlock, CoderLevel
from diffcli.networks.split_norms import Enough, RunningMoments, added, grouped, normed, standing_in


class LocalLayers(NamedTuple):
    """Layers that are local except for their norms.

    run: (B, C, H, W) -> (B, C', H * scale, W * scale). norms: in the order in which `run` calls them. halo: rows of the input
    above and below that a row of the result depends on.
    """

    run: Callable[[Tensor], Tensor]
    norms: Sequence[GroupNorm]
    halo: int
    scale: int = 1


class WholeLayers(NamedTuple):
    """Layers whose output depends on every position of the input."""

    run: Callable[[Tensor], Tensor]


class Band(NamedTuple):
    """Rows first to end of an input, and the numbers of further rows above and below."""

    first: int
    end: int
    above: int
    below: int

    def rows(self, x: Tensor, scale: int) -> Tensor:
        """The band's own rows in the output x of layers, (B, C, (rows given) * scale, W)."""
        return x[:, :, self.above * scale : x.shape[2] - self.below * scale]


class BandedNorm:
    """Takes the place of a group norm: first sums up statistics of all bands, then normalises by them."""

    def __init__(self, norm: GroupNorm) -> None:
        self.norm = norm
        self.collecting = True
        self.given, self.band = 0, Band(0, 0, 0, 0)
        self.moments = RunningMoments()  # of each image and group

    def __call__(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """The same as GroupNorm.forward."""
        x, modulation = added(x, modulation)
        if self.collecting:
            self.moments.join(grouped(self.norm, self.band.rows(x, x.shape[2] // self.given)))
            raise Enough
        return normed(self.norm, x, modulation, self.moments.mean, self.moments.variance)


@torch.no_grad()
def decode_in_bands(autoencoder: Autoencoder, z: Tensor, pixels: int, vector: Tensor | None = None) -> Tensor:
    """Autoencoder.decode, with bands of at most about so many pixels of each level."""
    x = h = autoencoder.post_quant_conv(z)
    for layers in parts(autoencoder, autoencoder.aside(vector, None, len(z))):
        x = layers.run(x) if isinstance(layers, WholeLayers) else in_bands(layers, x, pixels)
    return autoencoder.image(x, h)


def parts(autoencoder: Autoencoder, aside: Aside) -> Iterator[LocalLayers | WholeLayers]:
    """A decoder as a sequence of layers, cut where little must be kept: never after a resampling."""
    decoder = autoencoder.decoder
    yield WholeLayers(lambda z: decoder.middle(decoder.stem(z), aside))
    doubling: nn.Module | None = None
    for level in cast(Iterable[CoderLevel], decoder.levels):
        for i, block in enumerate(cast(Iterable[CoderBlock], level.blocks)):
            run, norms = partial(block, aside=aside), (block.norm1, block.norm2)
            if doubling is None:
                yield LocalLayers(run, norms, halo=2)
            else:  # two rows of the finer level are one of the coarser, whose own convolution sees one more
                yield LocalLayers(partial(chained, doubling, run), norms, halo=2, scale=2)
                doubling = None
            if i < len(level.attentions):
                yield WholeLayers(level.attentions[i])
        doubling = level.resample
    yield LocalLayers(lambda h: decoder.head(F.silu(decoder.norm(h))), (decoder.norm,), halo=1)


def chained(first: Callable[[Tensor], Tensor], then: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    return then(first(x))


def in_bands(layers: LocalLayers, x: Tensor, pixels: int) -> Tensor:
    """layers.run(x) for x (B, C, H, W), in bands of about `pixels` of the result. x may be overwritten."""
    rows = max(1, pixels // (len(x) * x.shape[3] * layers.scale**2))
    bands = [
        Band(
            first,
            min(first + rows, x.shape[2]),
            min(layers.halo, first),
            min(layers.halo, max(0, x.shape[2] - first - rows)),
        )
        for first in range(0, x.shape[2], rows)
    ]
    if len(bands) == 1:
        return layers.run(x)
    with standing_in(layers.norms, BandedNorm) as norms:
        for norm in norms:
            for band in bands:
                given = x[:, :, band.first - band.above : band.end + band.below]
                for each in norms:
                    each.given, each.band = given.shape[2], band
                try:
                    layers.run(given)
                except Enough:
                    continue
                raise AssertionError("a norm was passed by")
            norm.collecting = False
        return joined(layers, x, bands)


def joined(layers: LocalLayers, x: Tensor, bands: Sequence[Band]) -> Tensor:
    """The result of all bands, in the place of the input where it has that shape."""
    out: Tensor | None = None
    kept = x[:, :, :0]  # rows above the band as they were: their place may hold the result already
    for band in bands:
        given = torch.cat([kept, x[:, :, band.first : band.end + band.below]], dim=2)
        kept = given[:, :, max(0, given.shape[2] - band.below - layers.halo) : given.shape[2] - band.below].clone()
        made = band.rows(layers.run(given), layers.scale)
        if out is None:
            same = layers.scale == 1 and made.shape[1] == x.shape[1] and made.dtype == x.dtype
            out = x if same else made.new_empty(len(x), made.shape[1], x.shape[2] * layers.scale, made.shape[3])
        out[:, :, band.first * layers.scale : band.end * layers.scale] = made
    assert out is not None
    return out

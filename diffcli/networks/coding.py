"""Images through a first stage in bounded memory: batch by batch, large ones decoded in bands of rows.

fp16 is never used, because activations of published first stages exceed its range.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from diffcli.networks.autoencoder import Autoencoder
from diffcli.networks.bands import decode_in_bands

AT_ONCE = 2**20  # pixels that are encoded or decoded together: 16 images of 256x256
TILE = 512  # images of more than TILE x TILE pixels are decoded in bands
BANDS = 16  # in the square of a tile


@torch.no_grad()
def encoded(autoencoder: Autoencoder, x: Tensor, vector: Tensor | None = None) -> Tensor:
    """`Autoencoder.encode` of any number of images (B, C, H, W) in [-1, 1]: float32 (B, inputs, H/f, W/f).

    vector: (B, V); None: the null.
    """
    with widened(x.device):
        parts = batches(x, vector, x.shape[2] * x.shape[3])
        return torch.cat([autoencoder.encode(part, vectors).float() for part, vectors in parts])


def decoded(autoencoder: Autoencoder, z: Tensor, vector: Tensor | None = None, tile: int = TILE) -> Tensor:
    """`Autoencoder.decode` of any number of z, as the bottleneck gives them: float32 (B, C, H, W) about [-1, 1].

    Images of more than tile x tile pixels are made one by one and in bands, which is exact, without a gradient.
    """
    pixels = z.shape[2] * z.shape[3] * autoencoder.downscale**2
    with widened(z.device):
        if pixels > tile**2:
            parts = batches(z, vector, AT_ONCE)
            made = [decode_in_bands(autoencoder, part, tile**2 // BANDS, vectors) for part, vectors in parts]
        else:
            made = [autoencoder.decode(part, vectors) for part, vectors in batches(z, vector, pixels)]
        return torch.cat(made).float()


def batches(x: Tensor, vector: Tensor | None, pixels: int) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Batches of samples and their vectors with at most AT_ONCE pixels together, `pixels` each; at least one sample."""
    size = max(1, AT_ONCE // pixels)
    parts = x.split(size)
    yield from zip(parts, [None] * len(parts) if vector is None else vector.split(size), strict=True)


def widened(device: torch.device) -> AbstractContextManager[None]:
    """Context that disables fp16, also inside of autocast."""
    kind = device.type
    if kind == "meta" or not torch.is_autocast_enabled(kind) or torch.get_autocast_dtype(kind) != torch.float16:
        return nullcontext()
    return torch.autocast(kind, enabled=False)

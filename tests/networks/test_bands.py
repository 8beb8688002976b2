import weakref
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffcli.networks.autoencoder import AutoencoderConfig, FirstStageConfig
from diffcli.networks.bands import decode_in_bands
from diffcli.networks.bottlenecks import Kl
from tests.latents import random_stage

DEEP = {"network__mult": [1, 2, 2], "network__latent": 4, "channels": 3}


@pytest.mark.parametrize("pixels", [1, 60, 700], ids=lambda pixels: f"{pixels} pixels")
@pytest.mark.parametrize(
    "keys",
    [{}, {"network__attend": [2], "vector": 5}, {"network__patch": 2}],
    ids=["plain", "attention and vector", "patches"],
)
def test_bands_of_any_height_give_the_whole_picture(keys, pixels):
    stage = random_stage(**DEEP, **keys)
    z = torch.randn(2, 4, 13, 7, generator=torch.Generator().manual_seed(1))
    before, whole = z.clone(), stage.decode(z)
    assert (decode_in_bands(stage, z, pixels) - whole).abs().max() < 1e-5 * whole.std()
    assert z.equal(before), "the latent of the caller stays"
    assert stage.decode(z).equal(whole), "the norms are themselves again"


def test_bands_whose_norms_know_themselves_alone_would_miss_the_picture_by_much():
    stage = random_stage(**DEEP)
    z = torch.randn(1, 4, 32, 8, generator=torch.Generator().manual_seed(1)) * torch.linspace(0, 3, 32)[:, None]
    whole, alone = stage.decode(z), torch.cat([stage.decode(part) for part in z.split(16, dim=2)], dim=2)
    assert (alone - whole).abs().max() > 0.3 * whole.std()
    assert (decode_in_bands(stage, z, 300) - whole).abs().max() < 1e-5 * whole.std()


class Peak(TorchDispatchMode):
    """The bytes of all tensors that were alive at once, of those made within."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.alive: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in self.alive:
                storage = leaf.untyped_storage()
                self.alive.add(storage._cdata)
                self.now += storage.nbytes()
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self.gone, storage._cdata, storage.nbytes())
        return made

    def gone(self, key: int, size: int) -> None:
        self.alive.discard(key)
        self.now -= size


def peak(work: Callable[[], Tensor]) -> int:
    with Peak() as counted:
        work()
    return counted.most


@pytest.mark.slow
def test_1024_pixels_take_less_than_a_third_of_the_memory():
    """Of the published decoder of downscale 8; without its attention, whose kernels keep nothing but on the meta device do."""
    network = AutoencoderConfig(width=128, mult=(1, 2, 4, 4), depth=2, middle_attention=False)
    with torch.device("meta"):
        stage = FirstStageConfig(network=network, bottleneck=Kl(), channels=3).build().requires_grad_(False)
        z = torch.empty(1, 4, 128, 128)
    assert peak(lambda: decode_in_bands(stage, z, 512**2 // 16)) < peak(lambda: stage.decode(z)) / 3

"""A first stage in bounded memory gives what it gives at once, and nothing is computed in fp16."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from diffcli.networks import coding
from diffcli.networks.autoencoder import Autoencoder
from diffcli.networks.coding import decoded, encoded
from tests.latents import random_stage

Whole = Callable[[Tensor, Tensor], Tensor]


@pytest.fixture
def stage() -> Autoencoder:
    """Of downscale 2, told vectors of 5 numbers."""
    return random_stage(vector=5)


def given(channels: int, side: int) -> tuple[Tensor, Tensor]:
    """Five samples and what is told of each."""
    generator = torch.Generator().manual_seed(side)
    return torch.rand(5, channels, side, side, generator=generator) * 2 - 1, torch.randn(5, 5, generator=generator)


@pytest.mark.parametrize(("name", "channels", "side"), [("encode", 1, 8), ("decode", 3, 4)])
def test_as_many_images_as_fit_go_together_each_with_what_is_told_of_it(
    stage: Autoencoder, monkeypatch: pytest.MonkeyPatch, name: str, channels: int, side: int
) -> None:
    x, vector = given(channels, side)
    whole, seen = getattr(stage, name), []
    monkeypatch.setattr(coding, "AT_ONCE", 2 * 8 * 8)
    monkeypatch.setattr(stage, name, lambda part, told: seen.append(len(part)) or whole(part, told))
    made = {"encode": encoded, "decode": decoded}[name](stage, x, vector)
    assert seen == [2, 2, 1]
    assert torch.allclose(made, whole(x, vector), atol=1e-5)
    assert not torch.allclose(made, whole(x), atol=1e-2), "the null is something else"


def test_bands_of_large_images_are_told_as_the_whole(stage: Autoencoder) -> None:
    z, vector = given(3, 12)
    made, whole = decoded(stage, z, vector, tile=16), stage.decode(z, vector)
    assert not made.equal(whole), "it is computed otherwise"
    assert torch.allclose(made, whole, atol=1e-5)


@pytest.mark.parametrize(("dtype", "same"), [(torch.float16, True), (torch.bfloat16, False)])
def test_nothing_is_computed_in_fp16(stage: Autoencoder, dtype: torch.dtype, same: bool) -> None:
    (x, vector), (z, _) = given(1, 8), given(3, 4)
    latents, images = encoded(stage, x, vector), decoded(stage, z, vector)
    with torch.autocast("cpu", dtype=dtype):
        for made, expected in ((encoded(stage, x, vector), latents), (decoded(stage, z, vector), images)):
            assert made.dtype == torch.float32
            assert made.equal(expected) == same

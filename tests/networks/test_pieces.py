"""Networks given pictures in pieces: what they would answer of the whole, and how far around a position they look for it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffcli.networks.channel_blocks import PositionMean
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.dit import DiTConfig
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.pieces import Cutout, InPieces
from diffcli.networks.split_norms import standing_in
from diffcli.networks.unet import UNetConfig
from tests.networks.waking import normal, wake

FREE: dict[str, Any] = {"width": 8, "mult": (1, 2), "attend_at": (), "middle": ("res",), "head_dim": 4}
KINDS: dict[str, dict[str, Any]] = {
    "residual": {"blocks": ("res",)},
    "added time": {"blocks": ("res",), "embed": "add", "groups": 4},
    "folded": {"blocks": ("res", "res"), "mult": (1,), "fold": 2},
    "channels": {"blocks": ("convnext", "channel_attention"), "middle": ("inception",), "resample": "conv"},
    "pooled": {"blocks": ("vgg",), "middle": ("dense",), "resample": "pool"},
    "interpolated": {"blocks": ("ws_res",), "middle": ("class_attention",), "resample": "interpolate"},
    "tokens": {"blocks": ("res", "cross_attention"), "attend_at": (64,), "resample": "conv", "down_padding": "end"},
}


def built(**keys: Any) -> tuple[UNetConfig, nn.Module, Conditioning]:
    """A network that is awake, for pictures of 2 channels, its config, and a condition for one of them."""
    config = UNetConfig(**{**FREE, **keys})
    reads = any("cross" in name for name in (*config.blocks, *config.middle))
    network = wake(config.build((2, 64, 64), 2, CondShape(tokens=6 if reads else 0))).eval().requires_grad_(False)
    return config, network, Conditioning(tokens=normal(1, 3, 6) if reads else None)


def answered(network: nn.Module, x: Tensor, cond: Conditioning) -> Tensor:
    time = torch.full((len(x),), 300.0)
    tokens = None if cond.tokens is None else cond.tokens.expand(len(x), -1, -1)
    return network(x, time, Conditioning(tokens=tokens))


def without_means(network: nn.Module) -> AbstractContextManager[list[Any]]:
    """Within it norms pass on what they are given, so that nothing looks at all positions."""
    layers = [layer for layer in network.modules() if isinstance(layer, GroupNorm | PositionMean)]

    def stand(layer: nn.Module) -> Any:
        return (lambda x, modulation=None: x) if isinstance(layer, GroupNorm) else (lambda x: x.new_ones(x.shape[:2]))

    return standing_in(layers, stand)


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_nothing_beyond_the_reach_of_a_network_matters_and_what_is_hardly_nearer_does(keys: dict[str, Any]) -> None:
    config, network, cond = built(**keys)
    reach, step = config.reach((2, 64, 64)), config.shift
    assert reach is not None
    side = 2 * (reach + 2 * step) // step * step + 4 * step
    x, middle = torch.ones(1, 2, 4 * step, side).requires_grad_(), side // 2
    with without_means(network):
        answered(network, x, cond)[..., middle].sum().backward()
    assert x.grad is not None
    felt = x.grad.abs().amax(dim=(0, 1, 2)).nonzero().flatten() - middle
    assert felt.abs().max() <= reach
    assert felt.abs().max() >= 0.7 * reach


@pytest.mark.parametrize("keys", KINDS.values(), ids=KINDS)
def test_pieces_that_overlap_by_twice_the_reach_give_the_whole(keys: dict[str, Any]) -> None:
    config, network, cond = built(**keys)
    reach, step = config.reach((2, 64, 64)), config.shift
    assert reach is not None
    far = -(-reach // step) * step
    height, width = 4 * step, 2 * far + 6 * step
    x = normal(2, 2, height, width) * torch.linspace(0.1, 3, width)  # whose left and right differ in size
    cut = width // 2 // step * step
    spans = {(0, cut + far): (0, cut), (cut - far, width): (far, width - cut + far)}
    pictures = InPieces(network)

    def calls() -> Iterator[partial[Tensor]]:
        return (partial(piece, row, span) for row, span in product(range(2), spans))

    def piece(row: int, span: tuple[int, int]) -> Tensor:
        given = x[row : row + 1, :, :, slice(*span)]
        own = slice(0, height), slice(*spans[span])
        pictures.parts = [Cutout(row, (height, given.shape[3]), own)]
        return answered(network, given, cond)[..., own[1]]

    whole = answered(network, x, cond)
    with pictures.settled(calls):
        joined = torch.cat([torch.cat([piece(row, span) for span in spans], 3) for row in range(2)])
    assert (joined - whole).abs().max() < 1e-5 * whole.abs().max()
    alone = torch.cat([torch.cat([piece(row, span) for span in spans], 3) for row in range(2)])
    assert (alone - whole).abs().max() > 1e-2 * whole.std(), "statistics of a piece alone are others"
    assert answered(network, x, cond).equal(whole), "the norms are themselves again"


def test_a_network_whose_positions_attend_to_each_other_has_no_reach() -> None:
    for keys in ({"middle": ("res", "attention")}, {"blocks": ("res", "patch_attention"), "attend_at": (64,)}):
        assert UNetConfig(**{**FREE, **keys}).reach((2, 64, 64)) is None
    assert UNetConfig(**{**FREE, "blocks": ("res", "attention"), "attend_at": (8,)}).reach((2, 64, 64)) is not None
    assert DiTConfig(width=8, depth=1, heads=2).reach((2, 64, 64)) is None


def test_one_position_of_a_level_is_two_of_the_one_before() -> None:
    """By hand: stem and head 1 each; 3 residual blocks of 2 at the fine level, 4 at the coarse one; 2 of each resampling."""
    coarse = 4 * 2 + 2
    assert UNetConfig(**{**FREE, "blocks": ("res",)}).reach((2, 64, 64)) == 1 + 3 * 2 + (2 * coarse + 1) + 2 + 1
    folded = UNetConfig(**{**FREE, "blocks": ("res",), "fold": 2, "mult": (1,)})
    assert folded.reach((2, 64, 64)) == 2 * (1 + 4 * 2 + 1) + 1

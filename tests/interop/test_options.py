"""What U-Net and DiT learned for weights from elsewhere: each key by its definition, and nothing changes where it is left out."""

import pytest
import torch

from diffcli.config import ImageShape, UserError
from diffcli.networks.conditioning import CondShape
from diffcli.networks.dit import DiT, DiTConfig
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.layers import Attention, BlockOptions, ConvResample, Signal
from diffcli.networks.unet import UNet, UNetConfig
from tests.interop.making import close, noise, wake

SHAPE = ImageShape(3, 16, 16)
SMALL = {"width": 32, "mult": (1, 2), "blocks": ("res", "attention"), "attend_at": (8,), "head_dim": 16}
SILENT = Signal(torch.zeros(1, 4))


def unet(**keys: object) -> UNet:
    return wake(UNetConfig.model_validate(SMALL | keys).build(SHAPE, 3, CondShape()))


def dit(**keys: object) -> DiT:
    return wake(DiTConfig.model_validate({"width": 32, "depth": 1, "heads": 2} | keys).build(SHAPE, 3, CondShape()))


@pytest.mark.parametrize("build", [unet, dit])
@torch.no_grad()
def test_a_scale_of_time_is_another_time(build):
    x, time = noise(2, 3, 16, 16), torch.tensor([40.0, 400.0])
    close(build(time_scale=0.25)(x, time), build()(x, time / 4))
    assert not torch.allclose(build()(x, time), build()(x, time / 4), atol=1e-3)


@pytest.mark.parametrize("build", [unet, dit])
@torch.no_grad()
def test_a_period_changes_all_frequencies_but_the_first(build):
    x, time = noise(2, 3, 16, 16), torch.tensor([40.0, 400.0])
    assert not torch.allclose(build(max_period=100)(x, time), build()(x, time), atol=1e-3)
    assert torch.equal(build(max_period=10_000)(x, time), build()(x, time))


@torch.no_grad()
def test_a_number_of_heads_is_a_dimension_at_every_width():
    network = unet(heads=2, attend_at=(16, 8))
    attention = [module for module in network.modules() if isinstance(module, Attention)]
    assert {module.heads for module in attention} == {2}
    assert {len(module.norm.weight) for module in attention} == {32, 64}
    with pytest.raises(UserError, match=r"task\.network\.heads is 3, .* the 32 channels of attention\n.*heads=2"):
        unet(heads=3, attend_at=(16,))


@torch.no_grad()
def test_the_two_orders_of_attention_are_permutations_of_one_another():
    by_head, by_part = wake(Attention(32, 8)), Attention(32, 8, "by_part")
    state = by_head.state_dict()
    for part in ("weight", "bias"):
        rows = state[f"qkv.{part}"].unflatten(0, (4, 3, 8))  # head, part, channel
        state[f"qkv.{part}"] = rows.transpose(0, 1).flatten(0, 2)
    by_part.load_state_dict(state)
    x = noise(2, 32, 4, 4)
    close(by_part(x, SILENT), by_head(x, SILENT))


@torch.no_grad()
def test_norms_take_their_groups_and_epsilon():
    network = unet(groups=8, norm_eps=0.5)
    norms = [module for module in network.modules() if isinstance(module, GroupNorm)]
    assert {(norm.groups, norm.eps) for norm in norms} == {(8, 0.5)}
    norm, x = norms[0], noise(2, 32, 5, 5)
    grouped = x.view(2, 8, -1)
    scaled = (grouped - grouped.mean(2, keepdim=True)) / (grouped.var(2, correction=0, keepdim=True) + 0.5).sqrt()
    expected = scaled.view(x.shape) * norm.weight[:, None, None] + norm.bias[:, None, None]
    close(norm(x), expected)
    told = noise(2, 64, seed=1)
    scale, shift = told.chunk(2, dim=1)
    close(norm(x, told), expected * (1 + scale[..., None, None]) + shift[..., None, None])


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
@torch.no_grad()
def test_padding_at_the_end_sees_the_next_row_and_halves_any_size(size: tuple[int, int]):
    layer, x = wake(ConvResample(4, BlockOptions(emb=4, down_padding="end"), "down")), noise(1, 4, *size)
    y = layer(x, SILENT)
    assert y.shape[2:] == (-(-size[0] // 2), -(-size[1] // 2))
    padded = torch.nn.functional.pad(x, (0, 3, 0, 3))
    for i, j in [(0, 0), (y.shape[2] - 1, y.shape[3] - 1)]:
        seen = padded[0, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        close(y[0, :, i, j], (layer.conv.weight * seen).sum(dim=(1, 2, 3)) + layer.conv.bias)


@torch.no_grad()
def test_the_epsilon_before_the_mlp_of_a_dit_is_that_norm_alone():
    x, time = noise(2, 3, 16, 16), torch.tensor([40.0, 400.0])
    assert torch.equal(dit(mlp_eps=1e-6)(x, time), dit()(x, time))
    assert not torch.allclose(dit(mlp_eps=1.0)(x, time), dit()(x, time), atol=1e-3)

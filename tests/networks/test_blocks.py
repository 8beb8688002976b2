"""The contract of every block in the registry: sizes, widths, the identity at first, gradients, independence, precision."""

import pytest
import torch
from torch import Tensor, nn

from diffcli.networks.blocks import BLOCKS, BlockName
from diffcli.networks.dropout import Dropout, MaskBits, number_dropouts
from diffcli.networks.layers import ACTIVATIONS, BlockOptions, Signal
from tests.networks.waking import normal, wake
from tests.pairing import paired

OPTIONS = BlockOptions(emb=8, tokens=5, head_dim=4)
WIDTH = 24  # 8 groups of 3 channels in every norm; with one channel a group an added embedding is not heard
KINDS = sorted(BLOCKS)
CHANGING = [name for name in KINDS if BLOCKS[name].changes_width]
every_kind = pytest.mark.parametrize("name", KINDS)


def build(name: BlockName, channels: int = WIDTH, out_channels: int = WIDTH, **options: object) -> nn.Module:
    """A block of this name; its dropouts are numbered, as a network's are."""
    block = BLOCKS[name].build(channels, out_channels, OPTIONS._replace(**options))
    number_dropouts(block)
    return block


def signal(n: int = 2, seed: int = 1) -> Signal:
    mask = torch.arange(3) != 2 - torch.arange(n)[:, None] % 3  # of each sample another token is not there
    return Signal(normal(n, 8, seed=seed), MaskBits(torch.arange(n)), normal(n, 3, 5, seed=seed + 1), mask)


def image(*size: int, channels: int = WIDTH, n: int = 2) -> Tensor:
    return normal(n, channels, *size)


@every_kind
def test_an_untrained_block_is_the_identity(name: BlockName) -> None:
    x = image(5, 4)
    torch.testing.assert_close(build(name)(x, signal()), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", CHANGING)
def test_an_untrained_block_that_changes_the_width_is_its_projection(name: BlockName) -> None:
    block, x = build(name, 24, 12), image(5, 4)
    assert torch.equal(block(x, signal()), block.skip(x))


@every_kind
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 3), (8, 8)])
def test_any_size_keeps_its_size(name: BlockName, size: tuple[int, int]) -> None:
    y = wake(build(name))(image(*size, n=1), signal(1))
    assert y.shape == (1, WIDTH, *size)
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("name", "embed", "activation"),
    [
        *((name, embed, "silu") for name in KINDS for embed in ("scale_shift", "add")),
        *((name, "add", activation) for name, activation in paired(KINDS, sorted(ACTIVATIONS))),
    ],
)
def test_every_parameter_receives_a_gradient(name: BlockName, embed: str, activation: str) -> None:
    block = wake(build(name, embed=embed, activation=activation))
    y = block(image(6, 5), signal())
    (y * normal(*y.shape, seed=9)).sum().backward()
    size = {n: 0.0 if p.grad is None else float(p.grad.abs().max()) for n, p in block.named_parameters()}
    assert not [n for n, most in size.items() if most < 1e-5 * max(size.values())], size  # 1e-7 would be rounding


@every_kind
def test_a_block_learns_from_its_first_step(name: BlockName) -> None:
    """The layer that starts at zero receives a gradient, so that a second step reaches the layers before it."""
    block = build(name)
    y = block(image(6, 5), signal())
    (y * normal(*y.shape, seed=9)).sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in block.parameters())
    with torch.no_grad():
        for p in block.parameters():
            p.sub_(0.1 * p.grad)
    assert not torch.allclose(block(image(6, 5), signal()), image(6, 5))


@every_kind
def test_a_sample_does_not_depend_on_its_batch(name: BlockName) -> None:
    block = wake(build(name, dropout=0.3))
    x, told = image(6, 5, n=3), signal(3)
    assert told.tokens is not None
    assert told.mask is not None
    alone = Signal(told.emb[1:2], MaskBits(torch.tensor([1])), told.tokens[1:2], told.mask[1:2])
    torch.testing.assert_close(block(x, told)[1:2], block(x[1:2], alone), atol=1e-5, rtol=1e-5)


@every_kind
def test_channels_last_gives_the_same(name: BlockName) -> None:
    block, x = wake(build(name)), image(6, 5)
    last = block(x.contiguous(memory_format=torch.channels_last), signal())
    torch.testing.assert_close(last, block(x, signal()), atol=1e-5, rtol=1e-5)


@every_kind
def test_dropout_acts_where_there_is_any(name: BlockName) -> None:
    quiet, loud = wake(build(name)), wake(build(name, dropout=0.5))
    drops = any(isinstance(module, Dropout) for module in loud.modules())
    assert drops == (BLOCKS[name].changes_width or name == "spatial_transformer")
    assert torch.equal(quiet(image(6, 5), signal()), loud(image(6, 5), signal())) != drops
    assert torch.equal(quiet(image(6, 5), signal()), loud.eval()(image(6, 5), signal()))


@every_kind
def test_bf16_autocast_stays_near_float32(name: BlockName) -> None:
    block, x = wake(build(name)), image(6, 5)
    full = block(x, signal())
    with torch.autocast("cpu", torch.bfloat16):
        low = block(x, signal())
    assert (low.float() - full).norm() < 0.03 * full.norm()


@every_kind
def test_a_state_dict_fills_a_block_built_on_meta(name: BlockName) -> None:
    block = wake(build(name))
    with torch.device("meta"):
        empty = build(name)
    assert all(p.is_meta for p in empty.parameters())
    empty.load_state_dict(block.state_dict(), assign=True)
    assert torch.equal(empty(image(6, 5), signal()), block(image(6, 5), signal()))


@pytest.mark.parametrize("name", [n for n in KINDS if n not in ("attention", "patch_attention", "channel_attention")])
@pytest.mark.parametrize("embed", ["scale_shift", "add"])
def test_a_block_hears_its_signal(name: BlockName, embed: str) -> None:
    block, x, told = wake(build(name, embed=embed)), image(6, 5), signal()
    part = "tokens" if BLOCKS[name].tokens else "emb"
    other = told._replace(**{part: -getattr(told, part)})
    assert not torch.allclose(block(x, told), block(x, other), atol=1e-4)


@pytest.mark.parametrize("kind", ["relu", "relu6", "leaky_relu", "silu", "gelu"])
def test_activations_are_their_formulas(kind: str) -> None:
    x = torch.linspace(-9, 9, 37, dtype=torch.float64)
    formula = {
        "relu": (x + x.abs()) / 2,
        "relu6": x.clamp(0, 6),
        "leaky_relu": torch.where(x < 0, x / 100, x),
        "silu": x / (1 + (-x).exp()),
        "gelu": x * (1 + torch.erf(x / 2**0.5)) / 2,
    }
    torch.testing.assert_close(ACTIVATIONS[kind](x), formula[kind])

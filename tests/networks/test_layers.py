"""The layers against their plain formulas, in value and in gradient."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from diffcli.networks.layers import (
    Attention,
    BlockOptions,
    HeadOrder,
    Pointwise,
    ResBlock,
    Signal,
    attend,
    enlarge,
    enlarged_conv,
    halve,
    sinusoid,
)
from tests.networks.sameness import assert_same
from tests.networks.waking import normal, wake


def test_neighbouring_times_are_near_and_distant_times_far() -> None:
    code = sinusoid(torch.arange(1000), 128)
    near = (code[1:] - code[:-1]).norm(dim=1)
    assert near.max() < 0.35 * code[0].norm()
    assert ((code[500] - code[[0, 100, 900, 999]]).norm(dim=1) > 0.6 * code[0].norm()).all()
    assert near.min() > 0.1, "neighbours must be told apart"


def test_the_sinusoid_is_cosines_then_sines_of_the_published_frequencies() -> None:
    code = sinusoid(torch.tensor([3.0]), 8)[0].double()
    frequency = torch.tensor([10_000 ** (-i / 4) for i in range(4)], dtype=torch.float64)
    torch.testing.assert_close(code, torch.cat([(3 * frequency).cos(), (3 * frequency).sin()]), atol=1e-6, rtol=0)
    assert sinusoid(torch.tensor([3.0]), 9).shape == (1, 9)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bf16_is_that_of_float32_where_nothing_is_trained(masked: bool) -> None:
    q, k, v = (normal(2, 3, 6, 8, seed=i).bfloat16() for i in range(3))
    mask = torch.arange(6) < torch.tensor([[6], [2]]) if masked else None
    exact = F.scaled_dot_product_attention(
        *(z.float() for z in (q, k, v)), None if mask is None else mask[:, None, None]
    )
    torch.testing.assert_close(attend(q, k, v, mask).float(), exact, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_is_the_one_by_one_convolution_in_value_and_gradient(layout: torch.memory_format) -> None:
    layer, x = Pointwise(5, 7).double(), normal(3, 5, 4, 6).double().contiguous(memory_format=layout).requires_grad_()
    assert layer(x).is_contiguous(memory_format=layout)
    assert_same(layer(x), F.conv2d(x, layer.weight, layer.bias), x, layer.weight, layer.bias)


@pytest.mark.parametrize("order", ["by_head", "by_part"])
def test_attention_of_rows_is_that_of_columns_in_value_and_gradient(order: HeadOrder) -> None:
    layer, x = wake(Attention(32, 8, order)).double(), normal(3, 32, 4, 6).double()
    told, x = Signal(torch.empty(3, 0)), x.requires_grad_()
    rows = layer(x.contiguous(memory_format=torch.channels_last), told)
    assert rows.is_contiguous(memory_format=torch.channels_last)
    assert_same(rows, layer(x, told), x, *layer.parameters())


@pytest.mark.parametrize("height", range(1, 8))
@pytest.mark.parametrize("width", [1, 4, 7])
def test_halving_rounds_up_and_enlarging_returns_to_the_size(height: int, width: int) -> None:
    x = normal(2, 3, height, width)
    small = halve(x)
    assert small.shape[2:] == (-(-height // 2), -(-width // 2))
    back = enlarge(small, (height, width))
    rows, columns = torch.arange(height) // 2, torch.arange(width) // 2
    torch.testing.assert_close(back, small[:, :, rows][:, :, :, columns])
    torch.testing.assert_close(small[0, 0, -1, -1], x[0, 0, 2 * ((height - 1) // 2) :, 2 * ((width - 1) // 2) :].mean())


@given(height=st.integers(1, 5), width=st.integers(1, 5), odd=st.tuples(st.booleans(), st.booleans()))
@settings(max_examples=20, deadline=None)
def test_the_enlarged_convolution_is_enlarging_then_convolving_in_value_and_gradient(
    height: int, width: int, odd: tuple[bool, bool]
) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1).double()
    x = normal(2, 3, height, width).double().requires_grad_()
    size = (2 * height - odd[0], 2 * width - odd[1])
    assert_same(enlarged_conv(x, conv, size), conv(enlarge(x, size)), x, conv.weight, conv.bias)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("length", [1, 40, 600])  # below and above the length at which the CPU changes its way
def test_attention_is_the_softmax_of_scaled_products_in_value_and_gradient(length: int, masked: bool) -> None:
    q, k, v = (normal(2, 3, length, 8, seed=s).double().requires_grad_() for s in range(3))  # (B, heads, L, D)
    mask = torch.arange(length) % torch.tensor([[2], [3]]) == 0  # another one for each sample
    product = torch.einsum("bhld,bhmd->bhlm", q, k) / 8**0.5
    weight = (product.masked_fill(~mask[:, None, None], -torch.inf) if masked else product).softmax(dim=3)
    assert_same(attend(q, k, v, mask if masked else None), torch.einsum("bhlm,bhmd->bhld", weight, v), q, k, v)


@torch.no_grad()
@pytest.mark.parametrize("length", [40, 600])
def test_attention_in_bf16_heeds_the_mask_on_either_of_its_ways(length: int) -> None:
    q, k, v = (normal(2, 3, length, 8, seed=s).bfloat16() for s in range(3))
    mask = torch.arange(length) < torch.tensor([[length // 2], [length]])
    half = attend(q[:1], k[:1, :, : length // 2], v[:1, :, : length // 2])
    torch.testing.assert_close(attend(q, k, v, mask)[:1], half, atol=2e-2, rtol=0)
    torch.testing.assert_close(attend(q, k, v, mask)[1:], attend(q[1:], k[1:], v[1:]), atol=2e-2, rtol=0)


def test_attention_does_not_know_the_order_of_positions() -> None:
    block, x = wake(Attention(16, 8)), normal(2, 16, 3, 4)
    order = normal(12, seed=5).argsort()
    signal = Signal(torch.zeros(2, 1))
    shuffled = block(x.flatten(2)[:, :, order].view(x.shape), signal)
    torch.testing.assert_close(shuffled.flatten(2), block(x, signal).flatten(2)[:, :, order])


def test_untrained_blocks_are_the_identity() -> None:
    x, signal = normal(2, 16, 5, 4), Signal(normal(2, 8, seed=1))
    assert torch.equal(ResBlock(16, 16, BlockOptions(emb=8))(x, signal), x)
    assert torch.equal(Attention(16, 8)(x, signal), x)
    assert torch.equal(ResBlock(16, 16, BlockOptions(emb=8), resample="down")(x, signal), halve(x))
    assert torch.equal(ResBlock(16, 16, BlockOptions(emb=8), resample="up")(x, signal, (9, 8)), enlarge(x, (9, 8)))

"""Attention over channels: what it may know, and the published formulas."""

import pytest
import torch
import torch.nn.functional as F

from diffcli.networks.channel_blocks import ChannelAttention, ClassAttention, eca_kernel
from diffcli.networks.layers import BlockOptions, Signal
from tests.networks.waking import normal, wake

X, SIGNAL = normal(2, 16, 5, 4), Signal(normal(2, 6, seed=1))
ORDER = normal(20, seed=5).argsort()


def test_class_attention_is_its_formula() -> None:
    block = wake(ClassAttention(16, BlockOptions(emb=6)))
    q, k, v = block.query(SIGNAL.emb), block.key(SIGNAL.emb), block.norm(X).flatten(2)
    weight = (q[:, :, None] * k[:, None, :]).softmax(dim=2)  # (B, C, C)
    h = block.out((weight @ v).view(X.shape))
    torch.testing.assert_close(block(X, SIGNAL), X + h)


def test_class_attention_moves_with_the_positions() -> None:
    block = wake(ClassAttention(16, BlockOptions(emb=6)))
    moved = block(X.flatten(2)[:, :, ORDER].view(X.shape), SIGNAL)
    torch.testing.assert_close(moved.flatten(2), block(X, SIGNAL).flatten(2)[:, :, ORDER])


def test_class_attention_depends_on_each_samples_own_class() -> None:
    block = wake(ClassAttention(16, BlockOptions(emb=6)))
    other = Signal(torch.stack([SIGNAL.emb[0], -SIGNAL.emb[1]]))
    before, after = block(X, SIGNAL), block(X, other)
    assert torch.equal(before[0], after[0])
    assert not torch.allclose(before[1], after[1], atol=1e-4)


@pytest.mark.parametrize(("channels", "size"), [(1, 1), (2, 1), (8, 3), (32, 3), (64, 3), (128, 5), (256, 5), (512, 5)])
def test_the_kernel_of_channel_attention_grows_as_published(channels: int, size: int) -> None:
    assert eca_kernel(channels) == size  # ECA-Net's code: t = int((log2 C + 1) / 2), one more where that is even


@pytest.mark.parametrize("channels", [1, 3, 16, 40])
def test_the_gate_is_a_convolution_over_channel_means(channels: int) -> None:
    block, x = wake(ChannelAttention(channels)), normal(2, channels, 5, 4)
    kernel = block.conv.weight
    size = kernel.shape[2]
    means = F.pad(x.mean((2, 3)), (size // 2, size // 2))  # (B, C + size - 1)
    score = sum(kernel[0, 0, i] * means[:, i : i + channels] for i in range(size))
    assert isinstance(score, torch.Tensor)
    torch.testing.assert_close(block(x, SIGNAL), x * 2 / (1 + (-score).exp())[:, :, None, None])


def test_the_gate_does_not_know_where_a_value_lies() -> None:
    block = wake(ChannelAttention(16))
    moved = block(X.flatten(2)[:, :, ORDER].view(X.shape), SIGNAL)
    torch.testing.assert_close(moved.flatten(2), block(X, SIGNAL).flatten(2)[:, :, ORDER])

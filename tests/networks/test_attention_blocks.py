"""Attention among patches, to tokens and in the spatial transformer: identities and the plain formula."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from diffcli.networks.attention_blocks import (
    CrossAttentionBlock,
    Geglu,
    PatchAttention,
    SpatialTransformer,
    TokenAttention,
)
from diffcli.networks.layers import Attention, BlockOptions, Signal
from tests.networks.waking import normal, wake

OPTIONS = BlockOptions(emb=4, tokens=5, head_dim=4, patch=2)
X = normal(2, 8, 6, 4)
SIGNAL = Signal(normal(2, 4, seed=1), tokens=normal(2, 3, 5, seed=2))


def shuffled(signal: Signal) -> Signal:
    assert signal.tokens is not None
    return signal._replace(tokens=signal.tokens[:, [2, 0, 1]])


def plain(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Softmax attention of (B, L, C) items by the formula, head after head."""
    parts = []
    for a, b, c in zip(q.chunk(heads, 2), k.chunk(heads, 2), v.chunk(heads, 2), strict=True):
        weight = (a @ b.transpose(1, 2) / a.shape[2] ** 0.5).softmax(dim=2)
        parts.append(weight @ c)
    return torch.cat(parts, dim=2)


def test_attention_among_patches_of_one_position_is_plain_attention() -> None:
    patches, attention = wake(PatchAttention(8, OPTIONS._replace(patch=1))), wake(Attention(8, 4))
    state = {name: p.view_as(patches.state_dict()[name]) for name, p in attention.state_dict().items()}
    patches.load_state_dict(state)
    torch.testing.assert_close(patches(X, SIGNAL), attention(X, SIGNAL))


def test_attention_to_a_single_patch_is_a_linear_map_of_it() -> None:
    block, x = wake(PatchAttention(8, OPTIONS._replace(patch=4))), X[:, :, :4]
    items = block.norm(x).permute(0, 2, 3, 1).flatten(1)[:, None]  # (B, 1, p p C)
    value = block.qkv(items).unflatten(2, (2, 3, 4))[:, :, :, 2].flatten(2)  # softmax over one is 1
    moved = block.out(value).unflatten(2, (4, 4, 8))[:, 0].permute(0, 3, 1, 2)
    torch.testing.assert_close(block(x, SIGNAL), x + moved)


def test_patch_attention_does_not_know_the_order_of_patches() -> None:
    block = wake(PatchAttention(8, OPTIONS))
    swapped = torch.cat([X[:, :, 4:], X[:, :, :4]], dim=2)
    y = block(X, SIGNAL)
    torch.testing.assert_close(block(swapped, SIGNAL), torch.cat([y[:, :, 4:], y[:, :, :4]], dim=2))


def test_patch_attention_of_a_size_that_does_not_divide_is_that_of_the_padded_map() -> None:
    block, x = wake(PatchAttention(8, OPTIONS)), X[:, :, :5, :3]
    h = F.pad(block.norm(x), (0, 1, 0, 1))
    block.norm.forward = lambda padded: padded  # type: ignore[method-assign]
    update = block(h, SIGNAL) - h
    block.norm.forward = lambda _: h[:, :, :5, :3]  # type: ignore[method-assign]
    torch.testing.assert_close(block(x, SIGNAL), x + update[:, :, :5, :3])


@pytest.mark.parametrize("block", [CrossAttentionBlock, SpatialTransformer])
def test_the_order_of_tokens_does_not_matter(block: type[CrossAttentionBlock] | type[SpatialTransformer]) -> None:
    made = wake(block(8, OPTIONS))
    torch.testing.assert_close(made(X, shuffled(SIGNAL)), made(X, SIGNAL))


@pytest.mark.parametrize("block", [CrossAttentionBlock, SpatialTransformer])
def test_a_token_said_twice_by_all_changes_nothing(block: type[CrossAttentionBlock] | type[SpatialTransformer]) -> None:
    made = wake(block(8, OPTIONS))
    assert SIGNAL.tokens is not None
    twice = SIGNAL._replace(tokens=torch.cat([SIGNAL.tokens, SIGNAL.tokens], dim=1))
    torch.testing.assert_close(made(X, twice), made(X, SIGNAL))


@pytest.mark.parametrize("block", [CrossAttentionBlock, SpatialTransformer])
def test_masked_tokens_have_no_influence_and_no_gradient(
    block: type[CrossAttentionBlock] | type[SpatialTransformer],
) -> None:
    made = wake(block(8, OPTIONS))
    assert SIGNAL.tokens is not None
    tokens = torch.cat([SIGNAL.tokens, 50 * normal(2, 2, 5, seed=7)], dim=1).requires_grad_()
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    y = made(X, SIGNAL._replace(tokens=tokens, mask=mask))
    torch.testing.assert_close(y, made(X, SIGNAL))
    (gradient,) = torch.autograd.grad((y * normal(*y.shape, seed=9)).sum(), tokens)
    assert not gradient[:, 3:].any()
    assert gradient[:, :3].any()


@pytest.mark.parametrize("block", [CrossAttentionBlock, SpatialTransformer])
def test_each_sample_has_its_own_mask(block: type[CrossAttentionBlock] | type[SpatialTransformer]) -> None:
    made = wake(block(8, OPTIONS))
    assert SIGNAL.tokens is not None
    mask = torch.tensor([[True, False, True], [False, True, False]])
    y = made(X, SIGNAL._replace(mask=mask))
    for i, kept in enumerate(mask):
        alone = Signal(SIGNAL.emb[i : i + 1], tokens=SIGNAL.tokens[i : i + 1, kept])
        torch.testing.assert_close(y[i : i + 1], made(X[i : i + 1], alone))


def test_cross_attention_moves_with_the_positions() -> None:
    block, order = wake(CrossAttentionBlock(8, OPTIONS)), normal(24, seed=5).argsort()
    moved = block(X.flatten(2)[:, :, order].view(X.shape), SIGNAL)
    torch.testing.assert_close(moved.flatten(2), block(X, SIGNAL).flatten(2)[:, :, order])


def test_token_attention_is_the_published_formula() -> None:
    layer = wake(TokenAttention(8, 5, 4))
    assert SIGNAL.tokens is not None
    x = X.flatten(2).transpose(1, 2)
    q, k, v = F.linear(x, layer.query.weight), layer.key(SIGNAL.tokens), layer.value(SIGNAL.tokens)
    torch.testing.assert_close(layer(x, SIGNAL.tokens), layer.out(plain(q, k, v, heads=2)))


def test_to_a_single_token_every_position_answers_alike() -> None:
    block = wake(CrossAttentionBlock(8, OPTIONS))
    assert SIGNAL.tokens is not None
    one = SIGNAL._replace(tokens=SIGNAL.tokens[:, :1])
    value = block.attention.out(block.attention.value(one.tokens)).transpose(1, 2)[..., None]  # (B, C, 1, 1)
    torch.testing.assert_close(block(X, one), X + value)


def test_a_spatial_transformer_with_one_token_adds_the_same_to_every_position() -> None:
    """Its cross-attention is then a constant, so it equals one without cross-attention and that constant added."""
    block = wake(SpatialTransformer(8, OPTIONS))
    assert SIGNAL.tokens is not None
    one = SIGNAL._replace(tokens=SIGNAL.tokens[:, :1])
    constant = block.cross.out(block.cross.value(one.tokens))  # (B, 1, C)
    norm1, _, norm3 = block.norms
    h = block.enter(block.norm(X)).flatten(2).transpose(1, 2)
    n = norm1(h)
    mine = block.attention
    h = h + mine.out(plain(mine.query(n), mine.key(n), mine.value(n), heads=2)) + constant
    h = h + block.feed(norm3(h), None)
    torch.testing.assert_close(block(X, one), X + block.leave(h.transpose(1, 2).reshape(X.shape)))


def test_geglu_gates_one_half_by_the_gelu_of_the_other() -> None:
    feed, x = wake(Geglu(8, 0.0)), normal(2, 3, 8)
    h = F.linear(x, feed.inner.weight, feed.inner.bias)
    torch.testing.assert_close(feed(x, None), feed.out(h[..., :32] * F.gelu(h[..., 32:])))

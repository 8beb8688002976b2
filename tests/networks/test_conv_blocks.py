"""The convolutional blocks against the formulas of their papers."""

import pytest
import torch
import torch.nn.functional as F

from diffcli.networks.conv_blocks import LAYERS, ConvNext, StandardizedConv, WsResBlock, dense, inception, vgg
from diffcli.networks.layers import BlockOptions, ResBlock, Signal
from tests.networks.waking import normal, wake

OPTIONS = BlockOptions(emb=4)
ADDED = OPTIONS._replace(embed="add")
X, SIGNAL = normal(2, 8, 6, 5), Signal(normal(2, 4, seed=1))
WIDE = (slice(None), slice(None), None, None)  # (B, C) -> (B, C, 1, 1)


@pytest.mark.parametrize("block", [ResBlock, WsResBlock])
def test_an_added_embedding_is_added_between_convolution_and_norm(block: type[ResBlock]) -> None:
    """Ho et al. 2020: h = conv1(act(norm1 x)); h = h + W emb; y = skip(x) + conv2(act(norm2 h))."""
    made = wake(block(8, 12, ADDED))
    h = made.conv1(F.silu(F.group_norm(X, 8, made.norm1.weight, made.norm1.bias)))
    h = h + F.linear(SIGNAL.emb, made.modulate.weight, made.modulate.bias)[WIDE]
    h = F.silu(F.group_norm(h, 4, made.norm2.weight, made.norm2.bias))
    torch.testing.assert_close(made(X, SIGNAL), made.skip(X) + made.conv2(h))


@pytest.mark.parametrize("layer", ["conv1", "conv2"])
def test_ws_res_knows_neither_offset_nor_scale_of_its_weights(layer: str) -> None:
    block = wake(WsResBlock(8, 12, OPTIONS)).double()
    x, told = X.double(), Signal(SIGNAL.emb.double())
    before = block(x, told)
    weight = getattr(block, layer).weight
    with torch.no_grad():
        for change in (weight + 3, weight * 7, (weight - 2) / 5):
            weight.copy_(change)
            torch.testing.assert_close(block(x, told), before, rtol=1e-6, atol=1e-6)


def test_a_standardized_convolution_is_that_of_weights_with_mean_0_and_variance_1_over_n() -> None:
    conv = wake(StandardizedConv(8, 12)).double()
    w = conv.weight
    w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), correction=0, keepdim=True) / (8 * 9) ** 0.5
    w = w * conv.gain[:, None, None, None]
    torch.testing.assert_close(conv(X.double()), F.conv2d(X.double(), w, conv.bias, padding=1), rtol=1e-6, atol=1e-6)


def test_the_depthwise_convolution_of_convnext_is_one_convolution_a_channel() -> None:
    conv = wake(ConvNext(8, 12, OPTIONS)).depthwise
    apart = [F.conv2d(X[:, c : c + 1], conv.weight[c : c + 1], conv.bias[c : c + 1], padding=3) for c in range(8)]
    torch.testing.assert_close(conv(X), torch.cat(apart, dim=1))


@pytest.mark.parametrize("options", [OPTIONS, ADDED])
def test_convnext_is_the_published_block_with_a_modulated_norm(options: BlockOptions) -> None:
    block = wake(ConvNext(8, 12, options._replace(activation="gelu")))
    h, told = block.depthwise(X), block.modulate(SIGNAL.emb)
    if options.embed == "add":
        h = h + told[WIDE]
    h = (h - h.mean(1, keepdim=True)) / (h.var(1, correction=0, keepdim=True) + 1e-6).sqrt()
    h = h * block.norm.weight[None, :, None, None] + block.norm.bias[None, :, None, None]
    if options.embed == "scale_shift":
        scale, shift = told.chunk(2, dim=1)
        h = h * (1 + scale[WIDE]) + shift[WIDE]
    h = F.conv2d(F.gelu(F.conv2d(h, block.expand.weight, block.expand.bias)), block.out.weight, block.out.bias)
    torch.testing.assert_close(block(X, SIGNAL), F.conv2d(X, block.skip.weight, block.skip.bias) + h)


def test_vgg_sees_two_three_by_three_neighbourhoods() -> None:
    block = wake(vgg(8, 12, OPTIONS))
    h = X
    for conv, norm, modulate in zip(block.body.convs, block.body.norms, block.body.modulations, strict=True):
        h = F.silu(norm(F.conv2d(h, conv.weight, conv.bias, padding=1), modulate(SIGNAL.emb)))
    torch.testing.assert_close(block(X, SIGNAL), block.skip(X) + block.out(h))


def test_every_layer_of_a_dense_block_reads_all_before_it() -> None:
    block = wake(dense(8, 10, OPTIONS))
    assert [conv.in_channels for conv in block.body.convs] == [8, 11, 14, 17]  # growth is a quarter of 10, rounded up
    features = block.body(X, SIGNAL)
    assert features.shape[1] == 8 + LAYERS * 3 == block.out.in_channels
    assert torch.equal(features[:, :8], X), "the input is handed on as it is"
    with torch.no_grad():
        block.body.convs[0].bias.add_(1)
    later = block.body(X, SIGNAL)
    assert torch.equal(later[:, :8], X)
    for i in range(LAYERS):
        part = slice(8 + 3 * i, 11 + 3 * i)
        assert not torch.allclose(later[:, part], features[:, part]), f"layer {i} does not hear the first"


def test_the_branches_of_inception_see_1_3_and_5_positions_and_the_mean_of_nine() -> None:
    """Which inputs move the features of each branch at the middle of a map, before the norm mixes positions."""
    block = wake(inception(8, 8, OPTIONS)).double()
    block.body.norm.forward = lambda h, told: h  # type: ignore[method-assign]
    x = normal(1, 8, 9, 9).double().requires_grad_()
    features = block.body(x, SIGNAL._replace(emb=SIGNAL.emb.double()))
    for branch, reach in enumerate([1, 3, 5, 3]):
        (grad,) = torch.autograd.grad(features[0, 2 * branch, 4, 4], x, retain_graph=True)
        seen = grad[0].abs().sum(0) > 0
        assert seen.sum() == reach**2
        assert seen[4 - reach // 2 : 5 + reach // 2, 4 - reach // 2 : 5 + reach // 2].all()


def test_inception_takes_the_mean_of_what_lies_inside_the_map() -> None:
    block = wake(inception(8, 8, OPTIONS))
    block.body.norm.forward = lambda h, told: h  # type: ignore[method-assign]
    features = block.body(torch.ones(1, 8, 4, 4), SIGNAL._replace(emb=SIGNAL.emb[:1]))[:, 6:]
    torch.testing.assert_close(features, features[:, :, :1, :1].expand_as(features))

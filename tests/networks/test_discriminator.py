"""The patch discriminator: what a logit sees, and that it depends on its image alone."""

import pytest
import torch

from diffcli.networks.discriminator import PatchDiscriminatorConfig, deepest
from tests.networks.waking import normal, wake


@pytest.mark.parametrize(("depth", "side"), [(1, 16), (2, 34), (3, 70), (4, 142)])
def test_a_logit_sees_as_many_pixels_as_documented(depth: int, side: int) -> None:
    discriminator = PatchDiscriminatorConfig(width=2, depth=depth).build(1)
    for norm in discriminator.norms:
        norm.forward = lambda x: x  # a norm sees everything
    with torch.no_grad():
        for parameter in discriminator.parameters():
            parameter.fill_(1.0)
    x = torch.zeros(1, 1, 2 * side + 40, 2 * side + 40, requires_grad=True)
    logits = discriminator(x)
    middle = logits.shape[2] // 2
    (gradient,) = torch.autograd.grad(logits[0, 0, middle, middle], x)
    assert gradient[0, 0].any(0).sum() == gradient[0, 0].any(1).sum() == side


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 28, 28), (3, 32, 48), (4, 31, 33)])
def test_any_size_has_logits(channels: int, height: int, width: int) -> None:
    logits = PatchDiscriminatorConfig(width=8).build(channels)(normal(2, channels, height, width))
    assert logits.shape[:2] == (2, 1)
    assert logits.shape[2] >= 1 <= logits.shape[3]


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_the_least_side_is_the_smallest_that_has_a_logit(depth: int) -> None:
    config = PatchDiscriminatorConfig(width=1, depth=depth)
    assert deepest(config.least) == depth
    assert deepest(config.least - 1) == depth - 1
    assert config.build(1)(normal(1, 1, config.least, config.least)).shape == (1, 1, 1, 1)
    with pytest.raises(RuntimeError):
        config.build(1)(normal(1, 1, config.least - 1, config.least + 5))


def test_a_logit_depends_on_its_image_alone() -> None:
    discriminator = wake(PatchDiscriminatorConfig(width=8, depth=2).build(3)).train()
    x = normal(3, 3, 32, 32)
    torch.testing.assert_close(discriminator(x)[1:2], discriminator(x[1:2]))


def test_every_parameter_gets_a_gradient() -> None:
    discriminator = wake(PatchDiscriminatorConfig(width=8, depth=2).build(3))
    discriminator(normal(2, 3, 32, 32)).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in discriminator.parameters())


def test_its_weights_begin_as_published() -> None:
    discriminator = PatchDiscriminatorConfig().build(3)
    weights = torch.cat([conv.weight.flatten() for conv in discriminator.convs])
    assert weights.std().item() == pytest.approx(0.02, rel=0.02)
    assert abs(weights.mean().item()) < 1e-4
    assert not discriminator.head.bias.any()

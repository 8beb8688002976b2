"""Group normalisation against its plain formula, in every layout, in value and in gradient."""

import pytest
import torch
import torch.nn.functional as F

from diffcli.networks.group_norm import GroupNorm
from tests.counting import META, counting
from tests.networks.sameness import assert_same
from tests.networks.waking import normal, wake


@pytest.mark.parametrize("channels", [1, 3, 32, 48, 130])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_modulated_group_norm_is_the_plain_formula_in_value_and_gradient(
    channels: int, layout: torch.memory_format
) -> None:
    norm = wake(GroupNorm(channels)).double()
    x = normal(3, channels, 5, 4).double().contiguous(memory_format=layout).requires_grad_()
    told = normal(3, 2 * channels, seed=1).double().requires_grad_()
    scale, shift = told[:, :, None, None].chunk(2, dim=1)
    plain = F.group_norm(x, norm.groups, norm.weight, norm.bias) * (1 + scale) + shift
    assert_same(norm(x, told), plain, x, told, norm.weight, norm.bias)


@pytest.mark.parametrize("told", [False, True])
def test_the_norm_of_channels_last_is_that_of_contiguous_images_in_value_and_gradient(told: bool) -> None:
    """What runs on other devices than the CPU."""
    norm, x = wake(GroupNorm(48)).double(), normal(3, 48, 5, 4).double().requires_grad_()
    given = normal(3, 96, seed=1).double().requires_grad_() if told else None
    last = norm.last(x.contiguous(memory_format=torch.channels_last), given)
    assert_same(last, norm(x, given), x, norm.weight, norm.bias, *([] if given is None else [given]))


@pytest.mark.parametrize("told", [False, True])
def test_the_norm_of_channels_last_copies_nothing_on_a_device_and_keeps_its_layout(told: bool) -> None:
    """torch's kernel for CUDA makes its input contiguous, and so its output."""
    with META:
        norm, last = GroupNorm(64), torch.channels_last
        x = torch.empty(3, 64, 5, 4).contiguous(memory_format=last).requires_grad_()
        given, onward = torch.empty(3, 128) if told else None, torch.empty(3, 64, 5, 4).contiguous(memory_format=last)
    with counting() as counts:
        y = norm(x, given)
        (gradient,) = torch.autograd.grad(y, x, onward)
    assert y.is_contiguous(memory_format=last)
    assert gradient.is_contiguous(memory_format=last)
    assert not {"clone", "contiguous", "copy_", "_to_copy", "native_group_norm"} & {*counts.operations}


@pytest.mark.parametrize("told", [False, True])
def test_the_norm_of_channels_last_has_statistics_of_float32(told: bool) -> None:
    """In bf16, where a mean of 30 deviations leaves a deviation of two digits, and statistics in bf16 would leave none."""
    norm = wake(GroupNorm(64))
    x = (normal(3, 64, 16, 16) + 30).bfloat16().contiguous(memory_format=torch.channels_last)
    given = normal(3, 128, seed=1) if told else None
    with torch.autocast("cpu", torch.bfloat16):
        y = norm.last(x, given)
    assert y.dtype == torch.bfloat16
    exact = norm.double()(x.double(), None if given is None else given.double())
    torch.testing.assert_close(y.double(), exact, rtol=8e-3, atol=1e-4)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("edge", [8, 40])
def test_the_norm_in_half_precision_is_that_of_float32_and_keeps_the_layout(edge: int, told: bool) -> None:
    """On the CPU, where maps of few positions take another way than large ones."""
    norm, x = wake(GroupNorm(64)), normal(3, 64, edge, edge).bfloat16().contiguous(memory_format=torch.channels_last)
    given = normal(3, 128, seed=1).bfloat16() if told else None
    y = norm(x, given)
    assert y.dtype == torch.bfloat16
    assert y.is_contiguous(memory_format=torch.channels_last)
    exact = norm(x.float(), None if given is None else given.float())
    torch.testing.assert_close(y.float(), exact, rtol=2e-2, atol=3e-2)


def test_group_norm_takes_clips_in_either_layout() -> None:
    norm, x = wake(GroupNorm(64)), normal(2, 64, 3, 4, 5)
    told = normal(2, 128, seed=1)
    expected = norm(x.flatten(3), told).view(x.shape)
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        torch.testing.assert_close(norm(x.contiguous(memory_format=layout), told), expected)


def test_group_norm_takes_one_pixel() -> None:
    assert GroupNorm(64)(normal(1, 64, 1, 1)).isfinite().all()

"""Guidance is affine in its scale, `null + scale * (cond - null)`; clipping keeps x_t = alpha x0 + sigma eps."""

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Prediction, over
from diffcli.diffusion.guidance import classifier_free, clip_x0
from diffcli.diffusion.samplers import Ddim, Ddpm
from diffcli.diffusion.schedule import Cosine, Flow
from diffcli.noise import Noise
from tests.diffusion.oracle import SCHEDULES, Mixture, kind, last

MIXTURE = Mixture((0.5, 0.5), (-0.5, 0.6), (0.2, 0.1))
T = torch.tensor(0.5, dtype=torch.float64)


def start(seed: int = 0) -> Tensor:
    return Noise([seed, seed + 1], torch.device("cpu"))(torch.empty(2, 1, 8, 8, dtype=torch.float64))


def branches(schedule, x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
    """The class 1 and no class, each with its own variance."""
    cond, null = MIXTURE.component(1).denoise(schedule)(x, t), MIXTURE.denoise(schedule)(x, t)
    return cond._replace(var_frac=torch.full_like(x, 0.25)), null._replace(var_frac=torch.full_like(x, 0.75))


@pytest.mark.parametrize("scale", [-1, 0, 0.4, 0.5, 1, 1.5, 7.5])
def test_guidance_is_affine_in_its_scale(scale):
    cond, null = branches(Cosine(), start(), T)
    p = classifier_free(lambda x, t: branches(Cosine(), x, t), scale)(start(), T)
    torch.testing.assert_close(p.x0, null.x0 + scale * (cond.x0 - null.x0), rtol=0, atol=1e-12)
    torch.testing.assert_close(p.eps, null.eps + scale * (cond.eps - null.eps), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("scale", "branch"), [(1, 0), (0, 1)])
def test_scale_one_is_the_conditional_and_zero_the_unconditional_bit_for_bit(scale, branch):
    p = classifier_free(lambda x, t: branches(Cosine(), x, t), scale)(start(), T)
    expected = branches(Cosine(), start(), T)[branch]
    assert torch.equal(p.x0, expected.x0)
    assert torch.equal(p.eps, expected.eps)


@pytest.mark.parametrize("scale", [0, 1, 4])
def test_the_variance_is_that_of_the_conditional_branch(scale):
    p = classifier_free(lambda x, t: branches(Cosine(), x, t), scale)(start(), T)
    assert (p.var_frac == 0.25).all()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("scale", [0.5, 3])
def test_guided_predictions_still_make_up_x(schedule, scale):
    alpha, sigma = (float(c) for c in schedule.alpha_sigma(T))
    p = classifier_free(lambda x, t: branches(schedule, x, t), scale)(start(), T)
    torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, start(), rtol=0, atol=1e-12)


def test_guidance_one_draws_the_class_and_more_draws_it_more_surely():
    """The class is N(0.6, 0.1^2) in a mixture with N(-0.5, 0.2^2): guidance moves samples away from the other class."""
    x, ends = start(), {}
    for scale in (0, 1, 3):
        guided = classifier_free(lambda x, t: branches(Cosine(), x, t), scale)
        ends[scale] = last(Ddim(steps=100).trajectory(guided, Cosine(), x, Noise([0, 1], x.device))).x
    assert (ends[0] < 0).double().mean() > 0.3
    assert (ends[1] > 0.2).all()
    assert float(ends[1].mean()) == pytest.approx(0.6, abs=0.03)
    assert ends[3].mean() > ends[1].mean()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_clipping_recomputes_eps(schedule):
    x, outside = start() * 3, Prediction(start(4) * 2, start(6), torch.full((2, 1, 8, 8), 0.3))
    t = torch.tensor([0.3, 0.8], dtype=torch.float64)
    p = clip_x0(lambda x, t: outside, schedule)(x, t)
    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(t))
    assert outside.x0.abs().max() > 1
    assert torch.equal(p.x0, outside.x0.clamp(-1, 1))
    torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x, rtol=0, atol=1e-12)
    assert p.var_frac is outside.var_frac


def test_clipping_changes_nothing_inside_the_range():
    ideal = Mixture((1.0,), (0.1,), (0.01,)).denoise(Cosine())
    p, clipped = ideal(start(), T), clip_x0(ideal, Cosine())(start(), T)
    assert torch.equal(p.x0, clipped.x0)
    torch.testing.assert_close(p.eps, clipped.eps, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=kind)
def test_clipped_samples_stay_in_range_even_where_the_denoiser_does_not(schedule):
    wild = Mixture((1.0,), (2.0,), (1.0,)).denoise(schedule)
    for sampler in (Ddim(steps=20), Ddpm(steps=20)):
        steps = list(sampler.trajectory(clip_x0(wild, schedule), schedule, start(), Noise([0, 1], torch.device("cpu"))))
        assert max(float(step.x0.abs().max()) for step in steps) <= 1
        assert steps[-1].x.abs().max() <= 1 + 1e-9

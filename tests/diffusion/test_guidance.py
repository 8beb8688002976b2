"""Guidance is affine in its scale, `null + scale * (cond - null)`; whatever changes x0 keeps x_t = alpha x0 + sigma eps."""

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Prediction, over
from diffcli.diffusion.guidance import (
    classifier_free,
    classifier_guided,
    clip_x0,
    on_path,
    rescaled,
    threshold_x0,
    within,
)
from diffcli.diffusion.samplers import Ddim, Ddpm, last
from diffcli.diffusion.schedule import Cosine, Flow, Linear, transition
from diffcli.noise import Noise
from tests.diffusion.oracle import SCHEDULES, Mixture, kind, recorded

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


def makes_up(p: Prediction, schedule, x: Tensor, t: Tensor) -> None:
    alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(t))
    torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x, rtol=0, atol=1e-11)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_a_model_led_away_from_itself_stays_where_it_is(schedule):
    """Autoguidance with the model as its own weaker one."""
    ideal = MIXTURE.denoise(schedule)
    p, q = classifier_free(lambda x, t: (ideal(x, t), ideal(x, t)), 3.0)(start(), T), ideal(start(), T)
    assert torch.equal(p.x0, q.x0)
    assert torch.equal(p.eps, q.eps)


def deviation(x0: Tensor) -> Tensor:
    return x0.flatten(1).std(1)


@pytest.mark.parametrize("scale", [0, 0.5, 4])
def test_rescaling_goes_from_plain_guidance_to_the_deviation_of_the_conditional_branch(scale):
    def pair(x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
        return branches(Cosine(), x, t)

    plain, cond = classifier_free(pair, scale)(start(), T), pair(start(), T)[0]
    none, half, full = (rescaled(pair, scale, Cosine(), share)(start(), T) for share in (0, 0.5, 1))
    assert torch.equal(none.x0, plain.x0)
    torch.testing.assert_close(none.eps, plain.eps, rtol=0, atol=1e-12)
    assert (deviation(plain.x0) / deviation(cond.x0) - 1).abs().min() > 0.05
    torch.testing.assert_close(deviation(full.x0), deviation(cond.x0), rtol=0, atol=1e-12)
    torch.testing.assert_close(half.x0, (none.x0 + full.x0) / 2, rtol=0, atol=1e-12)
    for p in (none, half, full):
        makes_up(p, Cosine(), start(), T)
        assert p.var_frac is not None
        assert (p.var_frac == 0.25).all()


def test_rescaling_looks_at_each_image_alone():
    def pair(x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
        return branches(Cosine(), x, t)

    denoise = rescaled(pair, 3, Cosine(), 0.7)
    assert torch.equal(denoise(start(), T).x0[:1], denoise(start()[:1], T).x0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_an_interval_guides_inside_and_runs_one_branch_outside(schedule):
    asked: list[str] = []

    def guided(x: Tensor, t: Tensor) -> Prediction:
        asked.append("guided")
        return classifier_free(lambda x, t: branches(schedule, x, t), 3)(x, t)

    def plain(x: Tensor, t: Tensor) -> Prediction:
        asked.append("plain")
        return branches(schedule, x, t)[0]

    limited = within(guided, plain, schedule, 0.3, 3.0)
    for level, branch, denoise in (
        (0.1, "plain", plain),
        (0.5, "guided", guided),
        (2.5, "guided", guided),
        (8, "plain", plain),
    ):
        t = schedule.time(-2 * torch.tensor(level, dtype=torch.float64).log())
        asked.clear()
        p = limited(start(), t)
        assert asked == [branch]
        assert torch.equal(p.x0, denoise(start(), t).x0)
        assert torch.equal(p.eps, denoise(start(), t).eps)


def test_an_interval_asks_each_image_of_a_batch_for_its_own_time():
    guided, plain = MIXTURE.component(0).denoise(Cosine()), MIXTURE.component(1).denoise(Cosine())
    limited = within(guided, plain, Cosine(), 0.3, 3.0)
    t = torch.tensor([0.5, 0.99], dtype=torch.float64)  # sigma / alpha 1 and 60
    p = limited(start(), t)
    assert torch.equal(p.x0[0], guided(start(), t).x0[0])
    assert torch.equal(p.x0[1], plain(start(), t).x0[1])
    makes_up(p, Cosine(), start(), t)


def log_posterior(schedule, k: int):
    """log p(k | x_t) of the mixture, a mean over independent pixels' components: the exact classifier of one-pixel images."""

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (over(c, x) for c in schedule.alpha_sigma(t))
        terms = []
        for w, m, s in zip(*MIXTURE, strict=True):
            total = alpha**2 * s**2 + sigma**2
            terms.append(torch.tensor(w).log() - total.log() / 2 - (x - alpha * m) ** 2 / (2 * total))
        return torch.stack(terms).log_softmax(0)[k].flatten(1).sum(1)

    return log_prob


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 0.9])
def test_the_exact_classifier_makes_the_unconditional_denoiser_the_conditional_one(schedule, t):
    """Bayes: the score of p(x_t | y) is that of p(x_t) plus the gradient of log p(y | x_t)."""
    x, t = start(), torch.tensor(t, dtype=torch.float64)
    for k in (0, 1):
        guided = classifier_guided(MIXTURE.denoise(schedule), log_posterior(schedule, k), schedule, 1.0)
        with torch.no_grad():  # as samplers run
            p = guided(x, t)
        expected = MIXTURE.component(k).denoise(schedule)(x, t)
        torch.testing.assert_close(p.eps, expected.eps, rtol=0, atol=1e-8)
        torch.testing.assert_close(p.x0, expected.x0, rtol=1e-7, atol=1e-7)
        assert not p.x0.requires_grad


def test_classifier_guidance_is_affine_in_its_scale_and_0_is_off():
    ideal = MIXTURE.denoise(Cosine())
    at = {s: classifier_guided(ideal, log_posterior(Cosine(), 1), Cosine(), s)(start(), T) for s in (0, 1, 4)}
    torch.testing.assert_close(at[0].x0, ideal(start(), T).x0, rtol=0, atol=0)
    torch.testing.assert_close(at[4].eps - at[0].eps, 4 * (at[1].eps - at[0].eps), rtol=0, atol=1e-11)
    makes_up(at[4], Cosine(), start(), T)


def test_a_classifier_is_not_asked_where_no_signal_is_left():
    one = torch.tensor(1.0, dtype=torch.float64)
    p = classifier_guided(MIXTURE.denoise(Flow()), lambda x, t: x.flatten(1).sum(1), Flow(), 5)(start(), one)
    assert torch.equal(p.x0, MIXTURE.denoise(Flow())(start(), one).x0)


@pytest.mark.parametrize("other", [Flow(), Linear(), Cosine()], ids=kind)
@pytest.mark.parametrize("length", [1.0, 2.0])
def test_a_noisy_image_of_one_path_is_one_of_another_at_the_same_noise(other, length):
    x0, noise, t = start(7), start(9), torch.tensor([0.3, 0.7], dtype=torch.float64)
    alpha, sigma = (over(c, x0) for c in Cosine().alpha_sigma(t))
    x, there = on_path(Cosine(), other, alpha * length * x0 + sigma * noise, t, length)
    alpha, sigma = (over(c, x0) for c in other.alpha_sigma(there))
    torch.testing.assert_close(x, alpha * x0 + sigma * noise, rtol=0, atol=1e-6)


@pytest.mark.parametrize("high", [1.0, 2.0])
def test_a_dynamic_threshold_shrinks_to_the_range_what_most_pixels_keep_to(high):
    x, outside = start() * 3, Prediction(start(4) * torch.tensor([0.2, 3.0]).view(2, 1, 1, 1).double(), start(6))
    p = threshold_x0(lambda x, t: outside, Cosine(), 0.9, high)(x, T)
    makes_up(p, Cosine(), x, T)
    assert torch.equal(p.x0[0], outside.x0[0])  # inside the range: plain clipping, which finds nothing to clip
    s = outside.x0[1].abs().flatten().sort().values[int(0.9 * 64 + 0.999) - 1]
    assert s > high
    torch.testing.assert_close(p.x0[1], outside.x0[1].clamp(-s, s) * high / s, rtol=0, atol=1e-12)
    assert float((p.x0[1].abs() >= high - 1e-9).double().mean()) == pytest.approx(0.1, abs=0.02)
    alone = threshold_x0(lambda x, t: Prediction(outside.x0[1:], outside.eps[1:]), Cosine(), 0.9, high)(x[1:], T)
    assert torch.equal(alone.x0, p.x0[1:])


def test_a_threshold_of_all_pixels_clips_nothing_off():
    wild = Prediction(start(4) * 5, start(6))
    p = threshold_x0(lambda x, t: wild, Cosine(), 1.0)(start(), T)
    peak = wild.x0.abs().amax((1, 2, 3), keepdim=True)
    torch.testing.assert_close(p.x0, wild.x0 / peak, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_a_classifier_shifts_the_mean_of_ddpm_after_x0_was_clipped(variance):
    """Dhariwal & Nichol 2021, algorithm 1: mu(clipped x0) + Sigma * scale * gradient, with the variance that is drawn with."""
    schedule, x, scale = Linear(), start(), 3.0
    weights = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).view_as(x[0])
    share = torch.full_like(x, 0.3) if variance == "learned" else None

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        return MIXTURE.denoise(schedule)(2 * x, t)._replace(var_frac=share)

    clipped = clip_x0(denoise, schedule, -0.3, 0.3)
    guided = classifier_guided(clipped, lambda x, t: (x * weights).flatten(1).sum(1), schedule, scale)
    first = next(
        Ddpm(steps=10, variance=variance).trajectory(guided, schedule, x, recorded(torch.Generator().manual_seed(1)))
    )
    t, s = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.9, dtype=torch.float64)
    q, x0 = transition(schedule, t, s), clipped(x, t).x0
    log_variance = 0.3 * q.var_large.log() + 0.7 * q.var_small.log()
    sigma = {"small": q.var_small, "large": q.var_large, "learned": log_variance.exp()}[variance]
    noise = recorded(torch.Generator().manual_seed(1))(x)
    expected = q.c_x * x + q.c_x0 * x0 + sigma * scale * weights + sigma.sqrt() * noise
    assert x0.abs().max() <= 0.3
    torch.testing.assert_close(first.x, expected)


def test_a_change_of_x0_after_the_classifier_counts_for_every_sampler():
    """Projections and tiles act on x0, so nothing may stay behind that ancestral sampling takes in its place."""
    guided = classifier_guided(MIXTURE.denoise(Cosine()), lambda x, t: x.flatten(1).sum(1), Cosine(), 5)
    assert guided(start(), T).pull is not None
    assert clip_x0(guided, Cosine())(start(), T).pull is None


@pytest.mark.parametrize("scale", [0.0, 4.0])
@pytest.mark.parametrize("share", [0.0, 0.7])
def test_channels_that_are_not_guided_are_those_of_the_conditional_branch(scale, share):
    """As in the code of DiT and SiT, which guide three of four."""
    x = Noise([1, 2], torch.device("cpu"))(torch.empty(2, 4, 8, 8, dtype=torch.float64))

    def pair(x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
        return branches(Cosine(), x, t)

    some = classifier_free(pair, scale, 3)(x, T)
    cond, led = pair(x, T)[0], classifier_free(pair, scale)(x, T)
    for found, guided, kept in ((some.x0, led.x0, cond.x0), (some.eps, led.eps, cond.eps)):
        assert torch.equal(found[:, :3], guided[:, :3])
        assert torch.equal(found[:, 3:], kept[:, 3:])
        assert not torch.allclose(guided[:, 3:], kept[:, 3:], atol=1e-3)
    both = [rescaled(pair, scale, Cosine(), share, channels)(x, T).x0 for channels in (None, 4, 3)]
    assert torch.equal(both[0], both[1])
    assert not torch.allclose(both[0][:, 3:], both[2][:, 3:], atol=1e-3)

"""Schedules: what every registered one must keep, and the known values of each."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from diffcli.diffusion.schedule import (
    MAX_BETA,
    ConstantBeta,
    Cosine,
    DiscreteSchedule,
    Edm,
    Flow,
    Linear,
    ScaledLinear,
    Schedule,
    Sigmoid,
    Sqrt,
    transition,
)
from tests.diffusion.oracle import SCHEDULES, kind

DISCRETE = [s for s in SCHEDULES if isinstance(s, DiscreteSchedule)]
SHORT = [type(s)(steps=n) for s in DISCRETE for n in (1, 7, 10)]


def grid(schedule: Schedule) -> torch.Tensor:
    """Times that training visits, with 0 before them; float64."""
    even = torch.arange(getattr(schedule, "steps", 1000) + 1).double() / getattr(schedule, "steps", 1000)
    return even[(even == 0) | (even > schedule.cleanest - 1e-9)]


@pytest.mark.parametrize("schedule", SCHEDULES + SHORT, ids=kind)
def test_alpha_bar_falls_strictly_from_exactly_one(schedule):
    alpha, sigma = schedule.alpha_sigma(grid(schedule))
    assert alpha[0] == 1
    assert sigma[0] == 0
    assert (alpha.diff() < 0).all()
    assert (sigma.diff() > 0).all()
    assert alpha.dtype == sigma.dtype == torch.float64


@pytest.mark.parametrize("schedule", SCHEDULES + SHORT, ids=kind)
def test_log_snr_falls_strictly_and_time_is_its_inverse(schedule):
    t = torch.linspace(0, 1, 3001, dtype=torch.float64)[1:]  # most lie between the trained times
    log_snr = schedule.log_snr(t)
    assert (log_snr.diff() < 0).all()
    torch.testing.assert_close(schedule.time(log_snr), t, rtol=0, atol=1e-9)
    ends = schedule.time(torch.tensor([math.inf, -math.inf]))
    assert ends.tolist() == [0, 1]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("shape", [(), (3,), (2, 4)])
def test_every_method_keeps_the_shape_and_returns_float64(schedule, shape):
    t = torch.full(shape, 0.5)
    results = [*schedule.alpha_sigma(t), schedule.time(schedule.log_snr(t)), schedule.snap(t), schedule.trained_time(t)]
    for value in [*results, schedule.network_time(t), *transition(schedule, t, t / 2)]:
        assert value.shape == shape
        assert value.dtype == torch.float64


@pytest.mark.parametrize("schedule", DISCRETE + SHORT, ids=kind)
def test_discrete_paths_keep_variance_one_and_first_sigma_is_the_root_of_beta(schedule):
    alpha, sigma = schedule.alpha_sigma(grid(schedule))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha), rtol=0, atol=1e-15)
    torch.testing.assert_close(
        sigma[1] ** 2, schedule.betas()[0], rtol=1e-12, atol=0
    )  # 1 - alpha_bar would lose digits
    torch.testing.assert_close((alpha[1:] / alpha[:-1]) ** 2, 1 - schedule.betas(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("schedule", DISCRETE + SHORT, ids=kind)
def test_snap_gives_the_nearest_trained_time_and_keeps_zero(schedule):
    trained = grid(schedule)[1:]
    torch.testing.assert_close(schedule.snap(trained), trained, rtol=0, atol=0)
    t = torch.linspace(0, 1, 7919, dtype=torch.float64)[1:]
    snapped = schedule.snap(t)
    assert set(snapped.tolist()) == set(trained.tolist())
    nearest = (t[:, None] - trained).abs().min(1).values
    torch.testing.assert_close((snapped - t).abs(), nearest, rtol=0, atol=1e-12)
    assert schedule.snap(torch.zeros(())) == 0


@pytest.mark.parametrize("schedule", DISCRETE + SHORT, ids=kind)
def test_uniform_numbers_become_every_trained_time_equally_often(schedule):
    u = (torch.arange(8 * schedule.steps).double() + 0.5) / (8 * schedule.steps)
    times, counts = schedule.trained_time(u).unique(return_counts=True)
    assert times.tolist() == grid(schedule)[1:].tolist()
    assert (counts == 8).all()
    ends = schedule.trained_time(torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64))
    assert ends.tolist() == [1 / schedule.steps, 1]


def test_flow_trains_every_time_but_zero():
    u = torch.tensor([0.0, 0.25, 1 - 2**-53], dtype=torch.float64)
    t = Flow().trained_time(u)
    assert t.tolist() == [1, 0.75, 2**-53]
    assert Flow().snap(t).tolist() == t.tolist()
    assert Flow().network_time(t)[:2].tolist() == [1000, 750]


@pytest.mark.parametrize("schedule", DISCRETE, ids=kind)
def test_network_is_told_the_index_of_the_literature(schedule):
    told = schedule.network_time(grid(schedule)[1:]).float()
    torch.testing.assert_close(told, torch.arange(1000).float(), rtol=0, atol=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 4000])
def test_network_time_of_other_step_counts_spans_the_same_range(steps):
    schedule = Cosine(steps=steps)
    told = schedule.network_time(grid(schedule)[1:])
    torch.testing.assert_close(told, torch.arange(steps).double() * (1000 / steps), rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES + SHORT, ids=kind)
def test_network_time_rises_and_stays_between_0_and_1000_but_for_edm(schedule):
    told = schedule.network_time(grid(schedule)[1:])
    assert (told.diff() > 0).all()
    low, high = (-1381, 1269) if isinstance(schedule, Edm) else (0, 1000)
    assert low <= told.min() <= told.max() <= high


def test_linear_betas_are_those_of_ho_and_scale_with_the_number_of_steps():
    betas = Linear().betas()
    assert betas[0].item() == pytest.approx(1e-4, rel=1e-12)
    assert betas[-1].item() == pytest.approx(0.02, rel=1e-12)
    assert Linear().leftover_signal ** 2 == pytest.approx(4.0358e-5, rel=1e-4)
    torch.testing.assert_close(Linear(steps=250).betas()[[0, -1]], betas[[0, -1]] * 4)
    # sum of betas, and so nearly all of log alpha-bar, does not depend on T
    whole = Linear().log_alpha_bar[-1]
    for steps in (500, 4000):
        torch.testing.assert_close(Linear(steps=steps).log_alpha_bar[-1], whole, rtol=0.012, atol=0)


def test_scaled_linear_betas_are_those_of_latent_diffusion():
    betas = ScaledLinear().betas()
    assert betas[0].item() == pytest.approx(0.00085, rel=1e-12)
    assert betas[-1].item() == pytest.approx(0.012, rel=1e-12)
    assert betas[499].sqrt().item() == pytest.approx(0.00085**0.5 + 499 / 999 * (0.012**0.5 - 0.00085**0.5), rel=1e-12)
    assert ScaledLinear().leftover_signal ** 2 == pytest.approx(0.004660, rel=1e-3)


@pytest.mark.parametrize("steps", [10, 1000, 4000])
def test_cosine_caps_the_last_beta_and_clips_nothing_at_the_clean_end(steps):
    schedule, t = Cosine(steps=steps), torch.arange(steps + 1).double() / steps
    betas = schedule.betas()
    assert betas.max() == betas[-1] == MAX_BETA
    assert (betas[:-1] < MAX_BETA).all()
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    torch.testing.assert_close(schedule.log_alpha_bar[:-1].exp(), f[:-1] / f[0], rtol=1e-9, atol=0)
    if steps == 1000:
        assert betas[0].item() == pytest.approx(4.128e-5, rel=1e-3)  # below 1e-4: a clipped start would leave noise


def test_sigmoid_follows_the_curve_of_jabri():
    schedule, t = Sigmoid(start=-3, end=3, tau=0.9), torch.arange(1, 1000).double() / 1000
    low, high = 1 / (1 + math.exp(3 / 0.9)), 1 / (1 + math.exp(-3 / 0.9))
    expected = (high - torch.sigmoid((t * 6 - 3) / 0.9)) / (high - low)
    torch.testing.assert_close(schedule.alpha_sigma(t)[0] ** 2, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("shape", [{"tau": 0.05}, {"start": 1, "end": 1}, {"start": -50}])
def test_a_sigmoid_that_is_flat_somewhere_is_refused(shape):
    with pytest.raises(ValidationError, match="some of its 1000 steps add no noise; set start below end and tau"):
        Sigmoid(**shape)


@pytest.mark.parametrize("cls", [type(s) for s in DISCRETE], ids=kind)
def test_a_schedule_that_was_used_can_be_compared_and_copied_with_another_number_of_steps(cls):
    one, other, half = cls(), cls(), torch.tensor(0.5)
    assert one.alpha_sigma(half) == other.alpha_sigma(half)
    assert one == other
    assert one != cls(steps=500)
    copy = one.model_copy(update={"steps": 500})
    assert copy.alpha_sigma(half) == cls(steps=500).alpha_sigma(half)


def test_sqrt_follows_the_curve_of_li():
    """alpha-bar = 1 - sqrt(t + 1e-4), divided by its value at t = 0 as betas do, down to the last, capped beta."""
    t = torch.arange(1000).double() / 1000
    expected = (1 - (t + 1e-4).sqrt()) / (1 - 1e-4**0.5)
    torch.testing.assert_close(Sqrt().alpha_sigma(t)[0] ** 2, expected, rtol=1e-9, atol=0)
    assert Sqrt().betas()[-1] == MAX_BETA


@pytest.mark.parametrize("steps", [1, 10, 1000, 4000])
def test_constant_betas_leave_the_same_signal_whatever_the_number_of_steps(steps):
    schedule = ConstantBeta(steps=steps)
    assert schedule.betas().unique().numel() == 1
    assert schedule.leftover_signal == pytest.approx(0.99**500, rel=1e-9)
    assert ConstantBeta().betas()[0] == pytest.approx(0.01, rel=1e-12)


@pytest.mark.parametrize("schedule", DISCRETE, ids=kind)
@pytest.mark.parametrize("steps", [2, 7, 1000])
def test_zero_terminal_snr_moves_alpha_as_lin_does(schedule, steps):
    """Lin et al. 2023, algorithm 1: the root of alpha-bar shifted to 0 at T, and scaled to keep its first value."""
    before, after = type(schedule)(steps=steps), type(schedule)(steps=steps, zero_terminal_snr=True)
    root = before.alpha_sigma(grid(before))[0][1:]
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alpha, sigma = after.alpha_sigma(grid(after))
    torch.testing.assert_close(alpha[1:], expected, rtol=1e-9, atol=1e-12)
    assert (alpha[0], alpha[-1], sigma[-1], after.leftover_signal) == (1, 0, 1, 0)
    assert torch.equal(after.betas(), before.betas())


def test_zero_terminal_snr_agrees_with_diffusers():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    theirs = (1 - rescale_zero_terminal_snr(ScaledLinear().betas())).cumprod(0).sqrt()
    ours = ScaledLinear(zero_terminal_snr=True).alpha_sigma(grid(ScaledLinear())[1:])[0]
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", DISCRETE, ids=kind)
def test_zero_terminal_snr_keeps_time_the_inverse_of_log_snr_up_to_the_end(schedule):
    endless = type(schedule)(steps=50, zero_terminal_snr=True)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)[1:]
    log_snr = endless.log_snr(t)
    assert (log_snr.diff() < 0).all()
    assert log_snr[-1] == -math.inf
    torch.testing.assert_close(endless.time(log_snr), t, rtol=0, atol=1e-9)
    q = transition(endless, torch.tensor(1.0), torch.tensor(0.98))
    assert (q.c_x, q.var_large) == (0, 1)


def test_zero_terminal_snr_of_one_step_is_refused():
    with pytest.raises(ValidationError, match="leaves no signal at all with steps 1; set steps to 2 or more"):
        Linear(steps=1, zero_terminal_snr=True)


def test_edm_is_the_path_of_karras_for_data_of_unit_variance():
    """x / alpha = x0 + s eps with s = sigma / 0.5; the network is told their c_noise, ln(sigma) / 4, but for a constant."""
    t = torch.tensor([0.3, 0.6, 1.0], dtype=torch.float64)
    alpha, sigma = Edm().alpha_sigma(t)
    torch.testing.assert_close(sigma / alpha, 160 * t**7, rtol=1e-12, atol=0)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(3).double(), rtol=0, atol=1e-15)
    torch.testing.assert_close(Edm().network_time(t), 1000 * (sigma / alpha).log() / 4, rtol=1e-9, atol=0)
    assert (sigma / alpha * 0.5)[-1] == pytest.approx(80)


def test_edm_tells_the_network_nothing_endless_near_its_clean_end():
    told = Edm().network_time(torch.tensor([0.0, 1e-9, Edm().cleanest / 2, Edm().cleanest]))
    torch.testing.assert_close(told, torch.full((4,), 250 * math.log(0.004)).double())


def test_v_on_the_edm_path_is_what_edm_regresses_with_the_sign_turned():
    """Karras et al. 2022, table 1: F = (x0 - c_skip x) / c_out at c_in x, with sigma_data 1."""
    t, x0, eps = torch.tensor(0.55, dtype=torch.float64), torch.randn(50).double(), torch.randn(50).double()
    alpha, sigma = Edm().alpha_sigma(t)
    s = sigma / alpha
    x, c_skip, c_out, c_in = x0 + s * eps, 1 / (s**2 + 1), s / (s**2 + 1).sqrt(), 1 / (s**2 + 1).sqrt()
    torch.testing.assert_close(c_in * x, alpha * x0 + sigma * eps)
    torch.testing.assert_close((x0 - c_skip * x) / c_out, -(alpha * eps - sigma * x0))


def test_flow_is_the_straight_path():
    t = torch.tensor([0, 0.25, 1], dtype=torch.float64)
    alpha, sigma = Flow().alpha_sigma(t)
    assert alpha.tolist() == [1, 0.75, 0]
    assert sigma.tolist() == [0, 0.25, 1]


def test_leftover_signal_tells_the_schedules_that_end_in_noise_from_those_that_do_not():
    assert Flow().leftover_signal == 0
    assert Cosine().leftover_signal < 1e-3
    assert Linear().leftover_signal < 0.01
    assert ScaledLinear().leftover_signal > 0.05  # the known flaw of latent diffusion's schedule
    assert Linear(steps=1).leftover_signal > 0.9


@pytest.mark.parametrize("schedule", DISCRETE + SHORT, ids=kind)
def test_transition_between_neighbours_is_the_posterior_of_ho(schedule):
    t = grid(schedule)[1:]
    q = transition(schedule, t, grid(schedule)[:-1])
    betas, alpha_bar = schedule.betas(), schedule.log_alpha_bar.exp()
    before, now = alpha_bar[:-1], alpha_bar[1:]  # alpha_bar_prev is the shifted one, 1 at the first step
    one_minus_now = -torch.expm1(schedule.log_alpha_bar[1:])
    one_minus_before = -torch.expm1(schedule.log_alpha_bar[:-1])
    close = {"rtol": 1e-9, "atol": 1e-12}
    torch.testing.assert_close(q.var_large, betas, **close)
    torch.testing.assert_close(q.var_small, one_minus_before / one_minus_now * betas, **close)
    torch.testing.assert_close(q.c_x0, before.sqrt() * betas / one_minus_now, **close)
    torch.testing.assert_close(q.c_x, (now / before).sqrt() * one_minus_before / one_minus_now, **close)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@settings(max_examples=15, deadline=None)
@given(st.floats(1e-3, 1), st.floats(0, 0.999))
def test_transition_carries_the_marginal_at_t_to_the_marginal_at_s(schedule, end, share):
    t = torch.tensor(end, dtype=torch.float64)
    s = t * share
    q, (alpha_t, sigma_t) = transition(schedule, t, s), schedule.alpha_sigma(t)
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    torch.testing.assert_close(q.c_x * alpha_t + q.c_x0, alpha_s, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(q.c_x**2 * sigma_t**2 + q.var_small, sigma_s**2, rtol=1e-9, atol=1e-12)
    assert 0 <= q.var_small <= q.var_large


@pytest.mark.parametrize("schedule", SCHEDULES + SHORT, ids=kind)
def test_transition_to_zero_is_x0_itself(schedule):
    q = transition(schedule, torch.tensor(1.0), torch.tensor(0.0))
    assert (q.c_x, q.var_small) == (0, 0)
    assert float(q.c_x0) == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_transition_in_two_hops_has_the_variance_of_one(schedule):
    """q(x_r | x_t, x0), integrated over q(x_s | x_t, x0), whichever s lies between: striding needs no respaced schedule."""
    t, s, r = torch.tensor([0.9, 0.4, 0.1], dtype=torch.float64)
    far, near, whole = transition(schedule, t, s), transition(schedule, s, r), transition(schedule, t, r)
    torch.testing.assert_close(near.c_x * far.c_x, whole.c_x, rtol=1e-9, atol=0)
    torch.testing.assert_close(near.c_x * far.c_x0 + near.c_x0, whole.c_x0, rtol=1e-9, atol=0)
    torch.testing.assert_close(near.c_x**2 * far.var_small + near.var_small, whole.var_small, rtol=1e-9, atol=0)


@pytest.mark.parametrize(("ours", "theirs"), [(Linear(), "linear"), (ScaledLinear(), "scaled_linear")], ids=kind)
def test_betas_agree_with_diffusers(ours, theirs):
    from diffusers import DDPMScheduler

    betas = ours.betas()
    other = DDPMScheduler(1000, beta_start=float(betas[0]), beta_end=float(betas[-1]), beta_schedule=theirs)
    torch.testing.assert_close(betas.float(), other.betas, rtol=1e-5, atol=0)  # theirs are float32


def test_cosine_agrees_with_diffusers():
    from diffusers import DDPMScheduler

    other = DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2")
    torch.testing.assert_close(Cosine().betas().float(), other.betas, rtol=1e-5, atol=1e-9)

"""Times: the distributions that papers state, on every schedule, and importance sampling that leaves the loss unbiased."""

import math
from collections import deque

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from diffcli.diffusion.schedule import Cosine, DiscreteSchedule, Flow, Linear, Schedule
from diffcli.diffusion.times import (
    AnyTimes,
    LogitNormal,
    LogNormalSigma,
    LossAware,
    LossHistory,
    Shifted,
    StratifiedTimes,
    Times,
    UniformTimes,
)
from diffcli.noise import Noise
from tests.diffusion.oracle import SCHEDULES, kind, members

PAIRS = [
    (cls(), schedule)
    for cls in members(AnyTimes)
    for schedule in SCHEDULES
    if cls is not LossAware or isinstance(schedule, DiscreteSchedule)
]


def draw(times: Times, schedule: Schedule, n: int = 40_000) -> tuple[Tensor, Tensor]:
    """t and weight of the first n positions of a run."""
    u = Noise(torch.arange(n), torch.device("cpu")).uniform()
    return times.sample(u, torch.arange(n), schedule, times.remember(schedule))


@pytest.mark.parametrize(("times", "schedule"), PAIRS, ids=kind)
def test_every_time_is_a_trained_one_and_depends_on_its_own_sample_alone(times, schedule):
    n = 500
    u, position, history = (
        Noise(torch.arange(n), torch.device("cpu")).uniform(),
        torch.arange(n),
        times.remember(schedule),
    )
    t, weight = times.sample(u, position, schedule, history)
    assert t.dtype == weight.dtype == torch.float64
    assert torch.equal(schedule.snap(t), t)
    assert t.min() > 0
    assert t.max() <= 1
    assert (weight > 0).all()
    some, its_weight = times.sample(u[:71], position[:71], schedule, history)
    torch.testing.assert_close(
        some, t[:71], rtol=1e-12, atol=0
    )  # vectorised functions round otherwise at the end of a vector
    assert torch.equal(its_weight, weight[:71])


@pytest.mark.parametrize(("times", "schedule"), PAIRS, ids=kind)
def test_the_ends_of_the_unit_interval_are_times_too(times, schedule):
    ends = torch.tensor([0.0, 1 - 2.0**-53], dtype=torch.float64)
    t, weight = times.sample(ends, torch.tensor([0, 1]), schedule, times.remember(schedule))
    assert t.min() > 0
    assert t.max() <= 1
    assert weight.isfinite().all()
    assert all(c.isfinite().all() for c in schedule.alpha_sigma(t))


@pytest.mark.parametrize("cls", [UniformTimes, StratifiedTimes], ids=kind)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_uniform_times_are_trained_ones_and_cover_them_evenly(cls, schedule):
    n = 40_000
    u = Noise(torch.arange(n), torch.device("cpu")).uniform()
    t, weight = cls().sample(u, torch.arange(n), schedule)
    assert t.dtype == weight.dtype == torch.float64
    assert torch.equal(schedule.snap(t), t)
    assert 0 < t.min() < 0.002
    assert 0.998 < t.max() <= 1
    share = torch.histc(t * weight.mean(), bins=20, min=0, max=1) / n  # weights are 1 where times are uniform
    assert share.sub(1 / 20).abs().max() < 5 * math.sqrt(0.05 / n)
    assert float(weight.mean()) == pytest.approx(1)


def test_uniform_times_are_those_of_the_uniform_number_alone():
    u = torch.tensor([0.0, 0.4995, 0.9999], dtype=torch.float64)
    one = UniformTimes().sample(u, torch.tensor([0, 1, 2]), Cosine())[0]
    assert torch.equal(one, UniformTimes().sample(u, torch.tensor([9, 8, 7]), Cosine())[0])
    assert one.tolist() == [0.001, 0.5, 1.0]


@pytest.mark.parametrize("first", [0, 1234, 256_000_000])
@pytest.mark.parametrize("n", [4, 32, 128])
def test_stratified_times_are_even_in_every_window(first, n):
    """No gap between neighbouring times of a batch exceeds the golden ratio's bound, 2.7 / n, wherever the batch begins."""
    position = torch.arange(first, first + n)
    t = StratifiedTimes().sample(torch.zeros(n).double(), position, Flow())[0].sort().values
    gaps = torch.cat([t.diff(), t[:1] + 1 - t[-1:]])
    assert gaps.max() < 2.7 / n
    random = UniformTimes().sample(Noise(position, torch.device("cpu")).uniform(), position, Flow())[0].sort().values
    assert n < 32 or random.diff().max() > gaps.max()


def test_stratified_times_do_not_depend_on_how_samples_are_dealt():
    position, u = torch.arange(100), torch.zeros(100).double()
    whole = StratifiedTimes().sample(u, position, Cosine())[0]
    assert torch.equal(StratifiedTimes().sample(u[1::2], position[1::2], Cosine())[0], whole[1::2])


def shares_below(values: Tensor, quantiles: list[float], at: list[float]) -> None:
    """Asserts that a share q of the values lies below each point, to five standard deviations of a random draw."""
    for q, point in zip(quantiles, at, strict=True):
        assert float((values < point).double().mean()) == pytest.approx(q, abs=5 * math.sqrt(q * (1 - q) / len(values)))


QUANTILES = [0.02, 0.16, 0.5, 0.84, 0.98]
Z = [float(torch.special.ndtri(torch.tensor(q, dtype=torch.float64))) for q in QUANTILES]
CONTINUOUS = [s for s in SCHEDULES if not isinstance(s, DiscreteSchedule)]
FINE = [*CONTINUOUS, Cosine(steps=4000)]


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("schedule", FINE, ids=kind)
def test_log_normal_times_have_a_normal_log_sigma_in_units_of_the_data(schedule, stratified):
    t, weight = draw(LogNormalSigma(mean=-0.5, std=1.1, stratified=stratified), schedule)
    alpha, sigma = schedule.alpha_sigma(t)
    shares_below((sigma / alpha).log(), QUANTILES[1:-1], [-0.5 + 1.1 * z for z in Z[1:-1]])
    assert (weight == 1).all()


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("schedule", FINE, ids=kind)
def test_logit_normal_times_have_a_normal_logit(schedule, stratified):
    t, _ = draw(LogitNormal(mean=0.3, std=0.8, stratified=stratified), schedule)
    shares_below(torch.logit(t), QUANTILES, [0.3 + 0.8 * z for z in Z])


@pytest.mark.parametrize("stratified", [False, True])
@pytest.mark.parametrize("schedule", FINE, ids=kind)
def test_shifted_times_are_uniform_ones_moved_towards_noise(schedule, stratified):
    t, _ = draw(Shifted(shift=3, stratified=stratified), schedule)
    shares_below(t / (3 - 2 * t), QUANTILES, QUANTILES)  # the inverse of 3 t / (1 + 2 t)
    shares_below(t, [0.5], [0.75])
    even, _ = draw(Shifted(shift=1, stratified=stratified), schedule)
    shares_below(even, QUANTILES, QUANTILES)


def test_noise_levels_off_the_schedule_go_to_its_ends():
    t, _ = draw(LogNormalSigma(mean=0, std=30), Linear(steps=10), 1000)
    assert float((t == 0.1).double().mean()) > 0.25
    assert float((t == 1).double().mean()) > 0.25


def history(steps: int, window: int, losses: Tensor) -> LossHistory:
    """A full history in which every time has had its loss `window` times."""
    found = LossHistory(steps, window)
    for _ in range(window):
        found.record(torch.arange(steps), losses)
    return found


def test_times_are_uniform_until_every_time_has_a_full_history():
    times, found = LossAware(window=3), LossHistory(4, 3)
    index = torch.tensor([0, 1, 2, 3] * 3)[:-1]
    found.record(index, index.float() + 1)
    assert times.probabilities(found).tolist() == [0.25] * 4
    found.record(torch.tensor([3]), torch.tensor([4.0]))
    expected = 0.999 * torch.arange(1, 5).double() / 10 + 0.001 / 4
    torch.testing.assert_close(times.probabilities(found), expected)


def test_probabilities_follow_the_root_of_the_mean_square_of_the_last_losses():
    generator = torch.Generator().manual_seed(0)
    losses = torch.rand(10, 6, generator=generator)
    found = LossHistory(6, 10)
    for row in losses:
        found.record(torch.arange(6), row)
    roots = losses.double().square().mean(0).sqrt()
    torch.testing.assert_close(LossAware().probabilities(found), 0.999 * roots / roots.sum() + 0.001 / 6)
    assert float(LossAware(uniform=1.0).probabilities(found).std()) == pytest.approx(0, abs=1e-12)


def test_losses_that_are_all_zero_leave_the_times_uniform():
    assert LossAware(window=1).probabilities(history(5, 1, torch.zeros(5))).tolist() == pytest.approx([0.2] * 5)


def test_importance_sampling_is_unbiased_and_draws_every_time():
    """An even grid of uniform numbers stands for all draws: the weighted mean of any f(t) is its plain mean."""
    steps, n = 10, 400_000
    found = history(steps, 10, torch.logspace(-3, 2, steps))
    u = (torch.arange(n).double() + 0.5) / n
    t, weight = LossAware().sample(u, torch.arange(n), Linear(steps=steps), found)
    index = (t * steps).round().long() - 1
    p = LossAware().probabilities(found)
    torch.testing.assert_close(torch.bincount(index, minlength=steps).double() / n, p, rtol=0, atol=2 / n)
    assert torch.equal(t.unique(), torch.arange(1, steps + 1).double() / steps)
    torch.testing.assert_close(weight, 1 / (steps * p[index]))
    for f in (torch.ones(steps).double(), torch.arange(steps).double() ** 2, torch.logspace(2, -3, steps).double()):
        assert float((weight * f[index]).mean()) == pytest.approx(float(f.mean()), rel=0.02)


@pytest.mark.parametrize("n", [1, 7, 200])
def test_a_history_keeps_the_last_losses_of_each_time(n):
    """Against a list for each time, with batches in which a time occurs more often than is remembered."""
    steps, window, generator = 5, 4, torch.Generator().manual_seed(n)
    found, lists = LossHistory(steps, window), [deque[float](maxlen=window) for _ in range(steps)]
    for _ in range(12):
        index, loss = torch.randint(steps, (n,), generator=generator), torch.rand(n, generator=generator)
        found.record(index, loss)
        for i, value in zip(index.tolist(), loss.tolist(), strict=True):
            lists[i].append(value)
    assert int(found.count.sum()) == 12 * n
    for i in range(steps):
        kept = found.losses[i][: int(found.count[i])]
        assert sorted(kept.tolist()) == sorted(lists[i])


def test_a_batch_recorded_in_parts_is_the_batch_recorded_whole():
    generator = torch.Generator().manual_seed(3)
    index, loss = torch.randint(6, (90,), generator=generator), torch.rand(90, generator=generator)
    whole, parts = LossHistory(6, 10), LossHistory(6, 10)
    whole.record(index, loss)
    for chunk, values in zip(index.tensor_split(7), loss.tensor_split(7), strict=True):
        parts.record(chunk, values)
    assert torch.equal(whole.losses, parts.losses)
    assert torch.equal(whole.count, parts.count)


@pytest.mark.parametrize(
    ("cls", "key", "value"),
    [
        (LogNormalSigma, "std", 0),
        (LogitNormal, "std", -1),
        (Shifted, "shift", 0),
        (LossAware, "uniform", 0),
        (LossAware, "window", 0),
    ],
)
def test_numbers_that_make_no_distribution_are_refused(cls, key, value):
    with pytest.raises(ValidationError, match=key):
        cls(**{key: value})

"""Time grids: strictly falling through trained times, and the published definition of each."""

from itertools import product

import numpy as np
import pytest
import torch

from diffcli.config import UserError
from diffcli.diffusion.samplers.spacing import Spacing, grid
from diffcli.diffusion.schedule import Cosine, DiscreteSchedule, Edm, Flow, Linear
from tests.diffusion.oracle import SAMPLERS, SCHEDULES, kind

STEPS = [1, 2, 7, 30, 333, 999, 1000]
PATHS = [*SCHEDULES, Linear(zero_terminal_snr=True), Cosine(steps=4000)]


@pytest.mark.parametrize("spacing", Spacing.__args__)
def test_times_fall_strictly_to_zero_through_trained_times(spacing):
    for schedule, steps in product(PATHS, STEPS):
        times = grid(spacing, steps, schedule)
        assert times.dtype == torch.float64
        assert (len(times), times[-1]) == (steps + 1, 0), (schedule, steps)
        assert (times.diff() < 0).all(), (schedule, steps)
        assert times[0] <= 1
        assert (times[0] == 1) or spacing in ("leading", "leading_1"), (schedule, steps)
        assert torch.equal(schedule.snap(times), times), (schedule, steps)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_uniform_times_skip_none_at_either_end_and_trailing_is_their_other_name(schedule):
    for steps in STEPS:
        times = grid("uniform", steps, schedule)
        assert (times - torch.linspace(1, 0, steps + 1)).abs().max() <= 0.5 / 1000 + 1e-9, steps
        assert torch.equal(grid("trailing", steps, schedule), times), steps


@pytest.mark.parametrize("steps", [2, 7, 10, 30, 333, 999, 1000])
def test_spacings_are_those_of_lin(steps):
    """Table 2, which counts steps from 1 to T; leading keeps the first S where T / S leaves more."""
    theirs = {
        "trailing": np.floor(1000 - np.arange(steps) * (1000 / steps) + 0.5),
        "leading": np.arange(1, 1001, 1000 // steps)[:steps][::-1],
    }
    for spacing, expected in theirs.items():
        index = (grid(spacing, steps, Linear())[:-1] * 1000).numpy()
        assert np.abs(index - expected).max() < 1e-6, spacing


@pytest.mark.parametrize(
    ("trained", "steps"), [(1000, 250), (1000, 25), (1000, 28), (4000, 250), (4000, 32), (1000, 1000)]
)
def test_linspace_is_the_grid_of_improved_diffusion_to_the_last_step(trained, steps):
    """Their loop: places grow by (T - 1) / (steps - 1) and are rounded, halves to even."""
    place, indices = 0.0, []
    for _ in range(steps):
        indices.append(round(place))
        place += (trained - 1) / (steps - 1)
    times = grid("linspace", steps, Cosine(steps=trained))
    assert (times[:-1] * trained).round().tolist() == [index + 1 for index in reversed(indices)]


def test_a_half_of_linspace_rounds_to_the_even_index_as_in_diffusers():
    index = (grid("linspace", 25, Linear())[:-1] * 1000).round() - 1
    assert 166 in index  # 4 * 41.625 = 166.5
    assert index.flip(0).tolist() == np.linspace(0, 999, 25).round().tolist()


def test_leading_1_is_leading_a_step_later_where_there_is_room_for_it():
    later = (grid("leading_1", 20, Linear())[:-1] * 1000).numpy()
    assert np.abs(later - np.arange(2, 1001, 50)[::-1]).max() < 1e-6
    assert torch.equal(grid("leading_1", 1000, Linear()), grid("leading", 1000, Linear()))


def test_log_snr_times_are_even_in_log_snr_between_the_ends():
    times = grid("log_snr", 20, Flow())
    gaps = Flow().log_snr(times[1:-1]).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-9, atol=0)
    times = grid("log_snr", 20, Linear(steps=100_000))  # so many that snapping moves little
    gaps = Linear(steps=100_000).log_snr(times[:-1]).diff()
    torch.testing.assert_close(gaps[:15], gaps[:15].mean().expand(15), rtol=0.02, atol=0)


@pytest.mark.parametrize("steps", [2, 18, 40])
def test_karras_times_on_the_edm_path_are_the_sigmas_of_karras(steps):
    """Eq. 5 with their defaults, sigma from 0.002 to 80 at rho 7, for data of deviation 0.5."""
    alpha, sigma = Edm().alpha_sigma(grid("karras", steps, Edm()))
    i = torch.arange(steps).double()
    expected = (80 ** (1 / 7) + i / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    torch.testing.assert_close((sigma / alpha)[:-1] * 0.5, expected, rtol=1e-9, atol=0)


def test_uniform_times_on_the_edm_path_are_the_sigmas_of_karras_with_a_least_sigma_of_zero():
    alpha, sigma = Edm().alpha_sigma(grid("uniform", 30, Edm()))
    root = 80 ** (1 / 7) * (1 - torch.arange(31).double() / 30)
    torch.testing.assert_close(sigma / alpha * 0.5, root**7, rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", [Flow(), Cosine(steps=100_000)], ids=kind)
def test_karras_times_start_at_edms_greatest_sigma_after_pure_noise(schedule):
    """Evenly to a power from sigma / alpha 160, but for the first time, which is 1."""
    alpha, sigma = schedule.alpha_sigma(grid("karras", 20, schedule)[1:-1])
    roots = (sigma / alpha) ** (1 / 7)
    gap = (160 ** (1 / 7) - roots[-1]) / 19
    torch.testing.assert_close(roots.diff(), -gap.expand(18), rtol=0.02, atol=0)


@pytest.mark.parametrize("cls", SAMPLERS, ids=kind)
def test_more_steps_than_were_trained_are_refused(cls):
    with pytest.raises(UserError, match=r"sampler.steps is 11, more than the 10 steps") as raised:
        cls(steps=11).times(Cosine(steps=10))
    assert "--steps 10" in raised.value.hint


def test_short_schedules_have_every_spacing():
    for schedule in (cls(steps=5) for cls in {type(s) for s in SCHEDULES if isinstance(s, DiscreteSchedule)}):
        for spacing in Spacing.__args__:
            assert grid(spacing, 5, schedule).tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0], abs=1e-12)

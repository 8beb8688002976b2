"""Multistep solvers: their coefficients, and the order that they show once their low-order start does not."""

import math

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.samplers import Ab4, DpmPlusPlus2M, DpmPlusPlus2MSde, DpmPlusPlus3M, Plms, last
from diffcli.diffusion.samplers.multistep import ADAMS_BASHFORTH, exponential_mean, exponential_move, interpolated
from diffcli.diffusion.schedule import Cosine, Edm, Flow, Linear, Schedule, transition
from diffcli.noise import Noise
from tests.diffusion.oracle import Mixture, gaussian, kind

DATA = gaussian(0.3, 0.5)
MIXTURE = Mixture((0.3, 0.7), (-0.8, 0.5), (0.2, 0.1))
CPU = torch.device("cpu")


def start() -> Tensor:
    return Noise([0], CPU)(torch.empty(1, 1, 4, 4, dtype=torch.float64))


def test_coefficients_on_an_even_grid_are_those_of_adams_and_bashforth():
    for order, expected in enumerate(ADAMS_BASHFORTH, 1):
        places = 0.7 - 0.1 * torch.arange(order).double()
        known = list(zip(places, torch.eye(order).double(), strict=True))
        moments = 1 / torch.arange(1, order + 1).double()
        found = interpolated(known, places[0], torch.tensor(0.1, dtype=torch.float64), moments)
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=0)


def eased(h: float) -> tuple[float, ...]:
    """Times from 0.9 to 0.3 in steps of h, the first of which grow by doubling from h^2."""
    steps, left = [h * h], 0.6 - h * h
    while left > 1e-9:
        steps.append(min(2 * steps[-1], h, left))
        left -= steps[-1]
    return tuple((0.9 - torch.tensor([0.0, *steps], dtype=torch.float64).cumsum(0)).tolist())


@pytest.mark.parametrize(("cls", "order"), [(Ab4, 4), (DpmPlusPlus3M, 3)], ids=kind)
@pytest.mark.parametrize("schedule", [Flow(), Edm(sigma_max=4, rho=1)], ids=kind)
def test_high_order_shows_after_a_start_in_tiny_steps(cls, order, schedule):
    """Their first-order start is then too short to show."""

    class OnTimes(cls):
        grid: tuple[float, ...]

        def times(self, schedule: Schedule) -> Tensor:
            return torch.tensor(self.grid, dtype=torch.float64)

    def error(h: float) -> float:
        x, grid = start(), eased(h)
        sampler = OnTimes(steps=len(grid) - 1, grid=grid)
        path = list(sampler.trajectory(DATA.denoise(schedule), schedule, x, Noise([0], CPU)))
        near = path[-4]  # the last steps have lower orders, or are cut
        return float((near.x - DATA.ode(schedule, x, torch.tensor(grid[0], dtype=torch.float64), near.t)).abs().max())

    errors = [error(0.6 / n) for n in (40, 80, 160)]
    assert errors == sorted(errors, reverse=True)
    assert math.log2(errors[0] / errors[-1]) / 2 > order - 0.4, errors


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_the_third_order_mean_is_exact_for_parabolas_in_half_log_snr(degree):
    schedule, times = Cosine(), torch.tensor([0.8, 0.7, 0.55, 0.5]).double()
    places = schedule.log_snr(times) / 2
    known = [(place, place**degree * torch.ones(1).double()) for place in places[:3].flip(0)]
    fine = torch.linspace(places[2], places[3], 20001).double()
    weight = (fine - places[3]).exp()
    expected = torch.trapezoid(weight * fine**degree, fine) / torch.trapezoid(weight, fine)
    found = exponential_mean(known, schedule, times[2], times[3])
    torch.testing.assert_close(found, expected.expand(1), rtol=1e-7, atol=0)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Flow(), Edm()], ids=kind)
def test_the_sde_solver_without_noise_is_the_ode_solver(schedule):
    denoise, x = MIXTURE.denoise(schedule), start()
    sde = DpmPlusPlus2MSde(steps=20, eta=0).trajectory(denoise, schedule, x, Noise([0], CPU))
    for a, b in zip(sde, DpmPlusPlus2M(steps=20).trajectory(denoise, schedule, x, Noise([0], CPU)), strict=True):
        assert torch.equal(a.x, b.x)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Flow(), Edm()], ids=kind)
def test_a_first_move_of_the_sde_solver_is_the_step_of_ddpm(schedule):
    t, s, x, x0 = torch.tensor(0.7).double(), torch.tensor(0.4).double(), start(), start() / 2
    q = transition(schedule, t, s)
    torch.testing.assert_close(exponential_move(x, x0, schedule, t, s, eta=1), q.c_x * x + q.c_x0 * x0)
    first = next(DpmPlusPlus2MSde(steps=2).trajectory(DATA.denoise(schedule), schedule, x, Noise([0], CPU)))
    mean = DATA.denoise(schedule)(x, torch.tensor(1.0).double()).x0
    q = transition(schedule, torch.tensor(1.0).double(), first.t)
    drawn = q.c_x * x + q.c_x0 * mean + q.var_small.sqrt() * Noise([0], CPU)(x)
    torch.testing.assert_close(first.x, drawn, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", [Flow(), Linear(zero_terminal_snr=True)], ids=kind)
@pytest.mark.parametrize("cls", [DpmPlusPlus2MSde, DpmPlusPlus3M, Ab4, Plms], ids=kind)
def test_a_mixture_is_drawn_from_a_start_without_signal(cls, schedule):
    x = Noise([1], CPU)(torch.empty(1, 1, 100, 200, dtype=torch.float64))
    noise = Noise([2], CPU)
    end = last(cls(steps=60).trajectory(MIXTURE.denoise(schedule), schedule, x, noise)).x
    assert float(end.mean()) == pytest.approx(MIXTURE.mean, abs=0.03)
    assert float(end.std()) == pytest.approx(MIXTURE.std, rel=0.02)


def test_plms_is_ten_times_nearer_than_ab4_on_the_linear_schedule_at_20_steps():
    """Heun's first move makes the difference: the others begin with one of first order where the path is steepest."""
    schedule, x, ideal = Linear(), start(), DATA.denoise(Linear())
    exact = DATA.ode(schedule, x, torch.tensor(1.0), torch.tensor(0.0))
    plms, ab4 = (
        float((last(cls(steps=20).trajectory(ideal, schedule, x, Noise([0], CPU))).x - exact).abs().max())
        for cls in (Plms, Ab4)
    )
    assert plms < 0.01
    assert plms < ab4 / 10


@pytest.mark.parametrize("schedule", [Cosine(), Flow(), Edm(), Linear(zero_terminal_snr=True)], ids=kind)
def test_plms_does_not_overshoot_from_the_pure_noise_of_steep_paths(schedule):
    """The mean of two eps, taken where sigma / alpha is thousands or infinite, would leave x0 thousands off."""
    first = next(Plms(steps=20).trajectory(MIXTURE.denoise(schedule), schedule, start(), Noise([0], CPU)))
    assert first.x.abs().max() < 5

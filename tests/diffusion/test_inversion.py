"""DDIM inversion: back to the noise, and DDIM from there to the image."""

import math

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.inversion import invert
from diffcli.diffusion.samplers import Ddim, last
from diffcli.diffusion.schedule import Cosine, Edm, Flow, Linear, Schedule
from diffcli.noise import Noise
from tests.diffusion.oracle import Mixture, counted, gaussian, kind

DATA = gaussian(0.3, 0.5)
MIXTURE = Mixture((0.3, 0.7), (-0.8, 0.5), (0.2, 0.1))
CPU = torch.device("cpu")


def images() -> Tensor:
    return 0.3 + 0.5 * Noise([7], CPU)(torch.empty(1, 1, 4, 4, dtype=torch.float64))


def there_and_back(schedule: Schedule, steps: int, data: Mixture = DATA, refinements: int = 0) -> float:
    ddim, x0, denoise = Ddim(steps=steps, spacing="log_snr"), images(), data.denoise(schedule)
    x = invert(denoise, schedule, x0, ddim.times(schedule), refinements)
    return float((last(ddim.trajectory(denoise, schedule, x, Noise([0], CPU))).x - x0).abs().max())


@pytest.mark.parametrize("schedule", [Linear(steps=100_000), Cosine(steps=100_000), Flow(), Edm()], ids=kind)
def test_inverting_and_drawing_again_returns_the_image_with_an_error_that_falls_with_the_steps(schedule):
    few, many = (there_and_back(schedule, n) for n in (100, 400))
    assert math.log2(few / many) / 2 > 0.7  # the order, over two doublings
    assert many < 0.05


@pytest.mark.parametrize("schedule", [Linear(), Cosine(), Flow(), Edm()], ids=kind)
def test_refinements_make_the_inverse_exact(schedule):
    plain, once, often = (there_and_back(schedule, 50, refinements=n) for n in (0, 1, 10))
    assert once < plain / 3
    assert often < 1e-6


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=kind)
def test_the_inverse_is_the_probability_flow_backwards(schedule):
    times = Ddim(steps=1000).times(schedule)
    x = invert(DATA.denoise(schedule), schedule, images(), times)
    exact = DATA.ode(schedule, images(), torch.tensor(0.0), torch.tensor(1.0))
    torch.testing.assert_close(x, exact, rtol=0, atol=0.02)


@pytest.mark.parametrize("refinements", [0, 2])
def test_it_costs_one_evaluation_a_move_and_one_more_for_each_refinement(refinements):
    denoise, asked = counted(MIXTURE.denoise(Cosine()))
    times = Ddim(steps=10).times(Cosine())
    invert(denoise, Cosine(), images(), times, refinements)
    assert len(asked) == 10 * (1 + refinements)
    assert all(t > 0 for t in asked)  # eps is undefined at 0

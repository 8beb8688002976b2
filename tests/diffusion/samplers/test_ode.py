"""The adaptive solver: as exact as it is told to be, each image on steps of its own."""

import pytest
import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.denoiser import Prediction
from diffcli.diffusion.samplers import Heun, Ode, last
from diffcli.diffusion.samplers.ode import ERROR, NODES, STAGES
from diffcli.diffusion.schedule import Cosine, Edm, Flow, Linear
from diffcli.noise import Noise
from tests.diffusion.oracle import Mixture, gaussian, kind

DATA = gaussian(0.3, 0.5)
MIXTURE = Mixture((0.3, 0.7), (-0.8, 0.5), (0.2, 0.1))
CPU = torch.device("cpu")
SCHEDULES = [Linear(), Cosine(), Flow(), Edm(), Linear(zero_terminal_snr=True)]


def start(batch: int = 1) -> Tensor:
    return Noise(range(batch), CPU)(torch.empty(batch, 1, 8, 8, dtype=torch.float64))


def test_the_tableau_is_consistent_and_of_orders_five_and_four():
    """Every stage is the integral of 1 up to its node, and both results integrate powers up to their order."""
    for node, stage in zip(NODES, STAGES, strict=True):
        assert sum(stage) == pytest.approx(node, abs=1e-14)
    nodes, fifth = (0, *NODES[:-1]), STAGES[-1]
    fourth = [b - e for b, e in zip((*fifth, 0), ERROR, strict=True)]
    for power in range(5):
        assert sum(b * c**power for b, c in zip(fifth, nodes, strict=True)) == pytest.approx(1 / (power + 1), abs=1e-14)
    for power in range(4):
        found = sum(b * c**power for b, c in zip(fourth, (*nodes, 1), strict=True))
        assert found == pytest.approx(1 / (power + 1), abs=1e-14)
    assert sum(ERROR) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-6])
def test_the_error_follows_the_tolerance(tolerance, schedule):
    """Up to the first trained time, where the walk ends; what the last move to 0 loses is that of every sampler."""
    x, sampler = start(), Ode(steps=2, spacing="linspace", rtol=tolerance, atol=tolerance)
    first, end = sampler.trajectory(DATA.denoise(schedule), schedule, x, Noise([0], CPU))
    assert float(first.t) == pytest.approx(schedule.cleanest)
    assert (first.x - DATA.ode(schedule, x, torch.tensor(1.0), first.t)).abs().max() < 10 * tolerance
    assert torch.equal(end.x, end.x0)


def test_a_tighter_tolerance_costs_more_evaluations():
    counts = [
        int(
            last(
                Ode(rtol=tol, atol=tol).trajectory(MIXTURE.denoise(Cosine()), Cosine(), start(), Noise([0], CPU))
            ).evaluations
        )
        for tol in (1e-2, 1e-4, 1e-6)
    ]
    assert counts == sorted(set(counts))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_the_states_shown_change_neither_result_nor_cost_and_lie_on_the_path(schedule):
    tight = {"rtol": 1e-6, "atol": 1e-6}
    x, denoise = start(2), DATA.denoise(schedule)
    one = last(Ode(steps=1, **tight).trajectory(denoise, schedule, x, Noise([0, 1], CPU)))
    many = list(Ode(steps=40, **tight).trajectory(denoise, schedule, x, Noise([0, 1], CPU)))
    assert torch.equal(many[-1].x, one.x)
    assert torch.equal(many[-1].evaluations, one.evaluations)
    for step in many[:-1]:
        if float(step.t) >= schedule.cleanest:
            exact = DATA.ode(schedule, x, torch.tensor(1.0), step.t)
            torch.testing.assert_close(step.x, exact, rtol=0, atol=2e-3)  # a cubic between the steps


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_a_mixture_is_carried_where_many_heun_steps_carry_it(schedule):
    x, denoise = start(), MIXTURE.denoise(schedule)
    end = last(Ode(rtol=1e-7, atol=1e-7, steps=1).trajectory(denoise, schedule, x, Noise([0], CPU))).x
    heun = last(Heun(steps=150, spacing="log_snr").trajectory(denoise, schedule, x, Noise([0], CPU))).x
    assert (end - heun).abs().mean() < 2e-3


def test_each_image_has_its_own_count_whoever_shares_its_batch():
    schedule, x = Cosine(), torch.cat([start() / 100, start(), 3 * start()])
    ode = Ode(steps=5, rtol=1e-5, atol=1e-5)
    together = last(ode.trajectory(MIXTURE.denoise(schedule), schedule, x, Noise(range(3), CPU)))
    for i in range(3):
        alone = last(ode.trajectory(MIXTURE.denoise(schedule), schedule, x[i : i + 1], Noise([i], CPU)))
        assert alone.evaluations[0] == together.evaluations[i]
        assert torch.equal(alone.x[0], together.x[i])
    assert len(set(together.evaluations.tolist())) > 1


def test_a_network_too_rough_for_the_tolerance_is_an_error_that_says_what_to_loosen():
    def rough(x: Tensor, t: Tensor) -> Prediction:
        x0 = torch.sign(torch.sin(1e4 * x))
        return Prediction(x0, x - x0)

    with pytest.raises(UserError, match=r"sampler.max_evaluations is 200, and the ode has not reached") as raised:
        last(Ode(max_evaluations=200, rtol=1e-6, atol=1e-6).trajectory(rough, Flow(), start(), Noise([0], CPU)))
    assert "--set sampler.rtol=1e-05" in raised.value.hint

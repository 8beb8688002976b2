"""What every registered sampler must keep, and the order at which each solver converges on Gaussian data."""

import math
from itertools import pairwise

import pytest
import torch

from diffcli.config import UserError
from diffcli.diffusion.denoiser import Denoiser
from diffcli.diffusion.samplers import Ddim, Ddpm, DpmPlusPlus2M, Heun, Sampler
from diffcli.diffusion.schedule import Cosine, DiscreteSchedule, Flow, Linear, Schedule, transition
from diffcli.noise import Noise
from tests.diffusion.oracle import (
    SAMPLERS,
    SCHEDULES,
    TARGETS,
    Counting,
    Mixture,
    TargetNetwork,
    counted,
    gaussian,
    kind,
    knows,
    last,
)

CPU = torch.device("cpu")
ORDER = {Ddim: 1, Heun: 2, DpmPlusPlus2M: 2}  # of the deterministic samplers; a new one states its own here
DATA = gaussian(0.3, 0.5)
MIXTURE = Mixture((0.3, 0.7), (-0.8, 0.5), (0.2, 0.1))
VARIANTS = [
    *(cls(steps=8) for cls in SAMPLERS),
    Ddim(steps=8, eta=0.5),
    Ddim(steps=8, eta=1),
    Ddpm(steps=8, variance="large"),
]


def name(sampler: Sampler) -> str:
    return "-".join(f"{value}" for value in sampler.model_dump(exclude={"spacing"}).values())


def start(batch: int = 1, size: int = 4) -> torch.Tensor:
    return Noise(range(batch), CPU)(torch.empty(batch, 1, size, size, dtype=torch.float64))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("steps", [1, 2, 7, 30, 333, 999, 1000])
def test_times_fall_strictly_from_one_to_zero_through_trained_times(schedule, steps):
    times = Ddim(steps=steps).times(schedule)
    assert times.dtype == torch.float64
    assert (times[0], times[-1], len(times)) == (1, 0, steps + 1)
    assert (times.diff() < 0).all()
    assert torch.equal(schedule.snap(times), times)
    assert (times - torch.linspace(1, 0, steps + 1)).abs().max() <= 0.5 / 1000 + 1e-9  # none is skipped at either end


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("steps", [1, 2, 7, 20, 50, 333, 1000])
def test_log_snr_times_fall_strictly_from_one_to_zero_through_trained_times(schedule, steps):
    times = Ddim(steps=steps, spacing="log_snr").times(schedule)
    assert (times[0], times[-1], len(times)) == (1, 0, steps + 1)
    assert (times.diff() < 0).all()
    assert torch.equal(schedule.snap(times), times)


def test_log_snr_times_are_even_in_log_snr_between_the_ends():
    times = Ddim(steps=20, spacing="log_snr").times(Flow())
    gaps = Flow().log_snr(times[1:-1]).diff()
    torch.testing.assert_close(gaps, gaps.mean().expand_as(gaps), rtol=1e-9, atol=0)
    times = Ddim(steps=20, spacing="log_snr").times(Linear(steps=100_000))  # so many that snapping moves little
    gaps = Linear(steps=100_000).log_snr(times[:-1]).diff()
    torch.testing.assert_close(gaps[:15], gaps[:15].mean().expand(15), rtol=0.02, atol=0)


@pytest.mark.parametrize("cls", SAMPLERS, ids=kind)
def test_more_steps_than_were_trained_are_refused(cls):
    with pytest.raises(UserError, match=r"sampler.steps is 11, more than the 10 steps") as raised:
        cls(steps=11).times(Cosine(steps=10))
    assert "--steps 10" in raised.value.hint


@pytest.mark.parametrize("sampler", VARIANTS, ids=name)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_a_trajectory_visits_every_time_once_and_ends_at_zero(sampler, schedule):
    steps = list(sampler.trajectory(DATA.denoise(schedule), schedule, start(), Noise([0], CPU)))
    assert torch.equal(torch.stack([step.t for step in steps]), sampler.times(schedule)[1:])
    assert all(step.x.shape == step.x0.shape == (1, 1, 4, 4) for step in steps)


@pytest.mark.parametrize("cls", SAMPLERS, ids=kind)
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_nfe_is_the_number_of_evaluations(cls, steps):
    denoise, asked = counted(DATA.denoise(Cosine()))
    sampler = cls(steps=steps)
    last(sampler.trajectory(denoise, Cosine(), start(), Noise([0], CPU)))
    assert len(asked) == sampler.nfe


@pytest.mark.parametrize("sampler", VARIANTS, ids=name)
def test_the_network_is_asked_at_trained_times_only(sampler):
    denoise, asked = counted(DATA.denoise(Cosine()))
    last(sampler.trajectory(denoise, Cosine(), start(), Noise([0], CPU)))
    assert set(map(float, asked)) == set(sampler.times(Cosine())[:-1].tolist())


@pytest.mark.parametrize("cls", SAMPLERS, ids=kind)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("steps", [1, 7, 50])
def test_a_perfect_prediction_is_returned(cls, schedule, steps):
    x0 = start(3).float().clamp(-1, 1)
    x = Noise([5, 6, 7], CPU)(x0)
    end = last(cls(steps=steps).trajectory(knows(x0, schedule), schedule, x, Noise([5, 6, 7], CPU)))
    torch.testing.assert_close(end.x, x0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cls", SAMPLERS, ids=kind)
@pytest.mark.parametrize("steps", [333, 999, 1000])
def test_a_perfect_prediction_is_returned_after_very_many_steps(cls, steps):
    x0 = start(3).float().clamp(-1, 1)
    x = Noise([5, 6, 7], CPU)(x0)
    for schedule in (Cosine(), Flow()):
        end = last(cls(steps=steps).trajectory(knows(x0, schedule), schedule, x, Noise([5, 6, 7], CPU)))
        torch.testing.assert_close(end.x, x0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
@pytest.mark.parametrize("sampler", [s for s in VARIANTS if type(s) in ORDER and not getattr(s, "eta", 0)], ids=name)
def test_one_dimensional_gaussians_are_carried_to_their_data(sampler, schedule):
    """With 500 steps every solver follows the exact probability-flow map from noise to data."""
    x = start()
    end = last(
        sampler.model_copy(update={"steps": 500}).trajectory(DATA.denoise(schedule), schedule, x, Noise([0], CPU))
    )
    exact = DATA.ode(schedule, x, torch.tensor(1.0), torch.tensor(0.0))
    torch.testing.assert_close(end.x, exact, rtol=0, atol=0.01)


def error(sampler: Sampler, schedule: Schedule, until: float) -> float:
    """Greatest distance from the exact probability-flow map at time `until`, which lies on the grid."""
    x, begin = start(), sampler.times(schedule)[0]
    steps = sampler.trajectory(DATA.denoise(schedule), schedule, x, Noise([0], CPU))
    step = next(step for step in steps if abs(float(step.t) - until) < 1e-9)
    return float((step.x - DATA.ode(schedule, x, begin, step.t)).abs().max())


def orders(errors: list[float]) -> list[float]:
    """Observed order of convergence at each doubling of the steps."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize("cls", ORDER, ids=kind)
@pytest.mark.parametrize("schedule", [Linear(steps=3200), Cosine(steps=3200), Flow()], ids=kind)
def test_each_solver_converges_with_its_order_between_two_noisy_times(cls, schedule):
    class Between(cls):
        def times(self, schedule: Schedule) -> torch.Tensor:
            return schedule.snap(torch.linspace(0.9, 0.2, self.steps + 1, dtype=torch.float64))

    observed = orders([error(Between(steps=n), schedule, 0.2) for n in (140, 280, 560)])
    assert observed == pytest.approx([ORDER[cls]] * 2, abs=0.2)


@pytest.mark.parametrize("cls", ORDER, ids=kind)
@pytest.mark.parametrize("schedule", [Linear(steps=3200), Cosine(steps=3200), Flow()], ids=kind)
def test_each_solver_converges_with_its_order_from_pure_noise(cls, schedule):
    """Up to t = 0.2: near 0 the VP path's sigma grows like a root of t, where no solver in t keeps its order.

    A multistep method extrapolates in log SNR, which is -inf at t = 1 on the flow path: h^2 log(1/h) instead of h^2.
    """
    observed = orders([error(cls(steps=n), schedule, 0.2) for n in (50, 100, 200, 400)])
    assert all(ORDER[cls] - 0.35 < order < ORDER[cls] + 0.1 for order in observed), observed


@pytest.mark.parametrize("cls", [cls for cls, order in ORDER.items() if order > 1], ids=kind)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_second_order_is_clearly_better_than_ddim_at_50_steps(cls, schedule):
    assert error(cls(steps=50), schedule, 0.2) < error(Ddim(steps=50), schedule, 0.2) / 10
    assert error(cls(steps=50), schedule, 0.0) < error(Ddim(steps=50), schedule, 0.0) / 1.8  # the last step is the same
    second, first = cls(steps=50, spacing="log_snr"), Ddim(steps=50, spacing="log_snr")
    assert error(second, schedule, 0.0) < error(first, schedule, 0.0) / 10


def test_flow_euler_is_ddim_on_the_flow_path():
    x, denoise = start(), MIXTURE.denoise(Flow())
    euler = x
    for k in range(10, 0, -1):
        p = denoise(euler, torch.tensor(k / 10, dtype=torch.float64))
        euler = euler + (p.eps - p.x0) * (-1 / 10)  # dx = v dt, v = eps - x0
    end = last(Ddim(steps=10).trajectory(denoise, Flow(), x, Noise([0], CPU)))
    torch.testing.assert_close(end.x, euler, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", VARIANTS, ids=name)
@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=kind)
def test_an_image_is_the_same_alone_and_in_a_batch(sampler, schedule):
    seeds, like = [11, 3, 2**63, -7, 5], torch.empty(5, 3, 5, 7)
    denoise = MIXTURE.denoise(schedule)

    def images(chosen: list[int]) -> torch.Tensor:
        noise = Noise(chosen, CPU)
        return last(sampler.trajectory(denoise, schedule, noise(like[: len(chosen)]), noise)).x

    together = images(seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(images([seed])[0], together[i])
    assert torch.equal(images(seeds[::-1]).flip(0), together)


@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=kind)
def test_noise_is_drawn_only_where_it_is_added(schedule):
    def draws(sampler: Sampler) -> int:
        noise = Counting([0], CPU)
        last(sampler.trajectory(DATA.denoise(schedule), schedule, start(), noise))
        return noise.draws

    for cls in ORDER:
        assert draws(cls(steps=9)) == 0
    assert (
        draws(Ddim(steps=9, eta=1)) == draws(Ddim(steps=9, eta=0.1)) == draws(Ddpm(steps=9)) == 8
    )  # none in the last step
    assert draws(Ddpm(steps=1)) == 0


@pytest.mark.parametrize("cls", [cls for cls in SAMPLERS if cls not in ORDER], ids=kind)
def test_samplers_without_an_order_are_stochastic(cls):
    noise = Counting([0], CPU)
    last(cls(steps=5).trajectory(DATA.denoise(Cosine()), Cosine(), start(), noise))
    assert noise.draws > 0, "a deterministic sampler states its order of convergence in ORDER"


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [*((schedule, steps) for schedule in SCHEDULES for steps in (7, 50)), (Cosine(), 1000), (Flow(), 1000)],
    ids=kind,
)
def test_ddim_with_eta_one_is_ddpm(schedule, steps):
    """The same draws give the same path for every draw, so mean and variance agree in each step, strided or not."""
    x, denoise = start(2), MIXTURE.denoise(schedule)
    ddim = Ddim(steps=steps, eta=1).trajectory(denoise, schedule, x, Noise([1, 2], CPU))
    ddpm = Ddpm(steps=steps, variance="small").trajectory(denoise, schedule, x, Noise([1, 2], CPU))
    for a, b in zip(ddim, ddpm, strict=True):
        torch.testing.assert_close(a.x, b.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", [s for s in SCHEDULES if isinstance(s, DiscreteSchedule)], ids=kind)
def test_ddim_takes_sigma_of_song_on_strided_grids(schedule):
    """Song et al. 2020, eq. 16, with alpha-bar at the two ends of the stride."""
    t, s = torch.tensor(0.6, dtype=torch.float64), torch.tensor(0.35, dtype=torch.float64)
    now, before = (schedule.alpha_sigma(end)[0] ** 2 for end in (t, s))
    expected = (1 - before) / (1 - now) * (1 - now / before)
    torch.testing.assert_close(transition(schedule, t, s).var_small, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("cls", SAMPLERS, ids=kind)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=kind)
def test_heads_of_every_target_walk_the_same_trajectory(cls, schedule):
    ideal, x = MIXTURE.denoise(schedule), start(2).float()
    expected = last(cls(steps=20).trajectory(ideal, schedule, x.double(), Noise([1, 2], CPU)))
    for target in TARGETS:
        if target == "eps" and schedule.kind == "flow":
            continue  # refused: it says nothing of x0 at t = 1
        denoiser = Denoiser(TargetNetwork(ideal, schedule, target), schedule, target, learn_variance=False)
        end = last(cls(steps=20).trajectory(lambda x, t, d=denoiser: d(x, t, None), schedule, x, Noise([1, 2], CPU)))
        # an eps head divides by alpha at t = 1, 5e-5 for the cosine schedule, and float32 shows it
        torch.testing.assert_close(end.x.double(), expected.x, rtol=0, atol=2e-3 if target == "eps" else 1e-4)

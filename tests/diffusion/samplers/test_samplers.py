"""What every registered sampler must keep, and the order at which each solver converges on Gaussian data."""

import math
import weakref
from functools import cache
from itertools import pairwise, product

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, Prediction
from diffcli.diffusion.samplers import (
    Ab4,
    Ddim,
    Ddpm,
    DpmPlusPlus2M,
    DpmPlusPlus2MSde,
    DpmPlusPlus3M,
    EdmHeun,
    Euler,
    EulerAncestral,
    Heun,
    Ode,
    Plms,
    Sampler,
    UniPc,
    last,
)
from diffcli.diffusion.schedule import Cosine, DiscreteSchedule, Edm, Flow, Linear, Schedule, transition
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
)
from tests.pairing import paired

CPU = torch.device("cpu")
FINE = [s for s in SCHEDULES if s.alpha_sigma(torch.tensor(s.cleanest))[1] < 0.05]  # one move removes their first noise
# of the deterministic samplers; a new one states its own here. AB4 and 3M begin with a first-order step, whose error is of
# second order, so that whole walks show 2; see test_multistep.py for what follows. PLMS keeps the coefficients of even grids on
# all grids, which leaves second order. A corrected UniPC-2 is of third order.
ORDER = {Ddim: 1, Euler: 1, Heun: 2, EdmHeun: 2, Ab4: 2, Plms: 2, DpmPlusPlus2M: 2, DpmPlusPlus3M: 2, UniPc: 3}
ADAPTIVE = (Ode,)  # deterministic too, but it follows a tolerance: see test_ode.py
DATA = gaussian(0.3, 0.5)
MIXTURE = Mixture((0.3, 0.7), (-0.8, 0.5), (0.2, 0.1))
VARIANTS = [
    *(cls(steps=8) for cls in SAMPLERS),
    Ddim(steps=8, eta=0.5),
    Ddim(steps=8, eta=1),
    Ddpm(steps=8, variance="large"),
    EulerAncestral(steps=8, eta=0.5),
    DpmPlusPlus2MSde(steps=8, eta=0.5),
    EdmHeun(steps=8, s_churn=4, s_noise=1.003),
]
PATHS = [*SCHEDULES, Linear(zero_terminal_snr=True)]
SMOOTH = [Linear(steps=3200), Cosine(steps=3200)]  # the points of their tables lie so close that no order is lost
KINDS_OF_PATH = [Cosine(), Flow(), Edm(), Linear(zero_terminal_snr=True)]  # for what takes long


def name(sampler: Sampler) -> str:
    return "-".join(f"{value}" for value in sampler.model_dump(exclude={"spacing"}).values())


def named(value: object) -> str:
    return name(value) if isinstance(value, Sampler) else kind(value)


def start(batch: int = 1, size: int = 4) -> torch.Tensor:
    return Noise(range(batch), CPU)(torch.empty(batch, 1, size, size, dtype=torch.float64))


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [*product(VARIANTS, [Cosine(), Flow()]), *paired([Heun(steps=8), Ddpm(steps=8)], SCHEDULES)],
    ids=named,
)
def test_a_trajectory_visits_every_time_once_and_ends_at_zero(sampler, schedule):
    steps = list(sampler.trajectory(DATA.denoise(schedule), schedule, start(), Noise([0], CPU)))
    assert torch.equal(torch.stack([step.t for step in steps]), sampler.times(schedule)[1:])
    assert all(step.x.shape == step.x0.shape == (1, 1, 4, 4) for step in steps)


@pytest.mark.parametrize("cls", SAMPLERS, ids=kind)
@pytest.mark.parametrize("schedule", [Cosine(), Flow()], ids=kind)
def test_nfe_is_the_number_of_evaluations(schedule, cls):
    for steps in (1, 2, 7):
        denoise, asked = counted(DATA.denoise(schedule))
        sampler = cls(steps=steps)
        end = last(sampler.trajectory(denoise, schedule, start(), Noise([0], CPU)))
        counts = end.evaluations  # where they cannot be known before
        assert len(asked) == (int(counts) if sampler.nfe is None else sampler.nfe), steps
        assert (sampler.nfe is None) == (counts is not None)


@pytest.mark.parametrize("sampler", [s for s in VARIANTS if not isinstance(s, ADAPTIVE)], ids=name)
def test_the_network_is_asked_at_trained_times_only(sampler):
    schedule = Cosine()
    denoise, asked = counted(DATA.denoise(schedule))
    last(sampler.trajectory(denoise, schedule, start(), Noise([0], CPU)))
    assert all(torch.equal(schedule.snap(t), t) for t in asked)
    if not getattr(sampler, "s_churn", 0):  # churn goes up to times between
        assert set(map(float, asked)) == set(sampler.times(schedule)[:-1].tolist())


@pytest.mark.parametrize(("cls", "schedule"), [*product(SAMPLERS, KINDS_OF_PATH), *paired(SAMPLERS, PATHS)], ids=kind)
def test_a_perfect_prediction_is_returned(cls, schedule):
    """By every sampler on every kind of path, and on every path by some sampler."""
    x0 = start(3).float().clamp(-1, 1)
    x = Noise([5, 6, 7], CPU)(x0)
    for steps in (1, 9):
        end = last(cls(steps=steps).trajectory(knows(x0, schedule), schedule, x, Noise([5, 6, 7], CPU)))
        torch.testing.assert_close(end.x, x0, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("cls", SAMPLERS, ids=kind)
@pytest.mark.parametrize(("schedule", "steps"), [(Cosine(), 1000), (Flow(), 333)], ids=kind)
def test_a_perfect_prediction_is_returned_after_very_many_steps(cls, schedule, steps):
    x0 = start(3).float().clamp(-1, 1)
    x = Noise([5, 6, 7], CPU)(x0)
    end = last(cls(steps=steps).trajectory(knows(x0, schedule), schedule, x, Noise([5, 6, 7], CPU)))
    torch.testing.assert_close(end.x, x0, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "schedule"), paired([*ORDER, *ADAPTIVE], [s for s in FINE if s in KINDS_OF_PATH]), ids=kind
)
def test_one_dimensional_gaussians_are_carried_to_their_data(cls, schedule):
    """With 200 steps every solver follows the exact probability-flow map from noise to data."""
    x = start()
    end = last(cls(steps=200).trajectory(DATA.denoise(schedule), schedule, x, Noise([0], CPU)))
    exact = DATA.ode(schedule, x, torch.tensor(1.0), torch.tensor(0.0))
    torch.testing.assert_close(end.x, exact, rtol=0, atol=0.025)


@cache
def error(sampler: Sampler, schedule: Schedule, until: float) -> float:
    """Greatest distance from the exact probability-flow map at time `until`, which lies on the grid."""
    x, begin = start(), sampler.times(schedule)[0]
    steps = sampler.trajectory(DATA.denoise(schedule), schedule, x, Noise([0], CPU))
    step = next(step for step in steps if abs(float(step.t) - until) < 1e-9)
    return float((step.x - DATA.ode(schedule, x, begin, step.t)).abs().max())


def orders(errors: list[float]) -> list[float]:
    """Observed order of convergence at each doubling of the steps."""
    return [math.log2(a / b) for a, b in pairwise(errors)]


@pytest.mark.parametrize(("cls", "schedule"), [*product(ORDER, [Flow()]), *paired([*ORDER], SMOOTH)], ids=kind)
def test_each_solver_converges_with_its_order_between_two_noisy_times(cls, schedule):
    class Between(cls):
        def times(self, schedule: Schedule) -> torch.Tensor:
            return schedule.snap(torch.linspace(0.9, 0.2, self.steps + 1, dtype=torch.float64))

    observed = orders([error(Between(steps=n), schedule, 0.2) for n in (140, 280)])
    assert observed[-1] > ORDER[cls] - 0.2, observed
    if cls not in (Ab4, DpmPlusPlus3M):  # there the start, of second order, may be too small to show
        assert observed == pytest.approx([ORDER[cls]], abs=0.2)


@pytest.mark.parametrize(("cls", "schedule"), [*product(ORDER, [Flow()]), *paired([*ORDER], SMOOTH)], ids=kind)
def test_each_solver_converges_with_its_order_from_pure_noise(cls, schedule):
    """Up to t = 0.2: near 0 the VP path's sigma grows like a root of t, where no solver in t keeps its order.

    A multistep method extrapolates in log SNR, which is -inf at t = 1 on the flow path: h^2 log(1/h) instead of h^2.
    """
    errors = [error(cls(steps=n), schedule, 0.2) for n in (50, 100, 200)]
    observed = orders(errors)
    if cls in (Ab4, DpmPlusPlus3M):  # faster as long as their first step does not show
        assert math.log2(errors[0] / errors[-1]) > 2 * (ORDER[cls] - 0.35), observed
    else:
        slack = 0.6 if cls is UniPc else 0.35
        assert all(ORDER[cls] - slack < order < ORDER[cls] + 0.2 for order in observed), observed


@pytest.mark.parametrize("cls", [cls for cls, order in ORDER.items() if order > 1], ids=kind)
@pytest.mark.parametrize("schedule", [s for s in FINE if s in KINDS_OF_PATH], ids=kind)
def test_second_order_is_clearly_better_than_ddim_at_50_steps(cls, schedule):
    least = (
        5 if cls is EdmHeun or isinstance(schedule, Edm) else 10
    )  # nearly all that happens there happens in few steps
    assert error(cls(steps=50), schedule, 0.2) < error(Ddim(steps=50), schedule, 0.2) / least
    assert error(cls(steps=50), schedule, 0.0) < error(Ddim(steps=50), schedule, 0.0) / 1.8  # the last step is the same
    second, first = cls(steps=50, spacing="log_snr"), Ddim(steps=50, spacing="log_snr")
    assert error(second, schedule, 0.0) < error(first, schedule, 0.0) / least


def test_flow_euler_is_ddim_on_the_flow_path():
    x, denoise = start(), MIXTURE.denoise(Flow())
    euler = x
    for k in range(10, 0, -1):
        p = denoise(euler, torch.tensor(k / 10, dtype=torch.float64))
        euler = euler + (p.eps - p.x0) * (-1 / 10)  # dx = v dt, v = eps - x0
    end = last(Ddim(steps=10).trajectory(denoise, Flow(), x, Noise([0], CPU)))
    torch.testing.assert_close(end.x, euler, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("sampler", "schedule"), paired(VARIANTS, [Cosine(), Flow()]), ids=named)
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

    for cls in (*ORDER, *ADAPTIVE):
        assert draws(cls(steps=9)) == 0
    assert (
        draws(Ddim(steps=9, eta=1)) == draws(Ddim(steps=9, eta=0.1)) == draws(Ddpm(steps=9)) == 8
    )  # none in the last step
    assert draws(DpmPlusPlus2MSde(steps=9)) == draws(EulerAncestral(steps=9)) == 8
    assert draws(Ddpm(steps=1)) == 0


@pytest.mark.parametrize("cls", [cls for cls in SAMPLERS if cls not in (*ORDER, *ADAPTIVE)], ids=kind)
def test_samplers_without_an_order_are_stochastic(cls):
    noise = Counting([0], CPU)
    last(cls(steps=5).trajectory(DATA.denoise(Cosine()), Cosine(), start(), noise))
    assert noise.draws > 0, "a deterministic sampler states its order of convergence in ORDER"


@pytest.mark.parametrize(
    ("schedule", "steps"),
    [*((schedule, 7) for schedule in SCHEDULES), (Flow(), 50), (Cosine(steps=50), 50)],
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


@pytest.mark.parametrize(
    ("cls", "schedule"),
    [
        *((cls, Cosine()) for cls in SAMPLERS if cls not in ADAPTIVE),
        *((cls, schedule) for cls in (Ddpm, Heun, DpmPlusPlus2M) for schedule in KINDS_OF_PATH[1:]),
    ],
    ids=kind,
)
def test_heads_of_every_target_walk_the_same_trajectory(cls, schedule):
    ideal, x = MIXTURE.denoise(schedule), start(2).float()
    # the oracle in the network finds trained times from what it is told, and on EDM's path those that it is told apart
    sampler = cls(steps=8, spacing="karras" if isinstance(schedule, Edm) else "uniform")
    expected = last(sampler.trajectory(ideal, schedule, x.double(), Noise([1, 2], CPU)))
    for target in TARGETS:
        if target == "eps" and schedule.leftover_signal == 0:
            continue  # refused: it says nothing of x0 at t = 1
        denoiser = Denoiser(TargetNetwork(ideal, schedule, target), schedule, target, learn_variance=False)
        end = last(sampler.trajectory(lambda x, t, d=denoiser: d(x, t, None), schedule, x, Noise([1, 2], CPU)))
        # an eps head divides by alpha at t = 1, 5e-5 for the cosine schedule, and float32 shows it
        torch.testing.assert_close(end.x.double(), expected.x, rtol=0, atol=2e-3 if target == "eps" else 1e-4)


@pytest.mark.parametrize("cls", SAMPLERS, ids=kind)
@torch.no_grad()
def test_the_memory_of_a_walk_does_not_grow_with_its_steps(cls: type[Sampler]) -> None:
    """States and predictions that are alive when the network is asked, at most."""

    def most_alive(steps: int) -> int:
        alive: list[weakref.ref[Tensor]] = []
        most, ideal = 0, DATA.denoise(Cosine())

        def denoise(x: Tensor, t: Tensor) -> Prediction:
            nonlocal most, alive
            p = ideal(x, t)
            alive = [ref for ref in [*alive, *map(weakref.ref, (x, p.x0, p.eps))] if ref() is not None]
            most = max(most, len(alive))
            return p

        x = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        last(cls(steps=steps).trajectory(denoise, Cosine(), x, Noise([0], CPU)))
        return most

    few, many = most_alive(12), most_alive(36)
    assert many == few <= 24

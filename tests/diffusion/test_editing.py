"""Beginning from images: known pixels come out as given, noised images at their level, arcs keep the length of noise."""

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.editing import noised, projected, pursued, slerp
from diffcli.diffusion.operators import Known
from diffcli.diffusion.samplers import Ddim, Sampler, last
from diffcli.diffusion.schedule import Cosine, Flow, Linear
from diffcli.noise import Noise
from tests.diffusion.oracle import SAMPLERS, Mixture, gaussian, kind
from tests.pairing import paired

CPU = torch.device("cpu")
DATA = Mixture((0.5, 0.5), (-0.5, 0.6), (0.2, 0.1))


def draws(*seeds: int) -> Tensor:
    return Noise(seeds, CPU)(torch.empty(len(seeds), 1, 8, 8, dtype=torch.float64))


@pytest.mark.parametrize(
    ("sampler", "schedule"), paired([cls(steps=7) for cls in SAMPLERS], [Cosine(), Linear(), Flow()]), ids=kind
)
def test_known_pixels_come_out_as_given_whatever_the_sampler(sampler: Sampler, schedule) -> None:
    known, painted = draws(5, 6).clamp(-1, 1), torch.zeros(8, 8, dtype=torch.bool)
    painted[:, 4:] = True
    operator, bind = Known(~painted), projected if sampler.nfe is None else pursued
    denoise = bind(DATA.denoise(schedule), schedule, operator, operator.measure(known))
    end = last(sampler.trajectory(denoise, schedule, draws(0, 1), Noise([0, 1], CPU))).x
    torch.testing.assert_close(end[..., :4], known[..., :4], rtol=0, atol=1e-3)  # a byte is 8e-3
    free = last(sampler.trajectory(DATA.denoise(schedule), schedule, draws(0, 1), Noise([0, 1], CPU))).x
    torch.testing.assert_close(end[..., 4:], free[..., 4:], rtol=0, atol=0.3 if sampler.kind == "ode" else 1e-9)


def test_replaced_pixels_still_make_up_x():
    known, x, t = draws(5, 6), draws(0, 1), torch.tensor([0.2, 0.7], dtype=torch.float64)
    operator = Known(draws(7)[0, 0] <= 0)
    p = projected(DATA.denoise(Cosine()), Cosine(), operator, operator.measure(known))(x, t)
    alpha, sigma = (c.view(2, 1, 1, 1) for c in Cosine().alpha_sigma(t))
    torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("sampler", "level"),
    [
        *((cls(steps=10), 0.6) for cls in SAMPLERS),
        *paired([cls(steps=10) for cls in SAMPLERS], [0.0007, 0.25, 0.999]),
    ],
    ids=kind,
)
def test_a_later_start_walks_the_later_times(sampler: Sampler, level: float) -> None:
    schedule = Cosine()
    shorter = sampler.starting_at(level, schedule)
    times = shorter.times(schedule)
    assert float(times[0]) == float(schedule.snap(torch.tensor([level], dtype=torch.float64))[0])
    whole = sampler.times(schedule)
    assert torch.equal(times[1:], whole[whole < times[0]])
    steps = list(shorter.trajectory(gaussian(0.3, 0.2).denoise(schedule), schedule, draws(0), Noise([0], CPU)))
    assert len(steps) == shorter.steps == len(times) - 1
    assert float(steps[-1].t) == 0


def test_a_late_start_follows_the_exact_flow_from_there():
    """On Gaussian data, where the flow between any two times is known."""
    data, schedule, x = gaussian(0.3, 0.2), Cosine(), draws(0)
    start, end = torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
    sampler = Ddim(steps=1000).starting_at(0.5, schedule)
    found = last(sampler.trajectory(data.denoise(schedule), schedule, x, Noise([0], CPU))).x
    torch.testing.assert_close(found, data.ode(schedule, x, start, end), rtol=0, atol=5e-3)


def test_a_noised_image_is_the_image_at_no_level_and_has_its_share_at_any():
    x0, noise = draws(1), draws(2)
    assert torch.equal(noised(Cosine(), x0, noise, torch.tensor(0.0, dtype=torch.float64)), x0)
    assert torch.equal(noised(Flow(), x0, noise, torch.tensor(1.0, dtype=torch.float64)), noise)
    torch.testing.assert_close(noised(Flow(), x0, noise, torch.tensor(0.25)), 0.75 * x0 + 0.25 * noise)


def test_an_arc_begins_and_ends_at_its_ends_and_keeps_their_length():
    a, b, share = draws(3), draws(4), torch.linspace(0, 1, 5, dtype=torch.float64)
    arc = slerp(a, b, share)
    assert torch.equal(arc[:1], a)
    assert torch.equal(arc[-1:], b)
    lengths = arc.flatten(1).norm(dim=1)
    assert lengths.min() > min(a.norm(), b.norm()) * 0.99
    unit = slerp(a / a.norm(), b / b.norm(), share).flatten(1)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(5).double())
    steps = (unit[1:] * unit[:-1]).sum(1).arccos()
    torch.testing.assert_close(steps, steps[:1].expand(4))  # even in the angle
    assert torch.equal(slerp(a, a, share), a.expand(5, -1, -1, -1))
    assert torch.equal(slerp(a, b, share[1:2]), arc[1:2])  # no point depends on the others


def test_a_walk_that_keeps_the_noise_of_the_first_trained_time_ends_there_but_one_begun_there_removes_it():
    sampler, schedule = Ddim(steps=10, spacing="leading_1", ends="cleanest"), Linear()
    assert sampler.times(schedule)[-2:].tolist() == [0.002, 0.001]
    assert sampler.starting_at(0.5, schedule).times(schedule)[-2:].tolist() == [0.002, 0.001]
    assert sampler.starting_at(0.001, schedule).times(schedule).tolist() == [0.001, 0]
    assert Ddim(steps=1000, ends="cleanest").times(schedule)[-2:].tolist() == [0.001, 0]

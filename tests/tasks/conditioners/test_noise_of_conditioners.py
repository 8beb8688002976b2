"""Conditioners draw noise from streams of their samples: one lane a conditioner, whatever the batch, training as sampling."""

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.samplers import Ddim, last
from diffcli.fields import Batch, Specs
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Domain, Noise, streams
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, condition
from diffcli.tasks.diffusion import DiffusionTask
from tests.tasks.test_diffusion_task import SHAPE, build

SEEDS = [5, 2**63 + 11, 0, 70]
DIM = 6


class Noisy(Conditioner):
    """A vector of noise of its own in place of a condition, twice, so that two draws are seen; remembers what it drew."""

    kind = "noisy"
    fields = ()
    shape = CondShape(vector=2 * DIM)

    def __init__(self) -> None:
        super().__init__()
        self.reads: Specs = {}
        self.calls: list[Tensor] = []

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        row = like.new_empty(len(keep), DIM)
        self.calls.append(torch.cat([noise(row), noise(row)], dim=1))
        return Conditioning(vector=self.calls[-1])


def noisy() -> tuple[DiffusionTask, Noisy, Noisy]:
    """An unconditional task, put under two conditioners of noise that its network does not look at."""
    task, pair = build(conditioners=[], drop_condition=0), (Noisy(), Noisy())
    task.conditioners.extend(pair)
    return task, *pair


def expected(seeds: list[int], lane: int) -> Tensor:
    noise = Noise(seeds, torch.device("cpu"), Domain.CONDITION, lane)
    return torch.cat([noise(torch.empty(len(seeds), DIM)), noise(torch.empty(len(seeds), DIM))], dim=1)


def test_conditioner_i_draws_from_lane_i_of_the_samples_seeds():
    pair = Noisy(), Noisy()
    batch = {"stream": streams(SEEDS)}
    vector = condition(pair, batch, torch.ones(4, dtype=torch.bool), torch.empty(4, *SHAPE)).vector
    assert torch.equal(vector, torch.cat([expected(SEEDS, 0), expected(SEEDS, 1)], dim=1))
    assert len(torch.unique(vector)) == vector.numel(), "two samples, lanes or draws share their numbers"
    assert not torch.equal(vector[:, :DIM], Noise(SEEDS, torch.device("cpu"))(torch.empty(4, DIM)))


def batch_of(rows: slice) -> dict[str, Tensor]:
    image = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return {"image": image[rows], "stream": streams(SEEDS)[rows], "position": torch.arange(4)[rows]}


def test_training_draws_the_same_for_a_sample_however_the_batch_is_split():
    for rows in (slice(0, 4), slice(0, 1), slice(1, 4)):
        task, first, second = noisy()
        task(batch_of(rows), "main", 1)
        assert torch.equal(first.calls[0], expected(SEEDS, 0)[rows])
        assert torch.equal(second.calls[0], expected(SEEDS, 1)[rows])


@torch.no_grad()
def test_sampling_draws_what_training_draws_for_that_seed_whatever_the_batch():
    for seeds in (SEEDS, SEEDS[2:], SEEDS[:1]):
        task, first, second = noisy()
        last(task.trajectory({}, seeds, Ddim(steps=2), 1.0))
        assert torch.equal(first.calls[0], expected(seeds, 0))
        assert torch.equal(second.calls[0], expected(seeds, 1))


@torch.no_grad()
def test_both_branches_of_guidance_see_the_same_noise():
    task, first, _ = noisy()
    last(task.trajectory({}, SEEDS, Ddim(steps=2), 3.0))
    assert max(map(len, first.calls)) == 2 * len(SEEDS)
    for call in first.calls:
        assert all(torch.equal(part, expected(SEEDS, 0)) for part in call.split(len(SEEDS)))


def test_noise_without_seeds_is_a_mistake_of_ours():
    with pytest.raises(RuntimeError, match="'stream'"):
        condition([Noisy()], {}, torch.ones(2, dtype=torch.bool), torch.empty(2, *SHAPE))

"""What sampling costs beyond the network."""

import pytest
import torch

from benchmarks.samplers import build, ratio
from diffcli.diffusion.samplers import Ddim, Ddpm, DpmPlusPlus2M, DpmPlusPlus3M, EdmHeun, Plms, Sampler, UniPc
from tests.diffusion.oracle import kind

STEPS, BATCH, ROUNDS = 5, 2, 5


@pytest.mark.slow
@pytest.mark.parametrize("cls", [Ddpm, Ddim, DpmPlusPlus2M, UniPc, Plms, DpmPlusPlus3M, EdmHeun], ids=kind)
@torch.no_grad()
def test_a_sampling_step_costs_the_network_and_at_most_three_percent(cls: type[Sampler]) -> None:
    """The U-Net of preset cifar10, which runs as often as the sampler asks for it."""
    task, sampler = build("cifar10"), cls(steps=STEPS)
    x, t = torch.zeros(BATCH, 3, 32, 32), torch.full((BATCH,), 500.0)
    assert sampler.nfe is not None
    calls = range(sampler.nfe)

    def network() -> None:
        for _ in calls:
            task.denoiser.network(x, t)

    def sample() -> None:
        for _ in task.trajectory({}, range(BATCH), sampler, 1.0):
            pass

    assert ratio(sample, network, ROUNDS) <= 1.03


@pytest.mark.slow
@torch.no_grad()
def test_guidance_costs_at_most_two_point_oh_five_of_one_branch() -> None:
    """The U-Net of preset mnist, both branches as one batch."""
    task = build("mnist")
    x, t = torch.zeros(task.latent_shape(BATCH)), torch.tensor(0.5)
    one, both = (task.denoise({"label": torch.arange(BATCH)}, scale, BATCH) for scale in (1.0, 4.0))
    assert ratio(lambda: both(x, t), lambda: one(x, t), 5 * ROUNDS) <= 2.05

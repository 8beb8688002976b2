"""What sampling costs beyond the network."""

import statistics
import time
from collections.abc import Callable

import pytest
import torch

from diffcli import preset as presets
from diffcli.diffusion.samplers import Ddim, Ddpm, DpmPlusPlus2M, Sampler

STEPS, BATCH = 5, 4


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, not of the clock: neighbours on the machine do not count."""
    before = time.process_time()
    work()
    return time.process_time() - before


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [Ddim(steps=STEPS), Ddpm(steps=STEPS), DpmPlusPlus2M(steps=STEPS)])
def test_a_sampling_step_costs_the_network_and_at_most_three_percent(sampler: Sampler) -> None:
    """The U-Net of preset cifar10; forward passes and sampling alternate, so that both meet the same machine."""
    preset = presets.load("cifar10")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        task = preset.task.build(preset.data.shape).eval()
        x = torch.zeros(BATCH, 3, 32, 32)
        t = torch.full((BATCH,), 500.0)

        def network() -> None:
            for _ in range(STEPS):
                task.denoiser.network(x, t)

        def sample() -> None:
            for _ in task.trajectory({}, range(BATCH), sampler, 1.0):
                pass

        network()
        sample()
        ratios = [seconds(sample) / seconds(network) for _ in range(9)]
    assert statistics.median(ratios) < 1.03, ratios

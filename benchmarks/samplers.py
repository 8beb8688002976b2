"""What the samplers cost and what they give: overhead over the bare network, error against evaluations, the price of guidance.

    python benchmarks/samplers.py [--rounds 3] [--only overhead|error|guidance]

Overhead: the U-Net of preset cifar10 runs as often as the sampler asks for it, bare and inside the sampler, in turns; told is the
median ratio of processor times. Error: the distance (Wasserstein-1) of what a sampler with the ideal denoiser makes of N(0, 1)
from the data, one pixel's distribution, known in closed form. Stochastic samplers are limited by their 20,001 draws.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from diffcli import preset as presets
from diffcli.diffusion.samplers import Ode, Sampler, last
from diffcli.diffusion.schedule import Cosine, Flow, Schedule
from diffcli.noise import Noise
from diffcli.tasks.diffusion import DiffusionTask
from tests.diffusion.oracle import SAMPLERS, Mixture, gaussian

STEPS, BATCH, POINTS = 4, 1, 20_001
NFE = (5, 10, 20, 50, 100)
DATA = {"Gaussian": gaussian(0.3, 0.5), "mixture": Mixture((0.3, 0.7), (-0.8, 0.5), (0.2, 0.1))}
PATHS: list[tuple[Schedule, str]] = [(Cosine(), "uniform"), (Cosine(), "log_snr"), (Flow(), "uniform")]
TOLERANCES = [10.0 ** (-k / 4) for k in range(33)]


def seconds(work: Callable[[], object]) -> float:
    """Of the processor, not of the clock: neighbours on the machine do not count."""
    before = time.process_time()
    work()
    return time.process_time() - before


def build(name: str) -> DiffusionTask:
    """The task of a preset with its first weights."""
    preset = presets.load(name)
    with torch.random.fork_rng(devices=[]):
        task = preset.task.build(preset.specs).eval()
    assert isinstance(task, DiffusionTask)
    return task


def ratio(work: Callable[[], object], bare: Callable[[], object], rounds: int) -> float:
    """Median over rounds of the processor time of one over the other, in turns."""
    work()
    bare()
    return statistics.median(seconds(work) / seconds(bare) for _ in range(rounds))


@torch.no_grad()
def overhead(rounds: int) -> Iterator[str]:
    """A markdown table: what a sampler adds to the network's own time."""
    task = build("cifar10")
    x, t = torch.zeros(BATCH, *task.latent_shape(BATCH)[1:]), torch.full((BATCH,), 500.0)
    yield f"| sampler ({STEPS} steps) | evaluations | time over the bare network's |\n|---|---|---|"
    for cls in SAMPLERS:
        sampler = cls(steps=STEPS, **({"rtol": 0.1, "atol": 0.1} if cls is Ode else {}))

        def sample(sampler: Sampler = sampler) -> object:
            return last(task.trajectory({}, range(BATCH), sampler, 1.0))

        counted = sample().evaluations
        calls = sampler.nfe if counted is None else int(counted.max())

        def network(calls: int = calls) -> None:
            for _ in range(calls):
                task.denoiser.network(x, t)

        yield f"| {sampler.name} | {calls} | {ratio(sample, network, rounds):.3f} |"


def quantiles(data: Mixture, shares: Tensor) -> Tensor:
    """The data's quantiles, from its distribution function on a fine grid."""
    fine = torch.linspace(-4, 4, 400_001, dtype=torch.float64)
    normal = torch.special.ndtr
    cdf = sum(w * normal((fine - m) / s) for w, m, s in zip(*data, strict=True))
    return fine[torch.searchsorted(cdf, shares).clamp(max=len(fine) - 1)]


def distance(sampler: Sampler, schedule: Schedule, data: Mixture) -> tuple[float, int]:
    """Wasserstein-1 from the data, and the evaluations that the sampler took."""
    shares = (torch.arange(POINTS).double() + 0.5) / POINTS
    x = torch.special.ndtri(shares)
    end = last(sampler.trajectory(data.denoise(schedule), schedule, x.reshape(1, 1, 1, -1), Noise([0], x.device)))
    count = sampler.nfe if end.evaluations is None else int(end.evaluations.max())
    return float((end.x.flatten().sort().values - quantiles(data, shares)).abs().mean()), count


def errors(cls: type[Sampler], schedule: Schedule, spacing: str, data: Mixture) -> Iterator[str]:
    """The distance at each number of evaluations, or the best that no more of them give; - where none is so cheap."""
    if cls is Ode:
        tried = [distance(Ode(steps=1, rtol=tol, atol=tol), schedule, data) for tol in TOLERANCES]
        for most in NFE:
            affordable = [far for far, count in tried if count <= most]
            yield f"{affordable[-1]:.4f}" if affordable else "-"
        return
    for most in NFE:
        steps = next(n for n in range(most, 0, -1) if (cls(steps=n).nfe or n) <= most)
        yield f"{distance(cls(steps=steps, spacing=spacing), schedule, data)[0]:.4f}"


@torch.no_grad()
def error_tables() -> Iterator[str]:
    """A markdown table for each path and each data distribution."""
    for schedule, spacing in PATHS:
        for name, data in DATA.items():
            yield f"\n{name}, {schedule.kind} schedule, {spacing} spacing: distance from the data at evaluations\n"
            yield f"| sampler | {' | '.join(map(str, NFE))} |\n|---{'|---' * len(NFE)}|"
            for cls in SAMPLERS:
                yield f"| {cls().name} | {' | '.join(errors(cls, schedule, spacing, data))} |"


@torch.no_grad()
def guidance(rounds: int) -> Iterator[str]:
    """What both branches cost over one."""
    task = build("mnist")
    batch = {"label": torch.arange(BATCH) % 10}
    x, t = torch.zeros(task.latent_shape(BATCH)), torch.tensor(0.5)
    one, both = (task.denoise(batch, scale, BATCH) for scale in (1.0, 4.0))
    yield f"guidance costs {ratio(lambda: both(x, t), lambda: one(x, t), 10 * rounds):.2f} of one branch (mnist, batch {BATCH})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["overhead", "error", "guidance"])
    args = parser.parse_args()
    parts = {"overhead": overhead(args.rounds), "error": error_tables(), "guidance": guidance(args.rounds)}
    for name, lines in parts.items():
        if args.only in (None, name):
            for line in lines:
                print(line, flush=True)


if __name__ == "__main__":
    main()

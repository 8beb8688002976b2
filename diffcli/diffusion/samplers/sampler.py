"""The contract of samplers: each a generator that walks from x_1 ~ N(0, 1) to x_0 and yields a Step after each move.

Times stay on the CPU: no synchronisation.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator
from typing import ClassVar, Literal, NamedTuple, Self

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import Config
from diffcli.diffusion.denoiser import Denoise
from diffcli.diffusion.samplers.spacing import Spacing, grid
from diffcli.diffusion.schedule import Schedule
from diffcli.noise import Noise

Ends = Literal["clean", "cleanest"]
"""The end of a walk: at t = 0, or at the first trained time, with its noise; see `ending`."""


class Step(NamedTuple):
    """The state after a move: x at time t, and the x0 that was predicted on the way there."""

    t: Tensor  # () float64
    x: Tensor  # (B, C, *S)
    x0: Tensor  # (B, C, *S)
    evaluations: Tensor | None = (
        None  # (B,) int64 so far for each image, if the number is unknown before: see Sampler.nfe
    )


class Sampler(Config):
    """Stateless, so the config is the sampler."""

    evaluations: ClassVar[int] = 1  # of the network, for each step but the last

    steps: int = Field(50, ge=1, description="moves from t = 1 to t = 0")
    spacing: Spacing = Field("uniform", description="spacing of the times between t = 1 and t = 0")
    _times: tuple[float, ...] | None = None  # see `starting_at`

    @abstractmethod
    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        """Yields `steps` Steps, the last at t = 0. x: (B, C, *S) at t = 1; noise: one stream a sample."""

    def times(self, schedule: Schedule) -> Tensor:
        """(steps + 1,) float64 from 1 down to 0, strictly falling, each one a time that training visits."""
        if self._times is not None:
            return torch.tensor(self._times, dtype=torch.float64)
        return grid(self.spacing, self.steps, schedule)

    def starting_at(self, t: float, schedule: Schedule) -> Self:
        """The same sampler for a walk that begins at the trained time nearest to t, in (0, 1], and follows its times."""
        times = self.times(schedule)
        first = schedule.snap(torch.tensor([t], dtype=torch.float64).clamp(min=schedule.cleanest))
        left = torch.cat([first, times[times < first]])
        if len(left) < 2:  # a walk that ends at the first trained time, begun there
            left = torch.cat([first, torch.zeros(1, dtype=torch.float64)])
        shorter = self.model_copy(update={"steps": len(left) - 1})
        shorter._times = tuple(left.tolist())
        return shorter

    @property
    def name(self) -> str:
        """Its name in presets and on the command line."""
        return str(self.model_dump(include={"kind"})["kind"])

    @property
    def nfe(self) -> int | None:
        """Network evaluations for one image; both branches of guidance count as one.

        None if they depend on the image; the Steps then count them.
        """
        return self.evaluations * (self.steps - 1) + 1


def ending(times: Tensor, ends: Ends, schedule: Schedule) -> Tensor:
    """The times (N + 1,) of a walk with the end that `ends` names.

    cleanest stops at the first trained time unless the last evaluation is there already. Published latent models do this.
    """
    if ends == "cleanest" and times[-2] > schedule.cleanest * (1 + 1e-9):
        times[-1] = schedule.cleanest
    return times


def last(steps: Iterable[Step]) -> Step:
    """The last state of a walk; earlier states are not kept, so that memory does not grow with the steps."""
    return deque(steps, maxlen=1)[0]

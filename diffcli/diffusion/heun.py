"""Two evaluations a move: the trapezoidal rule."""

from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar, Literal

from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, over
from diffcli.diffusion.sampler import Sampler, Step
from diffcli.diffusion.schedule import Schedule
from diffcli.noise import Noise


class Heun(Sampler):
    """Trapezoidal rule on dx = x0 d(alpha) + eps d(sigma); two evaluations a step, second order.

    With alpha = 1 it is EDM's rule, on the flow path that of flow matching.
    Source: Karras et al. 2022, algorithm 1 (arXiv 2206.00364), restated for any (alpha, sigma) path.
    """

    evaluations: ClassVar[int] = 2

    kind: Literal["heun"] = "heun"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        for t, s in pairwise(self.times(schedule)):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
            d_alpha, d_sigma = over(alpha_s - alpha_t, x), over(sigma_s - sigma_t, x)
            p = denoise(x, t)
            euler = x + d_alpha * p.x0 + d_sigma * p.eps
            if s > 0:
                q = denoise(euler, s)
                x = x + d_alpha * (p.x0 + q.x0) / 2 + d_sigma * (p.eps + q.eps) / 2
            else:
                x = euler  # eps is undefined at sigma = 0
            yield Step(s, x, p.x0)

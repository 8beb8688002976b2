"""One evaluation a move, and the memory of those before: solvers of second order and above at the price of DDIM."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, over
from diffcli.diffusion.sampler import Sampler, Step
from diffcli.diffusion.schedule import Schedule
from diffcli.noise import Noise


class DpmPlusPlus2M(Sampler):
    """Second-order multistep exponential integrator in x0; first order in its first and last step.

    Source: Lu et al. 2022, algorithm 2 (arXiv 2211.01095).
    """

    kind: Literal["dpmpp_2m"] = "dpmpp_2m"

    def trajectory(self, denoise: Denoise, schedule: Schedule, x: Tensor, noise: Noise) -> Iterator[Step]:
        before: tuple[Tensor, Tensor] | None = None  # the previous x0 and the previous step in half log SNR
        for t, s in pairwise(self.times(schedule)):
            (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
            h = (schedule.log_snr(s) - schedule.log_snr(t)) / 2
            p = denoise(x, t)
            data = p.x0
            if before is not None and s > 0:
                x0_before, h_before = before
                data = data + over(h / (2 * h_before), x) * (p.x0 - x0_before)
            # sigma_s / sigma_t x + alpha_s (1 - exp(-h)) data, with exp(-h) written out so that alpha_t = 0 is no special case
            keep = sigma_s / sigma_t
            x = over(keep, x) * x + over(alpha_s - alpha_t * keep, x) * data
            before = p.x0, h
            yield Step(s, x, p.x0)

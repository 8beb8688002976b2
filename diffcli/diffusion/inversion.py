"""DDIM run backwards: from an image to the noise from which DDIM draws it."""

from itertools import pairwise

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, over
from diffcli.diffusion.schedule import Schedule


def invert(denoise: Denoise, schedule: Schedule, x0: Tensor, times: Tensor, refinements: int = 0) -> Tensor:
    """x at times[0] from which DDIM(eta = 0) along the falling `times` returns to x0 (B, C, *S), one evaluation a move.

    A move up uses the eps of its lower end (at t = 0, where there is none, that of x0 at the first time above), while DDIM uses
    that of its upper end: the error falls like the step size. Each of `refinements` evaluates again at the upper end, once more
    for each move, and removes most of the remaining error. Source: Song et al. 2020, section 4.3 (arXiv 2010.02502); the
    refinement is Pan et al. 2023, eq. 9 (arXiv 2309.04907).
    """
    x = x0
    for s, t in pairwise(times.flip(0)):
        (alpha_s, sigma_s), (alpha_t, sigma_t) = schedule.alpha_sigma(s), schedule.alpha_sigma(t)
        ratio, x_s = over(alpha_t / alpha_s, x), x
        fresh = over(sigma_t - alpha_t * sigma_s / alpha_s, x)
        x = ratio * x_s + fresh * denoise(x_s, torch.where(s > 0, s, t)).eps
        for _ in range(refinements):
            x = ratio * x_s + fresh * denoise(x, t).eps
    return x

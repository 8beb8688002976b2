"""Sampling that starts from given images or noises: variations, inpainting, restoration, and interpolation."""

import math

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, Prediction, all_over
from diffcli.diffusion.guidance import with_x0
from diffcli.diffusion.operators import Operator
from diffcli.diffusion.schedule import Schedule


def noised(schedule: Schedule, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t of images x0 (B, C, *S) at times t () or (B,). Source: Meng et al. 2022, algorithm 1 (SDEdit, arXiv 2108.01073)."""
    alpha, sigma = all_over(schedule.alpha_sigma(t), x0)
    return alpha * x0 + sigma * noise


def projected(denoise: Denoise, schedule: Schedule, operator: Operator, measured: Tensor) -> Denoise:
    """x0 becomes A^+ y + (I - A^+ A) x0: what the operator A sees comes from the measurement y, the rest from the denoiser.

    measured: (B, C', H', W') in the scale of x0; only its part in the range of A counts. Limits on x0 belong inside, since they
    would break A x = y. A sampler whose last image is a mean of x0s gives an image x with A x = y.
    Source: Wang et al. 2022, eq. 13 (DDNM, arXiv 2212.00490).
    """

    def consistent(x: Tensor, t: Tensor) -> Prediction:
        p = denoise(x, t)
        return with_x0(p, p.x0 - operator.invert(operator.measure(p.x0) - measured), x, t, schedule)

    return consistent


def pursued(denoise: Denoise, schedule: Schedule, operator: Operator, measured: Tensor) -> Denoise:
    """`projected` for one walk of a network that is not conditioned on the measurement, which receives it through x.

    The correction of x0 as noise, (alpha / sigma)(x0' - x0), is summed over the times of the walk, and the network sees x with
    sigma times this sum added. Without the sum, the noise of x_t hides the measurement, and the generated part fits it less well.
    A move of DDIM(0) then equals alpha_s x0' + sigma_s eps with the eps that the network predicted.
    Times fall along a walk; an evaluation at a time that is not below the earlier ones adds nothing.
    Source: Wang et al. 2022 (DDNM, arXiv 2212.00490), the step of the authors' code, here for any sampler.
    """
    pull: Tensor | None = None
    last = torch.tensor(math.inf, dtype=torch.float64)

    def consistent(x: Tensor, t: Tensor) -> Prediction:
        nonlocal pull, last
        alpha, sigma = schedule.alpha_sigma(t)
        gain, noise = all_over((torch.where(t < last, alpha / sigma, 0.0), sigma), x)
        p = denoise(x if pull is None else x + noise * pull, t)
        moved = operator.invert(measured - operator.measure(p.x0))
        pull = gain * moved if pull is None else pull + gain * moved
        last = torch.minimum(last, t)
        return with_x0(p, p.x0 + moved, x, t, schedule)

    return consistent


def settled(x: Tensor, operator: Operator, measured: Tensor, high: float, rounds: int) -> Tensor:
    """An image with A x = y, moved towards [-high, high] while A x = y holds: clamping and projection in turn.

    x, measured: as in `projected`. Clamping alone would break A x = y.
    Both sets are convex and intersect, at the original picture, so the iteration converges to their intersection.
    Source: Bregman 1965; Bauschke & Borwein 1996, section 3 (doi 10.1137/S0036144593251710).
    """
    for _ in range(rounds):
        x = x.clamp(-high, high)
        x = x - operator.invert(operator.measure(x) - measured)
    return x


def slerp(a: Tensor, b: Tensor, share: Tensor) -> Tensor:
    """Points on the great circle from a to b, each (1, C, *S), at shares (B,) of the angle: exactly a at 0 and b at 1.

    Noise between two noises keeps their length, and so its deviation of 1, which a straight line between them would not.
    Source: Shoemake 1985, doi 10.1145/325334.325242.
    """
    cosine = torch.nn.functional.cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0)
    angle = torch.arccos(cosine.clamp(-1, 1)).cpu()
    if angle < 1e-6:  # the same noise twice
        return a.expand(len(share), *a.shape[1:])
    left, right = (torch.sin(w * angle) / torch.sin(angle) for w in (1 - share, share))
    left, right = all_over((left, right), a)
    return left * a + right * b

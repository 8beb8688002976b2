"""Functions from a Denoise to a Denoise: guidance by a second branch or a classifier, and limits on x0. Samplers never see them.

One convention everywhere: `null + scale * (cond - null)`; 1 is off, 0 is the second branch alone. x_t = alpha x0 + sigma eps
holds for the results too, and an image's prediction does not depend on its batch.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, Prediction, Pull, all_over, over
from diffcli.diffusion.schedule import Schedule
from diffcli.transfer import moved

Pair = Callable[[Tensor, Tensor], tuple[Prediction, Prediction]]
"""(x_t, t) -> the predictions that guidance leads to and away from: conditional and unconditional, or good and weaker model."""

LogProb = Callable[[Tensor, Tensor], Tensor]
"""(x_t (B, C, *S), t () or (B,)) -> log p(y | x_t) (B,), differentiable in x_t."""


def classifier_free(pair: Pair, scale: float, channels: int | None = None) -> Denoise:
    """null + scale * (cond - null), in x0 and in eps alike; the variance stays that of the conditional branch.

    channels: only the first so many are guided, the others are the conditional branch's, as in the code of DiT and SiT.

    Two branches of one network are best computed as one batch. Of two models of the same condition, the second one trained
    less or smaller, it is autoguidance.
    Source: Ho & Salimans 2022, eq. 6 (arXiv 2207.12598), whose w is scale - 1; Karras et al. 2024, eq. 1 (arXiv 2406.02507).
    """

    def guided(x: Tensor, t: Tensor) -> Prediction:
        cond, null = pair(x, t)
        return _led(cond, null, scale, channels)

    return guided


def rescaled(pair: Pair, scale: float, schedule: Schedule, share: float, channels: int | None = None) -> Denoise:
    """`classifier_free`, with x0's deviation over each image drawn towards the conditional branch's: share 0 not at all, 1 fully.

    The published rule uses the target of the network in place of x0; but over-exposure, which it corrects, concerns x0.
    Source: Lin et al. 2023, section 3.4 (arXiv 2305.08891), whose phi is share.
    """

    def guided(x: Tensor, t: Tensor) -> Prediction:
        cond, null = pair(x, t)
        p = _led(cond, null, scale, channels)
        factor = cond.x0.flatten(1).std(1) / p.x0.flatten(1).std(1).clamp(min=torch.finfo(p.x0.dtype).tiny)
        return with_x0(p, p.x0 * over(1 + share * (factor - 1), p.x0), x, t, schedule)

    return guided


def within(guided: Denoise, plain: Denoise, schedule: Schedule, low: float, high: float) -> Denoise:
    """`guided` where low <= sigma / alpha <= high; elsewhere only `plain` is computed.

    For a batch with times (B,) inside and outside, both are computed.
    Source: Kynkaanniemi et al. 2024, eq. 5 (arXiv 2404.07724).
    """

    def limited(x: Tensor, t: Tensor) -> Prediction:
        alpha, sigma = schedule.alpha_sigma(t)
        inside = (low * alpha <= sigma) & (sigma <= high * alpha)
        if not inside.any():
            return plain(x, t)
        p = guided(x, t)
        return p if inside.all() else _where(inside, p, plain(x, t))

    return limited


def classifier_guided(denoise: Denoise, log_prob: LogProb, schedule: Schedule, scale: float) -> Denoise:
    """eps - sigma * scale * grad log p(y | x_t), and x0 to match: the score of p(x_t) p(y | x_t)^scale, on any path.

    At t = 1 of a path without remaining signal, x_t is independent of y and the prediction is unchanged. `pull` is for samplers
    that draw around a mean: they shift it by its variance times the gradient, algorithm 1. Published code clips x0 before, so
    `denoise` is the clipped one.
    Source: Dhariwal & Nichol 2021, algorithms 1 and 2 (arXiv 2105.05233), for any sigma.
    """

    def guided(x: Tensor, t: Tensor) -> Prediction:
        p = denoise(x, t)
        alpha, sigma = schedule.alpha_sigma(t)
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(log_prob(leaf, t).sum(), leaf)
        shift = torch.where(alpha > 0, scale * sigma, 0.0)
        gain = torch.where(alpha > 0, scale * sigma**2 / alpha, 0.0)
        on = torch.where(alpha > 0, float(scale), 0.0)
        up, down, whole = all_over((gain, shift, on), x)
        pull = Pull(p.x0, whole * gradient)
        return p._replace(x0=p.x0 + up * gradient, eps=p.eps - down * gradient, pull=pull)

    return guided


def on_path(schedule: Schedule, other: Schedule, x: Tensor, t: Tensor, length: float = 1.0) -> tuple[Tensor, Tensor]:
    """(x', t'): a noisy image of one path as the same one on another path, at the time of equal signal and noise.

    length: x holds images times this, x' images as they are.
    """
    there = other.time(schedule.log_snr(t) + 2 * math.log(length))
    return over(other.alpha_sigma(there)[1] / schedule.alpha_sigma(t)[1], x) * x, there


def clip_x0(denoise: Denoise, schedule: Schedule, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Clamps x0 to [low, high].

    For pixels only: latents are not bounded.
    """

    def clipped(x: Tensor, t: Tensor) -> Prediction:
        p = denoise(x, t)
        return with_x0(p, p.x0.clamp(low, high), x, t, schedule)

    return clipped


def threshold_x0(denoise: Denoise, schedule: Schedule, share: float, high: float = 1.0) -> Denoise:
    """Dynamic thresholding: each image's x0 is clamped to +-s and shrunk to +-high; `share` of its values are no larger than s.

    Where s is below `high` it is plain clipping. For pixels only, as `clip_x0`.
    Source: Saharia et al. 2022, section 2.3 (arXiv 2205.11487).
    """

    def thresholded(x: Tensor, t: Tensor) -> Prediction:
        p = denoise(x, t)
        sizes = p.x0.abs().flatten(1)
        rank = max(1, math.ceil(share * sizes.shape[1]))  # torch.quantile takes no more than 2^24 values
        s = over(sizes.kthvalue(rank, dim=1).values.clamp(min=high), p.x0)
        return with_x0(p, p.x0.clamp(-s, s) * (high / s), x, t, schedule)

    return thresholded


def with_x0(p: Prediction, x0: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Prediction:
    """The prediction with another x0, and eps recomputed from it so that x_t = alpha x0 + sigma eps still holds."""
    alpha, sigma = schedule.alpha_sigma(t)
    whole, signal = all_over((1 / sigma, alpha / sigma), x)
    return p._replace(x0=x0, eps=whole * x - signal * x0, pull=None)


def _led(cond: Prediction, null: Prediction, scale: float, channels: int | None) -> Prediction:
    x0, eps = null.x0.lerp(cond.x0, scale), null.eps.lerp(cond.eps, scale)
    if channels is not None:
        x0, eps = (torch.cat([a[:, :channels], b[:, channels:]], 1) for a, b in ((x0, cond.x0), (eps, cond.eps)))
    return Prediction(x0, eps, cond.var_frac)


def _where(inside: Tensor, p: Prediction, q: Prediction) -> Prediction:
    """The rows of p that are inside (B,), those of q elsewhere."""
    rows = moved(inside, p.x0.device).view(-1, *[1] * (p.x0.ndim - 1))
    var_frac = None if p.var_frac is None or q.var_frac is None else torch.where(rows, p.var_frac, q.var_frac)
    pull = None if p.pull is None else Pull(torch.where(rows, p.pull.x0, q.x0), p.pull.gradient * rows)
    return Prediction(torch.where(rows, p.x0, q.x0), torch.where(rows, p.eps, q.eps), var_frac, pull)

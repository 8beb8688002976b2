"""Functions from a Denoise to a Denoise: classifier-free guidance and clipping. Samplers never see them.

One convention everywhere: `null + scale * (cond - null)`; 1 is off, 0 is unconditional.
"""

from collections.abc import Callable

from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, Prediction, over
from diffcli.diffusion.schedule import Schedule

Pair = Callable[[Tensor, Tensor], tuple[Prediction, Prediction]]
"""(x_t, t) -> the conditional and the unconditional prediction, computed as one batch."""


def classifier_free(pair: Pair, scale: float) -> Denoise:
    """null + scale * (cond - null), in x0 and in eps alike; the variance stays that of the conditional branch.

    Source: Ho & Salimans 2022, eq. 6 (arXiv 2207.12598), whose w is scale - 1.
    """

    def guided(x: Tensor, t: Tensor) -> Prediction:
        cond, null = pair(x, t)
        return Prediction(
            x0=null.x0.lerp(cond.x0, scale),
            eps=null.eps.lerp(cond.eps, scale),
            var_frac=cond.var_frac,
        )

    return guided


def clip_x0(denoise: Denoise, schedule: Schedule, low: float = -1.0, high: float = 1.0) -> Denoise:
    """Clamps x0 to [low, high] and recomputes eps from it, so that x_t = alpha x0 + sigma eps still holds.

    For pixels only: latents are not bounded.
    """

    def clipped(x: Tensor, t: Tensor) -> Prediction:
        p = denoise(x, t)
        alpha, sigma = schedule.alpha_sigma(t)
        x0 = p.x0.clamp(low, high)
        return p._replace(x0=x0, eps=over(1 / sigma, x) * x - over(alpha / sigma, x) * x0)

    return clipped

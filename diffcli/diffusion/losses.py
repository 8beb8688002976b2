"""The training loss: the error of the target, and the variational bound if the variance is learned.

L_t = w_t mean D(y_hat - y) + VLB_WEIGHT * T * KL(q(x_s | x_t, x0) || p(x_s | x_t)), s = t - 1/T, the KL in bits a dimension.
D is the distance, w_t the weight of the noise level. It does not apply to the variational term, which trains only the
variance: the mean of p is detached there.
Source: Nichol & Dhariwal 2021, section 3.1 and eq. 16 (arXiv 2102.09672), whose lambda is 0.001 for the sum over T terms.
"""

from torch import Tensor

from diffcli.diffusion.denoiser import Denoiser, all_over, coefficients
from diffcli.diffusion.likelihood import variational_term
from diffcli.diffusion.schedule import DiscreteSchedule
from diffcli.diffusion.weights import L2, Distance, NoWeight, Weight

VLB_WEIGHT = 0.001


def denoising_loss(
    denoiser: Denoiser,
    x0: Tensor,
    eps: Tensor,
    t: Tensor,
    cond: object,
    weight: Weight = NoWeight(),
    distance: Distance = L2(),
    scale: float = 1.0,
) -> dict[str, Tensor]:
    """Per-sample terms, each (B,): `loss` (to be averaged), `mse`, and `vlb` in bits a dimension where the variance is learned.

    x0, eps: (B, C, *S) float32; t: (B,) float64; scale: that of the codec. `mse` is the squared error of the target.
    """
    schedule = denoiser.schedule
    alpha, sigma = schedule.alpha_sigma(t)
    targets = coefficients(denoiser.target, alpha, sigma)
    signal, noise, a, b, w = all_over((alpha, sigma, *targets, weight.factor(denoiser.target, alpha, sigma)), x0)
    x_t = signal * x0 + noise * eps
    p = denoiser(x_t, t, cond)
    difference = a * (p.x0 - x0) + b * (p.eps - eps)
    mse, far = (d.flatten(1).mean(1) for d in (difference.square(), distance(difference)))
    terms = {"loss": w.flatten().to(far) * far, "mse": mse}
    if p.var_frac is not None:
        assert isinstance(schedule, DiscreteSchedule), "the task refuses learned variance on a continuous schedule"
        vlb = variational_term(p, x0, x_t, t, schedule, scale)
        terms["loss"] = terms["loss"] + VLB_WEIGHT * schedule.steps * vlb
        terms["vlb"] = vlb
    return terms

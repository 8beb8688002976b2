"""The kinds of `task.bottleneck.kind`, and the two bottlenecks that do not quantise."""

from typing import Annotated, Literal

from pydantic import Field
from torch import Tensor

from diffcli.networks.bottleneck import Bottleneck, BottleneckConfig, Coded, nothing
from diffcli.networks.finite_scalar import Fsq
from diffcli.networks.memory_format import memory_format
from diffcli.networks.vector_quantiser import Vq

LOG_VARIANCE = (-30.0, 20.0)  # its range, as published: exp() of it is a float32 on both sides


class Through(Bottleneck):
    """A plain autoencoder: the latent is the output of the encoder."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.inputs = self.channels = latent

    def forward(self, h: Tensor, noise: Tensor | None) -> Coded:
        return Coded(h.float(), nothing(h), {})

    def latent(self, h: Tensor, noise: Tensor | None) -> Tensor:
        return h.float()


class Gaussian(Bottleneck):
    """A normal posterior N(mean, exp(log_variance)) for each number of the latent; the encoder gives means, then log-variances.

    loss: beta * KL(posterior, N(0, 1)), summed over the numbers of an image's latent; term `kl`: without beta, in nats an image.
    Source: Kingma & Welling 2013, appendix B (arXiv 1312.6114); beta: Higgins et al. 2017.
    """

    variational = True

    def __init__(self, latent: int, beta: float) -> None:
        super().__init__()
        self.inputs, self.channels, self.beta = 2 * latent, latent, beta

    def moments(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance, (B, channels, *S) float32 each, in h's memory format."""
        layout = memory_format(h)
        mean, log_variance = (half.contiguous(memory_format=layout) for half in h.float().chunk(2, dim=1))
        return mean, log_variance.clamp(*LOG_VARIANCE)

    def forward(self, h: Tensor, noise: Tensor | None) -> Coded:
        mean, log_variance = self.moments(h)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(dim=1) / 2  # (B,)
        return Coded(sample_of(mean, log_variance, noise), self.beta * kl, {"kl": kl.detach()})

    def latent(self, h: Tensor, noise: Tensor | None) -> Tensor:
        """The mean, or with noise a sample of the posterior."""
        return sample_of(*self.moments(h), noise)


def sample_of(mean: Tensor, log_variance: Tensor, noise: Tensor | None) -> Tensor:
    """A sample of N(mean, exp(log_variance)), or its mode where there is no noise."""
    return mean if noise is None else mean + (log_variance / 2).exp() * noise


class Identity(BottleneckConfig):
    """No bottleneck: a plain autoencoder."""

    kind: Literal["none"] = "none"

    def build(self, latent: int, positions: int | None = None) -> Through:
        return Through(latent)


class Kl(BottleneckConfig):
    """A normal posterior with a KL to N(0, 1): a VAE."""

    kind: Literal["kl"] = "kl"
    beta: float = Field(1.0, ge=0, description="times the KL, a sum over the numbers of an image's latent, in nats")

    def inputs(self, latent: int) -> int:
        return 2 * latent

    def build(self, latent: int, positions: int | None = None) -> Gaussian:
        return Gaussian(latent, self.beta)


AnyBottleneck = Annotated[Identity | Kl | Vq | Fsq, Field(discriminator="kind")]

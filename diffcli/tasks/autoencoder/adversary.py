"""The adversarial part of a first stage's loss: a discriminator, and how much of its gradient reaches the autoencoder.

The discriminator learns from step `start` on; `warm` steps later its gradient reaches the autoencoder. Before `start` nothing
of it is computed. Values over the whole batch, of all micro-batches and processes, are summed after an update and used in the
next one, so that every part of a batch uses the same numbers. They are buffers, so that a resumed run has them too. Source:
Esser et al. 2020, eq. 5 to 7 (arXiv 2012.09841); hinge loss: Lim & Ye 2017 (arXiv 1705.02894).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config
from diffcli.networks.discriminator import PatchDiscriminatorConfig, deepest
from diffcli.tasks.task import Ranks

PHASE = "discriminator"
WINDOW = 100  # updates over which running means forget to 1 / e
IDLE, MASTERY = 0.98, 0.1  # running means of the hinge loss above and below which a remark is made
LEARNED_NOTHING = (
    "the discriminator has learned nothing: its hinge loss has stayed at 1, that of logits of 0; raise "
    "train.phases.discriminator.optimizer.lr or task.adversarial.discriminator.width"
)
OVERRUN = (
    "the discriminator recognises nearly every patch of a reconstruction, so its gradient is of little use; "
    "lower train.phases.discriminator.optimizer.lr, or raise task.adversarial.lecam"
)
SMALLEST = 1e-30  # gradients below this count as 0
TINY = 1e-4  # beside the norm of the adversarial gradient, as published


class Adversarial(Config):
    """A discriminator of patches.

    weight: of the mean logit of reconstructions. balance: `adaptive` multiplies it by |grad of all else| / |its own grad| at the
    last layer, at most `cap`. lecam: of the regularisation of Tseng et al. 2021, eq. 5 (arXiv 2104.03310), for few data.
    """

    discriminator: PatchDiscriminatorConfig = Field(
        PatchDiscriminatorConfig(), description="the network that distinguishes reconstructions from images"
    )
    loss: Literal["hinge"] = Field("hinge", description="of the discriminator")
    start: int = Field(10_000, ge=1, description="the step of the discriminator's first update")
    warm: int = Field(1000, ge=0, description="steps that it learns before its gradient counts")
    weight: float = Field(0.8, gt=0, description="of the mean logit of reconstructions in the loss of the first stage")
    balance: Literal["adaptive", "constant"] = Field(
        "adaptive",
        description="adaptive: scaled to the gradient of the other terms at the last layer; fixed: weight alone",
    )
    cap: float = Field(10_000, gt=0, description="largest factor that `adaptive` gives")
    lecam: float = Field(0.0, ge=0, description="weight of the LeCam regularisation, for few images; 0: none")

    def fault(self, size: Sequence[int]) -> tuple[str, str] | None:
        """The problem with the discriminator for images of this height and width, and what to type; None: there is none."""
        key, network, depth = "task.adversarial.discriminator.depth", self.discriminator, deepest(min(size))
        if min(size) >= network.least:
            return None
        return (
            f"{key} is {network.depth}, for images of {network.least} pixels a side and more, not of {size[0]}x{size[1]} (HxW)",
            f"use --set {key}={depth}, the largest that fits, or larger images (data.size)"
            if depth
            else "use larger images (data.size), or --set task.adversarial=null",
        )

    def build(self, channels: int) -> "Adversary":
        return Adversary(self, self.discriminator.build(channels))


class Adversary(nn.Module):
    """See the module.

    ratio: the factor that balances the gradients, 0 until it is measured. means: running means of the logits of images, of those
    of reconstructions, and of the hinge loss.
    """

    ratio: Tensor  # ()
    means: Tensor  # (3,)
    updates: Tensor  # () int64   of the discriminator

    def __init__(self, config: Adversarial, discriminator: nn.Module) -> None:
        super().__init__()
        self.config, self.discriminator = config, discriminator
        self.register_buffer("ratio", torch.zeros(()))
        self.register_buffer("means", torch.zeros(3))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.gradients: list[Tensor] = []  # (2 x weights + 1,) of each micro-batch since the last update
        self.judged: list[Tensor] = []  # (4,)

    def learns(self, step: int) -> bool:
        """Whether the discriminator is trained at a step."""
        return step >= self.config.start

    def counts(self, step: int) -> bool:
        """Whether its gradient reaches the autoencoder at a step."""
        return step >= self.config.start + self.config.warm

    def fooling(self, made: Tensor, rest: Tensor, last_layer: nn.Parameter) -> dict[str, Tensor]:
        """`loss`: the term to add to `rest` (), the other terms of the autoencoder's loss for these reconstructions.

        Also, for the log, `fooled`, the negative mean logit, and `gan_weight`, its factor.
        """
        fooled = -self.discriminator(made).float().mean()
        weight = torch.full_like(self.ratio, self.config.weight)
        if self.config.balance == "adaptive":
            weight = weight * self.ratio
            if torch.is_grad_enabled() and last_layer.requires_grad:
                flat = torch.cat([at_last_layer(loss, made, last_layer) for loss in (rest, fooled)])
                self.gradients.append(torch.cat([flat, flat.new_ones(1)]) * len(made))
        return {"loss": weight * fooled, "fooled": fooled.detach(), "gan_weight": weight}

    def judging(self, real: Tensor, made: Tensor) -> dict[str, Tensor]:
        """The loss of the discriminator. The hinge loss is 1 for logits of 0; `recent_hinge` is its running mean."""
        images, reconstructions = self.discriminator(torch.cat([real, made])).float().chunk(2)
        hinge = (F.relu(1 - images).mean() + F.relu(1 + reconstructions).mean()) / 2
        terms = {"loss": hinge, "real": images.mean(), "fake": reconstructions.mean()}
        if torch.is_grad_enabled():
            found = torch.stack([terms["real"], terms["fake"], hinge, torch.ones_like(hinge)])
            self.judged.append(found.detach() * len(real))
        if self.config.lecam:
            far = (
                F.relu(images - self.means[1]).square().mean() + F.relu(self.means[0] - reconstructions).square().mean()
            )
            terms |= {"loss": hinge + self.config.lecam * far * (self.updates > 0), "hinge": hinge, "lecam": far}
        recent = torch.where(self.updates > 0, self.means[2], hinge.detach())
        return terms | {"recent_hinge": recent}

    @torch.no_grad()
    def update(self, ranks: Ranks) -> None:
        """Updates the buffers from the values that the micro-batches of all processes have left since the last call."""
        if self.gradients:
            total = ranks.sum(torch.stack(self.gradients).sum(dim=0))
            self.gradients.clear()
            rest, fooled = (total[:-1] / total[-1]).view(2, -1).norm(dim=1)
            ratio = (rest / (fooled + TINY)).clamp(max=self.config.cap)
            self.ratio.copy_(torch.where(ratio.isfinite(), ratio, self.ratio))  # in fp16 a gradient may overflow
        if self.judged:
            total = ranks.sum(torch.stack(self.judged).sum(dim=0))
            self.judged.clear()
            now = total[:-1] / total[-1]
            self.means.copy_(torch.where(self.updates > 0, self.means.lerp(now, 1 / WINDOW), now))
            self.updates += 1

    def remarks(self, step: int, values: Mapping[str, float]) -> list[str]:
        """Remarks on the numbers of a step; see Task.remarks."""
        hinge = values.get(f"{PHASE}/recent_hinge")
        if hinge is None or step < self.config.start + 2 * WINDOW:
            return []
        if hinge > IDLE:
            return [LEARNED_NOTHING]
        return [OVERRUN] if hinge < MASTERY else []


def at_last_layer(loss: Tensor, made: Tensor, last_layer: nn.Parameter) -> Tensor:
    """The gradient of a loss () of reconstructions `made` at the last layer, (weights,) float32. The graph is kept.

    No GradScaler is involved here, and fp16 would round the gradient of a mean over so many numbers to 0. So both halves of the
    path are scaled by powers of 2, which change no bit of float32: the loss by about the number of pixels, and the gradient at
    the reconstructions such that neither its numbers nor their sums over positions leave the range of fp16.
    """
    many = 2.0 ** made.numel().bit_length()
    (gradient,) = torch.autograd.grad(loss * many, made, retain_graph=True)
    peak = gradient.abs().amax().clamp(min=SMALLEST).log2().floor().exp2()
    weight = 2.0 ** -(made.numel().bit_length() // 2)
    (found,) = torch.autograd.grad(made, last_layer, gradient * (weight / peak), retain_graph=True)
    return found.flatten().float() * (peak / (weight * many))

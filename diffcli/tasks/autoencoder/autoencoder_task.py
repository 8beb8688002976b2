"""First stages: an autoencoder that compresses an image into fewer numbers, or into a few bits.

For N numbers an image, mean over images of

    reconstruction + weight * perceptual + bottleneck + weight * adversarial

reconstruction: |x - made| or (x - made)^2, mean over the N numbers; with `sigma`, (x - made)^2 / (2 sigma^2). The loss of a
variational bottleneck, beta * KL in nats, is a sum over an image's latent, so it is divided by N, as the reconstruction is: with
`sigma` the loss is a negative evidence bound in nats a number. A linear autoencoder then reaches reverse water-filling at the
level beta * sigma^2 (without sigma: beta / 2). A commitment is a mean over the latent, and is added as it is.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from diffcli.config import Config
from diffcli.diffusion.samplers import Sampler
from diffcli.ema import at_rest
from diffcli.fields import Batch, FieldSpec, Remedies, Specs, check_fields
from diffcli.networks.autoencoder import Autoencoder, FirstStageConfig
from diffcli.networks.bottleneck import Coded
from diffcli.networks.coding import encoded
from diffcli.noise import Domain, Noise
from diffcli.tasks.autoencoder.adversary import PHASE, Adversary
from diffcli.tasks.autoencoder.perceptual import Perceptual
from diffcli.tasks.conditioners.slots import unit_variance
from diffcli.tasks.task import Network, Phase, Ranks, Task
from diffcli.transfer import moved

PEAK = 2.0  # from black to white in [-1, 1]
LOWEST = 1e-10  # mean squared error for which a PSNR is finite: 106 dB


class Fidelity(NamedTuple):
    """The distance of a reconstruction from its image; see the module. weight: of the perceptual part."""

    distance: Literal["l1", "l2"] = "l2"
    sigma: float | None = None
    weight: float = 1.0


class StoredVector(Config):
    """An embedding of each image that `prep-data --embed` stored beside it, scaled to variance 1.

    drop: the share of samples that train without it, so that the first stage also works for images without an embedding.
    """

    field: str = Field(
        "clip_image", pattern=r"^[a-z][a-z0-9_]*$", description="the embedding that prep-data --embed stored"
    )
    width: int = Field(768, ge=1, description="of the stored vectors")
    drop: float = Field(0.1, ge=0, lt=1, description="share of samples trained without it")


class AutoencoderTask(Task):
    """See the module. stage: how to build the autoencoder again. spec: one image (C, H, W)."""

    wide: ClassVar[bool] = True
    measured = "looking for the first codes"

    def __init__(
        self,
        stage: FirstStageConfig,
        autoencoder: Autoencoder,
        fidelity: Fidelity,
        perceptual: Perceptual | None,
        adversary: Adversary | None,
        embedding: StoredVector | None,
        field: str,
        spec: FieldSpec,
    ) -> None:
        super().__init__()
        self.first_stage, self.autoencoder = stage, autoencoder
        self.fidelity, self.perceptual, self.adversary = fidelity, perceptual, adversary
        self.embedding, self.field, self.spec = embedding, field, spec
        self.heeds = True  # the discriminator, where there is one
        self.made: list[Tensor] = []  # reconstructions of this step's micro-batches, for the discriminator

    @property
    def networks(self) -> tuple[Network, ...]:
        found = [Network("autoencoder", self.autoencoder)]
        if self.perceptual is not None:
            found.append(Network("perceptual", self.perceptual, frozen=True, samples=False))
        if self.adversary is not None:
            found.append(Network(PHASE, self.adversary.discriminator, averaged=False, samples=False))
        return tuple(found)

    @property
    def phases(self) -> tuple[Phase, ...]:
        main = Phase("main", ("autoencoder",))
        if self.adversary is None:
            return (main,)
        return main, Phase(PHASE, (PHASE,), first=self.adversary.config.start, first_key="task.adversarial.start")

    @property
    def network_to_compile(self) -> torch.nn.Module:
        """The whole, or its encoder alone if two losses have gradients at the last layer: a compiled backward runs once."""
        two = self.adversary is not None and self.adversary.config.balance == "adaptive"
        return self.autoencoder.encoder if two else self.autoencoder

    @property
    def networks_in_use(self) -> tuple[torch.nn.Module, ...]:
        """Encoder and decoder, since each is also used alone."""
        return self.autoencoder.encoder, self.autoencoder.decoder

    @property
    def reads(self) -> dict[str, FieldSpec]:
        embedding = self.embedding
        return {self.field: self.spec} | (
            {} if embedding is None else {embedding.field: FieldSpec("vector", (embedding.width,))}
        )

    def check(self, has: Specs) -> None:
        image, vector = (
            Remedies(shape="set data.size and data.channels"),
            Remedies(
                lacking="add it to the set: diffcli prep-data shards --out SET --embed clip --encoder MODEL",
                shape="use --set task.embedding.width={found}",
            ),
        )
        check_fields({self.field: self.spec}, has, "task.field (autoencoder)", {self.field: image})
        for name, spec in self.reads.items():
            if name != self.field:
                check_fields({name: spec}, has, "task.embedding (autoencoder)", {name: vector})

    def forward(self, batch: Batch, phase: str = "main", step: int = 1) -> dict[str, Tensor]:
        x, adversary = batch[self.field], self.adversary
        if phase == PHASE:
            assert adversary is not None
            return adversary.judging(x, self.made.pop(0) if self.made else self.remade(batch))
        made, coded, h = self.passed(batch)
        if self.training:
            self.autoencoder.bottleneck.remember(coded, h)
            if adversary is not None and adversary.learns(step):
                self.made.append(made.detach())
        terms = self.seen(x, made) | {name: value.mean() for name, value in coded.terms.items()}
        bottleneck = coded.loss.mean() / (x[0].numel() if self.autoencoder.bottleneck.variational else 1)
        rest = terms.pop("loss")
        loss = rest + bottleneck
        if adversary is not None and self.heeds and adversary.counts(step):
            judged = adversary.fooling(made, rest, self.autoencoder.last_layer)
            loss = loss + judged.pop("loss")
            terms |= judged
        return {"loss": loss, **terms}

    def passed(self, batch: Batch) -> tuple[Tensor, Coded, Tensor]:
        """The reconstructions (B, C, H, W) of a batch in training, the output of the bottleneck, and its input."""
        x, network, vector = batch[self.field], self.autoencoder, None
        stream = moved(batch["stream"], x.device)
        if self.embedding is not None:
            chance = Noise(batch["stream"], torch.device("cpu"), Domain.CHANCE).uniform()
            keep = moved(chance >= self.embedding.drop, x.device)
            vector = network.with_null(unit_variance(moved(batch[self.embedding.field], x.device)), keep)
        noise = None
        if network.bottleneck.variational:
            noise = Noise(stream, x.device, Domain.POSTERIOR)(x.new_empty(self.latent_shape(x)))
        made, coded, h = network(x, noise, vector, stream)
        return made.float(), coded, h

    def seen(self, x: Tensor, made: Tensor) -> dict[str, Tensor]:
        """The distance of reconstructions from their images: `loss`, its parts, and `psnr` in dB; each ()."""
        distance, sigma, weight = self.fidelity
        difference = x - made
        near = difference.abs().mean() if distance == "l1" else difference.square().mean()
        loss, terms = near if sigma is None else near / (2 * sigma**2), {"reconstruction": near}
        if self.perceptual is not None:
            terms["perceptual"] = self.perceptual(made, x).mean()
            loss = loss + weight * terms["perceptual"]
        return {"loss": loss, **terms, "psnr": psnr(x, made.detach()).mean()}

    @torch.no_grad()
    def remade(self, batch: Batch) -> Tensor:
        """The reconstructions of a batch that the step has not made yet."""
        return self.passed(batch)[0]

    def begin(self) -> None:
        if self.perceptual is not None:
            self.perceptual.load()

    def measure(self, batches: Iterable[Batch], ranks: Ranks) -> None:
        """Passes encoded images to the bottleneck.

        Images are encoded one by one and sorted, so the input of the bottleneck does not depend on batches and processes, to
        the last bit. Otherwise a start by k-means would make another codebook from other roundings.
        """
        bottleneck = self.autoencoder.bottleneck
        seen: list[tuple[Tensor, Tensor]] = []
        with at_rest(self), torch.no_grad():
            if self.autoencoder.measures:
                self.start_on(self.in_order(batches, ranks))
                return
            for batch in batches:
                x, given = batch[self.field], self.vector_of(batch)
                vectors = [None] * len(x) if given is None else given.split(1)
                one_by_one = [self.encode(*pair) for pair in zip(x.split(1), vectors, strict=True)]
                seen.append((moved(batch["stream"], x.device), torch.cat(one_by_one)))
        stream, h = (ranks.gather(torch.cat(parts)) for parts in zip(*seen, strict=True))
        bottleneck.start(h[stream.argsort()][: bottleneck.measures])

    def in_order(self, batches: Iterable[Batch], ranks: Ranks) -> dict[str, Tensor]:
        """What all processes were dealt of what the task reads, in an order of its own: on its device, images in [-1, 1]."""
        device = self.autoencoder.last_layer.device
        parts: dict[str, list[Tensor]] = {}
        for batch in batches:
            for name in ("stream", *self.reads):
                parts.setdefault(name, []).append(moved(batch[name], device))
        dealt = {name: ranks.gather(torch.cat(rows)) for name, rows in parts.items()}
        order = dealt["stream"].argsort()
        return {name: rows[order] for name, rows in dealt.items()}

    def start_on(self, first: dict[str, Tensor]) -> None:
        """Starts the layers of whole images on what every process has in the same order, then the bottleneck."""
        network, x, vector = self.autoencoder, first[self.field], self.vector_of(first)
        network.start(x[: network.measures])
        if n := network.bottleneck.measures:
            network.bottleneck.start(encoded(network, x[:n], None if vector is None else vector[:n]))

    @property
    def measures(self) -> int:  # type: ignore[override]
        return max(self.autoencoder.measures, self.autoencoder.bottleneck.measures)

    def after_update(self, ranks: Ranks) -> None:
        self.made.clear()
        self.autoencoder.bottleneck.update(ranks)
        if self.adversary is not None:
            self.adversary.update(ranks)

    def remarks(self, step: int, values: dict[str, float]) -> list[str]:
        return [] if self.adversary is None else self.adversary.remarks(step, values)

    @contextmanager
    def comparable(self) -> Iterator[None]:
        """Context in which the loss leaves out the discriminator, which changes from step to step."""
        self.heeds = False
        try:
            yield
        finally:
            self.heeds = True

    def latent_shape(self, x: Tensor) -> tuple[int, ...]:
        """The shape of the latents of images (B, C, H, W)."""
        f = self.autoencoder.downscale
        return len(x), self.autoencoder.bottleneck.channels, x.shape[2] // f, x.shape[3] // f

    def vector_of(self, batch: Batch) -> Tensor | None:
        """The embedding of a batch of data that encoder and decoder read, (B, V); None if it has none."""
        if self.embedding is None or self.embedding.field not in batch:
            return None
        return unit_variance(moved(batch[self.embedding.field], batch[self.field].device))

    def encode(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> h (B, bottleneck.inputs, H/f, W/f)."""
        return self.autoencoder.encode(x, vector)

    def reconstruct(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> the same images through the mode of their latents, clamped to [-1, 1]."""
        return self.autoencoder(x, None, vector)[0].float().clamp(-1, 1)

    @torch.no_grad()
    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> Tensor:
        """Each image above its reconstruction, (B, C, 2H, W)."""
        x = batch[self.field]
        return torch.cat([x, self.reconstruct(x, self.vector_of(batch))], dim=2)


def psnr(x: Tensor, made: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each reconstruction, clamped to [-1, 1]: (B,)."""
    error = F.mse_loss(made.clamp(-1, 1), x, reduction="none").flatten(1).mean(dim=1)
    return -10 * (error / PEAK**2).clamp(min=LOWEST).log10()

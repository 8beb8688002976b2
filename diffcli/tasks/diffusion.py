"""Diffusion as a task: codec, conditioners and denoiser; its loss, and the Denoise function for samplers."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from typing import cast

import torch
from torch import Tensor, nn

from diffcli.diffusion.coupling import paired
from diffcli.diffusion.denoiser import Denoise, Denoiser, Prediction
from diffcli.diffusion.guidance import (
    Pair,
    classifier_free,
    classifier_guided,
    clip_x0,
    rescaled,
    threshold_x0,
    within,
)
from diffcli.diffusion.losses import denoising_loss
from diffcli.diffusion.samplers import Sampler, Step, last
from diffcli.diffusion.tiling import Piece, Tiles, tiled
from diffcli.diffusion.times import LossAware, UniformTimes
from diffcli.diffusion.windows import Windows, in_windows
from diffcli.fields import LATENT, Batch, FieldSpec, Remedies, Specs, check_fields, joined
from diffcli.networks.conditioning import Conditioning
from diffcli.networks.pieces import Cutout, InPieces
from diffcli.networks.temporal import LAYERS
from diffcli.networks.unet import image_size
from diffcli.noise import Domain, FrameNoise, Noise, streams
from diffcli.tasks.codecs.codec import Codec
from diffcli.tasks.conditioners.conditioner import Conditioner, condition
from diffcli.tasks.guide import Guide, Guiding
from diffcli.tasks.objective import Objective
from diffcli.tasks.preserving import PRESERVED, of_class, preserving, preserving_fields
from diffcli.tasks.task import Network, Ranks, Task
from diffcli.transfer import moved


class DiffusionTask(Task):
    """A denoiser of an encoded field of the data under conditions. spec: of this field, one sample is (C, *S).

    stored: the field `latent` of data that hold the stored form of the field, which training then reads in its place.
    """

    measured = "measuring the spread of the latents"
    preservation = 0.0  # weight of the loss on pictures of the class; 0: none are read

    def __init__(
        self,
        denoiser: Denoiser,
        codec: Codec,
        conditioners: Sequence[Conditioner],
        objective: Objective,
        drop_condition: float,
        field: str,
        spec: FieldSpec,
        stored: FieldSpec | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.codec = codec
        self.conditioners = nn.ModuleList(conditioners)
        self.objective = objective
        self.history = objective.times.remember(denoiser.schedule)
        self.drawn: list[tuple[Tensor, Tensor]] = []  # in this update: (position, index of t) int64 (B, 2), loss (B,)
        self.drop_condition = drop_condition
        self.field, self.spec, self.stored = field, spec, stored
        for i, conditioner in enumerate(conditioners):
            if conditioner.encoder is not None:
                conditioner.encoder.key = f"task.conditioners.{i}.encoder.model"

    @property
    def networks(self) -> tuple[Network, ...]:
        return (
            Network("denoiser", self.denoiser),
            Network("conditioners", self.conditioners),
            Network("codec", self.codec, frozen=True),
        )

    @property
    def named_conditioners(self) -> dict[str, Conditioner]:
        conditioners = cast(Iterable[Conditioner], self.conditioners)
        return {f"task.conditioners.{i}": conditioner for i, conditioner in enumerate(conditioners)}

    @property
    def conditional(self) -> bool:
        """Whether there is anything to guide."""
        return any(conditioner.droppable for conditioner in self.named_conditioners.values())

    @property
    def network_to_compile(self) -> nn.Module:
        return self.denoiser.network

    @property
    def skips(self) -> bool:  # type: ignore[override]
        return any(isinstance(layer, LAYERS) for layer in self.denoiser.modules())  # passed by at one frame

    @property
    def reads(self) -> dict[str, FieldSpec]:
        conditions = {name: spec for c in self.named_conditioners.values() for name, spec in c.reads.items()}
        return conditions | self.modelled

    @property
    def modelled(self) -> dict[str, FieldSpec]:
        """The name of the field of the data that is modelled."""
        return {self.field: self.spec} if self.stored is None else {LATENT: self.stored}

    def check(self, has: Specs) -> None:
        if self.stored is None:
            who, remedies = "task.field (diffusion)", Remedies(shape="set data.size and data.channels")
        else:
            again = "make the set with this first stage: diffcli prep-data latents SET --first-stage RUN --out DIR"
            who, remedies = "task.codec (diffusion)", Remedies(lacking=again, kind=again, shape=again)
        check_fields(self.modelled, has, who, dict.fromkeys(self.modelled, remedies))
        for key, conditioner in self.named_conditioners.items():
            conditioner.check(has, key)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample of the modelled field, (C, *S)."""
        return self.spec.sides

    @property
    def trains_on(self) -> Specs:
        return preserving_fields(self.reads, self.field, self.spec) if self.preservation else {}

    def forward(self, batch: Batch, phase: str = "main", step: int = 1) -> dict[str, Tensor]:
        own = self.terms(batch, step)
        if not self.preservation or PRESERVED not in batch:
            return own
        return preserving(own, self.terms(of_class(batch, self.field), step, beside=False), self.preservation)

    def terms(self, batch: Batch, step: int, beside: bool = True) -> dict[str, Tensor]:
        """The loss of a batch and its terms, each (). beside: also further numbers, and the history of losses."""
        chance = Noise(batch["stream"], torch.device("cpu"), Domain.CHANCE)
        times, weight, distance, coupling = self.objective
        t, importance = times.sample(chance.uniform(), batch["position"], self.denoiser.schedule, self.history)
        stream = self.streamed(batch)
        x0 = self.encoded(batch, stream)
        keep = moved(chance.uniform() >= self.drop_condition, x0.device)
        eps = Noise(stream, x0.device)(x0)
        if coupling == "optimal_transport":
            eps = paired(eps, x0)
        cond = self.condition({**batch, "stream": stream}, keep, x0, seeds=stream)

        def losses(cond: Conditioning) -> dict[str, Tensor]:
            return denoising_loss(self.denoiser, x0, eps, t, cond, weight, distance, self.codec.length)

        terms = losses(cond)
        more = self.beside(step, batch["position"], cond, terms["loss"], losses) if beside else {}
        if beside and self.history is not None and self.training:
            index = (t * len(self.history.count)).round().long() - 1
            place = torch.stack([moved(batch["position"], index.device), index], dim=1)
            self.drawn.append((place, terms["loss"].detach()))
        terms["loss"] = terms["loss"] * moved(importance, x0.device, terms["loss"].dtype)
        return {name: term.mean() for name, term in terms.items()} | more

    def beside(
        self,
        step: int,
        position: Tensor,
        cond: Conditioning,
        loss: Tensor,
        losses: Callable[[Conditioning], dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Further numbers for the log, each (). loss: of the samples at `position`, (B,); losses: theirs when told otherwise."""
        return {}

    def streamed(self, batch: Batch) -> Tensor:
        """`stream` of a batch on the device where its fields are."""
        return moved(batch["stream"], batch[next(iter(self.modelled))].device)

    def encoded(self, batch: Batch, stream: Tensor) -> Tensor:
        """The modelled field of a batch in diffusion space. stream: int64 (B,) on the device, the seeds of a random encoding."""
        noise = Noise(stream, stream.device, Domain.POSTERIOR)
        if self.stored is None:
            return self.codec.encode(batch[self.field], noise)
        return self.codec.restored(batch[LATENT], noise)

    @property
    def measures(self) -> int | None:  # type: ignore[override]
        return self.codec.measures

    def measure(self, batches: Iterable[Batch], ranks: Ranks) -> None:
        self.codec.measure((self.encoded(batch, self.streamed(batch)) for batch in batches), ranks)

    def after_update(self, ranks: Ranks) -> None:
        """Adds the losses of the global batch to the history in order of position, however the batch was split."""
        if self.history is None:
            return
        where = ranks.gather(torch.cat([drawn for drawn, _ in self.drawn]))
        losses = ranks.gather(torch.cat([loss for _, loss in self.drawn]))
        self.drawn.clear()
        order = where[:, 0].argsort()
        self.history.record(where[order, 1], losses[order])

    @contextmanager
    def comparable(self) -> Iterator[None]:
        """Context without times by past losses and pairing of noise, so that the loss of a sample depends on it alone."""
        objective = self.objective
        times = UniformTimes() if isinstance(objective.times, LossAware) else objective.times
        self.objective = objective._replace(times=times, coupling="none")
        try:
            yield
        finally:
            self.objective = objective

    def condition(
        self, batch: Batch, keep: Tensor, like: Tensor, seeds: Tensor | None = None, always_given: Collection[str] = ()
    ) -> Conditioning:
        """The conditioning for a batch; rows with keep False get the null condition, except for the fields `always_given`."""
        conditioners = cast(Iterable[Conditioner], self.conditioners)
        return condition(conditioners, batch, keep, like, seeds, always_given)

    def denoise(
        self, batch: Batch, guidance: float, n: int, guiding: Guiding = Guiding(), tiles: Tiles | Windows | None = None
    ) -> Denoise:
        """The denoiser of n images with the batch's condition and all guidance bound; x0 in the codec's bounds.

        tiles: the networks predict in these, or in these windows of frames; guidance and bounds act on the whole.
        """
        guide, schedule, weaker = guiding.guide, self.denoiser.schedule, guiding.weaker
        leads = guidance != 1 and self.conditional and weaker is None
        cond = self._conditions(batch, n, (True, False) if leads else (True,), guiding.negative)
        plain = self._under(cond.rows(0, n) if leads else cond, tiles)
        if leads:
            null = self._under(cond.rows(n, 2 * n), tiles)
            denoise = self._led(self._both(cond, tiles), null, guidance, guide)
        elif guidance != 1 and weaker is not None:
            other = weaker.branch(batch, n, tiles=tiles)
            denoise = self._led(_each(plain, other), other, guidance, guide)
        else:
            denoise = plain
        if guide.interval is not None and denoise is not plain:
            denoise = within(denoise, plain, schedule, *guide.interval)
        bounded = self._bounded(denoise, guide)
        if guiding.classifier is None:
            return bounded
        log_prob = guiding.classifier.log_prob(batch["label"], schedule, self.codec.length)
        pulled = classifier_guided(bounded, log_prob, schedule, guide.pull)
        return pulled if guide.interval is None else within(pulled, bounded, schedule, *guide.interval)

    def _bounded(self, denoise: Denoise, guide: Guide) -> Denoise:
        """The denoiser with x0 kept within the bounds of the codec, if it has any."""
        if self.codec.bounds is None:
            return denoise
        if guide.threshold is not None:
            return threshold_x0(denoise, self.denoiser.schedule, guide.threshold, self.codec.bounds[1])
        return clip_x0(denoise, self.denoiser.schedule, *self.codec.bounds)

    def branch(self, batch: Batch, n: int, conditional: bool = True, tiles: Tiles | Windows | None = None) -> Denoise:
        """The network alone, with the batch's condition or with none."""
        return self._under(self._conditions(batch, n, (conditional,)), tiles)

    def _conditions(
        self, batch: Batch, n: int, branches: Sequence[bool], negative: Batch | None = None
    ) -> Conditioning:
        """The conditioning of a batch of n for each branch, one after the other; False stands for the branch without a condition.

        The conditioners run once for all branches. negative: fields that the branch without a condition receives.
        """
        whole = joined([batch if conditional else {**batch, **(negative or {})} for conditional in branches])
        keep = moved(torch.tensor(branches).repeat_interleave(n), self.device)
        like = torch.empty(self.latent_shape(len(keep)), device=self.device)
        return self.condition(whole, keep, like, always_given=tuple(negative or ()))

    def _under(self, cond: Conditioning, tiles: Tiles | Windows | None = None) -> Denoise:
        if tiles is None:
            return lambda x, t: self.denoiser(x, t, cond)
        if isinstance(tiles, Windows):
            return in_windows(lambda x, t, places: self.denoiser(x, t, cond.stretches(places)), tiles)

        network = InPieces(self.denoiser.network) if tiles.exact else None

        def windowed(x: Tensor, t: Tensor, pieces: Sequence[Piece]) -> Prediction:
            if network is not None:
                network.parts = [Cutout(piece.row, image_size(x), piece.own) for piece in pieces]
            some = cond.windows([(row, window) for row, window, _ in pieces], self.codec.downscale)
            prediction: Prediction = self.denoiser(x, t, some)
            return prediction

        return tiled(windowed, tiles, None if network is None else network.settled)

    def _both(self, cond: Conditioning, tiles: Tiles | Windows | None = None) -> Pair:
        """Both branches of the network as one batch; cond: of 2B samples."""
        both = self._under(cond, tiles)

        def pair(x: Tensor, t: Tensor) -> tuple[Prediction, Prediction]:
            return halves(both(torch.cat([x, x]), torch.cat([t, t]) if t.ndim else t))

        return pair

    def _led(self, pair: Pair, other: Denoise, guidance: float, guide: Guide) -> Denoise:
        """Guidance away from the second denoiser of a pair, `other`; at scale 0 only `other` is evaluated."""
        if guidance == 0 and guide.rescale == 0 and guide.channels is None:
            return other
        if guide.rescale == 0:
            return classifier_free(pair, guidance, guide.channels)
        return rescaled(pair, guidance, self.denoiser.schedule, guide.rescale, guide.channels)

    def start(self, seeds: Sequence[int]) -> tuple[Tensor, Noise]:
        """Pure noise in diffusion space, one stream for each seed, and the streams to draw on from; of clips see `FrameNoise`."""
        noise = (FrameNoise if self.spec.kind == "clip" else Noise)(seeds, self.device)
        return noise(torch.empty(self.latent_shape(len(seeds)), device=self.device)), noise

    def trajectory(self, batch: Batch, seeds: Sequence[int], sampler: Sampler, guidance: float) -> Iterator[Step]:
        """Samples one image for each seed, in diffusion space; `decode` makes a Step's x or x0 an image."""
        x, noise = self.start(seeds)
        denoise = self.denoise({**batch, "stream": streams(seeds)}, guidance, len(seeds))
        return sampler.trajectory(denoise, self.denoiser.schedule, x, noise)

    def of_frames(self, frames: int) -> "DiffusionTask":
        """The same task for clips of so many frames; shares modules and weights."""
        channels, _, *size = self.spec.shape
        changed = copy(self)
        changed.spec = self.spec._replace(shape=(channels, frames, *size))
        return changed

    def latent_shape(self, n: int) -> tuple[int, ...]:
        """Shape of n samples in diffusion space, (n, C, *S)."""
        return n, *self.codec.latent_shape(self.shape)

    def decode(self, z: Tensor) -> Tensor:
        """Diffusion space -> images (B, C, H, W) or clips (B, C, T, H, W), clamped to [-1, 1]."""
        return self.codec.decode(z).clamp(-1, 1)

    @torch.no_grad()
    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> Tensor:
        shown = batch[next(iter(self.modelled))]
        task = self.of_frames(shown.shape[2]) if self.spec.kind == "clip" else self
        return task.decode(last(task.trajectory(batch, range(len(shown)), sampler, guidance)).x)

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device


def _each(one: Denoise, other: Denoise) -> Pair:
    return lambda x, t: (one(x, t), other(x, t))


def halves(p: Prediction) -> tuple[Prediction, Prediction]:
    """A prediction of 2B samples as two of B."""
    x0, eps = p.x0.chunk(2), p.eps.chunk(2)
    var_frac = (None, None) if p.var_frac is None else p.var_frac.chunk(2)
    return Prediction(x0[0], eps[0], var_frac[0]), Prediction(x0[1], eps[1], var_frac[1])

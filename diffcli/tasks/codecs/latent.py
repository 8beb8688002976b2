"""Diffusion in the latent space of a first stage, which is frozen and travels inside the checkpoint.

z = (latent(x) - shift) / scale for each channel, so that z has mean 0 and variance 1 over the training set. Diffusion sees
latents before quantisation; a first stage with codes quantises them before decoding. All channels of such latents have one
scale, so that the nearest code is the same in z, as other libraries expect; their variance is 1 on average. Source: Rombach et
al. 2021, sections 3.2 and G (arXiv 2112.10752), with one scale for each channel where there are no codes.

Clips (B, C, T, H, W) become latents (B, c, T, h, w) frame by frame: the first stage sees images, a bounded number at once.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from pydantic import ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import Fault, FieldSpec, listed, typed
from diffcli.networks.autoencoder import Autoencoder, FirstStageConfig
from diffcli.networks.coding import TILE, decoded, encoded
from diffcli.networks.frames import folded, unfolded
from diffcli.noise import Noise
from diffcli.tasks.codecs.codec import Codec, CodecConfig, Shape
from diffcli.tasks.starting_point import named
from diffcli.tasks.task import Ranks


class LatentCodec(Codec):
    """shift, scale: of each channel of the latent, (C,), as measured over the training set; 0 and 1 before.

    Where the first stage has codes, all channels have the same scale.
    """

    length = 1.0
    bounds = None
    exact = False
    measures = None
    shift: Tensor
    scale: Tensor

    def __init__(self, first_stage: Autoencoder, channels: int, sample_posterior: bool, tile: int) -> None:
        super().__init__()
        self.first_stage, self.downscale = first_stage, first_stage.downscale
        self.channels, self.sample_posterior, self.tile = channels, sample_posterior, tile
        latent = first_stage.bottleneck.channels
        self.register_buffer("shift", torch.zeros(latent))
        self.register_buffer("scale", torch.ones(latent))

    def latent_shape(self, shape: Shape) -> Shape:
        factor, latent = self.first_stage.downscale, self.first_stage.bottleneck.channels
        channels, *frames, height, width = shape
        if channels != self.channels:
            raise UserError(
                f"task.codec: the first stage is for images of {self.channels} channels, but the data's have {channels}",
                f"use --set data.channels={self.channels}, or name another first stage in task.codec.from",
            )
        if fault := self.misfit((height, width)):
            raise UserError(f"task.codec: the images are {fault[0]}", f"use --set 'data.size={typed(fault[1])}'")
        return latent, *frames, height // factor, width // factor

    def misfit(self, size: Sequence[int]) -> Fault | None:
        return self.first_stage.config.misfit(size, f"the downscale {self.first_stage.downscale} of the first stage")

    def stored(self, x: Tensor) -> Tensor:
        """The stored form of images (B, C, H, W) in [-1, 1]: (B, inputs, H/f, W/f), for `kl` means and log-variances.

        That of clips (B, C, T, H, W) is that of their frames, (B, inputs, T, H/f, W/f).
        """
        return unfolded(encoded(self.first_stage, folded(x)), x)

    def restored(self, stored: Tensor, noise: Noise | None = None) -> Tensor:
        """`encode` from the stored form of images, float16 or float32."""
        normal = None
        bottleneck = self.first_stage.bottleneck
        if noise is not None and self.sample_posterior and bottleneck.variational:
            normal = noise(torch.empty(len(stored), bottleneck.channels, *stored.shape[2:], device=stored.device))
        z = bottleneck.latent(folded(stored.float()), None if normal is None else folded(normal))
        z = unfolded(z, stored)
        return (z - over(self.shift, z)) * over(1 / self.scale, z)

    @torch.no_grad()
    def encode(self, x: Tensor, noise: Noise | None = None) -> Tensor:
        return self.restored(self.stored(x), noise)

    def decode(self, z: Tensor) -> Tensor:
        """In batches; images of more than tile x tile pixels one by one and in bands of rows, which is exact."""
        whole = self.first_stage.bottleneck.snapped(folded(z * over(self.scale, z) + over(self.shift, z)))
        return unfolded(decoded(self.first_stage, whole, tile=self.tile), z)

    def measure(self, latents: Iterable[Tensor], ranks: Ranks) -> None:
        """Sets shift and scale to mean and standard deviation of latents (B, C, *S) that shift 0 and scale 1 gave.

        For a first stage with codes, scale is one number: the root of the mean variance over channels.
        Raises UserError if latents are not finite, or constant.
        """
        total = torch.zeros(3, len(self.shift), dtype=torch.float64)
        for z in latents:
            values = z.double().transpose(0, 1).flatten(1).cpu()
            total += torch.stack([torch.full_like(total[0], values.shape[1]), values.sum(1), values.square().sum(1)])
        wide = torch.float32 if self.shift.device.type == "mps" else torch.float64  # which that device lacks
        count, sums, squares = ranks.sum(total.to(self.shift.device, wide)).cpu().double()
        mean = sums / count
        deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
        if not (mean.isfinite().all() and deviation.isfinite().all()):
            raise UserError(
                "task.codec: the latents of the training data are not all finite numbers",
                "train the first stage again, or name another one in task.codec.from; latents stored as float16 may need float32",
            )
        if not (deviation > 0).all():
            dead = int((deviation <= 0).nonzero()[0])
            raise UserError(
                f"task.codec: channel {dead} of the latents is the same number everywhere in the training data",
                "name a first stage that has learned, of fewer channels or a smaller beta, in task.codec.from",
            )
        if self.first_stage.bottleneck.bits is not None:
            deviation = deviation.square().mean().sqrt().expand_as(deviation)
        self.shift.copy_(mean)
        self.scale.copy_(deviation)


def over(values: Tensor, z: Tensor) -> Tensor:
    """(C,) as it multiplies z (B, C, *S)."""
    return values.view(-1, *[1] * (z.ndim - 2))


class LatentCodecConfig(CodecConfig):
    """Diffusion in the latents of a first stage.

    from: the run of an autoencoder, a checkpoint, or a folder of diffusers; read when a run starts. first_stage: its
    configuration, which is filled in then, so that a resumed run or a checkpoint does not need the other run.
    """

    model_config = ConfigDict(populate_by_name=True)

    kind: Literal["latent"] = "latent"
    clip: ClassVar[bool] = False  # latents have no range
    source: Path | None = Field(None, alias="from", description="run, checkpoint or folder of the first stage")
    first_stage: FirstStageConfig | None = Field(None, description="configuration of the first stage; read from `from`")
    sample_posterior: bool = Field(True, description="of `kl`: draw each latent anew in each epoch, or take its mean")
    tile: int = Field(TILE, ge=16, description="images of more than tile x tile pixels are decoded in bands")

    @model_serializer(mode="wrap")
    def _named(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return named(handler(self), "source", "from")

    def build(self, spec: FieldSpec) -> LatentCodec:
        """The codec of images or clips. Raises UserError if the field is neither, or if no first stage is given."""
        if len(spec.shape) != {"image": 3, "clip": 4}.get(spec.kind):
            raise UserError(
                f"task.codec is latent, for images and clips, but task.field names a field of kind {spec.kind}",
                "use --set task.codec.kind=pixels, or --set task.field=image",
            )
        stage = self.required
        codec = LatentCodec(stage.build(), stage.channels, self.sample_posterior, self.tile)
        codec.latent_shape(spec.sides)
        return codec

    @property
    def required(self) -> FirstStageConfig:
        """The configuration of the first stage. Raises UserError if there is none."""
        if self.first_stage is None:
            raise UserError(
                "task.codec is latent, but no first stage is named",
                "name the run of an autoencoder: --set task.codec.from=runs/mnist-vae",
            )
        return self.first_stage

    def pictures(self, spec: FieldSpec) -> FieldSpec:
        """The images whose stored form is a field of kind latent, see `LatentCodec.stored`.

        Raises UserError if its shape is not that of this first stage.
        """
        stage = self.required
        factor, inputs = stage.network.downscale, stage.bottleneck.inputs(stage.network.latent)
        if len(spec.sides) != 3 or spec.sides[0] != inputs:
            raise UserError(
                f"task.codec: the first stage stores {inputs} numbers at a position, but the data hold {listed(spec.shape)}",
                "make the set with this first stage: diffcli prep-data latents SET --first-stage RUN --out DIR",
            )
        _, height, width = spec.sides
        return FieldSpec("image", (stage.channels, height * factor, width * factor))

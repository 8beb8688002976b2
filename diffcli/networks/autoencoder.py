"""First stages: an encoder, a bottleneck and a decoder for images (B, C, H, W) in [-1, 1], of any size that `downscale` divides.

encode(x) -> h; bottleneck(h) -> z; decode(z) -> x. Source: Rombach et al. 2021, section 3.1 (arXiv 2112.10752).
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from diffcli.config import Config, ImageShape, keys_agree
from diffcli.fields import Fault, misfit
from diffcli.networks.bottleneck import Bottleneck, Coded
from diffcli.networks.bottlenecks import AnyBottleneck
from diffcli.networks.dropout import mask_bits, number_dropouts
from diffcli.networks.group_norm import set_norms
from diffcli.networks.image_coder import Aside, CoderOptions, ImageDecoder, ImageEncoder
from diffcli.networks.layers import Pointwise, zero
from diffcli.networks.network import listed
from diffcli.networks.saving import SAVE_MEMORY
from diffcli.networks.vector_quantiser import Vq
from diffcli.networks.whole_image import AroundLatent, WholeImage, principal, wanted, whole_layers

DECIDING = ("kind", "patch", "whole", "groups", "norm_eps")
"""All keys of AutoencoderConfig that change the result for given tensors without changing a name or shape."""


class AutoencoderConfig(Config):
    """Encoder and decoder: width x mult[i] channels at level i, each level half the size of the one before.

    patch: pixels in the edge of a square that is one position of the first level, its pixels being channels there, as in
    sub-pixel convolution (Shi et al. 2016, arXiv 1609.05158), which saves most of the cost of full size. Published ones have 1.

    A norm of C channels has gcd(groups, C) groups. With one group for each channel it would remove the mean of every channel,
    so narrow networks need few groups.
    """

    kind: Literal["conv"] = "conv"
    patch: int = Field(
        1, ge=1, description="pixels along the edge of a square that becomes one position of the first level"
    )
    width: int = Field(128, ge=1, description="channels of the first level")
    mult: tuple[PositiveInt, ...] = Field(
        (1, 2, 4, 4),
        min_length=1,
        description="channels of each level as multiples of width; each level halves the size",
    )
    depth: int = Field(2, ge=1, description="residual blocks at each level of the encoder; the decoder has one more")
    attend: tuple[int, ...] = Field((), description="downscales (1, 2, 4, ...) at which positions attend to each other")
    middle_blocks: Literal[0, 2] = Field(
        2, description="residual blocks between the levels and the latent, on both sides"
    )
    middle_attention: bool = Field(True, description="an attention between those two")
    latent: int = Field(4, ge=1, description="channels of the latent")
    features: int | None = Field(
        None, ge=1, description="channels between encoder or decoder and the latent, if they are not the latent's"
    )
    whole: tuple[PositiveInt, PositiveInt] | None = Field(
        None,
        description="height and width of images that are coded as wholes, all of that size: a linear layer over all numbers "
        "stands before the latent, another one after it, and no token is a place; null: tokens are places",
    )
    groups: int = Field(32, ge=1, description="a group norm of C channels has gcd(groups, C) groups")
    norm_eps: float = Field(1e-6, gt=0, description="added to the variance in group norms")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped in training")
    save_memory: bool = Field(False, description=SAVE_MEMORY)

    @keys_agree
    def _attends_where_it_can(self) -> Iterator[str]:
        there = [self.patch * 2**i for i in range(len(self.mult))]
        for downscale in self.attend:
            if downscale not in there:
                yield (
                    f"attend names {downscale}, but the downscales of {len(self.mult)} levels are {listed(there)}; "
                    f"choose among {listed(there)} for task.network.attend"
                )

    @keys_agree
    def _has_a_middle(self) -> Iterator[str]:
        if self.middle_attention and not self.middle_blocks:
            yield ("middle_attention is true, but middle_blocks is 0; set task.network.middle_attention to false")

    @keys_agree
    def _has_whole_images(self) -> Iterator[str]:
        if self.whole is None:
            return
        if self.features is not None:
            yield (
                f"features is {self.features}, but beside task.network.whole they are the pixels of a position; "
                "set task.network.features to null"
            )
        if fault := misfit(self.whole, self.downscale, f"the downscale {self.downscale}"):
            yield f"whole is {fault[0]}; set task.network.whole to {list(fault[1])}"

    @property
    def downscale(self) -> int:
        """Pixels in the edge of a position of the latent."""
        return int(self.patch * 2 ** (len(self.mult) - 1))

    @property
    def positions(self) -> int | None:
        """Of a latent of whole images; None: as many as an image has."""
        return None if self.whole is None else self.whole[0] * self.whole[1] // self.downscale**2

    def misfit(self, size: Sequence[int], what: str) -> Fault | None:
        """What is wrong with images of this height and width, and the nearest that it takes; None: nothing. See `fields.misfit`.

        what: what the downscale is called.
        """
        if self.whole is None or tuple(size) == self.whole:
            return misfit(size, self.downscale, what)
        one = "x".join(map(str, self.whole))
        return f"{size[0]}x{size[1]} pixels (HxW), where images of {one} alone are coded as wholes", self.whole

    def build(self, channels: int, bottleneck: AnyBottleneck, vector: int = 0) -> "Autoencoder":
        """The module for images of this number of channels. vector: width of the vector for encoder and decoder; 0: none.

        Raises UserError if the bottleneck cannot have `latent` channels.
        """
        return Autoencoder(self, channels, bottleneck.build(self.latent, self.positions), vector)


class Autoencoder(nn.Module):
    """See the module's docstring; forward(x, noise) -> (the image again, Coded).

    quant_conv and post_quant_conv are the 1x1 convolutions of published models on both sides of the bottleneck. For whole images
    they are linear layers over all positions, and encoder and decoder add to the image before and after them, at first nothing.
    null: the vector of images without one.
    """

    def __init__(self, config: AutoencoderConfig, channels: int, bottleneck: Bottleneck, vector: int) -> None:
        super().__init__()
        self.config, self.downscale, self.bottleneck = config, config.downscale, bottleneck
        options = CoderOptions(
            widths=tuple(config.width * m for m in config.mult),
            depth=config.depth,
            attends=tuple(config.patch * 2**i in config.attend for i in range(len(config.mult))),
            middle_blocks=config.middle_blocks,
            middle_attention=config.middle_attention,
            vector=vector,
            dropout=config.dropout,
            save_memory=config.save_memory,
        )
        features = config.features or bottleneck.channels
        given = features * bottleneck.inputs // bottleneck.channels
        if config.whole is not None:
            features = given = channels * config.downscale**2
        self.encoder = ImageEncoder(channels * config.patch**2, given, options)
        self.quant_conv: nn.Module
        self.post_quant_conv: nn.Module
        self.measures = 0  # images that the layers of whole images want to see before the first step
        if config.whole is None:
            self.quant_conv = Pointwise(given, bottleneck.inputs)
            self.post_quant_conv = Pointwise(bottleneck.channels, features)
        else:
            image = ImageShape(channels, *config.whole)
            self.quant_conv, self.post_quant_conv = whole_layers(
                image, config.downscale, bottleneck.inputs, bottleneck.channels
            )
            self.measures = wanted(image)
        self.decoder = ImageDecoder(features, channels * config.patch**2, options)
        if config.whole is not None:
            zero(self.encoder.head)
            zero(self.decoder.head)
        self.null = nn.Parameter(torch.zeros(vector)) if vector else None
        set_norms(self, config.groups, config.norm_eps)
        number_dropouts(self)

    @torch.no_grad()
    def start(self, images: Tensor) -> None:
        """Called once, before the first step, where `measures` says so: (n, C, H, W) of the training data, in [-1, 1]."""
        assert isinstance(self.quant_conv, WholeImage)
        assert isinstance(self.post_quant_conv, WholeImage)
        AroundLatent(self.quant_conv, self.post_quant_conv).start(principal(images))

    @property
    def last_layer(self) -> nn.Parameter:
        """The weight of the convolution that gives the image."""
        return self.decoder.head.get_parameter("weight")

    def encode(self, x: Tensor, vector: Tensor | None = None, seeds: Tensor | None = None) -> Tensor:
        """(B, C, H, W) in [-1, 1] -> h (B, bottleneck.inputs, H/f, W/f).

        vector: (B, V); None: the null. seeds: (B,) int64, one stream a sample; needed only where dropout trains.
        """
        h = self.encoder(self.laid(F.pixel_unshuffle(x, self.config.patch)), self.aside(vector, seeds, len(x)))
        return self.quant_conv(h if self.config.whole is None else h + F.pixel_unshuffle(x, self.downscale))

    def decode(self, z: Tensor, vector: Tensor | None = None, seeds: Tensor | None = None) -> Tensor:
        """z (B, bottleneck.channels, H/f, W/f), as the bottleneck gave it -> (B, C, H, W) about [-1, 1]; see `encode`."""
        h = self.post_quant_conv(z)
        return self.image(self.decoder(self.laid(h), self.aside(vector, seeds, len(z))), h)

    def laid(self, x: Tensor) -> Tensor:
        """x (B, C, H, W) in the layout in which convolutions take it fastest.

        On the CPU, maps as small as those of whole images take two thirds of the time with channels last, in training too.
        """
        if self.config.whole is None or x.device.type != "cpu":
            return x
        return x.contiguous(memory_format=torch.channels_last)

    def image(self, patches: Tensor, h: Tensor) -> Tensor:
        """(B, C, H, W) of what the decoder made of h."""
        made = F.pixel_shuffle(patches, self.config.patch)
        return made if self.config.whole is None else made + F.pixel_shuffle(h, self.downscale)

    def forward(
        self, x: Tensor, noise: Tensor | None = None, vector: Tensor | None = None, seeds: Tensor | None = None
    ) -> tuple[Tensor, Coded, Tensor]:
        """The reconstruction (B, C, H, W), the output of the bottleneck, and its input h.

        noise: see `Bottleneck.forward`.
        """
        h = self.encode(x, vector, seeds)
        coded = self.bottleneck(h, noise)
        return self.decode(coded.z, vector, seeds), coded, h

    def with_null(self, vector: Tensor, keep: Tensor) -> Tensor:
        """Vectors (B, V), the null in the rows whose keep (B,) is False."""
        assert self.null is not None
        return torch.where(keep[:, None], vector, self.null.to(vector))

    def aside(self, vector: Tensor | None, seeds: Tensor | None, n: int) -> Aside:
        if vector is None and self.null is not None:
            vector = self.null.expand(n, -1)
        return Aside(vector, mask_bits(seeds))


class FirstStageConfig(Config):
    """The configuration that a latent model needs to rebuild its first stage."""

    network: AutoencoderConfig = Field(description="encoder and decoder of the first stage")
    bottleneck: AnyBottleneck = Field(description="what its latent is")
    channels: Annotated[int, Field(ge=1, description="of the images")]
    vector: Annotated[int, Field(ge=0, description="width of the vector for encoder and decoder")] = 0

    @property
    def deciding(self) -> dict[str, Any]:
        """The settings that affect the result beside the tensors, as JSON values; defaults are left out, as for future keys."""
        found = self.network.model_dump(mode="json", include=set(DECIDING), exclude_defaults=True)
        return found | ({"own": True} if isinstance(self.bottleneck, Vq) and self.bottleneck.own else {})

    def build(self) -> Autoencoder:
        """The first stage, its weights from torch's current generator."""
        return self.network.build(self.channels, self.bottleneck, self.vector)

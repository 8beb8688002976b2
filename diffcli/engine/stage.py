"""A first stage in use: a checkpoint of an autoencoder that turns images into latents and latents into images.

Latents are those that a diffusion model sees: means of a variational bottleneck, or the input of a quantiser, which quantises
when the image is decoded. Networks run in the precision of the loaded checkpoint, all else in float32; for batches see `coding`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.engine.model import Model
from diffcli.engine.tuning import autocast
from diffcli.fields import Fault
from diffcli.networks.coding import decoded, encoded
from diffcli.tasks.autoencoder.autoencoder_task import AutoencoderTask


class StageModel:
    """See the module. channels: of images; latent: channels of a latent; downscale: pixels in the edge of a position of it.

    Raises UserError where the checkpoint is no autoencoder; flag: what named it.
    """

    def __init__(self, model: Model, flag: str = "") -> None:
        if not isinstance(model.task, AutoencoderTask):
            raise UserError(
                f"{flag}{model.path}: was trained as {model.preset.task.noun}, not as an autoencoder",
                "give the run of a first stage, such as that of the preset mnist-vae",
            )
        self.model, self.task = model, model.task
        network = model.task.autoencoder
        self.downscale, self.bottleneck = network.downscale, network.bottleneck
        self.channels, self.latent = model.task.first_stage.channels, network.bottleneck.channels

    @property
    def quantises(self) -> bool:
        return self.bottleneck.bits is not None

    def fault(self, size: Sequence[int]) -> Fault | None:
        """The problem with images of this height and width, and the nearest (height, width) that fits; None: there is none."""
        return self.task.autoencoder.config.misfit(size, f"its downscale {self.downscale}")

    def latent_shape(self, size: Sequence[int]) -> tuple[int, int, int]:
        """The shape of the latent of an image of this height and width."""
        return self.latent, size[0] // self.downscale, size[1] // self.downscale

    @torch.no_grad()
    def encode(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] on the model's device -> latents (B, c, h, w), without noise.

        vector: what it is told of each, (B, V), where it was trained with that; None: nothing.
        """
        with autocast(self.model.device, self.model.precision):
            return self.bottleneck.latent(encoded(self.task.autoencoder, x, vector), None).float()

    @torch.no_grad()
    def decode(self, z: Tensor, vector: Tensor | None = None) -> Tensor:
        """Latents (B, c, h, w) on the model's device -> images (B, C, H, W) in [-1, 1]."""
        with autocast(self.model.device, self.model.precision):
            return decoded(self.task.autoencoder, self.bottleneck.snapped(z), vector).clamp(-1, 1)

    def reconstruct(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) in [-1, 1] on the model's device -> their reconstructions, in [-1, 1]."""
        return self.decode(self.encode(x, vector), vector)

    def describe(self, size: Sequence[int]) -> dict[str, Any]:
        """For a sidecar or report: the shape of a latent of images of this height and width, and its number of codes, if any."""
        shape = self.latent_shape(size)
        bits = self.bottleneck.bits
        return {"latent": list(shape)} | ({} if bits is None else {"codes": round(2**bits)})

"""The first stage of `prep-data latents`: read once, on a device, as a function of images."""

from functools import partial
from pathlib import Path

from torch import Tensor

from diffcli.data.shards import open_shards
from diffcli.engine.distributed import DeviceName, pick_device
from diffcli.engine.stage_reading import read
from diffcli.engine.tuning import tune
from diffcli.networks.coding import encoded
from diffcli.prep.items import SOURCE, LatentOptions


def latent_options(
    source: Path,
    first_stage: Path,
    device: DeviceName,
    size: int | None = None,
    half: bool = True,
    flip_pair: bool = False,
) -> LatentOptions:
    """The options of a set of latents of the prepared set at `source`. Raises UserError where that or the first stage is none.

    first_stage: see `stage_reading.read`; size, half, flip_pair: see LatentOptions.
    """
    open_shards(source, SOURCE)  # checked before weights are read
    place, stage = pick_device(device), read(first_stage, "--first-stage")
    tune(place)
    autoencoder = stage.build(place)

    def encode(x: Tensor) -> Tensor:
        return encoded(autoencoder, x.to(place)).cpu()

    return LatentOptions(
        encode=encode,
        misfit=partial(stage.config.network.misfit, what=f"its downscale {autoencoder.downscale}"),
        first_stage=stage.origin,
        sha256=stage.digest,
        channels=stage.config.channels,
        inputs=autoencoder.bottleneck.inputs,
        downscale=autoencoder.downscale,
        size=size,
        half=half,
        flip_pair=flip_pair,
    )

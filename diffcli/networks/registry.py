"""The kinds of `task.network.kind`."""

from typing import Annotated

from pydantic import Field

from diffcli.networks.dit import DiTConfig
from diffcli.networks.unet import UNetConfig

AnyNetwork = Annotated[UNetConfig | DiTConfig, Field(discriminator="kind")]

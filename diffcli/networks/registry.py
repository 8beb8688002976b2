"""What a preset can name in `task.network.kind` and in `task.conditioners`."""

from typing import Annotated

from pydantic import Field

from diffcli.networks.conditioning import ClassConditionerConfig
from diffcli.networks.dit import DiTConfig
from diffcli.networks.embedding import EmbeddingConditionerConfig, PretrainedConditionerConfig
from diffcli.networks.text import TextConditionerConfig
from diffcli.networks.unet import UNetConfig

AnyNetwork = Annotated[UNetConfig | DiTConfig, Field(discriminator="kind")]
AnyConditioner = Annotated[
    ClassConditionerConfig | TextConditionerConfig | PretrainedConditionerConfig | EmbeddingConditionerConfig,
    Field(discriminator="kind"),
]

"""The conditioners for `task.conditioners` of a preset."""

from typing import Annotated

from pydantic import Field

from diffcli.tasks.conditioners.classes import ClassConditionerConfig
from diffcli.tasks.conditioners.frame_rate import FpsConditionerConfig
from diffcli.tasks.conditioners.given_frames import FramesConditionerConfig
from diffcli.tasks.conditioners.pretrained import PretrainedConditionerConfig
from diffcli.tasks.conditioners.spatial import SpatialConditionerConfig
from diffcli.tasks.conditioners.stored import EmbeddingConditionerConfig
from diffcli.tasks.conditioners.text import TextConditionerConfig

AnyConditioner = Annotated[
    ClassConditionerConfig
    | FpsConditionerConfig
    | FramesConditionerConfig
    | TextConditionerConfig
    | PretrainedConditionerConfig
    | EmbeddingConditionerConfig
    | SpatialConditionerConfig,
    Field(discriminator="kind"),
]

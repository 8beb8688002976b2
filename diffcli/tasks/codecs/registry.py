"""What a preset can name in `task.codec.kind`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from diffcli.tasks.codecs.latent import LatentCodecConfig
from diffcli.tasks.codecs.one_hot import OneHotCodecConfig
from diffcli.tasks.codecs.pixel import PixelCodecConfig


def _of_pixels(codec: Any) -> Any:
    """Pixels were the only codec once, and so need not be named."""
    return {"kind": "pixels", **codec} if isinstance(codec, Mapping) else codec


AnyCodec = Annotated[
    Annotated[PixelCodecConfig | OneHotCodecConfig | LatentCodecConfig, Field(discriminator="kind")],
    BeforeValidator(_of_pixels),
]

"""What a preset can name in `task.codec.kind`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from diffcli.fields import FieldSpec
from diffcli.tasks.codecs.codec import CodecConfig
from diffcli.tasks.codecs.latent import LatentCodecConfig
from diffcli.tasks.codecs.one_hot import OneHotCodecConfig
from diffcli.tasks.codecs.pixel import PixelCodecConfig


def _of_pixels(codec: Any) -> Any:
    """Pixels were the only codec once, and so need not be named."""
    return {"kind": "pixels", **codec} if isinstance(codec, Mapping) else codec


def exchanged(codec: CodecConfig, spec: FieldSpec) -> str:
    """What is to be typed beside the name of a field for a codec that takes it; empty where `codec` does."""
    if spec.kind == "mask" and codec.kind != "one_hot":
        return f" --set 'task.codec={{kind: one_hot, classes: {spec.class_count or 'K'}}}'"
    return " --set 'task.codec={kind: pixels}'" if spec.kind != "mask" and codec.kind == "one_hot" else ""


AnyCodec = Annotated[
    Annotated[PixelCodecConfig | OneHotCodecConfig | LatentCodecConfig, Field(discriminator="kind")],
    BeforeValidator(_of_pixels),
]

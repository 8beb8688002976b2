"""The kinds of `task.codec.kind`."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from diffcli.fields import FieldSpec
from diffcli.tasks.codecs.codec import CodecConfig
from diffcli.tasks.codecs.latent import LatentCodecConfig
from diffcli.tasks.codecs.one_hot import OneHotCodecConfig
from diffcli.tasks.codecs.pixel import PixelCodecConfig


def _of_pixels(codec: Any) -> Any:
    """The kind may be left out for pixels, once the only codec."""
    return {"kind": "pixels", **codec} if isinstance(codec, Mapping) else codec


def exchanged(codec: CodecConfig, spec: FieldSpec) -> str:
    """What to type beside the name of a field to choose a codec that supports it; empty if `codec` does."""
    if spec.kind == "mask" and codec.kind != "one_hot":
        return f" --set 'task.codec={{kind: one_hot, classes: {spec.class_count or 'K'}}}'"
    return " --set 'task.codec={kind: pixels}'" if spec.kind != "mask" and codec.kind == "one_hot" else ""


AnyCodec = Annotated[
    Annotated[PixelCodecConfig | OneHotCodecConfig | LatentCodecConfig, Field(discriminator="kind")],
    BeforeValidator(_of_pixels),
]

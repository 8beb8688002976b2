"""Extractors as the sides ask for them: an extractor of images looks at every frame where both sides are clips."""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from diffcli.engine.score.sides import Side
from diffcli.metrics.extractor import Extractor
from diffcli.metrics.motion.over_frames import OverFrames
from diffcli.metrics.motion.tracking import MOTION, MotionMeasures


@runtime_checkable
class Sized(Protocol):
    """An extractor whose values have the frames of a clip as their first axis."""

    def sized(self, frames: int) -> Extractor: ...


def over_clips(extractor: Extractor, sides: Iterable[Side]) -> Extractor:
    """The same extractor, or for one of images, if every side that is read has clips, one that looks at each frame."""
    read = [side for side in sides if side.read is not None]
    if "image" in extractor.reads and read and all("clip" in side.fields for side in read):
        return OverFrames(extractor)
    return extractor


def without_network(names: Iterable[str]) -> dict[str, Extractor]:
    """Those of the extractors of these names that need neither a network nor a model."""
    return {MOTION: MotionMeasures()} if MOTION in names else {}


def for_side(extractors: Mapping[str, Extractor], side: Side) -> dict[str, Extractor]:
    """The extractors for the clips of a side, whose number of frames several processes must agree on."""
    spec = side.fields.get("clip")
    frames = spec.shape[1] if spec is not None and len(spec.shape) == 4 else None
    return {
        name: extractor.sized(frames) if frames is not None and isinstance(extractor, Sized) else extractor
        for name, extractor in extractors.items()
    }

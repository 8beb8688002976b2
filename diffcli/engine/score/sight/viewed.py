"""Extractors as the sides ask for them: an extractor of images looks at every frame where both sides are clips."""

from collections.abc import Iterable, Mapping
from typing import Protocol, runtime_checkable

from diffcli.config import UserError
from diffcli.engine.score.sides import Side
from diffcli.metrics.extractor import Extractor
from diffcli.metrics.fidelity import Fvd
from diffcli.metrics.metric import Metric
from diffcli.metrics.motion.over_frames import OverFrames
from diffcli.metrics.motion.tracking import MOTION, MotionMeasures


@runtime_checkable
class Sized(Protocol):
    """An extractor whose values have the frames of a clip as their first axis."""

    def sized(self, frames: int) -> Extractor: ...


def check_named(metrics: Iterable[Metric], features: str | None) -> None:
    """Raises UserError where a metric of whole clips is left to the network of images that is the default."""
    if features is None and any(isinstance(metric, Fvd) for metric in metrics):
        hint = "add --features FILE of a TorchScript I3D, r3d_18, or RUN of a classifier of clips"
        raise UserError("--metrics fvd needs a network of clips, and --features names none", hint)


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

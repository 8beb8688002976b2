"""What the preset keys of clips mean, whichever kind of data has them: `frames`, `fps`, `stride`."""

from collections.abc import Iterator

from pydantic import PositiveInt

from diffcli.data.clips.clip_data import clip_specs
from diffcli.data.clips.film import Timing
from diffcli.data.dataset import DataConfig
from diffcli.fields import FieldSpec

Lengths = PositiveInt | tuple[PositiveInt, ...]


def timings(frames: Lengths, fps: float | None, stride: int) -> tuple[Timing, ...]:
    """One for each length, the longest last."""
    lengths = sorted({frames} if isinstance(frames, int) else set(frames))
    return tuple(Timing(length, fps, stride) for length in lengths)


def clip_faults(config: DataConfig, frames: Lengths) -> Iterator[str]:
    """The keys of a config that clips do not have, each with a remedy."""
    if frames == ():
        yield "frames is an empty list; set data.frames=16"
    if config.in_memory:
        yield "in_memory is true, but clips are decoded when they are read; leave data.in_memory out"
    if config.buckets:
        yield "buckets are of images; leave data.buckets out, or make it a list of lengths: data.frames=[8, 16]"
    if config.derived:
        yield "derived fields are made of images, not of clips; leave data.derived out"


def described_clips(config: DataConfig, timing: Timing) -> dict[str, FieldSpec]:
    """The fields that a preset of clips determines before any file is opened."""
    text = {} if config.captions is None else {"text": FieldSpec("text")}
    return clip_specs(config.shape, timing.frames) | text

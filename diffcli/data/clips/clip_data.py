"""Data of clips: `read` gives the fields clip, uint8 (B, C, T, H, W), and fps, float32 (B,), beside labels and columns.

A clip begins where its draw says in training (see `film`), and is the middle of its film without draws. All of its frames are
cropped alike. With several lengths a batch of training has one of them, and the longest is that of the data: previews,
validation and scores have it.
"""

import copy
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.buckets import Framing
from diffcli.data.clips.clip_files import ClipFiles
from diffcli.data.clips.film import MIDDLE, BrokenClip, NoFrames, Timing, share_of, taken
from diffcli.data.columns import each
from diffcli.data.faults import is_momentary
from diffcli.data.files import ARCHIVE_ERRORS
from diffcli.data.images import Column, ImageData
from diffcli.data.pixels import BrokenImage, Place, fit
from diffcli.fields import Batch, FieldSpec

CLIP, FPS = "clip", "fps"


def clip_specs(shape: ImageShape, frames: int) -> dict[str, FieldSpec]:
    """The fields of clips of frames of this shape."""
    channels, height, width = shape
    return {CLIP: FieldSpec("clip", (channels, frames, height, width)), FPS: FieldSpec("number")}


class ClipData(ImageData):
    """Clips that are decoded when they are read. shape: of a frame; timings: one for each length, the longest last.

    remedy: the hint for a clip that cannot be read.
    """

    in_files = True

    def __init__(
        self,
        files: ClipFiles,
        shape: ImageShape,
        timings: Sequence[Timing],
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        columns: Mapping[str, Column] | None = None,
        framing: Framing | None = None,
        remedy: str = BrokenClip.remedy,
    ) -> None:
        super().__init__(shape, labels, classes, columns)
        self.remedy = remedy
        self.files, self.timings = files, tuple(timings)
        self.framing = framing or self.framing
        self.reads_images = False
        self.reads = frozenset({CLIP, FPS})

    def __len__(self) -> int:
        return len(self.files)

    @property
    def timing(self) -> Timing:
        return self.timings[-1]

    @property
    def variants(self) -> tuple[ImageData, ...]:
        return tuple(self._of([timing]) for timing in self.timings)

    @property
    def specs(self) -> dict[str, FieldSpec]:
        own = clip_specs(self.shape, self.timing.frames)
        return {name: spec for name, spec in own.items() if name in self.reads} | super().specs

    def select(self, fields: Collection[str]) -> ImageData:
        chosen = super().select(fields)
        assert isinstance(chosen, ClipData)
        chosen.reads = self.reads & set(fields)
        return chosen

    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        """uint8 (B, C, T, H, W)."""
        return self._clips(indices, draws)[0]

    def read(self, indices: Tensor, draws: Tensor | None = None) -> Batch:
        fields = dict(super().read(indices, draws))
        if self.reads:
            clips, rates = self._clips(indices, draws)
            fields |= {name: value for name, value in ((CLIP, clips), (FPS, rates)) if name in self.reads}
        return fields

    def take(self, index: int, share: float = MIDDLE, at: Place | None = None) -> tuple[np.ndarray, float]:
        """One clip, uint8 (C, T, H, W), and its frames per second. share: see `taken`; at: of its crop. Raises BrokenClip."""
        try:
            with self.files.film(index) as film:
                take = taken(film, self.timing, share, Alike(self.shape, at))
        except NoFrames as error:
            raise self._broken(index, str(error)) from error
        except BrokenImage as error:
            raise self._broken(index, f"{error.name}: {error.reason}") from error
        except (OSError, *ARCHIVE_ERRORS) as error:
            if is_momentary(error):
                raise unreadable_clip(self.files.name(index), error) from error
            raise self._broken(index, str(error) or type(error).__name__) from error
        return np.stack(take.frames, axis=1), take.fps

    def _broken(self, index: int, reason: str) -> BrokenClip:
        return BrokenClip(self.files.name(index), reason, self.remedy)

    def _clips(self, indices: Tensor, draws: Tensor | None) -> tuple[Tensor, Tensor]:
        shape = (self.shape.channels, self.timing.frames, self.shape.height, self.shape.width)
        clips, rates = np.empty((len(indices), *shape), dtype=np.uint8), np.empty(len(indices), dtype=np.float32)
        places = self.framing.places(len(indices), draws)
        shares = [MIDDLE if draw is None else share_of(draw) for draw in each(draws, len(indices))]
        for row, (index, share, at) in enumerate(zip(indices.tolist(), shares, places, strict=True)):
            clips[row], rates[row] = self.take(index, share, at)
        return torch.from_numpy(clips), torch.from_numpy(rates)

    def _of(self, timings: Sequence[Timing]) -> "ClipData":
        made = copy.copy(self)
        made.timings = tuple(timings)
        return made


class Alike:
    """Crops and resizes the frames of one film alike. Raises NoFrames where one has another size than the first."""

    def __init__(self, shape: ImageShape, at: Place | None = None) -> None:
        self.shape, self.at = shape, at
        self.size: tuple[int, int] | None = None

    def __call__(self, picture: Image.Image) -> np.ndarray:
        self.size = self.size or picture.size
        if picture.size != self.size:
            sizes = " and ".join(f"{height}x{width}" for width, height in (self.size, picture.size))
            raise NoFrames(f"its frames have several sizes: {sizes} pixels (HxW)")
        return fit(picture, self.shape, at=self.at)


def unreadable_clip(name: str, error: Exception) -> UserError:
    """The UserError for a clip that the machine cannot read now."""
    problem = f"clip {name} cannot be read: {str(error) or type(error).__name__}"
    return UserError(problem, "run the same command again; if it stays, check the disk")

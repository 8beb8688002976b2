"""Clips through a stage of a cascade that is a model of images: each frame is a picture that conditions it.

All frames of a clip have one seed, so that the noise from which they begin, that of a stochastic sampler and that on the
condition are the same in each: what differs between neighbours comes from the clip, and nothing flickers. The frames are the
images that the stage draws of them alone with this seed.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffcli.engine.distributed import Group
from diffcli.engine.draw.given import from_stage
from diffcli.engine.draw.sample import ImageRequest, sampled, spans
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.model import Model
from diffcli.engine.options.seeds import nth_seed

SHARED = ("seeds", "labels", "prompts")  # entries of a sidecar with one value an image


@dataclass(frozen=True)
class FrameByFrame:
    """An ImageRequest of clips. pictures: the request for all frames, those of the first clip first; clip: of the stage before.

    labels: of the clips, where the stage reads classes.
    """

    pictures: ImageRequest
    frames: int
    clip: Mapping[str, Any]
    labels: Tensor | None

    @property
    def model(self) -> Model:
        return self.pictures.model

    @property
    def n(self) -> int:
        return self.pictures.n // self.frames

    @property
    def batch_size(self) -> int:
        return max(1, self.pictures.batch_size // self.frames)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one clip: channels, frames, height and width."""
        channels, *size = self.pictures.shape
        return channels, self.frames, *size

    @property
    def parts(self) -> list[tuple["FrameByFrame", range]]:
        """All clips are of one size."""
        return [(self, range(self.n))]

    def images(self, rows: range) -> Tensor:
        """The finished clips `rows`: uint8 (B, C, T, H, W) on the model's device."""
        frames = range(rows.start * self.frames, rows.stop * self.frames)
        parts = [sampled(self.pictures, some) for some in spans(frames, self.pictures.batch_size)]
        return torch.cat(parts).unflatten(0, (len(rows), self.frames)).transpose(1, 2)

    def agree(self, group: Group) -> None:
        """Adds the counts of all ranks, on rank 0."""
        self.pictures.agree(group)

    def captions(self) -> list[str]:
        """The caption of each clip. Raises UserError if there are none."""
        return self.pictures.captions()[:: self.frames]

    def describe(self) -> dict[str, Any]:
        """The sidecar: that of the frames, with one entry a clip."""
        record = self.pictures.describe()
        own = {name: value[:: self.frames] for name in SHARED if isinstance(value := record.get(name), list)}
        clip = {name: self.clip[name] for name in ("frames", "fps") if name in self.clip}
        return record | own | {"n": self.n, "clip": clip, "frame_by_frame": True}


def frame_by_frame(
    model: Model,
    options: SampleOptions,
    clips: Tensor,
    record: Mapping[str, Any],
    following: Callable[[SampleOptions, int, Tensor | None], SampleOptions],
    labels: Tensor | None,
    request_of: Callable[..., ImageRequest],
) -> FrameByFrame:
    """The request for clips that a model of images makes of those of an earlier stage, uint8 (K, C, T, H, W).

    record: how these were drawn. following: the options for so many images of these classes. Raises UserError as `request_of`.
    """
    n, frames = len(clips), clips.shape[2]
    pictures = clips.transpose(1, 2).flatten(0, 1)
    every = [i for i in range(n) for _ in range(frames)]
    texts = options.prompts
    shared = options.model_copy(
        update={
            "seed": tuple(nth_seed(options.seed, i) for i in every),
            "prompts": tuple(texts[i % len(texts)] for i in every) if texts else (),
        }
    )
    handed = following(shared, len(pictures), None if labels is None else labels[torch.tensor(every)])
    made = request_of(model, handed, given=from_stage(model, pictures, record))
    return FrameByFrame(made, frames, record.get("clip", {}), None if made.labels is None else labels)

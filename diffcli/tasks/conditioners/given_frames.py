"""Frames of a clip as a condition: the clip where it is given and 0 elsewhere, beside a channel that says where, joined to x.

Which frames are given is drawn for each clip in training, from a mixture of patterns. One network so learns image to video
(`first:1`), prediction (`first:K`), interpolation (`ends:1`) and clips of its own (`none`). Source: Ho et al. 2022, section 3.1
(arXiv 2204.03458), and Voleti et al. 2022, section 3 (MCVD, arXiv 2205.09853), whose masks over time these are.
"""

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor

from diffcli.config import UserError, keys_agree
from diffcli.fields import Batch, FieldSpec, Remedies
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, ConditionerConfig
from diffcli.tasks.conditioners.frame_patterns import FORMS, FramePattern, frame_pattern
from diffcli.transfer import moved

GIVEN = "given"  # field (T,) of a batch: 1 where the frame is given; a batch without it has a pattern drawn


class FramesConditioner(Conditioner):
    """Reads the clip that is modelled, (B, C, T, H, W) in [-1, 1], and shows the network its given frames alone.

    Without `drop` both branches of guidance see them, so that guidance leads towards a text or class alone.
    """

    kind = "frames"

    def __init__(self, config: "FramesConditionerConfig") -> None:
        super().__init__()
        self.config = config
        self.reads = {config.field: FieldSpec("clip", (config.channels, None, None, None))}
        self.shape = CondShape(spatial=config.channels * config.patch**2 + 1)

    @property
    def droppable(self) -> bool:
        return self.config.drop

    def remedies(self, key: str) -> Remedies:
        return Remedies(
            lacking=f"choose data of clips, or name their field: --set {key}.field=NAME",
            kind=f"choose data of clips, or take {key} out of task.conditioners",
            shape=f"use --set {key}.channels={{channels}}",
        )

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """Channels (B, C + 1, T, H, W) of the size of `like`; nothing is given where a batch has neither clip nor `given`."""
        n, frames = len(keep), like.shape[2]
        if GIVEN in batch:
            given = moved(batch[GIVEN], keep.device) > 0.5
        elif self.config.field in batch:
            given = self.drawn(n, frames, noise)
        else:
            given = torch.zeros(n, frames, dtype=torch.bool, device=keep.device)
        if self.config.drop:
            given = given & keep[:, None]
        where = given[:, None, :, None, None]
        shown = where.expand(-1, 1, -1, *like.shape[3:]).to(like.dtype)
        if self.config.field not in batch:
            return Conditioning(spatial=F.pad(shown, (0, 0) * 3 + (self.shape.spatial - 1, 0)))
        clip = moved(batch[self.config.field], keep.device).to(like.dtype)
        return Conditioning(spatial=torch.cat([self._laid(torch.where(where, clip, 0)), shown], dim=1))

    def drawn(self, n: int, frames: int, noise: Noise) -> Tensor:
        """The given frames of n clips of training, bool (B, T), each by a pattern of the mixture."""
        patterns = self.config.patterns
        weights = torch.tensor([weight for _, weight in patterns], dtype=torch.float64)
        bounds = (weights.cumsum(0) / weights.sum()).float()[:-1]
        choice, normal = noise.unit(), noise(torch.empty(n, frames, device=noise.key.device))
        row = torch.searchsorted(moved(bounds, choice.device), choice, right=True)
        given = moved(torch.stack([pattern.mask(frames) for pattern, _ in patterns]), choice.device)[row]
        shares = torch.tensor([pattern.share for pattern, _ in patterns])
        level = moved(torch.special.ndtri(shares), choice.device)[row, None]  # -inf where nothing is given by chance
        return given | ((normal < level) & (normal < normal.amax(dim=1, keepdim=True)))

    def _laid(self, clip: Tensor) -> Tensor:
        """(B, C, T, H, W) -> each `patch` x `patch` pixels of a frame as the channels of one position."""
        if self.config.patch == 1:
            return clip
        folded = F.pixel_unshuffle(clip.transpose(1, 2), self.config.patch)  # (B, T, C p^2, H / p, W / p)
        return folded.transpose(1, 2)


class FramesConditionerConfig(ConditionerConfig):
    """Given frames of the clip that is drawn: its first ones, its last ones, both ends, or any.

    given: patterns with their weights in training; see frame_patterns.
    """

    kind: Literal["frames"] = "frames"
    field: str = Field("clip", pattern=r"^[a-z][a-z0-9_]*$", description="the clip that is modelled: task.field")
    channels: int = Field(3, ge=1, description="of the clip")
    given: dict[str, float] = Field(
        {"none": 0.5, "first:1": 0.5},
        min_length=1,
        description="share of training clips for each pattern of given frames: none, first:K, last:K, ends:K, random:SHARE",
    )
    patch: int = Field(1, ge=1, description="pixels along an edge that become one position: the downscale of latents")
    drop: bool = Field(
        False, description="leave them out in a share task.drop_condition of the samples, so that guidance can use them"
    )

    @field_validator("given")
    @classmethod
    def _named(cls, given: dict[str, float]) -> dict[str, float]:
        for text in given:
            frame_pattern(text)
        return given

    @keys_agree
    def _agree(self) -> Iterator[str]:
        low = next((text for text, weight in self.given.items() if weight < 0), None)
        if low is not None:
            yield f"given.{low} is {self.given[low]}, a share below 0; give 0 or more, or leave it out"
        elif not sum(self.given.values()) > 0:
            yield "given has no share above 0; give one, as given: {first:1: 1}"
        if all(pattern.kind == "none" for pattern, _ in self.patterns):
            yield f"given names no pattern but none, so no frame is ever given; take the conditioner out, or {FORMS}"

    @property
    def patterns(self) -> list[tuple[FramePattern, float]]:
        """The patterns of training with their weights."""
        return [(frame_pattern(text), weight) for text, weight in self.given.items() if weight > 0]

    @property
    def alone(self) -> bool:
        """Whether clips are drawn without any given frame, too, since training has such."""
        return any(pattern.kind in ("none", "random") for pattern, _ in self.patterns)

    @property
    def droppable(self) -> bool:
        return self.drop

    def check_patch(self, key: str, downscale: int) -> None:
        """Raises UserError where frames of pixels would not have the size of latents. key: of this conditioner."""
        if self.patch != downscale:
            raise UserError(
                f"{key}.patch is {self.patch}, but a position of diffusion space is {downscale} pixels wide",
                f"use --set {key}.patch={downscale}",
            )

    def build(self) -> FramesConditioner:
        return FramesConditioner(self)

"""Frames per second as a condition, so that one network learns slow and fast clips."""

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.fields import Batch, FieldSpec, Remedies
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.layers import sinusoid
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner, ConditionerConfig
from diffcli.tasks.conditioners.slots import SMALL
from diffcli.transfer import moved

FPS = "fps"  # the field of clips
OCTAVE = 100.0  # twice the rate is so much further in the sinusoids, whose unit is that of diffusion times


class FpsConditioner(Conditioner):
    """A vector of the logarithm of the frame rate: sinusoids, then two layers. Rate 0 is that of still images, with its own.

    Both branches of guidance receive it: guidance leads towards a text or class, not towards a speed.
    """

    kind = "fps"

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reads = {FPS: FieldSpec("number", ())}
        self.dim = dim
        self.shape = CondShape(vector=dim)
        self.project = nn.Sequential(nn.Linear(dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.still = nn.Parameter(SMALL * torch.randn(dim))

    @property
    def droppable(self) -> bool:
        return False

    def remedies(self, key: str) -> Remedies:
        out = f"take {key} out of task.conditioners"
        return Remedies(lacking=f"choose data of clips, which say their fps, or {out}", kind=out, shape=out)

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """A vector (B, dim). batch["fps"]: (B,), frames per second, above 0; 0 of still images."""
        fps = moved(torch.as_tensor(batch[FPS]), keep.device).float()
        octaves = fps.clamp(min=1e-3).log2()
        moving = self.project(sinusoid(OCTAVE * octaves, self.dim).to(self.still))
        return Conditioning(vector=torch.where(fps[:, None] > 0, moving, self.still))


class FpsConditionerConfig(ConditionerConfig):
    """Frames per second of a clip, added to the time embedding; also where no other condition is given."""

    kind: Literal["fps"] = "fps"
    dim: int = Field(64, ge=2, description="width of the vector of the frame rate")

    @property
    def droppable(self) -> bool:
        return False

    def build(self) -> FpsConditioner:
        return FpsConditioner(self.dim)

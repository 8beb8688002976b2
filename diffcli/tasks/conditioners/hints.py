"""The picture that a branch of control is told; see networks/control.py. It stays in both branches of guidance."""

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import Batch, FieldSpec, listed
from diffcli.networks.conditioning import Conditioning, CondShape, Hint
from diffcli.noise import Noise
from diffcli.tasks.conditioners.conditioner import UNSEEDED, Conditioner
from diffcli.transfer import moved


class HintConditioner(Conditioner):
    """Reads a picture (B, C, H, W) in [-1, 1], or a mask of class numbers, which becomes a channel of 0 and 1 for each class.

    A branch is told levels in [0, 1], as published ones are: black lies beyond the border, too.
    spec: of the field. channels: of what a branch is told.
    """

    kind = "control"
    shape = CondShape()

    def __init__(self, field: str, spec: FieldSpec) -> None:
        super().__init__()
        self.field, self.spec = field, spec
        self.channels = (spec.class_count or 1) if spec.kind == "mask" else spec.sides[0]
        self.reads = {field: spec._replace(shape=(spec.sides[0], None, None))}

    @property
    def droppable(self) -> bool:
        return False

    def forward(self, batch: Batch, keep: Tensor, like: Tensor, noise: Noise = UNSEEDED) -> Conditioning:
        """Its hint at scale 1, for every row."""
        picture = moved(batch[self.field], keep.device)
        if self.spec.kind == "mask":
            numbers = torch.arange(self.channels, device=picture.device)[:, None, None]
            return Conditioning(hints=(Hint((picture == numbers).float()),))
        return Conditioning(hints=(Hint((picture.float() + 1) / 2),))

    def check_size(self, found: tuple[int, ...], size: tuple[int, ...]) -> None:
        """Raises UserError where pictures (..., H, W) do not lie over images of (height, width)."""
        if found[-2:] != size and None not in found[-2:]:
            raise UserError(
                f"'{self.field}' is {listed(found[-2:])} pixels (HxW), but the images that it leads are {listed(size)}",
                "give pictures as large as the images, or files, which are cut and resized",
            )

"""Prepared sets with latents of a first stage in place of the images: `diffcli prep-data latents`.

Each sample has KEY.latent.npy: (C, h, w), or (2, C, h, w) with that of the mirrored image behind it; float16 or float32.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.columns import read_npy
from diffcli.data.field_notes import FieldNote
from diffcli.data.images import Column, EncodedFiles, ImageData
from diffcli.fields import LATENT, FieldSpec, fits, listed


class Latents:
    """The field `latent`. note: the first stage that made it. flip: whether half of the draws use that of the mirrored image.

    stacked: all latents (N, ...), if they are held in memory.
    """

    def __init__(self, files: EncodedFiles, spec: FieldSpec, note: FieldNote, flip: bool) -> None:
        self.files, self.spec, self.note, self.flip = files, spec, note, flip
        self.stacked: Tensor | None = None

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of all latents, in the stored type."""
        return len(self.files) * self.whole(0).nbytes if len(self.files) else 0

    def hold(self) -> None:
        """Reads all of them into memory."""
        first = self.whole(0)
        stacked = first.new_empty(len(self.files), *first.shape)
        for index in range(len(self.files)):
            latent = self.whole(index)
            if latent.dtype.itemsize > stacked.dtype.itemsize:  # of another set, which was stored as float32
                stacked = stacked.to(latent.dtype)
            stacked[index] = latent
        self.stacked = stacked

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """(B, C, h, w) float16 or float32."""
        rows = (
            torch.stack([self.whole(index) for index in indices.tolist()])
            if self.stacked is None
            else self.stacked.index_select(0, indices)
        )
        if not self.note.pair:
            return rows
        turned = (draws & 1) if self.flip and draws is not None else torch.zeros_like(indices)
        return rows[torch.arange(len(rows)), turned]

    def whole(self, index: int) -> Tensor:
        """The stored array of one image."""
        hint = "run `diffcli prep-data latents` again, into another folder; where float16 is too narrow, with --no-half"
        return torch.from_numpy(read_npy(self.files, index, self.checked, "latent", hint))

    def checked(self, array: np.ndarray) -> np.ndarray:
        """The same array. Raises ValueError if it is no latent."""
        shape = array.shape[1:] if self.note.pair else array.shape
        if array.dtype not in (np.float16, np.float32) or not fits(self.spec.shape, shape):
            raise ValueError(f"it is {listed(shape)} of type {array.dtype}, not {listed(self.spec.shape)} of floats")
        if not np.isfinite(array).all():
            raise ValueError("not all of its numbers are finite")
        return array


class LatentImages(ImageData):
    """A set with latents in place of its images, as a column beside labels and other fields."""

    def __init__(
        self,
        latents: Latents,
        shape: ImageShape,
        labels: Tensor | None,
        classes: Sequence[str] | None,
        columns: Mapping[str, Column],
    ) -> None:
        super().__init__(shape, labels, classes, {**columns, LATENT: latents})
        self.latents = latents
        self.reads_images = False
        self.in_files = latents.stacked is None

    def __len__(self) -> int:
        return len(self.latents.files)

    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        raise UserError(
            f"{self.latents.files.name(0).partition(' (')[0]}: the set holds latents, no images",
            "name the set that they were made of, or another one with images",
        )

"""Fields beside the image, read by row: captions, embeddings, pictures that lie over the image, captions made of classes."""

import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data import captions
from diffcli.data.buckets import Framing
from diffcli.data.images import Encoded
from diffcli.data.pixels import NEAREST, Place, decode
from diffcli.data.shards import FieldNote


class Texts:
    """Captions in members of shards or in files: UTF-8, one a line; an epoch draws one of them."""

    def __init__(self, files: Encoded) -> None:
        self.files = files

    def read(self, indices: Tensor, draws: Tensor | None) -> list[str]:
        found = []
        for index, draw in zip(indices.tolist(), each(draws, len(indices)), strict=True):
            lines = captions.from_bytes(self.files.read(index))
            found.append(lines[captions.chosen(len(lines), draw)])
        return found


class Vectors:
    """Embeddings in .npy members: (D,), or (K, D), one row a caption, of which an epoch draws that of its caption.

    A row may be a sequence (L, D). note: their width and the encoder that made them.
    """

    def __init__(self, files: Encoded, note: FieldNote | None = None) -> None:
        self.files, self.note = files, note or FieldNote(kind="vector")

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """float32 (B, D), or (B, L, D)."""
        pairs = zip(indices.tolist(), each(draws, len(indices)), strict=True)
        return torch.from_numpy(np.stack([self._row(index, draw) for index, draw in pairs]))

    def _row(self, index: int, draw: int | None) -> np.ndarray:
        data = io.BytesIO(self.files.read(index))
        try:
            return self._chosen(np.lib.format.read_array(data, allow_pickle=False), draw)
        except (ValueError, EOFError, MemoryError) as error:  # a header can promise any size
            hint = "run `diffcli prep-data` with --embed again"
            raise UserError(f"{self.files.name(index)}: its embedding cannot be read ({error})", hint) from error

    def _chosen(self, array: np.ndarray, draw: int | None) -> np.ndarray:
        if array.dtype.kind not in "fiu" or not 1 <= array.ndim <= 3 or not array.size:
            raise ValueError(f"an array {array.shape} of type {array.dtype}")
        row = (array if array.ndim == 1 else array[captions.chosen(len(array), draw)]).astype(np.float32)
        if self.note.width not in (None, row.shape[-1]):
            raise ValueError(f"it is {row.shape[-1]} wide, others {self.note.width}")
        if not np.isfinite(row).all():
            raise ValueError("not all of its numbers are finite")
        return row


class Pictures:
    """Encoded pictures that lie over the image, such as masks: cropped as the image is, nearest neighbour."""

    def __init__(self, files: Encoded, shape: ImageShape, framing: Framing | None = None) -> None:
        self.files, self.channels = files, shape.channels
        self.framing = framing or Framing(shape[1:])

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """uint8 (B, C, H, W)."""
        shape = ImageShape(self.channels, *self.framing.size_of(indices, draws))
        places = self.framing.places(len(indices), draws)
        return torch.from_numpy(
            np.stack([self._one(index, shape, at) for index, at in zip(indices.tolist(), places, strict=True)])
        )

    def _one(self, index: int, shape: ImageShape, at: Place | None) -> np.ndarray:
        return decode(self.files.read(index), self.files.name(index), shape, NEAREST, at)


class ClassTexts:
    """Captions made of the class: one of the templates, one of its wordings, and one of the names of the class for {name}."""

    def __init__(self, labels: Tensor, templates: Sequence[Sequence[str]], names: Sequence[Sequence[str]]) -> None:
        self.labels, self.templates, self.names = labels, tuple(map(tuple, templates)), tuple(map(tuple, names))

    def read(self, indices: Tensor, draws: Tensor | None) -> list[str]:
        labels = self.labels[indices].tolist()
        return [self._text(label, draw) for label, draw in zip(labels, each(draws, len(indices)), strict=True)]

    def _text(self, label: int, draw: int | None) -> str:
        template, draw = captions.taken(self.templates, draw)
        name, draw = captions.taken(self.names[label], draw)
        wording, _ = captions.taken(template, draw)
        return wording.replace("{name}", name)


def each(draws: Tensor | None, count: int) -> Sequence[int | None]:
    """The draw of each of `count` rows."""
    return [None] * count if draws is None else draws.tolist()

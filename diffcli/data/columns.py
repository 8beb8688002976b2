"""Fields beside the image, read by row: captions, embeddings, masks and other pictures, captions made of classes."""

import copy
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import assert_never

import numpy as np
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data import captions
from diffcli.data.buckets import Framing
from diffcli.data.field_notes import WHITE, FieldNote, empty_file
from diffcli.data.images import Column, EncodedFiles
from diffcli.data.pixels import NEAREST, Place, decode
from diffcli.digest import sha256
from diffcli.fields import FieldSpec, fits, listed

BINARY = 2  # classes of a mask that may be black and white


class Texts:
    """Captions in members of shards or in files: UTF-8, one on each line; each epoch uses one of them."""

    spec = FieldSpec("text")

    def __init__(self, files: EncodedFiles) -> None:
        self.files = files

    def read(self, indices: Tensor, draws: Tensor | None) -> list[str]:
        found = []
        for index, draw in zip(indices.tolist(), each(draws, len(indices)), strict=True):
            try:
                lines = captions.from_bytes(self.files.read(index))
            except UnicodeDecodeError as error:
                problem = f"{self.files.name(index)}: its captions {captions.NOT_UTF8}"
                raise UserError(problem, "run `diffcli prep-data webdataset`, which lists all such samples") from error
            found.append(lines[captions.chosen(len(lines), draw)])
        return found


class Vectors:
    """Embeddings in .npy members: (D,), or (K, D) with one row for each caption; each epoch uses the row of its caption.

    A row may be a sequence (L, D). spec: the form of a row and its width. note: the encoder that made them. folder: of the set.
    """

    def __init__(
        self, files: EncodedFiles, spec: FieldSpec, note: FieldNote | None = None, folder: Path | None = None
    ) -> None:
        self.files, self.spec, self.note, self.folder = files, spec, note, folder

    def empty(self, name: str) -> Tensor | None:
        """The row of a text without a word, float32; None where the set does not have it. name: of the field.

        Raises UserError where its file is not that of the set.
        """
        if self.folder is None or self.note is None or self.note.empty is None:
            return None
        path, hint = self.folder / empty_file(name), "run `diffcli prep-data shards` with the same --embed again"
        if not path.is_file() or sha256(path) != self.note.empty:
            raise UserError(f"{path} is {'not there' if not path.is_file() else 'not that of its set'}", hint)
        return torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32))

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """float32 (B, D), or (B, L, D)."""
        pairs = zip(indices.tolist(), each(draws, len(indices)), strict=True)
        return torch.from_numpy(np.stack([self._row(index, draw) for index, draw in pairs]))

    def _row(self, index: int, draw: int | None) -> np.ndarray:
        hint = "run `diffcli prep-data` with --embed again"
        return read_npy(self.files, index, partial(self._chosen, draw=draw), "embedding", hint)

    def _chosen(self, array: np.ndarray, draw: int | None) -> np.ndarray:
        if array.dtype.kind not in "fiu" or not 1 <= array.ndim <= 3 or not array.size:
            raise ValueError(f"an array {array.shape} of type {array.dtype}")
        row = (array if array.ndim == 1 else array[captions.chosen(len(array), draw)]).astype(np.float32)
        if not fits(self.spec.shape, row.shape):
            raise ValueError(f"it is {listed(row.shape)} a sample, not {listed(self.spec.shape)}")
        if not np.isfinite(row).all():
            raise ValueError("not all of its numbers are finite")
        return row


class Pictures:
    """Encoded pictures of the same scene as the image, cropped alike, resized by nearest neighbour. channels: of each.

    A mask of two classes may be stored in black and white; white is class 1.
    """

    owner = "the set has"  # whose the classes of a mask are

    def __init__(self, files: EncodedFiles, spec: FieldSpec, framing: Framing, channels: int = 1) -> None:
        self.files, self.spec, self.framing, self.channels = files, spec, framing, channels

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """uint8 (B, C, H, W): levels, or the class numbers of masks."""
        shape = ImageShape(self.channels, *self.framing.size_of(indices, draws))
        places = self.framing.places(len(indices), draws)
        return torch.from_numpy(
            np.stack([self._one(index, shape, at) for index, at in zip(indices.tolist(), places, strict=True)])
        )

    def knowing(self, classes: int) -> "Pictures":
        if self.spec.kind != "mask" or self.spec.classes is not None:
            return self
        made = copy.copy(self)
        made.spec, made.owner = self.spec._replace(classes=classes), "the model knows"
        return made

    def _one(self, index: int, shape: ImageShape, at: Place | None) -> np.ndarray:
        picture = decode(self.files.read(index), self.files.name(index), shape, NEAREST, at)
        return self._numbered(picture, index) if self.spec.kind == "mask" else picture

    def _numbered(self, mask: np.ndarray, index: int) -> np.ndarray:
        """The class numbers of a mask. Raises UserError for an unknown class."""
        count = self.spec.class_count
        if count is None:
            return mask
        if count == BINARY:
            mask = np.where(mask == WHITE, np.uint8(1), mask)
        if (highest := int(mask.max())) >= count:
            raise UserError(
                f"{self.files.name(index)}: its mask holds the class {highest}, but {self.owner} the classes 0 to {count - 1}",
                "run `diffcli prep-data` again, into another folder, or mend that mask",
            )
        return mask


class ClassTexts:
    """Captions made of the class: one of the templates, one of its wordings, and one of the names of the class for {name}."""

    spec = FieldSpec("text")

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


def column(files: EncodedFiles, note: FieldNote, framing: Framing, folder: Path | None = None) -> Column:
    """The rows of a field beside the images in shards; framing: the crop of the images; folder: of the set."""
    spec = note.spec(framing.size)
    match note.kind:
        case "text":
            return Texts(files)
        case "vector" | "tokens":
            return Vectors(files, spec, note, folder)
        case "image" | "mask":
            return Pictures(files, spec, framing)
        case "latent":
            raise AssertionError("latents stand in the place of images")
        case "video":
            raise AssertionError("clips are no column of images")
        case never:
            assert_never(never)


def read_npy(
    files: EncodedFiles, index: int, taken: Callable[[np.ndarray], np.ndarray], what: str, hint: str
) -> np.ndarray:
    """`taken` of the array in an .npy member. Raises UserError if it is no array, or if `taken` raises ValueError."""
    data = io.BytesIO(files.read(index))
    try:
        return taken(np.lib.format.read_array(data, allow_pickle=False))
    except (ValueError, EOFError, MemoryError) as error:  # a header can promise any size
        raise UserError(f"{files.name(index)}: its {what} cannot be read ({error})", hint) from error


def each(draws: Tensor | None, count: int) -> Sequence[int | None]:
    """The draw of each of `count` rows."""
    return [None] * count if draws is None else draws.tolist()

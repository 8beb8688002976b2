"""Map-style image data: `read(indices)` gives named fields, from one uint8 tensor in memory or decoded on demand.

Fields: image uint8 (B, C, H, W); label int64 (B,) if the set has classes; columns, such as text, a list of B strings; and
fields derived from the image.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.buckets import Framing
from diffcli.data.derived import Derived, derived_specs
from diffcli.data.files import ARCHIVE_ERRORS
from diffcli.data.listing import Split
from diffcli.data.modes import Range
from diffcli.data.pixels import BrokenImage, Place, decode
from diffcli.fields import Batch, FieldSpec, Specs


class Column(Protocol):
    """A field beside the image; picklable, for the workers of a DataLoader."""

    @property
    def spec(self) -> FieldSpec:
        """The field of its rows."""

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor | list[str]:
        """Rows for int64 indices (B,). draws: as for ImageData.read; None takes the first of several values."""


@runtime_checkable
class MaskColumn(Column, Protocol):
    """A column that may hold masks."""

    def knowing(self, classes: int) -> Column:
        """The same column with this number of classes, if the set does not have one; higher class numbers are refused."""


class ImageOrigin(NamedTuple):
    """The origin of images, for the description of their set.

    files: the encoded files; None: in memory. splits: number of images of each. skipped: broken ones that prep-data left
    out. left_out: files that are no images, by type. notes: on the interpretation of the files.
    """

    files: "NamedFiles | None" = None
    splits: Mapping[Split, int] = MappingProxyType({})
    skipped: int = 0
    left_out: Mapping[str, int] = MappingProxyType({})
    notes: tuple[str, ...] = ()


class ImageData(ABC):
    """Images by index; all of one shape, except with buckets in `framing`, which need draws.

    classes: names of the classes, None without classes. labels: int64 (N,) on the CPU, None without labels.
    columns: the other fields by name. in_files: whether reading opens and decodes files, so that worker processes help.
    origin: the origin of the images, if known. parts: the sets that a mixture consists of.
    """

    in_files = False
    origin: ImageOrigin | None = None
    parts: "tuple[Share, ...]" = ()

    def __init__(
        self,
        shape: ImageShape,
        labels: Tensor | None,
        classes: Sequence[str] | None,
        columns: Mapping[str, Column] | None = None,
    ) -> None:
        self.shape = shape
        self.labels = labels
        self.classes = tuple(classes) if classes is not None else None
        self.columns = dict(columns or {})
        self.derived: tuple[Derived, ...] = ()
        self.reads_images = True
        self.framing = Framing(self.shape[1:])

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    def variants(self) -> "tuple[ImageData, ...]":
        """The forms of training batches, one a batch, such as the lengths of clips; `StepRows` names one."""
        return (self,)

    @abstractmethod
    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        """uint8 (B, C, H, W) for int64 indices (B,), with draws all of one bucket; draws as for `read`."""

    def select(self, fields: Collection[str]) -> "ImageData":
        """The same data, whose `read` returns only these fields (and labels, which cost nothing)."""
        chosen = copy.copy(self)
        chosen.columns = {name: column for name, column in self.columns.items() if name in fields}
        chosen.derived = tuple(each for each in self.derived if each.specs(self._image).keys() & set(fields))
        chosen.reads_images = "image" in fields
        return chosen

    def knowing(self, reads: Specs) -> "ImageData":
        """The same data for a reader with these fields: `read` refuses masks with an unknown class."""
        counts = {name: spec.class_count for name, spec in reads.items() if spec.kind == "mask"}
        chosen = copy.copy(self)
        chosen.columns = {
            name: column.knowing(count) if (count := counts.get(name)) and isinstance(column, MaskColumn) else column
            for name, column in self.columns.items()
        }
        return chosen

    def deriving(self, derived: tuple[Derived, ...]) -> "ImageData":
        """The same data, whose `read` also returns fields derived from the image.

        Raises UserError if a name is taken, or if the images are not stored.
        """
        if not derived:
            return self
        made = copy.copy(self)
        made.derived = derived
        names = [name for each in derived for name in each.specs(self._image)]
        for name in names:
            if name in self.specs or names.count(name) > 1:
                raise UserError(
                    f"data.derived makes the field '{name}', and there is one of that name already",
                    "give it another name: field: NAME",
                )
        made.in_files = True  # worker processes can compute them
        return made

    @property
    def _image(self) -> FieldSpec:
        return FieldSpec("image", tuple(self.shape))

    @property
    def specs(self) -> dict[str, FieldSpec]:
        """The fields that `read` returns. Images and their pictures have other sizes in buckets."""
        image = {"image": self._image} if self.reads_images else {}
        label = {} if self.labels is None else {"label": FieldSpec("classes", (), self._classes(self.labels))}
        columns = {name: column.spec for name, column in self.columns.items()}
        return image | label | columns | derived_specs(self.derived, self._image)

    def _classes(self, labels: Tensor) -> tuple[str, ...] | int | None:
        """The names of the classes, or their number if labels without a name occur."""
        count = int(labels.max()) + 1 if len(labels) else None
        return self.classes if self.classes is not None and (count or 0) <= len(self.classes) else count

    def read(self, indices: Tensor, draws: Tensor | None = None) -> Batch:
        """The named fields of these images. Raises UserError if a file cannot be decoded.

        draws: int64 (B,), random bits of each sample in this epoch (for its crop, its caption); None: nothing is random.
        """
        fields: dict[str, Tensor | list[str]] = {}
        if self.reads_images or self.derived:
            images = self.pixels(indices, draws)
            fields |= {"image": images} if self.reads_images else {}
            for each in self.derived:
                fields |= each.make(images, indices, draws)
        if self.labels is not None:
            fields["label"] = self.labels[indices]
        return fields | {name: column.read(indices, draws) for name, column in self.columns.items()}

    def shown(self, count: int) -> tuple[Batch, Tensor]:
        """Fields of at most `count` images for previews, and their indices: spread evenly, as sorted data begin with a class."""
        count = min(count, len(self))
        rows = torch.arange(count) * len(self) // count
        return self.read(rows), rows


class Share(NamedTuple):
    """A part of a mixture, and its share of the batches from step `first` to step `last`, both included; None: to the end."""

    data: ImageData
    weight: float = 1.0
    first: int = 1
    last: int | None = None


class ChosenImages(ImageData):
    """A selection of rows of other data: row i is row places[i], int64 (n,), of those, with the same random choices."""

    def __init__(self, whole: ImageData, places: Tensor) -> None:
        super().__init__(whole.shape, None if whole.labels is None else whole.labels[places], whole.classes)
        self.whole, self.places, self.framing, self.in_files = whole, places, whole.framing, whole.in_files

    def __len__(self) -> int:
        return len(self.places)

    @property
    def specs(self) -> dict[str, FieldSpec]:
        return self.whole.specs

    def select(self, fields: Collection[str]) -> ImageData:
        return ChosenImages(self.whole.select(fields), self.places)

    def deriving(self, derived: tuple[Derived, ...]) -> ImageData:
        return ChosenImages(self.whole.deriving(derived), self.places)

    def knowing(self, reads: Specs) -> ImageData:
        return ChosenImages(self.whole.knowing(reads), self.places)

    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        return self.whole.pixels(self.places[indices], draws)

    def read(self, indices: Tensor, draws: Tensor | None = None) -> Batch:
        return self.whole.read(self.places[indices], draws)


class MemoryImages(ImageData):
    """All pixels in one uint8 tensor (N, C, H, W) on the host; only batches are copied to the GPU."""

    def __init__(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        columns: Mapping[str, Column] | None = None,
    ) -> None:
        super().__init__(ImageShape(*images.shape[1:]), labels, classes, columns)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        return self.images.index_select(0, indices)


class NamedFiles(Protocol):
    """Files by number; picklable, for the workers of a DataLoader."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The file as the user knows it."""


@runtime_checkable
class EncodedFiles(NamedFiles, Protocol):
    """Image files by number, still encoded."""

    def read(self, index: int) -> bytes: ...


class FileImages(ImageData):
    """Images that are decoded, cropped and resized when they are read. framing: their crop; None: at the centre.

    levels: the values of deep images that are black and white, see `modes.flatten`.
    """

    in_files = True

    def __init__(
        self,
        files: EncodedFiles,
        shape: ImageShape,
        labels: Tensor | None = None,
        classes: Sequence[str] | None = None,
        columns: Mapping[str, Column] | None = None,
        framing: Framing | None = None,
        levels: Range | None = None,
    ) -> None:
        super().__init__(shape, labels, classes, columns)
        self.files, self.levels = files, levels
        self.framing = framing or self.framing

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, indices: Tensor, draws: Tensor | None = None) -> Tensor:
        shape = ImageShape(self.shape.channels, *self.framing.size_of(indices, draws))
        images = np.empty((len(indices), *shape), dtype=np.uint8)
        places = self.framing.places(len(indices), draws)
        for number, (index, at) in enumerate(zip(indices.tolist(), places, strict=True)):
            images[number] = self._decode(index, shape, at)
        return torch.from_numpy(images)

    def _decode(self, index: int, shape: ImageShape, at: Place | None) -> np.ndarray:
        try:
            return decode(self.files.read(index), "", shape, at=at, levels=self.levels)
        except BrokenImage as error:  # only here, because making names costs as much as reading small files
            raise BrokenImage(self.files.name(index), error.reason) from error
        except (OSError, *ARCHIVE_ERRORS) as error:
            raise unreadable(self.files.name(index), error) from error

    @property
    def bytes_in_memory(self) -> int:
        """Bytes of the decoded set."""
        return len(self) * self.shape.channels * self.shape.height * self.shape.width


def unreadable(name: str, error: Exception) -> UserError:
    """The UserError for an image file that cannot be read."""
    problem = f"image {name} cannot be read: {str(error) or type(error).__name__}"
    return UserError(problem, "check that the file is still there, and that its archive is whole")

"""Map-style image data: `read(indices)` gives named fields, from one uint8 tensor in memory or decoded on demand.

Fields: image uint8 (B, C, H, W); label int64 (B,) where the set has classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.files import ARCHIVE_ERRORS
from diffcli.data.pixels import decode


class ImageData(ABC):
    """Images of one shape by index.

    classes: names of the classes, None where there are none. labels: int64 (N,) on the CPU, None where there are none.
    """

    def __init__(self, shape: ImageShape, labels: Tensor | None, classes: Sequence[str] | None) -> None:
        self.shape = shape
        self.labels = labels
        self.classes = tuple(classes) if classes is not None else None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pixels(self, indices: Tensor) -> Tensor:
        """uint8 (B, C, H, W) for int64 indices (B,)."""

    def read(self, indices: Tensor) -> dict[str, Tensor]:
        """The named fields of these images. Raises UserError where a file cannot be decoded."""
        fields = {"image": self.pixels(indices)}
        return fields if self.labels is None else fields | {"label": self.labels[indices]}

    def to(self, device: torch.device | str) -> "ImageData":
        """The same data with its pixels on a device; files stay files."""
        return self


class MemoryImages(ImageData):
    """All pixels in one uint8 tensor (N, C, H, W), on the CPU or a GPU."""

    def __init__(self, images: Tensor, labels: Tensor | None = None, classes: Sequence[str] | None = None) -> None:
        super().__init__(ImageShape(*images.shape[1:]), labels, classes)
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, indices: Tensor) -> Tensor:
        return self.images.index_select(0, indices.to(self.images.device, non_blocking=True))

    def to(self, device: torch.device | str) -> "MemoryImages":
        return MemoryImages(self.images.to(device), self.labels, self.classes)


class Encoded(Protocol):
    """Image files by number, still encoded; picklable, for the workers of a DataLoader."""

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The file as the user knows it."""

    def read(self, index: int) -> bytes: ...


class FileImages(ImageData):
    """Images decoded, cropped and resized when they are asked for."""

    def __init__(
        self, files: Encoded, shape: ImageShape, labels: Tensor | None = None, classes: Sequence[str] | None = None
    ) -> None:
        super().__init__(shape, labels, classes)
        self.files = files

    def __len__(self) -> int:
        return len(self.files)

    def pixels(self, indices: Tensor) -> Tensor:
        images = torch.empty(len(indices), *self.shape, dtype=torch.uint8)
        for image, index in zip(images, indices.tolist(), strict=True):
            image.copy_(torch.from_numpy(self._decode(index)))
        return images

    def _decode(self, index: int) -> np.ndarray:
        name = self.files.name(index)
        try:
            data = self.files.read(index)
        except (OSError, *ARCHIVE_ERRORS) as error:
            problem = f"image {name} cannot be read: {str(error) or type(error).__name__}"
            raise UserError(problem, "check that the file is still there, and that its archive is whole") from error
        return decode(data, name, self.shape)

    @property
    def bytes_in_memory(self) -> int:
        """What the decoded set would take."""
        return len(self) * self.shape.channels * self.shape.height * self.shape.width

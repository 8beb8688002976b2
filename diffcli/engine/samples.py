"""Finished images in memory: as tensors, arrays and Pillow images, shown in a notebook, and saved as the command line does."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from diffcli.config import UserError
from diffcli.engine.arguments import SAVE, path_of, readable, several, whole
from diffcli.engine.draw import output
from diffcli.engine.draw.out_files import ANIMATIONS
from diffcli.engine.draw.sample import Finished
from diffcli.engine.draw.sheets.arrangement import CLIPS, Arrangement


class Samples:
    """Finished images or clips, in order; a clip is shown as a row of its frames. labels: int64 (n,), None without classes.

    record: all that is needed to draw them again. stages: the images of the earlier stages of a cascade, in order.
    """

    def __init__(
        self, tensor: Tensor, labels: Tensor | None, record: dict[str, Any], stages: Sequence["Samples"] = ()
    ) -> None:
        self.tensor = tensor  # uint8 (n, C, H, W), or clips (n, C, T, H, W), on the CPU
        self.labels = labels
        self.record = record
        self.stages = tuple(stages)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, index: int) -> Image.Image:
        if self.tensor.ndim == CLIPS:
            return _picture(Arrangement().sheet(self.tensor[index][None]))
        return _picture(self.tensor[index].permute(1, 2, 0).numpy())

    def __iter__(self) -> Iterator[Image.Image]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        size = "x".join(map(str, self.tensor.shape[1:]))
        return f"<{len(self)} images of {size} from {self.record['checkpoint']}>"

    def numpy(self) -> np.ndarray:
        """uint8 (n, H, W, C), of clips (n, T, H, W, C)."""
        return self.tensor.movedim(1, -1).numpy()

    def pil(self) -> list[Image.Image]:
        """One Pillow image each, grey or RGB."""
        return list(self)

    def frames(self, index: int) -> list[Image.Image]:
        """The frames of a clip; of an image itself alone."""
        one = self.tensor[index] if self.tensor.ndim == CLIPS else self.tensor[index][:, None]
        return [_picture(frame.numpy()) for frame in one.permute(1, 2, 3, 0)]

    def pictures(self) -> "Tensor | list[Image.Image]":
        """What another model takes them as: images, or the tensor of clips."""
        return self.tensor if self.tensor.ndim == CLIPS else list(self)

    def grid(
        self, columns: int | None = None, scale: int | None = None, captions: Sequence[str] | None = None
    ) -> Image.Image:
        """All images in one picture, row by row; the default layout is that of `diffcli sample`.

        scale: each pixel becomes a square of scale x scale. captions: a text under each image.
        """
        if columns is not None:
            columns = whole("columns", columns, 1)
        if scale is not None:
            scale = whole("scale", scale, 1)
        if captions is not None:
            captions = [str(each) for each in several("captions", captions)]
            if len(captions) != len(self):
                problem = f"captions are {len(captions)}, the images {len(self)}"
                raise UserError(problem, "give one caption an image")
        return _picture(Arrangement(scale, columns, captions).sheet(self.tensor, self.record))

    def save(self, path: str | Path) -> Path:
        """Writes them as `diffcli sample --out` does, with the record beside: a grid (.png), arrays (.npz), or a folder; clips
        also as .mp4, .webp or .gif.
        """
        return readable(lambda: self._save(path_of("path", path)), SAVE)

    def _save(self, path: Path) -> Path:
        output.check_pictures(path, tuple(self.tensor.shape[1:]), Path(self.record["checkpoint"]))
        output.check_output(path, (".png", ".npz", *ANIMATIONS), folder_allowed=True)
        output.write(path, [Finished(self.tensor, self.labels)], self.record)
        return path

    def _repr_png_(self) -> bytes:
        """The picture that a notebook shows."""
        file = io.BytesIO()
        self.grid().save(file, "PNG")
        return file.getvalue()


def _picture(array: np.ndarray) -> Image.Image:
    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)

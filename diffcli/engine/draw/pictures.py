"""Images as bytes, grids and files. Inside, images are float (B, C, H, W) in [-1, 1]; bytes are rounded and clamped."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffcli.digest import sha256

GAP = 2  # pixels between the images of a grid
READABLE = 96  # pixels that an image is wide, or more, where a caption stands under it
LETTERS = 12  # pixels that they are high
LINE = 15  # pixels from one line of a caption to the next
MOST_LINES = 4
ELLIPSIS = "..."
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


class MemoryPicture:
    """A picture in memory, where the name of a file may stand. image: of mode L or RGB."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def __str__(self) -> str:
        return f"(a picture of {self.image.height}x{self.image.width})"

    def describe(self) -> dict[str, str]:
        """For sidecars: its mode, size and pixels."""
        digest = hashlib.sha256(self.image.tobytes()).hexdigest()
        return {"picture": f"{self.image.mode} {self.image.width}x{self.image.height}", "sha256": digest}


class FilePicture(MemoryPicture):
    """A picture file that has been read."""

    def __init__(self, path: Path, image: Image.Image) -> None:
        super().__init__(image)
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def describe(self) -> dict[str, str]:
        return {"file": str(self.path), "sha256": sha256(self.path)}


def grid(images: Tensor, columns: int | None = None) -> np.ndarray:
    """uint8 (B, C, H, W) -> one uint8 picture (H', W', C), row by row in order, on black."""
    n, channels, height, width = images.shape
    columns = min(columns or squarest(n), n)
    rows = math.ceil(n / columns)
    sheet = np.zeros((rows * (height + GAP) + GAP, columns * (width + GAP) + GAP, channels), np.uint8)
    for i, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
        top, left = GAP + (i // columns) * (height + GAP), GAP + (i % columns) * (width + GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def squarest(n: int) -> int:
    """Columns for n images: nearly a square, without a gap in the last row where that stays within two to one."""
    root = math.ceil(math.sqrt(n))
    return next((c for c in range(root, math.ceil(math.sqrt(2 * n)) + 1) if n % c == 0), root)


def captioned(images: Tensor, captions: Sequence[str]) -> Tensor:
    """uint8 (B, C, H, W), C 1 or 3 -> the same enlarged to a width that can be read under, each above its caption.

    The font is Pillow's own, the same on every machine; it has the letters of ASCII, others show as boxes.
    """
    factor = math.ceil(READABLE / images.shape[3])
    large = images.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    font = ImageFont.load_default(LETTERS)
    told = [lines(caption, large.shape[3] - 2 * GAP, font) for caption in captions]
    strips = [strip(each, (large.shape[3], LINE * max(map(len, told))), font) for each in told]
    under = torch.stack(strips)[:, None].expand(-1, images.shape[1], -1, -1)  # white on black in every channel
    return torch.cat([large, under], dim=2)


def strip(told: Sequence[str], size: tuple[int, int], font: Font) -> Tensor:
    """uint8 (H, W) of size (W, H): lines of text, each in the middle, white on black."""
    image = Image.new("L", size)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(told):
        draw.text((size[0] / 2, LINE * (i + 0.5)), line, fill=255, font=font, anchor="mm")
    return torch.from_numpy(np.array(image))


def lines(text: str, width: int, font: Font) -> list[str]:
    """A text broken into lines that fit a width in pixels, at most `MOST_LINES`; what is left out shows as an ellipsis."""
    found = list(islice(broken(text, width, font), MOST_LINES + 1))
    if len(found) > MOST_LINES:
        last = found[MOST_LINES - 1]
        while font.getlength(last + ELLIPSIS) > width:
            last = last[:-1]
        found[MOST_LINES - 1 :] = [last + ELLIPSIS]
    return found


def broken(text: str, width: int, font: Font) -> Iterator[str]:
    """Lines of whole words where they fit, of as many letters as fit where a word alone does not."""
    line = ""
    for word in text.split():
        if line and font.getlength(f"{line} {word}") <= width:
            line = f"{line} {word}"
            continue
        if line:
            yield line
        while fits := next((n for n in range(1, len(word)) if font.getlength(word[: n + 1]) > width), 0):
            yield word[:fits]
            word = word[fits:]
        line = word
    yield line


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes a uint8 picture (H, W, C); one channel becomes a grey file."""
    imageio.imwrite(path, picture[..., 0] if picture.shape[-1] == 1 else picture, extension=".png")

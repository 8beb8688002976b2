"""Pictures in memory and in files. Inside, images are float (B, C, H, W) in [-1, 1]; bytes are rounded and clamped."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
from PIL import Image

from diffcli.digest import sha256


class MemoryPicture:
    """A picture in memory, in place of a file name. image: of mode L or RGB."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image

    def __str__(self) -> str:
        return f"(a picture of {self.image.height}x{self.image.width})"

    def describe(self) -> dict[str, str]:
        """For sidecars: its mode, size and pixels."""
        digest = hashlib.sha256(self.image.tobytes()).hexdigest()
        return {"picture": f"{self.image.mode} {self.image.width}x{self.image.height}", "sha256": digest}


class MemoryClip(MemoryPicture):
    """A clip in memory. frames: at least one, of mode L or RGB and of one size; `image` is the first."""

    def __init__(self, frames: Sequence[Image.Image]) -> None:
        super().__init__(frames[0])
        self.frames = tuple(frames)

    def __str__(self) -> str:
        return f"(a clip of {len(self.frames)}x{self.image.height}x{self.image.width})"

    def describe(self) -> dict[str, str]:
        digest = hashlib.sha256(b"".join(frame.tobytes() for frame in self.frames)).hexdigest()
        return {
            "clip": f"{self.image.mode} {self.image.width}x{self.image.height}, {len(self.frames)} frames",
            "sha256": digest,
        }


class FilePicture(MemoryPicture):
    """A picture file that has been read."""

    def __init__(self, path: Path, image: Image.Image) -> None:
        super().__init__(image)
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def describe(self) -> dict[str, str]:
        return {"file": str(self.path), "sha256": sha256(self.path)}


def write_png(path: Path, picture: np.ndarray) -> None:
    """Writes a uint8 picture (H, W, C); one channel becomes a grey file."""
    grey = picture.shape[-1] == 1
    path.write_bytes(imageio.imwrite("<bytes>", picture[..., 0] if grey else picture, extension=".png"))

"""Films of still pictures: animations that Pillow reads (GIF, WebP), and folders of numbered frames."""

import io
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

from PIL import Image

from diffcli.config import UserError
from diffcli.data.clips.film import TOLERANCE, Film, NoFrames, Shot
from diffcli.data.modes import flatten
from diffcli.data.pixels import MAX_PIXELS, open_image

FORMATS = ("GIF", "WEBP")
UNTIMED = 0.1  # seconds of a frame whose duration is 0, as browsers show it
MILLISECONDS = 1000


def animated(head: bytes) -> bool:
    """Whether a file that begins so is an animation, or a GIF, which may be one."""
    return head.startswith((b"GIF87a", b"GIF89a")) or (
        head[:4] == b"RIFF" and head[8:16] == b"WEBPVP8X" and bool(head[20:21]) and bool(head[20] & 2)
    )


@contextmanager
def animation(data: bytes) -> Iterator["AnimationFilm"]:
    """The film in a GIF or WebP. Raises NoFrames if it cannot be decoded."""
    try:
        yield AnimationFilm(data)
    except (MemoryError, UserError, NoFrames):
        raise
    except Exception as error:  # Pillow's parsers raise nearly anything on garbled files
        raise NoFrames(f"it cannot be decoded ({str(error) or type(error).__name__})") from error


class AnimationFilm(Film):
    """A GIF or WebP, which is decoded from its beginning, since each frame changes the one before. Alpha lies on white."""

    def __init__(self, data: bytes) -> None:
        self.image = _animation(data)
        self.lasting = [_lasting(self.image, number) for number in range(getattr(self.image, "n_frames", 1))]
        self.times = [0.0, *accumulate(self.lasting)][:-1]
        self.seconds = sum(self.lasting)
        self.rate = len(self.lasting) / self.seconds

    @property
    def size(self) -> tuple[int, int]:
        return self.image.height, self.image.width

    def shots(self, start: float) -> Iterator[Shot]:
        first = max(0, bisect_right(self.times, start + TOLERANCE) - 1)
        for number in range(first, len(self.times)):
            yield Shot(self.times[number], self.lasting[number], partial(self._picture, number))

    def _picture(self, number: int) -> Image.Image:
        self.image.seek(number)
        return flatten(self.image.copy())


def _animation(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise NoFrames(f"its frames have more than {MAX_PIXELS:,} pixels")
    return image


def _lasting(image: Image.Image, number: int) -> float:
    """Seconds for which a frame is shown."""
    image.seek(number)
    image.load()
    return float(image.info.get("duration") or 0) / MILLISECONDS or UNTIMED


class FolderFilm(Film):
    """Pictures of these names in order, `rate` of them a second. read: gives the bytes of one by its number."""

    def __init__(self, names: Sequence[str], rate: float, read: Callable[[int], bytes]) -> None:
        self.names, self.rate, self.read = names, rate, read
        self.seconds = len(names) / rate

    @property
    def size(self) -> tuple[int, int]:
        image = self._picture(0)
        return image.height, image.width

    def shots(self, start: float) -> Iterator[Shot]:
        for number in range(int((start + TOLERANCE) * self.rate), len(self.names)):
            yield Shot(number / self.rate, 1 / self.rate, partial(self._picture, number))

    def _picture(self, number: int) -> Image.Image:
        return open_image(self.read(number), self.names[number])

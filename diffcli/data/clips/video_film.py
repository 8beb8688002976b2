"""Films in MP4, MOV, WebM, Matroska and AVI, decoded by PyAV from the key frame before the first frame that is needed.

PyAV brings FFmpeg's libraries as one wheel for every system and every release of torch; each wheel of torchcodec fits one
release of torch and needs an FFmpeg on the machine. A file is opened as what its first bytes say, since a stranger's playlist
could name any other file. One frame is held beside those that are asked for.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import numpy as np
from PIL import Image

from diffcli.config import UserError
from diffcli.data.clips.film import TOLERANCE, Film, NoFrames, Shot
from diffcli.data.faults import is_momentary

LOOK_AT = 16  # bytes that tell a container
BOXES = frozenset({b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"})  # of MP4 and MOV
MOST_PIXELS = 1 << 25  # of a frame: 8K is 2^25
HD = 720  # rows from which players take a film that does not say its matrix for BT.709
UNSPECIFIED = 2  # of FFmpeg's matrices
RGB_MATRIX = 0
BT709, BT601 = 1, 5
LIMITED, FULL = 1, 2
MICROSECONDS = 1_000_000  # units of a container's length in a second
FULL_FORMATS = ("yuvj", "rgb", "bgr", "gbr", "gray", "pal8", "argb", "abgr", "mono")


def library() -> ModuleType:
    """PyAV. Raises UserError where it is not installed."""
    try:
        import av
    except ImportError as error:
        raise UserError(
            "video files are read and written by PyAV, which is not installed", "pip install 'diffcli[video]'"
        ) from error
    av.logging.set_level(None)  # FFmpeg's remarks on damaged files would go to the terminal
    return av


def container_of(head: bytes) -> str | None:
    """FFmpeg's demuxer for a file that begins so; None for all that is no film."""
    if head[4:8] in BOXES:
        return "mov"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "matroska"
    return "avi" if head[:4] == b"RIFF" and head[8:12] == b"AVI " else None


@contextmanager
def opened(file: IO[bytes] | Path) -> Iterator["VideoFilm"]:
    """The film in a file. Raises NoFrames if it is none, or if it cannot be decoded, and OSError for faults of the machine."""
    av = library()
    head = _head(file)
    demuxer = container_of(head)
    if demuxer is None:
        raise NoFrames("it is empty" if not head else "it is none of MP4, MOV, WebM, Matroska, AVI")
    try:
        given = str(file) if isinstance(file, Path) else file
        with av.open(
            given, format=demuxer, metadata_errors="ignore", options={"protocol_whitelist": "file"}
        ) as container:
            yield VideoFilm(container)
    except av.FFmpegError as error:
        if is_momentary(error):
            raise
        raise NoFrames(f"it cannot be decoded ({error.strerror or type(error).__name__})") from error


def _head(file: IO[bytes] | Path) -> bytes:
    if isinstance(file, Path):
        with file.open("rb") as opened_file:
            return opened_file.read(LOOK_AT)
    head = file.read(LOOK_AT)
    file.seek(0, io.SEEK_SET)
    return head


class VideoFilm(Film):
    """The first video stream of a container, but for pictures that are attached to sound."""

    def __init__(self, container: Any) -> None:
        av = library()
        attached = av.stream.Disposition.attached_pic
        streams = [each for each in container.streams.video if not each.disposition & attached]
        if not streams:
            raise NoFrames("it has sound alone" if container.streams.audio else "it has no pictures")
        self.container, self.stream = container, streams[0]
        self.stream.codec_context.thread_count = 1  # a loader has a process for each core
        self.base = float(self.stream.time_base)
        self.offset = (self.stream.start_time or 0) * self.base
        width, height = self.stream.codec_context.width, self.stream.codec_context.height
        if width * height > MOST_PIXELS:
            raise NoFrames(f"its frames have more than {MOST_PIXELS:,} pixels")
        self.seconds, rate = self._length(), self.stream.average_rate or self.stream.guessed_rate
        if not rate or not self.seconds:
            raise NoFrames("it holds no frame")
        self.rate = float(rate)

    def _length(self) -> float:
        """Seconds according to the header, where it says so."""
        if self.stream.duration:
            return float(self.stream.duration * self.base)
        if self.container.duration:
            return float(self.container.duration) / MICROSECONDS
        return self.measured()

    def measured(self) -> float:
        end = 0.0
        for packet in self.container.demux(self.stream):  # decodes nothing
            if packet.pts is not None:
                end = max(end, (packet.pts + (packet.duration or 0)) * self.base - self.offset)
        self.container.seek(0)
        return end

    @property
    def size(self) -> tuple[int, int]:
        """Height and width as stored."""
        return self.stream.codec_context.height, self.stream.codec_context.width

    def shots(self, start: float) -> Iterator[Shot]:
        held: Shot | None = None
        for shot in self._near(start):
            if held is not None and shot.time > start + TOLERANCE:
                yield held
            held = shot
        if held is not None:
            yield held

    def _near(self, start: float) -> Iterator[Shot]:
        """The frames from one at or before `start`: from the key frame before it, or from the first if that lies behind it."""
        if start > 0:
            self.container.seek(round((start + self.offset) / self.base), stream=self.stream)
            shots = self._decoded(None)
            first = next(shots, None)
            if first is not None and first.time <= start + TOLERANCE:
                yield first
                yield from shots
                return
            self.container.seek(round(self.offset / self.base), stream=self.stream)
        yield from self._decoded(0.0)

    def _decoded(self, first: float | None) -> Iterator[Shot]:
        """The frames from where the container stands. first: the time of the first one, if frames should have no time stamps."""
        time = first
        for frame in self.container.decode(self.stream):
            if frame.pts is not None:
                time = frame.pts * self.base - self.offset
            elif time is None:
                continue
            seconds = (frame.duration or 0) * self.base or 1 / self.rate
            yield Shot(time, seconds, partial(picture, frame))
            time += seconds


def picture(frame: Any) -> Image.Image:
    """A frame in RGB of 256 levels, upright.

    Limited range (16 to 235) becomes full. A film that does not name its matrix has that of BT.709 from 720 rows on, else BT.601.
    """
    av = library()
    matrix = frame.colorspace
    if matrix == UNSPECIFIED:
        matrix = BT709 if frame.height >= HD else BT601
    full = frame.color_range == FULL or frame.format.name.startswith(FULL_FORMATS)
    colours = {} if matrix == RGB_MATRIX else {"src_colorspace": matrix, "dst_colorspace": matrix}
    how = av.video.reformatter.Interpolation
    made = frame.reformat(
        format="rgb24",
        src_color_range=FULL if full else LIMITED,
        dst_color_range=FULL,
        interpolation=how.BILINEAR | how.ACCURATE_RND | how.FULL_CHR_H_INT,
        threads=1,
        **colours,
    )
    return Image.fromarray(upright(made.to_ndarray(), placing(frame)))


def placing(frame: Any) -> np.ndarray | None:
    """The matrix that places a pixel (x, y) as it is shown, as (x, y) @ matrix, up to a factor; None: as it is stored."""
    for each in frame.side_data:
        if each.type.name == "DISPLAYMATRIX":
            return np.frombuffer(bytes(each), dtype=np.int32).reshape(3, 3)[:2, :2].astype(np.float64)
    return None


def upright(pixels: np.ndarray, matrix: np.ndarray | None) -> np.ndarray:
    """Pixels (H, W, C) mirrored and turned by quarters as a matrix says. Source: ISO/IEC 14496-12, 8.3.2 (tkhd)."""
    if matrix is None:
        return pixels
    if np.linalg.det(matrix) < 0:  # mirrored from left to right, then turned
        pixels, matrix = pixels[:, ::-1], matrix * [[-1], [1]]
    turns = round(np.arctan2(-matrix[0, 1], matrix[0, 0]) / (np.pi / 2)) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns))

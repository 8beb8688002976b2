"""Writes pictures as a film: .mp4, .webp, .gif or a folder of PNGs; what was written is read back and compared.

An .mp4 is H.264 in the form that all players show: 4:2:0, limited range, matrix of BT.709, all of it said in the file. Grey
levels of smooth pictures come back within 2, at sharp edges single pixels within 7; colours have half the resolution. It has even
sides: an odd one gets its last row or column twice.
A .webp has every level as it is if `exact`. A .gif has 256 colours a frame: its own where it has no more. Times in a .gif are
in hundredths of a second and in a .webp in thousandths: each frame begins at the last such time that is not after its own, so
that the rate is kept on average, and no frame is missed at its time.
"""

import errno
import io
import math
import shutil
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffcli.config import UserError
from diffcli.data.clips.clip_files import RATE_FILE

TICKS = {".gif": 100, ".webp": 1000}  # units of time in a second
FASTEST = {".gif": 50, ".webp": 1000, ".mp4": 1000}  # frames a second; viewers show a faster .gif at 10
CRF = 8  # of H.264: the lowest at which a smaller file costs no grey level
LEVELS = "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:flags=bicubic+accurate_rnd+full_chroma_int"
TOLD = "setparams=range=tv:colorspace=bt709:color_primaries=bt709:color_trc=bt709"
MILLISECONDS = 1000
BEHIND = 1e-6  # of a unit of time: what rounding may put a time before itself


def write_frames(path: Path, frames: Sequence[np.ndarray], fps: float, hold: float = 0.0, exact: bool = False) -> None:
    """Writes uint8 (H, W, C) pictures of one size, C 1 or 3, as what the suffix of `path` says; none: a folder of PNGs.

    hold: seconds that the last one stays, at least. exact: a .webp without loss. Raises UserError for a rate that the format
    cannot have, OSError where it cannot be written whole, and ImportError where a package is missing.
    """
    check_rate(path, fps)
    suffix = path.suffix.lower()
    if suffix == "":
        _write_folder(path, frames, fps)
    elif suffix == ".mp4":
        _write_mp4(path, frames, fps, hold)
    else:
        data = encoded(
            suffix, frames, fps, hold, exact
        )  # in memory: an encoder that fails tries again when it is forgotten
        path.write_bytes(data)


def check_rate(path: Path, fps: float) -> None:
    """Raises UserError where a film of this name cannot have so many frames a second."""
    suffix = path.suffix.lower()
    most = FASTEST.get(suffix, math.inf)
    if fps > most:
        others = [name for name, highest in FASTEST.items() if highest >= fps]
        raise UserError(
            f"--fps {fps:g}: a {suffix} shows at most {most} frames a second",
            " or ".join([f"use --fps {most}", *others]),
        )


def starts(count: int, fps: float, ticks: int) -> list[int]:
    """The time of each frame and of the end of the last one, in units of which a second has `ticks`."""
    return [int(number * ticks / fps + BEHIND) for number in range(count + 1)]


def _write_folder(path: Path, frames: Sequence[np.ndarray], fps: float) -> None:
    path.mkdir(exist_ok=True)
    digits = max(3, len(str(len(frames) - 1)))
    for number, frame in enumerate(frames):
        _image(frame).save(path / f"{number:0{digits}d}.png")
    (path / RATE_FILE).write_text(f"{fps:g}\n")


def _image(frame: np.ndarray) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(frame[..., 0] if frame.shape[-1] == 1 else frame))


def encoded(suffix: str, frames: Sequence[np.ndarray], fps: float, hold: float = 0.0, exact: bool = False) -> bytes:
    """The bytes of a .gif or .webp; see `write_frames`. Raises OSError where they do not hold what was written."""
    ticks = TICKS[suffix]
    times = starts(len(frames), fps, ticks)
    times[-1] = max(times[-1], times[-2] + round(hold * ticks))
    lasting = [(after - before) * MILLISECONDS // ticks for before, after in pairwise(times)]
    images = [_image(frame) for frame in frames]
    how: dict[str, Any] = {"optimize": False} if suffix == ".gif" else {"lossless": exact, "quality": 90, "method": 3}
    file = io.BytesIO()
    kind = suffix.removeprefix(".").upper()
    images[0].save(file, kind, save_all=True, append_images=images[1:], duration=lasting, loop=0, **how)
    _check_animation(file.getvalue(), images[0].size, sum(lasting))
    return file.getvalue()


def _check_animation(data: bytes, size: tuple[int, int], milliseconds: int) -> None:
    """Raises OSError where an animation has another size or length. Encoders join equal frames, so these are not counted."""
    with Image.open(io.BytesIO(data)) as image:
        total, count = 0, getattr(image, "n_frames", 1)
        for number in range(count):
            image.seek(number)
            image.load()
            total += round(image.info.get("duration", milliseconds))
        if image.size != size or (
            count > 1 and total != milliseconds
        ):  # of equal frames some formats keep a still picture
            raise OSError(
                errno.EIO, f"the encoder wrote {image.size} pixels for {total} ms, not {size} for {milliseconds}"
            )


def _write_mp4(path: Path, frames: Sequence[np.ndarray], fps: float, hold: float) -> None:
    """H.264. Raises OSError, also where the encoder stopped early and kept silent about it."""
    from imageio_ffmpeg import write_frames as encoder

    height, width = (side + side % 2 for side in frames[0].shape[:2])
    grey = frames[0].shape[-1] == 1
    writer = encoder(
        str(path),
        (width, height),
        pix_fmt_in="gray" if grey else "rgb24",
        fps=fps,
        codec="libx264",
        quality=None,
        macro_block_size=1,
        ffmpeg_log_level="quiet",
        output_params=["-crf", str(CRF), "-vf", f"{LEVELS},{TOLD}"],
    )
    shown = [*frames, *[frames[-1]] * round(hold * fps)]
    try:
        writer.send(None)
        for frame in shown:
            edges = ((0, height - frame.shape[0]), (0, width - frame.shape[1]), (0, 0))
            writer.send(np.ascontiguousarray(np.pad(frame, edges, mode="edge")))
        writer.close()
    except OSError as error:
        raise OSError(error.errno or errno.EIO, _stopped(path, error)) from error
    if not film_ends(path):
        raise OSError(errno.EIO, _stopped(path, None))
    _check_film(path, len(shown), fps, (width, height))


def _check_film(path: Path, count: int, fps: float, size: tuple[int, int]) -> None:
    """Raises OSError where a film has other frames than were written."""
    from imageio_ffmpeg import read_frames

    read: Iterator[Any] = read_frames(str(path))
    about = next(read)
    found = sum(1 for _ in read)
    if found != count or tuple(about["size"]) != size or abs(about["fps"] - fps) > 0.01 * fps:
        wrote = f"{found} frames of {about['size']} at {about['fps']:g} a second"
        raise OSError(errno.EIO, f"the encoder wrote {wrote}, not {count} of {size} at {fps:g}")


def _stopped(path: Path, error: OSError | None) -> str:
    """Why a film is not whole; the encoder's own words are its command line."""
    free = shutil.disk_usage(path.parent).free
    why = None if error is None or not error.errno else error.strerror
    return f"{why or 'the encoder of films stopped'}; {free} bytes are free there"


def film_ends(path: Path) -> bool:
    """Whether an MP4 file has its index, which an encoder writes last, and no box is cut off.

    Source: ISO/IEC 14496-12, 4.2: a box is its size, four bytes, or eight after its name where that is 1; its name; its content.
    """
    names, end = set(), path.stat().st_size if path.exists() else 0
    place = 0
    with path.open("rb") if end else io.BytesIO() as file:
        while place + 8 <= end:
            file.seek(place)
            head = file.read(16)
            size = int.from_bytes(head[:4], "big")
            size = int.from_bytes(head[8:16], "big") if size == 1 else size or end - place
            names.add(head[4:8])
            place += max(size, 8)
    return place == end and b"moov" in names

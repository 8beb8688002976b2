"""Tiny films made on the spot, by what other programs use: PyAV for videos, Pillow for animations and frames."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

CODECS = {".mp4": "libx264", ".mov": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4"}
MS = Fraction(1, 1000)


def ramp(frames: int, height: int = 8, width: int = 8, first: int = 20, step: int = 10) -> np.ndarray:
    """uint8 (T, H, W, 3): frame i is grey of level first + i * step, so that a level tells its frame."""
    levels = first + step * np.arange(frames)
    return np.broadcast_to(levels[:, None, None, None], (frames, height, width, 3)).astype(np.uint8)


def write(path: Path, frames: np.ndarray, fps: float = 8, times: Sequence[int] | None = None, keys: int = 4) -> Path:
    """Frames uint8 (T, H, W, 3) as a film of the kind that the name ends with; no suffix: a folder of pictures.

    times: of each frame in milliseconds, in place of fps. keys: frames from one key frame of a video to the next.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [Image.fromarray(frame) for frame in frames]
    match path.suffix:
        case "":
            path.mkdir()
            for number, image in enumerate(images):
                image.save(path / f"{number:03d}.png")
        case ".gif" | ".webp":
            how = {} if path.suffix == ".gif" else {"lossless": True}
            images[0].save(path, save_all=True, append_images=images[1:], duration=round(1000 / fps), **how)
        case _:
            _encode(path, frames, fps, times, keys)
    return path


def _encode(path: Path, frames: np.ndarray, fps: float, times: Sequence[int] | None, keys: int) -> None:
    import av

    _, height, width, _ = frames.shape
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"g": str(keys)}
        if times is not None:
            stream.codec_context.time_base = MS
        for number, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], MS
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def sound(path: Path) -> Path:
    """A film of sound alone."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def levels(clip: np.ndarray) -> list[int]:
    """The mean level of each frame of a clip (C, T, H, W)."""
    return [round(float(level)) for level in np.asarray(clip, dtype=np.float64).mean((0, 2, 3))]


def numbers(clip: np.ndarray, first: int = 20, step: int = 10) -> list[int]:
    """Which frames of a `ramp` a clip consists of."""
    return [round((level - first) / step) for level in levels(clip)]

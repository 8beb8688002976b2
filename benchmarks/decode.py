"""Decoding of clips: our reader beside plain PyAV, on films made on the spot.

    python benchmarks/decode.py [--films 8] [--clips 64] [--rounds 5] [--json FILE]

Both read the same clips: 16 frames at 8 a second, resized to 64x64, from a random start in films of 10 s at 25 frames a second,
H.264 with a key frame every 2 s. Plain PyAV is what one writes by hand: seek, decode, take the frame at each time, convert to
RGB, resize by Pillow. They take turns in one process and one thread. Told are clips per second of processor time, medians
over the rounds, and our rate over the other in the same round; and how far apart their pixels are.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
from PIL import Image

from diffcli.config import ImageShape
from diffcli.data.clips.clip_data import ClipData
from diffcli.data.clips.clip_files import TreeClips, clips_among
from diffcli.data.clips.film import Timing
from diffcli.data.files import open_tree

FRAMES, FPS, SIZE = 16, 8, 64
SECONDS, RATE = 10, 25
SIZES = {"320x240": (240, 320), "640x360": (360, 640)}
Read = Callable[[int, float], np.ndarray]


def make(path: Path, height: int, width: int, seed: int) -> None:
    """A film of noise of the detail of a photograph that moves to the left."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 8, width // 4, 3), dtype=np.uint8)
    scene = np.asarray(Image.fromarray(small).resize((2 * width, height), Image.Resampling.BICUBIC))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.options = {"g": str(2 * RATE), "preset": "veryfast"}
        for number in range(SECONDS * RATE):
            left = number * width // (SECONDS * RATE)
            view = np.ascontiguousarray(scene[:, left : left + width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(view, format="rgb24")))
        container.mux(stream.encode())


def ours(folder: Path) -> Read:
    tree = open_tree(folder, "folder")
    found = clips_among(tree, "folder")
    files = TreeClips(tree, list(found.clips), found.clips, RATE)
    data = ClipData(files, ImageShape(3, SIZE, SIZE), [Timing(FRAMES, FPS)])
    return lambda index, share: data.take(index, share)[0]


def plain(folder: Path) -> Read:
    paths = sorted(folder.iterdir())

    def read(index: int, share: float) -> np.ndarray:
        starts = SECONDS * FPS - FRAMES + 1
        wanted = [int(share * starts) / FPS + number / FPS for number in range(FRAMES)]
        frames: list[np.ndarray] = []
        with av.open(str(paths[index])) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            container.seek(round(wanted[0] / stream.time_base), stream=stream)
            held = None
            for frame in container.decode(stream):
                while held is not None and len(frames) < FRAMES and frame.time > wanted[len(frames)] + 0.002:
                    frames.append(resized(held))
                if len(frames) == FRAMES:
                    break
                held = frame
            while len(frames) < FRAMES:
                frames.append(resized(held))
        return np.stack(frames).transpose(3, 0, 1, 2)

    return read


def resized(frame: av.VideoFrame) -> np.ndarray:
    image = frame.to_image()
    side, left = image.height, (image.width - image.height) / 2
    box = (left, 0, left + side, side)
    return np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def rate(read: Read, requests: list[tuple[int, float]]) -> float:
    """Clips per second of processor time."""
    start = time.process_time()
    for index, share in requests:
        assert read(index, share).shape == (3, FRAMES, SIZE, SIZE)
    return len(requests) / (time.process_time() - start)


def compare(folder: Path, films: int, clips: int, rounds: int) -> dict[str, list[float]]:
    readers = {"diffcli": ours(folder), "PyAV": plain(folder)}
    rng = np.random.default_rng(0)
    requests = [(int(rng.integers(films)), float(rng.random())) for _ in range(clips)]
    apart = [float(np.abs(readers["diffcli"](*one).astype(int) - readers["PyAV"](*one)).mean()) for one in requests[:8]]
    found: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, read in readers.items():
            found[name].append(rate(read, requests))
    return found | {"levels apart": apart}


def told(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=8)
    parser.add_argument("--clips", type=int, default=64, help="clips that each reader reads in a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    args = parser.parse_args()
    found = {}
    with tempfile.TemporaryDirectory() as work:
        for name, (height, width) in SIZES.items():
            folder = Path(work) / name
            folder.mkdir()
            for number in range(args.films):
                make(folder / f"{number:02d}.mp4", height, width, number)
            found[name] = compare(folder, args.films, args.clips, args.rounds)
            each = found[name]
            ratio = [a / b for a, b in zip(each["diffcli"], each["PyAV"], strict=True)]
            print(f"{name}: diffcli {told(each['diffcli'], 1)} clips/s, PyAV {told(each['PyAV'], 1)}", end="; ")
            print(f"ours over theirs {told(ratio, 2)}; mean difference {max(each['levels apart']):.2f} levels")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

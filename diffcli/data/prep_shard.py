"""One shard of a prepared set: encodes its images and writes the tar and its index, in any process, always the same bytes.

Files appear under their name only when they are whole (temporary file, flush, rename), the index after its tar; so an index
that is there vouches for its shard.
"""

import os
import signal
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import NamedTuple

import numpy as np
from webdataset.writer import TarWriter

from diffcli.config import ImageShape
from diffcli.data.files import ARCHIVE_ERRORS, read_location
from diffcli.data.pixels import BrokenImage, fit, fit_all, is_plain_jpeg, open_image, to_image, to_png
from diffcli.data.prep_items import Item
from diffcli.data.shards import Index, Skipped, sha256

BLOCK = 512  # bytes; a tar is made of these: one for a member's header, then its content


class Job(NamedTuple):
    """A shard to write: `out/stem.tar` and `.json` from items, whose keys count on from `first`. size: edge in pixels."""

    out: Path
    work: Path
    stem: str
    first: int
    size: int | None
    items: list[Item]


class Picture(NamedTuple):
    """An encoded image: file extension, bytes, channels, (height, width)."""

    extension: str
    data: bytes
    channels: int
    size: tuple[int, int]


def write_shard(job: Job) -> Index:
    """Writes the shard and returns its index. Raises OSError where the disk does not take it; broken images are skipped."""
    members, offsets, pictures, labels, skipped = [], [], [], [], []
    temporary = job.work / f"{job.stem}.{os.getpid()}.tar"
    position = 0
    with temporary.open("wb") as file:
        with TarWriter(file, user="", group="", mode=0o644, encoder=False, mtime=0) as tar:
            for number, item in enumerate(job.items, start=job.first):
                picture = encode(item, job.size)
                if isinstance(picture, Skipped):
                    skipped.append(picture)
                    continue
                sample = {picture.extension: picture.data}
                if item.label is not None:
                    sample["cls"] = str(item.label).encode()
                    labels.append(item.label)
                tar.write({"__key__": f"{number:08d}"} | sample)
                ends = dict(_ends(sample, position))
                position = max(ends.values())
                members.append(f"{number:08d}.{picture.extension}")
                offsets.append(ends[picture.extension] - _padded(len(picture.data)))
                pictures.append(picture)
        file.flush()
        os.fsync(file.fileno())
    sizes = {picture.size for picture in pictures}
    index = Index(
        members=members,
        offset=offsets,
        size=[len(picture.data) for picture in pictures],
        labels=labels if len(labels) == len(pictures) and labels else None,
        channels=3 if any(picture.channels == 3 for picture in pictures) else 1,
        image_size=sizes.pop() if len(sizes) == 1 else None,
        skipped=skipped,
        bytes=temporary.stat().st_size,
        sha256=sha256(temporary),
    )
    temporary.replace(job.out / f"{job.stem}.tar")
    write_whole(job.out / f"{job.stem}.json", index.model_dump_json().encode(), job.work)
    return index


def write_shards(jobs: Iterator[Job], workers: int) -> Iterator[Index]:
    """Writes the shards with `workers` processes (0 and 1: in this one) and yields their indexes as they are finished.

    At most workers + 1 jobs are read ahead. Raises OSError, and BrokenProcessPool where a worker was killed.
    """
    if workers <= 1:
        yield from map(write_shard, jobs)
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _start_worker) as pool:  # forking beside threads may hang
        try:
            running = set()
            for job in jobs:
                running.add(pool.submit(write_shard, job))
                if len(running) > workers:
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            yield from (future.result() for future in as_completed(running))
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def encode(item: Item, size: int | None) -> Picture | Skipped:
    """The image as it is stored: a JPEG that needs no change keeps its bytes, anything else becomes a PNG."""
    try:
        if isinstance(item.image, np.ndarray):
            channels, height, width = item.image.shape
            shape = ImageShape(channels, size or height, size or width)
            return Picture("png", to_png(to_image(fit_all(item.image[None], shape)[0])), channels, shape[1:])
        data = read_location(item.image)
        image = open_image(data, item.name)
        channels, unchanged = (1 if image.mode == "L" else 3), size is None or image.size == (size, size)
        if unchanged and is_plain_jpeg(data):
            return Picture("jpg", data, channels, (image.height, image.width))
        if not unchanged:
            image = to_image(fit(image, ImageShape(channels, size, size)))
        return Picture("png", to_png(image), channels, (image.height, image.width))
    except BrokenImage as error:
        return Skipped(path=item.name, reason=error.reason)
    except (OSError, RuntimeError, *ARCHIVE_ERRORS) as error:  # zipfile raises RuntimeError for what it cannot unpack
        return Skipped(path=item.name, reason=getattr(error, "strerror", None) or str(error) or type(error).__name__)


def write_whole(path: Path, data: bytes, work: Path) -> None:
    """Writes a file so that nobody ever sees half of it; work: a folder on the same disk. Raises OSError."""
    temporary = work / f"{path.name}.{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and ends with it even where the parent was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        Thread(target=lambda: connection.wait([parent.sentinel]) and os._exit(1), daemon=True).start()


def _ends(sample: dict[str, bytes], position: int) -> Iterator[tuple[str, int]]:
    """Where in the tar each member of a sample ends; TarWriter sorts them by extension."""
    for extension in sorted(sample):
        position += BLOCK + _padded(len(sample[extension]))
        yield extension, position


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK

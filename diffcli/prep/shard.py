"""One shard of a prepared set: encodes its images and writes the tar and its index, in any process, always the same bytes.

Files get their name only when they are complete (temporary file, flush, rename), the index after its tar. So the existence of an
index shows that its shard is complete.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, as_completed, wait
from multiprocessing import connection, get_context, parent_process
from pathlib import Path
from threading import Thread
from typing import IO, NamedTuple

from webdataset.writer import TarWriter

from diffcli.config import RunFailed
from diffcli.data import captions
from diffcli.data.faults import is_momentary
from diffcli.data.field_notes import FieldNote
from diffcli.data.files import ARCHIVE_ERRORS, printable
from diffcli.data.modes import Range
from diffcli.data.pixels import BrokenImage
from diffcli.data.shards import Index, Members, PreparedSet, Skipped, index_json
from diffcli.digest import sha256
from diffcli.prep.encode import Picture, encode, encode_over
from diffcli.prep.items import Deferred, Item

FIELD_OF = {"txt": "text", "mp4": "video"}
BLOCK = 512  # bytes; a tar is made of these: one for a member's header, then its content


Spans = dict[str, tuple[int, int]]
"""(offset, size) in the tar of the members of a sample, by extension."""

Values = dict[str, tuple[int, ...]]
"""The values that occur in masks, by field."""


class ShardJob(NamedTuple):
    """A shard to write: `out/stem.tar` and `.json` from items, whose keys count on from `first`. size: edge in pixels.

    spent: files that are deleted then, so that a download does not fill the disk twice. fields: as its source knows them.
    levels: what is black and white in deep images.
    """

    out: Path
    work: Path
    stem: str
    first: int
    size: int | None
    items: list[Item | Deferred]
    spent: tuple[Path, ...] = ()
    fields: Mapping[str, FieldNote] = {}
    levels: Range | None = None


class WrittenMember(NamedTuple):
    """An image in the tar: its name, the picture, its label, its members, the values of its masks, and `Item.film`."""

    name: str
    picture: Picture
    label: int | None
    spans: Spans
    masks: Values
    film: tuple[int, float] | None

    @property
    def span(self) -> tuple[int, int]:
        return self.spans[self.picture.extension]


def write_shard(job: ShardJob) -> Index:
    """Writes the shard and returns its index; broken images are skipped.

    Raises OSError if it cannot be written, RunFailed if an image cannot be read for a temporary reason.
    """
    temporary = job.work / f"{job.stem}.{os.getpid()}.tar"
    try:
        with temporary.open("wb") as file:
            members, skipped = _write_tar(file, job)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RunFailed, MemoryError):
        temporary.unlink(missing_ok=True)  # on a full disk, give the room back
        raise
    sizes = {member.picture.size for member in members}
    labels = [member.label for member in members if member.label is not None]
    index = Index(
        members=[member.name for member in members],
        offset=[member.span[0] for member in members],
        size=[member.span[1] for member in members],
        labels=labels or None,
        channels=max((member.picture.channels for member in members), default=1),
        image_size=next(iter(sizes)) if len(sizes) == 1 else None,
        sizes=[member.picture.size for member in members] if len(sizes) > 1 else None,
        films=[member.film for member in members if member.film is not None] or None,
        fields=fields_of([member.spans for member in members]),
        notes=dict(job.fields) if members else {},
        values=values_of([member.masks for member in members]),
        skipped=skipped,
        bytes=temporary.stat().st_size,
        sha256=sha256(temporary),
    )
    temporary.replace(job.out / f"{job.stem}.tar")
    write_whole(job.out / f"{job.stem}.json", index_json(index), job.work)
    for path in job.spent:
        path.unlink(missing_ok=True)
    return index


def write_shards(jobs: Iterator[ShardJob], workers: int) -> Iterator[Index]:
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


def write_whole(path: Path, data: bytes, work: Path) -> None:
    """Writes a file completely or not at all; work: a folder on the same disk. Raises OSError."""
    temporary = work / f"{path.name}.{os.getpid()}"
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def in_all(notes: Sequence[Mapping[str, FieldNote]]) -> dict[str, FieldNote]:
    """The embeddings that every shard has, all by one encoder; notes: those of each shard."""
    first = notes[0] if notes else {}
    return {name: note for name, note in first.items() if all(other.get(name) == note for other in notes)}


def record_of(prepared: PreparedSet) -> bytes:
    """dataset.json; without left-out files it is in the form that earlier versions read."""
    unsaid = None if prepared.left_out else {"left_out"}
    return prepared.model_dump_json(indent=1, exclude=unsaid).encode() + b"\n"


def settle(out: Path, work: Path, stem: str) -> None:
    """Completes the replacement of a shard that a kill interrupted: an index in `work` is moved to its tar, if that exists."""
    tar, waiting = out / f"{stem}.tar", work / f"{stem}.json"
    if waiting.is_file():
        index = Index.model_validate_json(waiting.read_bytes())
        if tar.is_file() and tar.stat().st_size == index.bytes and sha256(tar) == index.sha256:
            waiting.replace(out / waiting.name)
        else:
            waiting.unlink()


def _start_worker() -> None:
    """Leaves Ctrl-C to the parent, and exits with it even if the parent is killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        Thread(target=lambda: connection.wait([parent.sentinel]) and os._exit(1), daemon=True).start()


def _write_tar(file: IO[bytes], job: ShardJob) -> tuple[list[WrittenMember], list[Skipped]]:
    members, skipped, position = [], [], 0
    with TarWriter(file, user="", group="", mode=0o644, encoder=False, mtime=0) as tar:
        for number, given in enumerate(job.items, start=job.first):
            try:
                item = given if isinstance(given, Item) else given()
                picture, sample, masks = _sample(item, job.size, job.levels)
            except BrokenImage as error:
                skipped.append(_skipped(given, error.reason))
                continue
            except (OSError, *ARCHIVE_ERRORS) as error:
                if is_momentary(error):
                    raise _for_now(given, error) from error
                skipped.append(_skipped(given, getattr(error, "strerror", None) or str(error) or type(error).__name__))
                continue
            key = f"{number:08d}"
            spans, position = write_sample(tar, key, sample, position)
            members.append(WrittenMember(f"{key}.{picture.extension}", picture, item.label, spans, masks, item.film))
    return members, skipped


def _for_now(given: Item | Deferred, error: Exception) -> RunFailed:
    """The error that stops a shard; it is written in the next run, whereas a skipped image would be missing for good."""
    return RunFailed(
        f"SOURCE: {printable(given.name)} cannot be read now: {getattr(error, 'strerror', None) or error}",
        "run the same command again: it continues where it stopped; if it stops there again, mend or delete that file",
    )


def _skipped(given: Item | Deferred, reason: str) -> Skipped:
    return Skipped(path=printable(given.name), reason=printable(reason))


def write_sample(tar: TarWriter, key: str, sample: dict[str, bytes], position: int) -> tuple[Spans, int]:
    """Appends a sample, bytes by extension, at `position` of the tar; returns the places of its members and the new position."""
    spans = {}
    tar.write({"__key__": key} | sample)
    for extension in sorted(sample):  # the order in which TarWriter writes them
        spans[extension] = (position + BLOCK, len(sample[extension]))
        position += BLOCK + _padded(len(sample[extension]))
    return spans, position


def _sample(item: Item, size: int | None, levels: Range | None) -> tuple[Picture, dict[str, bytes], Values]:
    """The image of an item, all of its members by extension, and the values of its masks. Raises as `encode` does."""
    masks: Values = {}
    picture = item.image if isinstance(item.image, Picture) else encode(item.name, item.image, size, levels)
    sample = {picture.extension: picture.data, **item.stored}
    if item.label is not None:
        sample["cls"] = str(item.label).encode()
    if item.captions:
        sample["txt"] = captions.to_bytes(item.captions)
    if item.video is not None:
        sample["mp4"] = item.video
    for field, source in item.pictures.items():
        over = encode_over(f"{item.name}: its {field}", field, source, size)
        if over.original != picture.original:
            raise BrokenImage(item.name, f"its {field} has {_pixels(over)} pixels, the image {_pixels(picture)}")
        sample[f"{field}.{over.extension}"] = over.data
        if over.values is not None:
            masks[field] = over.values
    return picture, sample, masks


def _pixels(picture: Picture) -> str:
    height, width = picture.original
    return f"{width}x{height}"


def fields_of(samples: list[Spans]) -> dict[str, Members]:
    """The member of each field beside the images: `text` is KEY.txt, `video` is KEY.mp4, any other KEY.FIELD.EXTENSION."""
    spans: dict[str, list[tuple[int, int]]] = {}
    for number, sample in enumerate(samples):
        for extension, span in sample.items():
            field, dot, _ = extension.partition(".")
            if dot or extension in FIELD_OF:
                rows = spans.setdefault(FIELD_OF.get(extension, field), [(0, 0)] * len(samples))
                rows[number] = span
    return {
        field: Members(offset=[offset for offset, _ in rows], size=[size for _, size in rows])
        for field, rows in spans.items()
    }


def values_of(masks: list[Values]) -> dict[str, list[int]]:
    """The values that occur in each mask of some images, rising."""
    fields = sorted({field for one in masks for field in one})
    return {field: sorted({value for one in masks for value in one.get(field, ())}) for field in fields}


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK

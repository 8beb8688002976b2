"""prep-data: turns files or archives into a prepared set of shards that trains by random access.

A source lists its images in a fixed order; shard k of a split holds positions [k * n, (k + 1) * n), without the broken ones. So
every shard is an independent job: jobs run in any order in any number of processes, a killed run keeps the finished ones, and the
bytes are the same in the end.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import groupby, islice
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import ValidationError

from diffcli.config import RunFailed, UserError
from diffcli.data.field_notes import FieldNote, classes_in, is_mask
from diffcli.data.files import WriteError, printable, unreadable
from diffcli.data.leftovers import REQUEST, WORK, tidied
from diffcli.data.listing import Split
from diffcli.data.lock import only_writer
from diffcli.data.set_folder import DATASET, check_own
from diffcli.data.shards import Index, PreparedSet, PreparedSplit, PrepRequest, Shard, Skipped
from diffcli.digest import sha256
from diffcli.prep.asking import check_request
from diffcli.prep.items import SOURCE, PrepSource, SourceOptions, Wanted
from diffcli.prep.kinds import KINDS, require_source
from diffcli.prep.opened import open_source
from diffcli.prep.progress import PrepReport
from diffcli.prep.shard import ShardJob, in_all, record_of, settle, write_shards, write_whole

IMAGES_PER_SHARD = 5000
LARGE_IMAGES_PER_SHARD = 1000  # where originals of any size are kept: a shard then stays near the usual gigabyte
CLIPS_PER_SHARD = 250  # of a few megabytes each
FETCHED_SIZE = 256  # pixels of the shorter side of what is downloaded, where no size is asked for
FIELD_KINDS: dict[str, Literal["text", "video"]] = {"text": "text", "video": "video"}  # any other lies over the image
SKIPPED = "skipped.jsonl"
FEWER = "run the same command again with fewer --workers: it continues where it stopped"


class Preparation(NamedTuple):
    """A shard to be: its name without suffix, the number of its first image, and positions in the source."""

    split: Split
    stem: str
    first: int
    positions: Sequence[int]


def prepare(
    kind: str,
    source: Path | None,
    out: Path,
    *,
    size: int | None = None,
    workers: int = 1,
    limit: int | None = None,
    strict: bool = False,
    options: SourceOptions = SourceOptions(),
    images_per_shard: int | None = None,
) -> Iterator[PrepReport]:
    """Writes a prepared set into `out`, yielding a report at the start and after every shard; the last one is final.

    size: edge in pixels to crop and resize to; None keeps what is there. Downloads keep their shape: it is the shorter edge.
    limit: at most so many images of each split, spread evenly over it. strict: a broken image is an error; otherwise it is
    listed in skipped.jsonl. Running again continues. Raises UserError for a broken source, an `out` that cannot be written
    or holds something else, and with strict.
    """
    source, out = require_source(kind, source).expanduser(), out.expanduser()
    _check_options(kind, options)
    with _stopping(out), tidied(out), alone(out), _undone(out):
        work = _claim(out)
        with _reading(source):
            opened, name = open_source(kind, source, work, options), printable(source.resolve().name)
        per_shard = images_per_shard or _per_shard(kind, size, opened)
        size = size or (FETCHED_SIZE if opened.remote else None)
        requested = {"kind": kind, "source": name, "size": size, "limit": limit}
        chosen = {
            name: printable(str(value))
            for name, value in options.model_dump(mode="json", exclude_defaults=True).items()
        }
        request = PrepRequest(**requested, options=chosen, images_per_shard=per_shard, fingerprint=opened.fingerprint)
        check_request(out, work, request)
        plans = [plan for split, items in opened.splits.items() for plan in _plans(split, len(items), limit, per_shard)]
        for report in _write(plans, opened, out, request, workers):
            if strict and report.broken:
                raise _broken(source, report.broken)
            yield report
        _finish(plans, opened, out, request)
        shutil.rmtree(work)


def _check_options(kind: str, options: SourceOptions) -> None:
    """Refuses options without effect."""
    given: dict[str, object] = {}
    for group in (options, options.picked, options.download):
        given |= group.model_dump(exclude_defaults=True, exclude={"picked", "download"})
    option = next((name for name in given if name not in KINDS[kind].takes), None)
    if option:
        flag, readers = (
            "--" + option.replace("_", "-"),
            [name for name, other in KINDS.items() if option in other.takes],
        )
        raise UserError(f"{flag} has no effect in prep-data {kind}", f"leave it out; it is for {', '.join(readers)}")


def _per_shard(kind: str, size: int | None, source: PrepSource) -> int:
    if KINDS[kind].clips:
        return CLIPS_PER_SHARD
    large = source.remote is not None or (KINDS[kind].large and size is None)
    return LARGE_IMAGES_PER_SHARD if large else IMAGES_PER_SHARD


def _broken(source: Path, skipped: Skipped) -> UserError:
    hint = "mend or delete that file, or leave out --strict: it is then skipped and listed in skipped.jsonl"
    return UserError(f"SOURCE '{source}': {skipped.path} cannot be used: {skipped.reason}", hint)


def _claim(out: Path) -> Path:
    """Makes the folder and its work folder. Raises UserError if it holds other files than a prepared set or part of one."""
    check_own(out)
    work = out / WORK
    work.mkdir(parents=True, exist_ok=True)
    return work


def _plans(split: Split, count: int, limit: int | None, per_shard: int) -> Iterator[Preparation]:
    wanted: Sequence[int] = range(count)
    if limit is not None and limit < count:
        wanted = [
            number * count // limit for number in range(limit)
        ]  # sources are sorted by class: take from all of them
    for number, first in enumerate(range(0, len(wanted), per_shard)):
        yield Preparation(split, f"{split}-{number:06d}", first, wanted[first : first + per_shard])


def _write(
    plans: list[Preparation], source: PrepSource, out: Path, request: PrepRequest, workers: int
) -> Iterator[PrepReport]:
    """Writes the missing shards; yields a report first, and one after each."""
    tally = PrepReport(request.kind, out, sum(len(plan.positions) for plan in plans), notes=source.notes)
    todo = []
    for plan in plans:
        index = _finished(out, plan)
        if index is None:
            todo.append(plan)
        else:
            tally = tally.plus(index)
    yield tally
    if todo and source.remote:
        for fetched in source.remote.fetch(_wanted(plans, todo, request, workers)):
            yield tally._replace(fetched=fetched)
    for index in write_shards(_jobs(todo, source, out, request), min(workers, len(todo))):
        tally = tally.plus(index)
        yield tally
    if not tally.written:
        why = f"{tally.broken.path}: {tally.broken.reason}" if tally.broken else "it is empty"
        raise UserError(f"SOURCE '{request.source}' has no usable image ({why})", KINDS[request.kind].where)


def _wanted(plans: list[Preparation], todo: list[Preparation], request: PrepRequest, workers: int) -> Wanted:
    positions = [position for plan in plans for position in plan.positions]
    missing = {plan.stem for plan in todo}
    finished = frozenset(number for number, plan in enumerate(plans) if plan.stem not in missing)
    size = request.size or FETCHED_SIZE
    return Wanted(positions, request.images_per_shard, finished, size, min(workers, len(todo)))


def _finished(out: Path, plan: Preparation) -> Index | None:
    """The index of a shard that an earlier run finished; None if it did not, or if the tar has another size."""
    tar, path = out / f"{plan.stem}.tar", out / f"{plan.stem}.json"
    settle(out, out / WORK, plan.stem)
    try:
        index = Index.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    whole = tar.is_file() and tar.stat().st_size == index.bytes
    return index if whole and len(index.members) + len(index.skipped) == len(plan.positions) else None


def _jobs(plans: list[Preparation], source: PrepSource, out: Path, request: PrepRequest) -> Iterator[ShardJob]:
    for split, group in groupby(plans, key=lambda plan: plan.split):
        todo = list(group)
        items = source.splits[split].items([position for plan in todo for position in plan.positions])
        for plan in todo:
            with _reading(request.source):
                chosen = list(islice(items, len(plan.positions)))
            size = None if source.remote else request.size  # fetched in that size already
            spent = source.remote.spent(plan.positions) if source.remote else ()
            yield ShardJob(out, out / WORK, plan.stem, plan.first, size, chosen, spent, source.fields, source.levels)


def _finish(plans: list[Preparation], source: PrepSource, out: Path, request: PrepRequest) -> None:
    """Writes skipped.jsonl and then dataset.json, which marks the set as complete; both follow from the indexes alone."""
    shards: dict[Split, list[Shard]] = {split: [] for split in source.splits}
    skipped, sizes, channels = [], set(), 1
    fields: set[str] = set()
    notes: list[dict[str, FieldNote]] = []  # of embeddings
    values: list[dict[str, list[int]]] = []  # of masks
    for plan in plans:
        path = out / f"{plan.stem}.json"
        index = Index.model_validate_json(path.read_bytes())
        skipped += [json.dumps({"split": plan.split} | entry.model_dump()) + "\n" for entry in index.skipped]
        if index.members:
            sizes.add(index.image_size)
            channels = max(channels, index.channels)
            fields |= index.fields.keys() - index.notes.keys()
            notes.append(index.notes)
            values.append(index.values)
        shards[plan.split].append(_shard(plan.stem, path, index))
    splits = {name: PreparedSplit(count=sum(shard.count for shard in s), shards=s) for name, s in shards.items()}
    prepared = PreparedSet(
        kind=request.kind,
        count=sum(split.count for split in splits.values()),
        skipped=len(skipped),
        size=sizes.pop() if len(sizes) == 1 else None,
        channels=channels,
        classes=source.classes,
        latents=any(note.kind == "latent" for note in source.fields.values()),
        fields={name: _note(name, values) for name in sorted(fields)} | in_all(notes),
        source=request.source,
        left_out={kind: n for kind, n in sorted(source.left_out.items()) if n},
        licence=KINDS[request.kind].licence,
        splits=splits,
        request=request,
    )
    for name, data in source.beside.items():
        write_whole(out / name, data, out / WORK)
    write_whole(out / SKIPPED, "".join(skipped).encode(), out / WORK)
    write_whole(out / DATASET, record_of(prepared), out / WORK)


def _note(name: str, values: Sequence[Mapping[str, Sequence[int]]]) -> FieldNote:
    """The note of a field that no encoder made; values: of the masks of each shard, unknown in sets of earlier versions."""
    if name in FIELD_KINDS or not is_mask(name):
        return FieldNote(kind=FIELD_KINDS.get(name, "image"))
    if not all(name in found for found in values):
        return FieldNote(kind="mask")
    return FieldNote(kind="mask", classes=classes_in({value for found in values for value in found[name]}))


def _shard(stem: str, path: Path, index: Index) -> Shard:
    return Shard(
        tar=f"{stem}.tar",
        index=path.name,
        count=len(index.members),
        bytes=index.bytes,
        sha256=index.sha256,
        index_sha256=sha256(path),
    )


@contextmanager
def _reading(source: Path | str) -> Iterator[None]:
    """Context that turns errors of reading into a UserError about SOURCE; errors of temporary files are not."""
    try:
        yield
    except WriteError:
        raise
    except OSError as error:
        raise unreadable(source, SOURCE, error) from error


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """Locks the folder of a set against other preparations, which would remove its work. Raises UserError."""
    if out.is_file():
        yield  # which is refused elsewhere
        return
    out.mkdir(parents=True, exist_ok=True)
    with only_writer(out, "set"):
        yield


@contextmanager
def _undone(out: Path) -> Iterator[None]:
    """Removes the work folder if it was made here and the source is refused before any work."""
    work = out / WORK
    new = not work.exists()
    try:
        yield
    except UserError:
        if new and not (work / REQUEST).is_file():
            shutil.rmtree(work, ignore_errors=True)
        raise


@contextmanager
def _stopping(out: Path) -> Iterator[None]:
    """Context that turns errors of writing into a UserError; finished shards are kept.

    Reads from the source are inside a `_reading`, or raise UserError with the file that they read.
    """
    try:
        yield
    except OSError as error:
        hint = "make room or mend the permissions, then run the same command again: it continues where it stopped"
        raise UserError(f"--out '{out}' cannot be written: {error}", hint) from error
    except BrokenProcessPool as error:
        raise UserError(f"a worker of prep-data into '{out}' was killed, probably for its memory", FEWER) from error
    except MemoryError as error:
        raise RunFailed(f"the memory of this machine did not suffice for a shard of '{out}'", FEWER) from error

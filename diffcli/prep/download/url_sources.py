"""Downloads: the images of a table of URLs, fetched by img2dataset in a separate process, as items in the table's order.

Shard k of the download holds the rows of shard k of the set, so finished shards of both are kept independently: img2dataset skips
shards that have statistics, prep-data those that have an index. A URL that fails counts as a broken image.

    .work/urls.parquet      the rows that are wanted, in order
    .work/download/         what img2dataset writes: 00000.tar, 00000.parquet, 00000_stats.json
    .work/download.log      what it says
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from diffcli.config import RunFailed, UserError
from diffcli.prep.download.fetching import FetchJob
from diffcli.prep.download.urls import UrlTable, open_coco_table, open_table
from diffcli.prep.items import Broken, Deferred, Item, PrepSource, SourceOptions, Wanted
from diffcli.prep.progress import BROKEN_OFF, NO_CONNECTION, TIMEOUT, kind_of_failure
from diffcli.prep.sets.coco import open_coco_images
from diffcli.prep.sets.webdataset_index import read_contents, split_of

DOWNLOADED = "downloaded"
UNREACHED = frozenset({TIMEOUT, NO_CONNECTION})  # perhaps no fault of the URL
UNSTEADY = UNREACHED | {BROKEN_OFF}  # these messages vary from time to time, but equal answers must give equal sets
MANY = 50  # URLs of a shard; if none of them can be reached, our network is down
POLL = 0.25  # seconds between looks at what img2dataset has finished
ROWS_AT_ONCE = 65536
AGAIN = "run the same command again: it continues where it stopped"


def open_urls(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """A table of URLs and captions; one named after validation or test becomes the split test."""
    return _source(open_table(source, options), work, options)


def open_coco(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """COCO: the images in a folder or its zips; of a captions_*.json alone those that it names, from their addresses."""
    if source.suffix == ".json" and source.is_file():
        return _source(open_coco_table(source), work, options)
    return open_coco_images(source, work, options)


def _source(table: UrlTable, work: Path, options: SourceOptions) -> PrepSource:
    _require("img2dataset", "downloads run on img2dataset", "pip install 'diffcli[download]'")
    if options.download.distributor != "multiprocessing":
        name = options.download.distributor
        _require(name, f"--distributor {name} needs {name}", f"pip install {name}")
    items = UrlItems(table, work, options)
    return PrepSource({split_of(table.path.stem): items}, None, table.digest, remote=items)


def _require(module: str, what: str, hint: str) -> None:
    if find_spec(module) is None:
        raise UserError(f"{what}, which is not installed", f"type: {hint}")


class UrlItems:
    """The rows of a table as images; `fetch` comes before `items`."""

    def __init__(self, table: UrlTable, work: Path, options: SourceOptions) -> None:
        self.table, self.work, self.options = table, work, options
        self.folder, self.log = work / "download", work / "download.log"
        self.positions, self.per_shard = np.empty(0, np.int64), 1  # of the request to `fetch`

    def __len__(self) -> int:
        return self.table.length

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        ranks = np.searchsorted(self.positions, positions)
        for shard, group in groupby(ranks.tolist(), key=lambda rank: rank // self.per_shard):
            fetched = dict(_fetched(self.folder, shard, self.per_shard))
            for rank in group:
                row = rank % self.per_shard
                yield fetched.get(row) or Broken(f"row {self.positions[rank]}", "img2dataset lost it")

    def fetch(self, wanted: Wanted) -> Iterator[Counter[str]]:
        """Downloads missing shards; yields the number of URLs by outcome so far.

        Raises RunFailed if img2dataset dies, leaves shards unfinished, or can reach no URL of a whole shard.
        """
        self.positions, self.per_shard = np.asarray(wanted.positions), wanted.per_shard
        self.folder.mkdir(exist_ok=True)
        _write_table(self.table, wanted.positions, self.work / "urls.parquet")
        shards = range(-(-len(wanted.positions) // wanted.per_shard))
        for shard in shards:
            if shard in wanted.finished:
                _files(self.folder, shard)[0].write_text("{}")  # whole in the set already: img2dataset leaves it alone
            elif not _is_whole(self.folder, shard):
                _forget(self.folder, shard)
        yield from self._run(self._job(wanted), set(shards) - wanted.finished)

    def spent(self, positions: Sequence[int]) -> tuple[Path, ...]:
        return _files(self.folder, int(np.searchsorted(self.positions, positions[0])) // self.per_shard)

    def _job(self, wanted: Wanted) -> FetchJob:
        return FetchJob(
            table=self.work / "urls.parquet",
            folder=self.folder,
            rows_per_shard=wanted.per_shard,
            size=wanted.size,
            processes=wanted.workers,
            **self.options.picked.model_dump(),
            **self.options.download.model_dump(),
        )

    def _run(self, job: FetchJob, todo: set[int]) -> Iterator[Counter[str]]:
        counts, first = Counter[str](), len(todo)
        with _process(job, self.log) as process:
            while True:
                ended = process.poll() is not None  # asked before the look, so that nothing is missed
                there = set(os.listdir(self.folder))
                for shard in [shard for shard in sorted(todo) if _files(self.folder, shard)[0].name in there]:
                    found = _outcomes(self.folder, shard)
                    if found is not None:
                        todo.remove(shard)
                        _check_reached(self.folder, shard, found, alone=first == 1)
                        counts += found
                yield Counter(counts)
                if ended:
                    break
                time.sleep(POLL)
        if todo:
            problem = f"img2dataset left {len(todo)} of {first} shards unfinished ({_last_words(self.log)})"
            raise RunFailed(problem, f"{AGAIN}; its output is in {self.log}")


def _write_table(table: UrlTable, positions: Sequence[int], path: Path) -> None:
    """Writes the wanted rows in order. A table of an earlier run is the same, since another request is refused."""
    import pyarrow
    from pyarrow import parquet

    if path.is_file():
        return
    chosen, temporary = np.zeros(table.length, bool), path.with_suffix(".half")
    chosen[np.asarray(positions)] = True
    rows = (row for row, keep in zip(table.rows(), chosen, strict=True) if keep)
    schema = pyarrow.schema([("url", pyarrow.string()), ("caption", pyarrow.string())])
    with parquet.ParquetWriter(temporary, schema) as writer:
        while some := list(islice(rows, ROWS_AT_ONCE)):
            urls, captions = zip(*some, strict=True)
            writer.write_table(pyarrow.table({"url": urls, "caption": captions}, schema))
    temporary.replace(path)


def _fetched(folder: Path, shard: int, per_shard: int) -> Iterator[tuple[int, Item | Broken]]:
    """Row within the shard and its outcome."""
    from pyarrow import parquet

    _, tar, rows = _files(folder, shard)
    table = parquet.read_table(rows, columns=["key", "url", "caption", "error_message"])
    images = {sample.key: sample.image for sample in read_contents(tar).samples}
    digits = len(str(per_shard - 1)) if per_shard > 1 else 0  # a key is the shard's number, then so many of the row's
    for row in table.to_pylist():
        image = images.get(row["key"])
        name, captions = row["url"], tuple(filter(None, (row["caption"] or "").split("\n")))
        number = int(row["key"]) - 10**digits * shard
        found = Broken(name, _reason(row)) if image is None else Item(name, None, image, captions)
        yield number, found


def _reason(row: dict[str, str | None]) -> str:
    """Why a URL failed, in img2dataset's words."""
    reason = row["error_message"] or "img2dataset lost it"
    kind = kind_of_failure(reason)
    return kind if kind in UNSTEADY else reason


def _files(folder: Path, shard: int) -> tuple[Path, Path, Path]:
    """Statistics, images and rows of a shard; statistics first, since without them the others do not count."""
    return folder / f"{shard:05d}_stats.json", folder / f"{shard:05d}.tar", folder / f"{shard:05d}.parquet"


def _outcomes(folder: Path, shard: int) -> Counter[str] | None:
    """The number of URLs of a shard by outcome; None while it is unfinished."""
    try:
        by_reason = json.loads(_files(folder, shard)[0].read_bytes())["status_dict"]
    except (FileNotFoundError, ValueError, KeyError):
        return None
    counts = Counter[str]()
    for reason, count in by_reason.items():
        counts[DOWNLOADED if reason == "success" else kind_of_failure(reason)] += count
    return counts


def _is_whole(folder: Path, shard: int) -> bool:
    """Whether a shard is complete: its files are not flushed to the disk before its statistics."""
    outcomes, (_, tar, rows) = _outcomes(folder, shard), _files(folder, shard)
    if outcomes is None or not tar.is_file() or not rows.is_file():
        return False
    contents = read_contents(tar)
    ends = rows.read_bytes()[-4:] == b"PAR1"
    return ends and not contents.fault and len(contents.samples) == outcomes[DOWNLOADED]


def _forget(folder: Path, shard: int) -> None:
    for path in _files(folder, shard):
        path.unlink(missing_ok=True)


def _check_reached(folder: Path, shard: int, outcomes: Counter[str], alone: bool) -> None:
    """Refuses a shard without any success: without a network every URL fails, and its failures would never be tried again."""
    if outcomes.keys() <= UNREACHED and (alone or outcomes.total() >= MANY):
        _forget(folder, shard)
        counts = ", ".join(f"{kind} {count}" for kind, count in outcomes.most_common())
        raise RunFailed(
            f"none of {outcomes.total()} URLs could be reached ({counts})", f"check the network, then {AGAIN}"
        )


@contextmanager
def _process(job: FetchJob, log: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """Runs img2dataset. It ends with this context, and with this process, even if that is killed: its stdin then closes."""
    config = job.folder.with_suffix(".json")
    config.write_text(job.model_dump_json())
    environment = os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1", "WANDB_MODE": "disabled"}
    for name in ("no_proxy", "NO_PROXY"):  # a proxy cannot reach what is on this machine
        environment[name] = ",".join(filter(None, (environment.get(name), "127.0.0.1", "localhost")))
    command = [sys.executable, "-m", "diffcli.prep.download.fetching", str(config)]
    with log.open("ab") as out:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _last_words(log: Path) -> str:
    """The last line of a log that names an error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"failed with error|^\w*(Error|Exception)\b", line)]
    return (errors or lines or ["it said nothing"])[-1][:300]

"""WebVid, and other tables of clips with its columns: videoid, name (the caption) and contentUrl, one row for each clip.

SOURCE is the table itself, and every clip is fetched; or a folder, in which VIDEOID.mp4 are at any depth beside the tables
(or with one that --table names), and nothing is fetched. A table with `val` in its name is the split `test`. Stored are the
clip as it is (KEY.mp4), its caption, and its middle frame as the image, on which image models train; with --size the frame
is cropped and resized, the clip is not. PrepSource: Bain et al. 2021, arXiv 2104.00650.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffcli.config import UserError
from diffcli.data.captions import clean
from diffcli.data.files import Location, open_tree
from diffcli.data.listing import Split
from diffcli.digest import sha256
from diffcli.prep.download.tables import CAPTION_COLUMNS, READERS, Row, Table, open_table_file
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, PrepSource, SourceOptions, fingerprint
from diffcli.prep.kinds import WEBVID as WHERE
from diffcli.prep.sets.clips import Clip, Manners

ID_COLUMNS = ("videoid", "video_id", "id")
URL_COLUMNS = ("contenturl", "content_url", "url")
HELD_OUT = re.compile(r"(?:^|[^a-z])(?:val|validation|test)(?:[^a-z]|$)")


class Columns(NamedTuple):
    """The names of the columns; url: None where clips lie in a folder."""

    id: str
    caption: str
    url: str | None


class ClipItems:
    """The clips of one table, a row each; files: those that lie in SOURCE, by ID."""

    def __init__(self, table: Table, columns: Columns, files: Mapping[str, Location], manners: Manners) -> None:
        self.table, self.columns, self.files, self.manners = table, columns, files, manners
        self.count = sum(1 for _ in table.rows())

    def __len__(self) -> int:
        return self.count

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        wanted = iter(positions)
        position = next(wanted, None)
        for number, row in enumerate(self.table.rows()):  # millions of rows are not kept
            if number == position:
                yield self._clip(row)
                position = next(wanted, None)

    def _clip(self, row: Row) -> Deferred:
        video = clean(" ".join(row.texts(self.columns.id)))
        name = f"{self.table.name}, line {row.line}" + (f": {video}" if video else "")
        if row.fault:
            return Broken(name, row.fault)
        captions = tuple(filter(None, map(clean, row.captions(self.columns.caption))))
        if self.columns.url is not None:
            return Clip(name, captions, "".join(row.texts(self.columns.url)).strip(), self.manners)
        if video in self.files:
            return Clip(name, captions, self.files[video], self.manners)
        return Broken(name, f"{SOURCE} has no '{video}.mp4'")


def open_webvid(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The clips of a table, from where it says or from the folder it lies in."""
    manners = Manners(options.download.timeout, options.download.retries, options.picked.obey_opt_out)
    if source.is_file() and any(suffix.lower() in READERS for suffix in source.suffixes):
        if options.table is not None:
            hint = "give the folder of clips as SOURCE, or leave --table out to fetch those of SOURCE"
            raise UserError(f"--table is '{options.table}', but {SOURCE} '{source}' is a table itself", hint)
        table = Table(source, str(source))
        items = ClipItems(table, _columns(table, options, fetched=True), {}, manners)
        return PrepSource({_split(source.name): items}, None, sha256(source))
    tree = open_tree(source, SOURCE, work)
    clips = {name.rsplit("/", 1)[-1][:-4]: name for name in reversed(tree.names) if name.lower().endswith(".mp4")}
    if not clips:
        raise UserError(f"{SOURCE} is '{source}', which holds no .mp4", WHERE)
    files = {video: tree.locations[name] for video, name in clips.items()}
    if options.table is None:
        tables = {name: Table(tree.locations[name], tree.shown(name)) for name in tree.names if name.endswith(".csv")}
    else:
        tables = {options.table.name: open_table_file(options.table)}
    splits: dict[Split, Items] = {}
    for name, table in tables.items():
        split = _split(name.rsplit("/", 1)[-1])
        if split in splits:
            raise UserError(
                f"{SOURCE} '{source}' has two tables for {split}, one of them {name}", "name one: --table FILE"
            )
        splits[split] = ClipItems(table, _columns(table, options, fetched=False), files, manners)
    if not splits:
        raise UserError(f"{SOURCE} is '{source}', which has clips but no .csv that captions them", WHERE)
    used = sorted(clips.values())
    used += tables if options.table is None else []
    digest = "" if options.table is None else sha256(options.table.expanduser())
    return PrepSource(splits, None, fingerprint([(digest, 0), *((name, tree.size(name)) for name in used)]))


def _columns(table: Table, options: SourceOptions, fetched: bool) -> Columns:
    """Raises UserError with the columns if one is missing."""
    url = table.column(options.url_col, "--url-col", URL_COLUMNS) if fetched else None
    caption = table.column(options.caption_col, "--caption-col", CAPTION_COLUMNS)
    ids = (*ID_COLUMNS, *URL_COLUMNS) if fetched else ID_COLUMNS
    return Columns(table.column(options.image_col, "--image-col", ids), caption, url)


def _split(name: str) -> Split:
    return "test" if HELD_OUT.search(name.lower()) else "train"

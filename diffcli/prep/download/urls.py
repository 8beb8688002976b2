"""Tables of URLs and captions: any table with a header, or, as CC3M and CC12M are published, one without.

A row gives (url, captions). Anything but an http(s) address becomes one that nothing opens: a table from a stranger must not make
diffcli read files of this machine.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from diffcli.config import UserError
from diffcli.data import captions
from diffcli.data.addresses import encoded
from diffcli.data.files import FileTree
from diffcli.digest import sha256
from diffcli.prep.download.tables import CAPTION_COLUMNS, Row, Table
from diffcli.prep.items import SOURCE, SourceOptions
from diffcli.prep.sets.coco import read_captions

URL = re.compile(r"https?://\S", re.IGNORECASE)
REFUSED = "refused:"  # before what is no http(s) address
URL_NAMES = ("url", "image_url", "coco_url", "contenturl", "link")  # of columns, in any case


class UrlRow(NamedTuple):
    """captions: one a line, as they are stored."""

    url: str
    captions: str


class UrlTable(NamedTuple):
    """A table that was read once: length: its rows, a digest of it, and how to read it again."""

    path: Path
    length: int
    digest: str
    rows: Callable[[], Iterator[UrlRow]]


def open_table(path: Path, options: SourceOptions) -> UrlTable:
    """Finds the two columns: by the options, by usual names, or in a table without a header by what is in the first row.

    Raises UserError if it is no table or lacks a column, with the columns that it has.
    """
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{SOURCE} is '{path}', which {what}", "give the table of URLs and captions itself")
    table = Table(path, str(path), bare=True)
    url, caption, first = _columns(table, options)

    def rows() -> Iterator[UrlRow]:
        yield from first
        for row in table.rows():
            yield _row(row, url, caption)

    return UrlTable(path, len(first) + sum(1 for _ in table.rows()), sha256(path), rows)


def open_coco_table(path: Path) -> UrlTable:
    """The images of COCO's captions_*.json, each a row with all its captions, in the order of the file."""
    images = read_captions(FileTree(path.parent, {path.name: path}), path.name).images
    rows = [_checked(image.url, image.captions) for image in images]
    return UrlTable(path, len(rows), sha256(path), lambda: iter(rows))


def _columns(table: Table, options: SourceOptions) -> tuple[str, str, list[UrlRow]]:
    """The columns of URL and caption, and the row that a table without a header has in the header's place."""
    given = options.url_col, options.caption_col
    url = next((cell for cell in table.columns if URL.match(cell)), None)
    if url is None:
        return (
            table.column(given[0], "--url-col", URL_NAMES),
            table.column(given[1], "--caption-col", CAPTION_COLUMNS),
            [],
        )
    flag = "--url-col" if given[0] else "--caption-col"
    if any(given):
        problem = f"{flag} names a column, but {table.shown} has no header: its first row holds '{url}'"
        raise UserError(problem, f"leave {flag} out: the columns are told apart by what is in them")
    caption = next((cell for cell in table.columns if cell != url), None)
    if caption is None:
        raise UserError(f"{table.shown} has URLs but no captions", "give a table with a URL and a caption a row")
    return url, caption, [_checked(url, [caption])]


def _row(row: Row, url: str, caption: str) -> UrlRow:
    if row.fault:
        return UrlRow(f"{REFUSED}row {row.line}: {row.fault}", "")
    return _checked(row.cells.get(url), row.captions(caption))


def _checked(url: object, found: object) -> UrlRow:
    address = encoded(str(url or ""))
    safe = address if URL.match(address) else REFUSED + address
    return UrlRow(safe, captions.to_bytes(captions.texts(found)).decode())

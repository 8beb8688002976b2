"""Tables with a row for each image: .csv (also .txt), .tsv, .jsonl, .json and .parquet, all but the last also with .gz.

Read row by row, so that a table of any length fits. A row that cannot be read has a reason and never stops the rest.
UTF-8 is expected (UTF-16 with its mark is understood); every row with other bytes is a separate fault.
"""

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path, PurePath
from typing import IO, Any, NamedTuple

from diffcli.config import UserError, did_you_mean
from diffcli.data.captions import KEYS, UTF16_MARKS, decoded, in_cell, texts
from diffcli.data.files import ARCHIVE_ERRORS, Location, open_location

CAPTION_COLUMNS = (*KEYS, "title", "name")  # in any case
DELIMITERS = ",;\t|"
UNCLOSED = "\ufdd0"  # no character; in place of the cells of a line that cannot be split
MAX_FIELD = 1 << 20  # characters; the rest of a table behind a quote that never closes is longer
MAX_LINE = 1 << 24  # characters; what is no table may have lines without end
MAX_JSON = 1 << 28  # bytes, unpacked


class Row(NamedTuple):
    """A row of a table. line: its number in the file (of a .parquet: of the row); fault: why it cannot be used, or empty."""

    line: int
    cells: dict[str, Any]
    fault: str = ""

    def texts(self, column: str) -> tuple[str, ...]:
        """The values of a cell that may hold one text or a list of them."""
        return texts(self.cells.get(column))

    def captions(self, column: str) -> tuple[str, ...]:
        """The captions in a cell."""
        return in_cell(self.cells.get(column))


class Table:
    """A table. shown: as the user knows it; name: without folders. columns: their names; of JSON, the keys of its first object.

    bare: a header alone will do, since it may be a row. Raises UserError, then and while rows are read, where the file is not
    such a table.
    """

    def __init__(self, location: Location, shown: str, bare: bool = False) -> None:
        self.location, self.shown = location, shown
        path = PurePath(shown)
        self.name = path.name
        packed = path.suffix.lower() == ".gz"
        suffix = PurePath(path.stem if packed else path).suffix.lower()
        if suffix not in READERS:
            raise UserError(f"{shown} is no table that can be read", f"give a file {', '.join(READERS)}")
        self.packed, self.reader = packed, READERS[suffix]
        self.headers = 1 if self.reader in (_csv, _tsv) else 0  # rows that name the columns
        first = next((row for row in self._read() if not row.fault), None)
        if first is None or not (bare or any(True for _ in self.rows())):
            raise UserError(f"{shown} has no rows", "give the whole table, with its header")
        self.columns = tuple(first.cells)

    def rows(self) -> Iterator[Row]:
        """Every row in order."""
        return islice(self._read(), self.headers, None)

    def _read(self) -> Iterator[Row]:
        with _reading(self.shown), open_location(self.location) as raw:
            stream: Any = gzip.GzipFile(fileobj=raw) if self.packed else raw
            yield from self.reader(stream)

    def column(self, given: str | None, flag: str, usual: Sequence[str]) -> str:
        """The name of a column: the one that was given with a flag, else the first of the usual names that is there."""
        lower = {column.lower(): column for column in reversed(self.columns)}
        if given is None:
            found = next((lower[name] for name in usual if name in lower), None)
            problem = f"{self.shown} has no column {' or '.join(usual)}"
        else:
            found = given if given in self.columns else lower.get(given.lower())
            problem = f"{flag} is '{given}', which {self.shown} does not have"
        if found is None:
            listed = did_you_mean(given or usual[0], self.columns)
            raise UserError(f"{problem}; it has {', '.join(self.columns)}", f"type {flag} NAME: {listed}")
        return found


def open_table_file(path: Path) -> Table:
    """The table that --table names."""
    path = path.expanduser()
    if not path.is_file():
        raise UserError(f"--table is '{path}', which is not a file", "give a .csv, .tsv, .jsonl or .parquet")
    return Table(path, str(path))


def _csv(stream: IO[bytes]) -> Iterator[Row]:
    """Values between commas, semicolons or bars, with a header; quoted fields may hold these, quotes and line ends.

    A line with a quote that never closes is a fault of its own, and those behind it are read.
    """
    lines = _lines(stream)
    header = next(lines, "")
    delimiter = max(DELIMITERS, key=header.count)
    yield from _separated(_quoted(chain([header], lines), delimiter))


def _tsv(stream: IO[bytes]) -> Iterator[Row]:
    """Tab-separated values with a header. Quotes begin captions there, and do not hide tabs or line ends.

    A field that is wholly wrapped in quotes, those inside doubled, is unwrapped: a spreadsheet wrote it.
    """
    reader = csv.reader(_lines(stream), delimiter="\t", quoting=csv.QUOTE_NONE)
    yield from _separated(((reader.line_num, cells) for cells in reader), _unquoted)


def _quoted(lines: Iterator[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line of each record, and its cells; no cells where a quote in it never closes."""
    number, again = 0, list[str]()  # lines before those that the reader below has read; lines to be read once more
    while True:
        taken: list[str] = []  # of the record that is being read

        def noting(lines: Iterator[str], taken: list[str] = taken) -> Iterator[str]:
            for line in lines:
                taken.append(line)
                yield line

        reader = csv.reader(noting(chain(again, lines)), delimiter=delimiter, strict=True)
        start = 0
        try:
            for cells in reader:
                yield number + reader.line_num, cells
                start = reader.line_num
                taken.clear()
            return
        except csv.Error as error:
            unread = again[reader.line_num :]
            if "field limit" in str(error):
                raise ValueError(
                    f"line {number + reader.line_num}: {error}, perhaps a quote that never closes"
                ) from error
            if len(taken) > 1 or "unexpected end" in str(error):
                yield number + start + 1, [UNCLOSED]
            else:  # a quote within a field that others take as it stands
                yield number + start + 1, next(csv.reader(taken, delimiter=delimiter), [])
            number, again = number + start + 1, taken[1:] + unread


def _separated(records: Iterator[tuple[int, list[str]]], clean: Callable[[str], str] = str) -> Iterator[Row]:
    """The rows, of which the first is the header: each column holds its own name."""
    csv.field_size_limit(MAX_FIELD)
    number, header = next(records, (0, []))
    columns = [clean(cell).strip() for cell in header]
    if columns:
        yield Row(number, dict(zip(columns, columns, strict=True)))
    for number, cells in records:
        if not cells:
            continue
        if cells == [UNCLOSED]:
            yield Row(number, {}, "a quote in it never closes")
            continue
        fault = "" if len(cells) <= len(columns) else f"it has {len(cells)} fields, not {len(columns)}"
        fault = fault or _encoding_fault("".join(cells))
        yield Row(number, dict(zip(columns, map(clean, cells), strict=False)), fault)


def _unquoted(cell: str) -> str:
    inner = cell[1:-1].replace('""', "")
    wrapped = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner
    return cell[1:-1].replace('""', '"') if wrapped else cell


def _jsonl(stream: IO[bytes]) -> Iterator[Row]:
    for number, line in enumerate(_lines(stream), start=1):
        if not line.strip():
            continue
        fault = _encoding_fault(line)
        try:
            cells = {} if fault else json.loads(line)
        except (ValueError, RecursionError) as error:
            cells, fault = {}, f"it is not JSON ({error})"
        if not isinstance(cells, dict):
            cells, fault = {}, "it is not a JSON object"
        yield Row(number, cells, fault)


def _json(stream: IO[bytes]) -> Iterator[Row]:
    data = stream.read(MAX_JSON + 1)
    if len(data) > MAX_JSON:
        raise ValueError(f"it has more than {MAX_JSON >> 20} MiB; .jsonl is read row by row")
    rows = json.loads(decoded(data))
    if not isinstance(rows, list):
        raise ValueError("it is not a list of objects")
    for number, cells in enumerate(rows, start=1):
        whole = isinstance(cells, dict)
        yield Row(number, cells if whole else {}, "" if whole else "it is not a JSON object")


def parquet_module() -> Any:
    """pyarrow.parquet. Raises UserError where it is not installed."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        hint = "pip install 'diffcli[download]', or give the table as .csv or .jsonl"
        raise UserError("tables in .parquet need pyarrow, which is not installed", hint) from error
    return parquet


def _parquet(stream: IO[bytes]) -> Iterator[Row]:
    """The rows, without columns that hold files: those are not what a table tells."""
    with parquet_module().ParquetFile(stream) as file:
        texts = [field.name for field in file.schema_arrow if not re.match(r"struct|(large_)?binary", str(field.type))]
        number = 0
        for batch in file.iter_batches(4096, columns=texts):
            for cells in batch.to_pylist():
                number += 1
                yield Row(number, cells)


READERS: dict[str, Callable[[IO[bytes]], Iterator[Row]]] = {
    ".csv": _csv,
    ".txt": _csv,
    ".tsv": _tsv,
    ".jsonl": _jsonl,
    ".json": _json,
    ".parquet": _parquet,
}


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines with their ends; what is not UTF-8 is kept as lone surrogates, to be found in its row."""
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(stream)  # type: ignore[type-var]
    encoding = "utf-16" if buffered.peek(2)[:2] in UTF16_MARKS else "utf-8-sig"
    text = io.TextIOWrapper(buffered, encoding, errors="surrogateescape", newline="")
    while line := text.readline(MAX_LINE):
        yield line


def _encoding_fault(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        return "it is not UTF-8"
    return ""


@contextmanager
def _reading(shown: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, RecursionError, *ARCHIVE_ERRORS) as error:
        raise UserError(f"{shown} cannot be read: {error}", "mend it, or take a fresh copy") from error

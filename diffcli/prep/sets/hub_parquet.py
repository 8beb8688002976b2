"""Parquet files that hold the images themselves, as hubs export data sets: a column of encoded files, labels, captions.

The column of images holds {bytes, path} or bytes alone; a column with a usual name for labels holds numbers or names, in
the order of the metadata of `datasets`, if there are any; one with a usual name for captions holds a text or a list. The split
follows from the names of file and folders, as `data/train-00000-of-00004.parquet`. Source: the feature types of
https://huggingface.co/docs/datasets/about_dataset_features.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from diffcli.config import UserError, did_you_mean
from diffcli.data.captions import clean, in_cell
from diffcli.data.listing import Split
from diffcli.data.sample_labels import KEYS, label_of_value, set_labels
from diffcli.data.walk import Walk
from diffcli.prep.download.tables import CAPTION_COLUMNS, parquet_module
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, PrepSource, SourceOptions, fingerprint
from diffcli.prep.kinds import PARQUET as WHERE
from diffcli.prep.sets.webdataset_index import natural, split_of

LABELS = (*KEYS, "labels", "fine_label", "coarse_label")  # of columns, in any case
IMAGES = ("image", "img", "picture", "photo", "jpg", "png", "webp", "pixel_values", "image_bytes", "bytes")
ROWS = 64  # that are held at a time


class HubColumns(NamedTuple):
    """The columns of a set; label, caption: None if it has none. names: of the classes, if its metadata have them."""

    image: str
    label: str | None
    caption: str | None
    names: tuple[str, ...] | None

    @property
    def read(self) -> list[str]:
        return [self.image, *filter(None, [self.caption])]


class ParquetItems:
    """The rows of some files, one after the other. labels: of the rows, or the reason why one has none; None without classes."""

    def __init__(self, files: Sequence[Path], labels: list[int | str] | None, columns: HubColumns) -> None:
        self.files, self.labels, self.columns = tuple(files), labels, columns
        self.counts = [_counted(file) for file in files]

    def __len__(self) -> int:
        return sum(self.counts)

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        first = 0
        for file, count in zip(self.files, self.counts, strict=True):
            here = [position - first for position in positions if first <= position < first + count]
            for row, cells in _rows(file, here, self.columns.read):
                yield self._item(f"{file.name}, row {row + 1}", first + row, cells)
            first += count

    def _item(self, name: str, position: int, cells: dict[str, Any]) -> Item | Broken:
        cell = cells[self.columns.image]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        label = None if self.labels is None else self.labels[position]
        if not isinstance(data, bytes):
            path = cell.get("path") if isinstance(cell, dict) else None
            return Broken(name, f"its image is not in the file, but at '{path}'" if path else "it has no image")
        if isinstance(label, str):
            return Broken(name, label)
        found = in_cell(cells[self.columns.caption]) if self.columns.caption else ()
        return Item(name, label, data, tuple(filter(None, map(clean, found))))


def open_parquet(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """A .parquet file or those below a folder. Raises UserError if they hold no images, or differ in their columns."""
    if not source.exists():
        raise UserError(f"{SOURCE} is '{source}', which does not exist", WHERE)
    listed = (
        [source] if source.is_file() else [path for path in Walk(source).files.values() if path.suffix == ".parquet"]
    )
    if not listed:
        raise UserError(f"{SOURCE} is '{source}', which holds no .parquet", WHERE)
    around = source.parent if source.is_file() else source
    by_split: dict[Split, list[Path]] = {}
    for path in sorted(listed, key=lambda path: natural(str(path))):
        by_split.setdefault(split_of(path.relative_to(around).with_suffix("").as_posix()), []).append(path)
    files = [path for paths in by_split.values() for path in paths]
    columns = _columns(files[0], options)
    values = [label for path in files for label in _labels(path, columns.label)] if columns.label else []
    try:
        found = set_labels(values) if columns.label else None
    except ValueError as error:
        raise UserError(f"{SOURCE} is '{source}', which {error}", WHERE) from error
    classes = None if found is None or not found.classes else found.classes
    if classes and columns.names and len(classes) <= len(columns.names):
        classes = columns.names
    splits: dict[Split, Items] = {}
    first = 0
    for split, paths in by_split.items():
        count = sum(map(_counted, paths))
        own = found.labels[first : first + count] if found is not None and classes else None
        splits[split] = ParquetItems(paths, own, columns)
        first += count
    notes = (found.note,) if found is not None and found.note else ()
    return PrepSource(splits, classes, fingerprint((path.name, path.stat().st_size) for path in files), notes)


def _columns(path: Path, options: SourceOptions) -> HubColumns:
    """The columns by the options or by their names, and the names of the classes."""
    with _opened(path) as file:
        schema = file.schema_arrow
    usual = {field.name.lower(): field.name for field in reversed(schema) if _holds_files(field.type)}
    image = options.image_col or next((usual[name] for name in (*IMAGES, *usual) if name in usual), None)
    if image is None or image not in schema.names:
        flag = f"--image-col is '{image}', a column that" if image else "no column of images, encoded as files:"
        problem = (
            f"{path} has {flag} it has {', '.join(schema.names)}" if image is None else f"{flag} {path} does not have"
        )
        raise UserError(problem, f"type --image-col NAME: {did_you_mean(image or 'image', schema.names)}; or {WHERE}")
    if options.caption_col and options.caption_col not in schema.names:
        problem = f"--caption-col is '{options.caption_col}', which {path} does not have"
        raise UserError(problem, f"type --caption-col NAME: {did_you_mean(options.caption_col, schema.names)}")
    lower = {name.lower(): name for name in reversed(schema.names) if name != image}
    label = next((lower[name] for name in LABELS if name in lower), None)
    caption = options.caption_col or next((lower[name] for name in CAPTION_COLUMNS if name in lower), None)
    return HubColumns(image, label if label != caption else None, caption, _class_names(schema.metadata, label))


def _holds_files(kind: Any) -> bool:
    """Whether the cells of a column are {bytes, ...} or bytes."""
    from pyarrow import types

    if types.is_struct(kind):
        return any(kind.field(number).name == "bytes" for number in range(kind.num_fields))
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _class_names(metadata: dict[bytes, bytes] | None, label: str | None) -> tuple[str, ...] | None:
    """The names of the classes of a column as the library `datasets` notes them."""
    try:
        names = json.loads((metadata or {})[b"huggingface"])["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def _labels(path: Path, column: str) -> list[str | None]:
    with _opened(path) as file:
        if column not in file.schema_arrow.names:
            return [None] * file.metadata.num_rows
        return [label_of_value(cell) for cell in file.read([column]).column(0).to_pylist()]


def _counted(path: Path) -> int:
    with _opened(path) as file:
        return int(file.metadata.num_rows)


def _rows(path: Path, wanted: Sequence[int], columns: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Row number and cells of the rows at these rising positions; groups without any of them are not read."""
    chosen, first = set(wanted), 0
    if not chosen:
        return
    with _opened(path) as file:
        for group in range(file.metadata.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            row = first
            first += count
            if chosen.isdisjoint(range(row, first)):
                continue
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=columns):
                for place in range(batch.num_rows):
                    if row + place in chosen:
                        yield row + place, batch.slice(place, 1).to_pylist()[0]
                row += batch.num_rows


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file opened by pyarrow. Raises UserError with the file if it is not parquet or lacks a column."""
    module = parquet_module()
    try:
        with module.ParquetFile(path) as file:
            yield file
    except (ValueError, KeyError) as error:  # pyarrow's own errors are ValueErrors
        raise UserError(
            f"{path} cannot be read: {error}", "take a fresh copy; all files must have the same columns"
        ) from error

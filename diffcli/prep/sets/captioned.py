"""Folders of images with captions: in files of the same name, in tables beside the images, or in a table that is named.

a.png has its captions in a.txt, a.png.txt or a.caption (one a line) or a.json (a text, a list, or an object with `caption`,
`text`, ...), beside it or in a folder captions/; metadata.csv, captions.csv, results.csv (or .jsonl, .tsv, .parquet) with usual
columns hold them for their folder; --table names any other. Several rows of one image are several captions. Images that a table
does not name are left out. Notes name files that may hold captions but are not read.
"""

import posixpath
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from diffcli.config import UserError, quoted
from diffcli.data.captions import clean
from diffcli.data.files import FileTree, open_tree
from diffcli.data.listing import Split
from diffcli.data.naming import alike
from diffcli.data.pixels import BrokenImage
from diffcli.data.sidecars import METADATA, TABLES, Sidecars, read_sidecar
from diffcli.digest import sha256
from diffcli.prep.download.tables import CAPTION_COLUMNS, Table, open_table_file
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, PrepSource, SourceOptions, fingerprint
from diffcli.prep.sets.folders import FileItems, images_of

MOST_NAMED = 3  # files in one note
IMAGE_COLUMNS = (
    "file_name",
    "filename",
    "file",
    "image",
    "image_path",
    "image_file",
    "path",
    "filepath",
    "img",
    "image_name",
    "image_filename",
    "img_name",
    "image_id",
)
CaptionsOf = Callable[[str], Sequence[str]]
"""The captions of an image by its name in the tree, before cleaning. Raises BrokenImage."""


class Captioned:
    """Items with their captions: those of `inner` at the positions `kept`, and then rows of tables without an image."""

    def __init__(self, inner: FileItems, kept: Sequence[int], of: CaptionsOf, broken: Sequence[Broken]) -> None:
        self.inner, self.kept, self.of, self.broken = inner, kept, of, broken

    def __len__(self) -> int:
        return len(self.kept) + len(self.broken)

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        count = len(self.kept)
        for item in self.inner.items([self.kept[position] for position in positions if position < count]):
            try:
                yield item._replace(captions=tuple(filter(None, map(clean, self.of(item.name)))))
            except BrokenImage as error:
                yield Broken(item.name, error.reason)
        yield from (self.broken[position - count] for position in positions if position >= count)


def open_folder(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """Any images in a folder or an archive: with or without class folders, captions, and train and test around them."""
    if options.table is None and (options.image_col or options.caption_col):
        flag = "--image-col" if options.image_col else "--caption-col"
        raise UserError(f"{flag} names a column, but there is no --table", f"add --table FILE, or leave {flag} out")
    tree = open_tree(source, SOURCE, work)
    images = images_of(tree, options.classes)
    files = {split: items for split, items in images.splits.items() if isinstance(items, FileItems)}
    if options.table is not None:
        listed = Listed(tree, files)
        listed.read(open_table_file(options.table), "", options)
        return _listed(images, files, listed, (sha256(options.table.expanduser()), 0))
    tables, notes = _tables(tree)
    if tables:
        listed = Listed(tree, files)
        for name, table in tables.items():
            listed.read(table, posixpath.dirname(name), options)
        found = _listed(images, files, listed, *((name, tree.size(name)) for name in tables))
    else:
        found = _beside(tree, images, files)
    return found._replace(notes=(*found.notes, *notes))


def _tables(tree: FileTree) -> tuple[dict[str, Table], list[str]]:
    """The tables of captions of a tree, and notes on those that are not read."""
    opened: dict[str, Table] = {}
    notes = []
    for name in tree.names:
        path = PurePosixPath(name.lower())
        if path.suffix not in TABLES and path.name != "captions.txt":
            continue
        try:
            table = Table(tree.locations[name], tree.shown(name))
        except UserError as error:
            if path.stem == "metadata":
                raise
            notes.append(f"{name} is not read: {error.problem}")
            continue
        if path.stem in METADATA and _tells_captions(table):
            opened[name] = table
        elif path.suffix != ".txt":  # that may be the captions of an image
            columns = ", ".join(table.columns[:8])
            notes.append(
                f"{name} is not read; if it has captions, type --table {quoted(tree.source / name)} --image-col NAME"
                f" --caption-col NAME (its columns are {columns})"
            )
    return opened, notes


@dataclass
class Listed:
    """The content of tables: captions by name of the image, and the rows that cannot be used."""

    tree: FileTree
    files: dict[Split, FileItems]
    captions: dict[str, list[str]] = field(default_factory=dict)
    broken: list[Broken] = field(default_factory=list)

    def __post_init__(self) -> None:
        names = [name for items in self.files.values() for name in items.names]
        self.common = posixpath.commonpath([posixpath.dirname(name) or "." for name in names]).removeprefix(".")
        stems = {alike(str(PurePosixPath(name).with_suffix(""))): name for name in names}
        self.sources = {str(self.tree.source.absolute()), str(self.tree.source.resolve())}
        self.by_name = stems | {alike(name): name for name in names}

    def read(self, table: Table, folder: str, options: SourceOptions) -> None:
        """Adds the rows of a table. folder: of the tree, in which it lies. Raises UserError where a column is missing."""
        image = table.column(options.image_col, "--image-col", IMAGE_COLUMNS)
        caption = table.column(options.caption_col, "--caption-col", CAPTION_COLUMNS)
        for row in table.rows():
            path = " ".join(row.texts(image))
            name, fault = (None, row.fault) if row.fault else self._find(path, folder)
            if name is None:
                where = f"{table.name}, line {row.line}"
                self.broken.append(Broken(f"{where}: {clean(path)}" if path else where, fault))
                continue
            known = self.captions.setdefault(name, [])
            known += [text for text in row.captions(caption) if text not in known]

    def _find(self, path: str, folder: str) -> tuple[str | None, str]:
        """The image that a cell names, or why there is none: relative to the table, to SOURCE, or to the folder of all images.

        An absolute path must also be a file in SOURCE.
        """
        path = path.strip().replace("\\", "/")
        if "://" in path:
            return None, "it is a URL, not a file: `diffcli prep-data urls` downloads those"
        if not path:
            return None, "it names no image"
        source = next((root for root in self.sources if path.startswith(f"{root}/")), None)
        relative = (folder,) if ".." in path.split("/") else (folder, "", self.common)
        roots = relative if source is None else ("",)
        below = path if source is None else path[len(source) + 1 :]
        places = [posixpath.normpath(posixpath.join(root, below)) for root in roots]
        inside = [place for place in places if not place.startswith(("/", "..")) and ":" not in place.partition("/")[0]]
        if not inside:
            return None, "it points outside of SOURCE"
        name = next((self.by_name[alike(place)] for place in inside if alike(place) in self.by_name), None)
        return name, f"SOURCE has no image '{clean(path)}'"


def _listed(images: PrepSource, files: dict[Split, FileItems], listed: Listed, *tables: tuple[str, int]) -> PrepSource:
    """The images that tables name, in the order of their files."""
    splits: dict[Split, Items] = {}
    broken, left_out = listed.broken, 0
    for split, items in files.items():
        kept = [number for number, name in enumerate(items.names) if name in listed.captions]
        splits[split] = Captioned(items, kept, listed.captions.__getitem__, broken)
        broken, left_out = [], left_out + len(items) - len(kept)
    if not listed.captions:
        first = listed.broken[0]
        raise UserError(f"{first.name}: {first.reason}; no row names an image", "see --image-col, and check SOURCE")
    without = sum(not any(map(clean, captions)) for captions in listed.captions.values())
    notes = [f"{left_out} images are not in the table and were left out"] * bool(left_out)
    notes += [f"{without} images have no caption"] * bool(without)
    digest = fingerprint([(images.fingerprint, 0), *tables])
    return images._replace(splits=splits, fingerprint=digest, notes=(*images.notes, *notes))


def _beside(tree: FileTree, images: PrepSource, files: dict[Split, FileItems]) -> PrepSource:
    """The images with the captions of files of the same names; unchanged if there are no such files."""
    sidecars = Sidecars(tree)
    found = {name: sidecars.of(name) for items in files.values() for name in items.names}
    beside = {name: file for name, file in found.items() if file is not None}
    unused = sidecars.others(beside.values())
    notes = []
    if unused:
        named = ", ".join(unused[:MOST_NAMED]) + (", ..." if len(unused) > MOST_NAMED else "")
        notes.append(f"{len(unused)} text files have the name of no image and are not read: {named}")
    if not beside:
        return images._replace(notes=(*images.notes, *notes))

    def of(name: str) -> Sequence[str]:
        return read_sidecar(tree, beside[name], name) if name in beside else ()

    splits: dict[Split, Items] = {s: Captioned(items, range(len(items)), of, ()) for s, items in files.items()}
    without = sum(map(len, files.values())) - len(beside)
    notes += [f"{without} images have no caption"] * bool(without)
    digest = fingerprint([(images.fingerprint, 0), *((name, tree.size(name)) for name in beside.values())])
    return images._replace(splits=splits, fingerprint=digest, notes=(*images.notes, *notes))


def _tells_captions(table: Table) -> bool:
    """Whether a table called metadata lists images with captions; it may list other things."""
    lower = {column.lower() for column in table.columns}
    return not lower.isdisjoint(IMAGE_COLUMNS) and not lower.isdisjoint(CAPTION_COLUMNS)

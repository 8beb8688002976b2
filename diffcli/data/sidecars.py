"""Captions in files beside images: finding the file of each image, and reading it.

a.png has its captions in a.txt, a.png.txt or a.caption (one a line) or a.json (a text, a list, or an object with `caption`,
`text`, ...), beside it or in a folder captions/.
"""

import posixpath
import re
from collections.abc import Iterable, Sequence

from diffcli.config import quoted
from diffcli.data.captions import MAX_BYTES, NOT_UTF8, decoded, from_json, to_bytes
from diffcli.data.faults import is_momentary
from diffcli.data.files import ARCHIVE_ERRORS, FileTree
from diffcli.data.naming import alike
from diffcli.data.pixels import BrokenImage

TABLES = frozenset({".jsonl", ".csv", ".tsv", ".parquet"})
METADATA = frozenset({"metadata", "captions", "caption", "results", "prompts", "annotations"})  # tables of captions
SIDECARS = (".txt", ".caption", ".json")
CAPTION_FOLDERS = frozenset({"captions", "caption", "texts", "text", "txt", "prompts", "descriptions"})
IMAGE_FOLDERS = frozenset({"images", "image", "imgs", "img", "pictures", "photos"})
NO_CAPTIONS = re.compile(r"(read_?me|licen[cs]e|notice|requirements|classes|labels|wnids|words)\b.*", re.IGNORECASE)
LINE_END = re.compile(r"\r\n|\r|\n")


class Sidecars:
    """The files of a tree that may hold the captions of one image each."""

    def __init__(self, tree: FileTree) -> None:
        self.by_stem: dict[str, dict[str, str]] = {}  # by path without suffix: the files by suffix
        self.apart: dict[str, dict[str, str]] = {}  # of those in CAPTION_FOLDERS, by path without such folders
        for name in tree.names:
            stem, suffix = posixpath.splitext(name)
            if suffix.lower() in SIDECARS:
                self.by_stem.setdefault(alike(stem), {})[suffix.lower()] = name
                if not CAPTION_FOLDERS.isdisjoint(name.lower().split("/")[:-1]):
                    self.apart.setdefault(_without_folders(stem), {})[suffix.lower()] = name

    def of(self, image: str) -> str | None:
        """The file with the captions of an image: beside it, or in a folder for captions; None if there is none."""
        stem = posixpath.splitext(image)[0]
        places = [self.by_stem.get(alike(stem)), self.by_stem.get(alike(image))]
        places += [self.apart.get(_without_folders(stem)), self.apart.get(_without_folders(image))]
        files = next(filter(None, places), {})
        return next((files[suffix] for suffix in SIDECARS if suffix in files), None)

    def others(self, used: Iterable[str]) -> list[str]:
        """The texts that are not used, without those that describe the set."""
        taken = set(used)
        texts = [file for files in self.by_stem.values() for suffix, file in files.items() if suffix != ".json"]
        return [file for file in texts if file not in taken and not NO_CAPTIONS.fullmatch(posixpath.basename(file))]


def _without_folders(path: str) -> str:
    """A path without the folders that separate images from captions."""
    *folders, name = alike(path).split("/")
    return "/".join([*(f for f in folders if f.lower() not in CAPTION_FOLDERS | IMAGE_FOLDERS), name])


def on_tables(tree: FileTree) -> list[str]:
    """A note on the tables of a tree that may hold captions, which prep-data alone reads; none where there are none."""
    paths = [(posixpath.splitext(posixpath.basename(name).lower()), name) for name in tree.names]
    found = [name for (stem, suffix), name in paths if stem in METADATA and suffix in TABLES]
    if not found:
        return []
    more = f" and {len(found) - 1} more tables" if len(found) > 1 else ""
    prepared = f"`diffcli prep-data folder {quoted(tree.source)} --out DIR`"
    return [f"{found[0]}{more} may hold captions, and is not read: type {prepared}, and give that DIR as the data"]


def read_sidecar(tree: FileTree, name: str, image: str) -> Sequence[str]:
    """The captions in a file, before cleaning. image: its image, for the error. Raises BrokenImage."""
    try:
        if tree.size(name) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES >> 20} MiB")
        text = decoded(tree.read(name))
        return from_json(text) if name.lower().endswith(".json") else LINE_END.split(text)
    except UnicodeDecodeError as error:
        raise BrokenImage(image, f"its captions in {name} {NOT_UTF8}") from error
    except (OSError, ValueError, *ARCHIVE_ERRORS) as error:
        if is_momentary(error):
            raise
        raise BrokenImage(image, f"its captions in {name} cannot be read: {error}") from error


class SidecarFiles:
    """The captions of the images of a tree, by number, as the files of a column of texts; an image may have none.

    captioned: how many have a file.
    """

    def __init__(self, tree: FileTree, images: Sequence[str]) -> None:
        sidecars = Sidecars(tree)
        self.images = list(images)
        self.files = [sidecars.of(image) for image in images]
        found = [file for file in self.files if file is not None]
        self.captioned = len(found)
        self.tree = FileTree(tree.source, {file: tree.locations[file] for file in found})

    def __len__(self) -> int:
        return len(self.files)

    def name(self, index: int) -> str:
        return self.tree.shown(self.files[index] or self.images[index])

    def read(self, index: int) -> bytes:
        """One caption a line, none for an image without a file. Raises BrokenImage for a file that cannot be read."""
        file = self.files[index]
        return b"" if file is None else to_bytes(read_sidecar(self.tree, file, self.tree.shown(self.images[index])))

"""COCO captions: images in train2017/ and val2017/ with annotations/captions_*.json, unpacked or in the official zips.

Each image has about five captions, in the order of their ids; val is the split `test`. A file_name may have folders: it is found
by the end of its path, with any suffix. PrepSource: Chen et al. 2015, arXiv
1504.00325.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from diffcli.config import UserError
from diffcli.data.captions import texts
from diffcli.data.files import FileTree, open_tree, with_zips
from diffcli.data.image_formats import images_among
from diffcli.data.listing import Split
from diffcli.data.sample_labels import number_in
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, PrepSource, SourceOptions, tree_fingerprint
from diffcli.prep.kinds import COCO as WHERE

CAPTIONS: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"(?:^|/)captions_train\d*\.json$"),
    "test": re.compile(r"(?:^|/)captions_val\d*\.json$"),
}
FOLDERS: dict[Split, re.Pattern[str]] = {"train": re.compile("(?:^|/)train"), "test": re.compile("(?:^|/)val")}


class CocoImage(NamedTuple):
    """An image that a captions file lists; file: its path below the folder of its split; url: its address, if given."""

    file: str
    url: str
    captions: tuple[str, ...]


class CocoCaptions(NamedTuple):
    """A captions file. orphans: annotations of images that it does not list."""

    images: list[CocoImage]
    orphans: int


class CocoItems:
    """The images of one captions file, sorted by path. found: the names of the files that each may be."""

    def __init__(self, images: Sequence[CocoImage], found: Mapping[str, Sequence[str]], tree: FileTree) -> None:
        self.images, self.found, self.tree = sorted(images), found, tree

    def __len__(self) -> int:
        return len(self.images)

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        for position in positions:
            file, _, captions = self.images[position]
            names = self.found[file]
            if len(names) == 1:
                yield Item(file, None, self.tree.locations[names[0]], captions)
            else:
                why = "it is not there" if not names else f"several files may be it: {', '.join(names[:3])}"
                yield Broken(file, why)


class CocoFiles:
    """The images of a tree by the ends of their paths."""

    def __init__(self, tree: FileTree) -> None:
        self.names = images_among(tree.names, tree.head).images
        self.by_base: dict[str, list[str]] = {}
        for name in self.names:
            self.by_base.setdefault(name.rsplit("/", 1)[-1], []).append(name)

    def of(self, file: str, split: Split) -> list[str]:
        """The files whose paths end with this one; of several those in the folders of the split, where there are such."""
        same = self.by_base.get(file.rsplit("/", 1)[-1], [])
        found = [name for name in same if f"/{name}".endswith(f"/{file}")]
        if not found and file.startswith("/"):  # the path on the machine where the file was written
            most = max((_shared(name, file) for name in same), default=0)
            found = [name for name in same if _shared(name, file) == most]
        own = [name for name in found if FOLDERS[split].search(name)]
        return own if len(found) > 1 and own else found


def open_coco_images(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The images with captions below a folder or in an archive; of several years, the one with most images."""
    tree = with_zips(open_tree(source, SOURCE, work), SOURCE, work)
    files = CocoFiles(tree)
    splits: dict[Split, Items] = {}
    used, notes = list(files.names), []
    for split, pattern in CAPTIONS.items():
        listed = {name: read_captions(tree, name) for name in tree.names if pattern.search(name)}
        found = {
            name: {image.file: files.of(image.file, split) for image in listing.images}
            for name, listing in listed.items()
        }
        there = {name: sum(map(bool, names.values())) for name, names in found.items()}
        if not any(there.values()):
            notes += [f"{name}: none of its {len(listing.images)} images is there" for name, listing in listed.items()]
            continue
        best = max(there, key=lambda name: there[name])
        used.append(best)
        notes += [f"{best}: {listed[best].orphans} captions belong to images that it does not list"] * bool(
            listed[best].orphans
        )
        splits[split] = CocoItems(listed[best].images, found[best], tree)
    if not splits:
        problem = (
            notes[0] if notes else f"{SOURCE} is '{source}', which has no captions_train*.json or captions_val*.json"
        )
        raise UserError(problem, WHERE)
    return PrepSource(splits, None, tree_fingerprint(tree, sorted(used)), tuple(notes))


def read_captions(tree: FileTree, name: str) -> CocoCaptions:
    """The images of a captions file, with captions in the order of ids if all have one. Raises UserError for another file."""
    try:
        data = json.loads(tree.read(name))
        found: dict[str, list[str]] = {str(image["id"]): [] for image in data["images"]}
        orphans = 0
        for note in _in_order(data["annotations"]):
            captions, given = found.get(str(note["image_id"])), texts(note["caption"])
            if captions is None:
                orphans += 1
            else:
                captions += given
        images = [
            CocoImage(
                PurePosixPath(str(image["file_name"]).replace("\\", "/")).as_posix(),
                str(image.get("coco_url", "")),
                tuple(found[str(image["id"])]),
            )
            for image in data["images"]
        ]
        return CocoCaptions(images, orphans)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{tree.shown(name)} is not a captions file of COCO ({type(error).__name__}: {error})"
        raise UserError(problem, f"take a fresh copy; {WHERE}") from error


def _in_order(notes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Annotations by the number of their ids; in their original order if some have none."""
    numbers = [number_in(str(note.get("id", ""))) for note in notes]
    if None in numbers:
        return notes
    return [notes[place] for place in sorted(range(len(notes)), key=lambda place: numbers[place] or 0)]


def _shared(name: str, file: str) -> int:
    """The number of parts that two paths share at their ends."""
    pairs = zip(reversed(name.split("/")), reversed(file.split("/")), strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))

"""COCO captions: images in train2017/ and val2017/ with annotations/captions_*.json, unpacked or in the official zips.

Each image has about five captions, in the order of their ids; val is the split `test`. PrepSource: Chen et al. 2015, arXiv
1504.00325.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from diffcli.config import UserError
from diffcli.data.files import FileTree, Location, open_tree, with_zips
from diffcli.data.listing import Split
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, PrepSource, SourceOptions, tree_fingerprint

CAPTIONS: dict[Split, re.Pattern[str]] = {
    "train": re.compile(r"(?:^|/)captions_train\d*\.json$"),
    "test": re.compile(r"(?:^|/)captions_val\d*\.json$"),
}
WHERE = "give the folder with train2017.zip, val2017.zip and annotations_trainval2017.zip of https://cocodataset.org/#download"


class CocoImage(NamedTuple):
    """An image that a captions file lists; file: its name without folders; url: where it lies, if it says so."""

    file: str
    url: str
    captions: tuple[str, ...]


class CocoItems:
    """The images of one captions file, sorted by name; files: where those lie that are there."""

    def __init__(self, images: Sequence[CocoImage], files: Mapping[str, Location]) -> None:
        self.images, self.files = sorted(images), files

    def __len__(self) -> int:
        return len(self.images)

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        for position in positions:
            file, _, captions = self.images[position]
            if file in self.files:
                yield Item(file, None, self.files[file], captions)
            else:
                yield Broken(file, "it is not there")


def open_coco_images(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The images with captions below a folder or in an archive; where it holds several years, that with most images."""
    tree = with_zips(open_tree(source, SOURCE, work), SOURCE, work)
    files = {name.rsplit("/", 1)[-1]: name for name in reversed(tree.names) if name.lower().endswith((".jpg", ".png"))}
    splits: dict[Split, Items] = {}
    used, notes = list(files.values()), []
    for split, pattern in CAPTIONS.items():
        listed = {name: read_captions(tree, name) for name in tree.names if pattern.search(name)}
        there = {name: sum(image.file in files for image in images) for name, images in listed.items()}
        if not any(there.values()):
            notes += [f"{name}: none of its {len(images)} images is there" for name, images in listed.items()]
            continue
        best = max(there, key=lambda name: there[name])
        used.append(best)
        splits[split] = CocoItems(listed[best], {file: tree.locations[name] for file, name in files.items()})
    if not splits:
        problem = (
            notes[0] if notes else f"{SOURCE} is '{source}', which has no captions_train*.json or captions_val*.json"
        )
        raise UserError(problem, WHERE)
    return PrepSource(splits, None, tree_fingerprint(tree, sorted(used)), tuple(notes))


def read_captions(tree: FileTree, name: str) -> list[CocoImage]:
    """The images of a captions file. Raises UserError where it is another kind of file."""
    try:
        data = json.loads(tree.read(name))
        found: dict[int, list[tuple[int, str]]] = {image["id"]: [] for image in data["images"]}
        for note in data["annotations"]:
            found[note["image_id"]].append((note["id"], str(note["caption"])))
        return [
            CocoImage(
                str(image["file_name"]).rsplit("/", 1)[-1],
                str(image.get("coco_url", "")),
                tuple(caption for _, caption in sorted(found[image["id"]])),
            )
            for image in data["images"]
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = f"{tree.shown(name)} is not a captions file of COCO ({type(error).__name__}: {error})"
        raise UserError(problem, f"take a fresh copy; {WHERE}") from error

"""Pairs of pictures: an image and its mask or sketch, in folders beside each other or in one.

What a file is follows from a folder above it whose name holds one of WORDS ("Ground Truth", "ISIC2018_Training_Input"), or
from the end of its own name ("ISIC_0000000_segmentation.png"). Folders without such a word hold the images if no other
folder does, else a field of their own name. Files belong together if the rest of their paths agrees.
CVC-ClinicDB: Original/1.tif and Ground Truth/1.tif. ISIC: the folders or zips of a challenge; its validation and test parts
are the split `test`.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from posixpath import commonpath
from typing import NamedTuple

from diffcli.config import UserError
from diffcli.data.files import Location, open_tree, with_zips
from diffcli.data.image_formats import images_among
from diffcli.data.listing import SPLIT_NAMES, Split
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, PrepSource, SourceOptions, tree_fingerprint

IMAGE = "image"
WORDS: dict[str, str] = {  # the first that fits counts: "image masks" are masks
    "mask": "mask masks truth groundtruth gt segmentation segmentations label labels annotations",
    "sketch": "sketch sketches edge edges drawing drawings lineart",
    IMAGE: "image images img imgs original originals input inputs data photo photos rgb",
}
ENDS: dict[str, str] = {  # of names, after an underscore or a hyphen
    **dict.fromkeys(("mask", "segmentation", "seg", "groundtruth", "gt", "label"), "mask"),
    **dict.fromkeys(("sketch", "edges", "edge"), "sketch"),
}
NO_PART = "_superpixels"  # ISIC 2017 has these beside its images
PARTS = {"training": "train", "train": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "val"
)
FORMATS = frozenset({"png", "tif", "tiff", "jpg", "jpeg", "bmp"})  # folders that repeat what another one holds
HINT = "name the folders images/ and masks/ (or sketches/), or the files a.jpg and a_mask.png"
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")


class Key(NamedTuple):
    """The common part of an image and its pictures: the part of the set, the folders around, the name."""

    part: str
    folders: tuple[str, ...]
    stem: str


class PairRole(NamedTuple):
    """The role of a file: its field (IMAGE, or that of a picture; empty: unknown), its key, its format."""

    field: str
    key: Key
    format: str


class PairItems:
    """Images with their pictures, and then the files without a partner."""

    def __init__(self, locations: Mapping[str, Location]) -> None:
        self.locations = locations
        self.pairs: list[tuple[str, dict[str, str]]] = []
        self.alone: list[Broken] = []

    def __len__(self) -> int:
        return len(self.pairs) + len(self.alone)

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        for position in positions:
            if position < len(self.pairs):
                name, over = self.pairs[position]
                pictures = {field: self.locations[other] for field, other in over.items()}
                yield Item(name, None, self.locations[name], pictures=pictures)
            else:
                yield self.alone[position - len(self.pairs)]


def open_pairs(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """The pairs below a folder (also in its zips) or in an archive. Raises UserError if pictures cannot be told from images."""
    tree = with_zips(open_tree(source, SOURCE, work), SOURCE, work)
    names = images_among(tree.names, tree.head).images
    roles = _renamed(_one_format(_roles(names)), options.field)
    groups: dict[Key, dict[str, list[str]]] = {}
    for name, role in roles.items():
        groups.setdefault(role.key, {}).setdefault(role.field, []).append(name)
    fields = sorted({role.field for role in roles.values()} - {IMAGE})
    wanted = [field for field in fields if field in WORDS or _is_usual(field, groups)]
    if not wanted or not any(IMAGE in group for group in groups.values()):
        folders = ", ".join(sorted({str(PurePosixPath(name).parent) for name in names})[:6]) or "it holds no images"
        problem = f"{SOURCE} is '{source}', in which images and their pictures cannot be distinguished: {folders}"
        raise UserError(problem, HINT)
    parts: dict[Split, PairItems] = {}
    for key, group in groups.items():
        split: Split = SPLIT_NAMES.get(key.part, "train")
        _add(parts.setdefault(split, PairItems(tree.locations)), group, wanted)
    splits: dict[Split, Items] = {split: parts[split] for split in sorted(parts, reverse=True)}
    return PrepSource(splits, None, tree_fingerprint(tree, list(roles)))


def _is_usual(field: str, groups: dict[Key, dict[str, list[str]]]) -> bool:
    """Whether most images have a field: a folder of other pictures beside them is none."""
    images = [group for group in groups.values() if IMAGE in group]
    return 2 * sum(field in group for group in images) >= len(images)


def _add(items: PairItems, group: dict[str, list[str]], fields: Sequence[str]) -> None:
    """Adds the image of a group with one picture for each of the fields, or a reason for each file that has no partner."""
    missing = next((field for field in (IMAGE, *fields) if field not in group), None)
    if missing is None:
        items.pairs.append((group[IMAGE][0], {field: group[field][0] for field in fields}))
    for field, (first, *others) in group.items():
        if missing is not None:
            items.alone.append(Broken(first, f"there is no {missing} for it"))
        items.alone += [Broken(name, f"another {field} goes with the same name: {first}") for name in others]


def _roles(names: Sequence[str]) -> dict[str, PairRole]:
    """The role of each file; files without a role are left out."""
    around = commonpath([PurePosixPath(name).parent.as_posix() for name in names]) if names else ""
    depth = len(PurePosixPath(around).parts)
    found = {name: _role(PurePosixPath(*PurePosixPath(name).parts[depth:])) for name in names}
    found = {name: role for name, role in found.items() if not role.key.stem.lower().endswith(NO_PART)}
    images_are_named = any(role.field == IMAGE for role in found.values())
    return {name: role if role.field else _unnamed(role, images_are_named) for name, role in found.items()}


def _role(path: PurePosixPath) -> PairRole:
    field = part = kind = ""
    around = []
    for folder in path.parent.parts:
        words = [word.lower() for word in WORD.findall(folder)]
        part = next((PARTS[word] for word in words if word in PARTS), part)
        named = next((field for field, known in WORDS.items() if not set(words).isdisjoint(known.split())), None)
        if named:
            field = named
        elif folder.lower() in FORMATS:
            kind = folder
        elif not PARTS.keys() >= set(words) or not words:
            around.append(folder)
    stem, _, end = re.sub(r"[-_](?=[^-_]*$)", "\0", path.stem).partition("\0")
    if end.lower() in ENDS:
        return PairRole(ENDS[end.lower()], Key(part, tuple(around), stem), kind)
    return PairRole(field, Key(part, tuple(around), path.stem), kind)


def _unnamed(role: PairRole, images_are_named: bool) -> PairRole:
    """A file whose folder has no word: an image if no other folder has images, else the field that its folder names."""
    if not images_are_named:
        return role._replace(field=IMAGE)
    folder, *rest = role.key.folders or ("picture",)
    field = re.sub(r"[^a-z0-9]+", "_", folder.lower()).strip("_")
    return role._replace(
        field=field if field[:1].isalpha() else f"field_{field}", key=role.key._replace(folders=tuple(rest))
    )


def _one_format(roles: dict[str, PairRole]) -> dict[str, PairRole]:
    """One of the folders PNG/ and TIF/ where each holds whole pairs."""
    formats: dict[str, set[str]] = {}
    for role in roles.values():
        formats.setdefault(role.format, set()).add(role.field)
    whole = sorted(kind for kind, fields in formats.items() if kind and len(fields) > 1)
    return {name: role for name, role in roles.items() if role.format not in whole[1:]}


def _renamed(roles: dict[str, PairRole], field: str | None) -> dict[str, PairRole]:
    """The roles where the only field is called as --field says, or is that one of several."""
    found = {role.field for role in roles.values()} - {IMAGE}
    if field is None:
        return roles
    if not re.fullmatch(r"[a-z][a-z0-9_]*", field) or field in (IMAGE, "text", "video", "label"):
        raise UserError(
            f"--field is '{field}', which cannot name a field", "type --field mask, or another lower-case name"
        )
    if len(found) == 1:
        return {name: role if role.field == IMAGE else role._replace(field=field) for name, role in roles.items()}
    if field not in found:
        listed = ", ".join(sorted(found)) or "none"
        raise UserError(
            f"--field is '{field}', but the fields of {SOURCE} are {listed}", "give one of these, or no --field"
        )
    return {name: role for name, role in roles.items() if role.field in (IMAGE, field)}

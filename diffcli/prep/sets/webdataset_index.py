"""What lies in WebDataset tars of anybody: members grouped into samples by their name before its first dot.

KEY.jpg, .png, ... is the image; KEY.cls its class, from 0; KEY.txt its captions, one a line, or KEY.json with `caption`,
`captions` or `text`. Only headers are walked, so a tar of any size opens fast. Members that hold pickles are never read.
"""

import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from diffcli.config import UserError
from diffcli.data import captions
from diffcli.data.files import Span, read_location
from diffcli.data.image_formats import SUFFIXES
from diffcli.data.listing import SPLIT_NAMES, Split
from diffcli.data.stream.tar import PICKLES
from diffcli.data.walk import Walk
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, PrepSource, SourceOptions, fingerprint

IMAGES = frozenset(suffix[1:] for suffix in SUFFIXES)
MAX_CLASSES = 1 << 20
WHERE = "give a folder with .tar shards, of which those named val or test become the split test, or one .tar"


class IndexedSample(NamedTuple):
    """The members of one sample, by extension (all after the first dot, in small letters)."""

    key: str
    members: dict[str, Span]

    @property
    def image(self) -> Span | None:
        return next((self.members[e] for e in self.members if e in IMAGES), None)


class ShardSamples(NamedTuple):
    """Samples sorted by key; how many members hold pickles; fault: why the tar ends before its end, or empty."""

    samples: list[IndexedSample]
    pickles: int
    fault: str


class SampleItems:
    """The samples of a split, tar after tar. labels: theirs, or None; lost: what its tars should hold but do not."""

    def __init__(self, samples: list[IndexedSample], labels: list[int] | None, lost: list[Broken]) -> None:
        self.samples, self.labels, self.lost = samples, labels, lost

    def __len__(self) -> int:
        return len(self.samples) + len(self.lost)

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        count = len(self.samples)
        for position in positions:
            if position >= count:
                yield self.lost[position - count]
                continue
            sample = self.samples[position]
            image, label = sample.image, None if self.labels is None else self.labels[position]
            if image is None:
                yield Broken(sample.key, f"it has no image, only {', '.join(sorted(sample.members))}")
            else:
                yield Item(f"{image.path.name}/{sample.key}", label, image, _captions(sample))


def open_webdataset(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """A folder of tars, or one of them. Raises UserError where there are none."""
    if not source.exists():
        raise UserError(f"{SOURCE} is '{source}', which does not exist", WHERE)
    files = [source] if source.is_file() else [path for path in Walk(source).files.values() if path.suffix == ".tar"]
    tars = sorted(files, key=lambda path: _natural(str(path)))
    if not tars:
        raise UserError(f"{SOURCE} is '{source}', which holds no .tar", WHERE)
    around = source.parent if source.is_file() else source  # whose own name says nothing of what lies in it
    samples: dict[Split, list[IndexedSample]] = {}
    lost: dict[Split, list[Broken]] = {}
    pickles = 0
    for tar in tars:
        contents, split = read_contents(tar), split_of(tar.relative_to(around).with_suffix("").as_posix())
        samples.setdefault(split, []).extend(contents.samples)
        lost.setdefault(split, []).extend([Broken(tar.name, contents.fault)] if contents.fault else [])
        pickles += contents.pickles
    labels = {split: _labels(found) for split, found in samples.items()}
    labelled = all(found is not None for found in labels.values())
    splits: dict[Split, Items] = {
        split: SampleItems(found, labels[split] if labelled else None, lost[split]) for split, found in samples.items()
    }
    highest = max((max(found, default=-1) for found in labels.values() if found), default=-1)
    if labelled and highest >= MAX_CLASSES:
        raise UserError(f"{SOURCE} is '{source}', which holds the label {highest}, no number of a class", WHERE)
    classes = tuple(map(str, range(highest + 1))) if labelled and highest >= 0 else None
    notes = (f"{pickles} members that hold pickles are left out",) if pickles else ()
    return PrepSource(splits, classes, fingerprint((tar.name, tar.stat().st_size) for tar in tars), notes)


def split_of(name: str) -> Split:
    """'test' of 'captions_val2017', 'train' of what names no split."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


def read_contents(tar: Path) -> ShardSamples:
    """The samples of a tar; of one that was cut short, those before the cut. Raises OSError where it cannot be opened."""
    samples: dict[str, dict[str, Span]] = {}
    pickles, fault, end = 0, "", tar.stat().st_size
    for name, span in _members(tar):
        if span is None or span.offset + span.size > end:
            fault = f"it is cut short or garbled after {name or 'its start'}"
            break
        key, extension = _split(name)
        if extension.rpartition(".")[2] in PICKLES:
            pickles += 1
        elif extension:
            samples.setdefault(key, {}).setdefault(extension, span)
    return ShardSamples([IndexedSample(key, samples[key]) for key in sorted(samples, key=_natural)], pickles, fault)


def _members(tar: Path) -> Iterator[tuple[str, Span | None]]:
    """Names and places of the files in a tar; (last name, None) where it does not end as a tar does."""
    name = ""
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                name = member.name
                if member.isreg():
                    yield name, Span(tar, member.offset_data, member.size)
            with tar.open("rb") as raw:
                raw.seek(file.offset)
                ended = raw.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except tarfile.TarError:
        ended = False
    if not ended:
        yield name, None


def _split(name: str) -> tuple[str, str]:
    """('folder/key', 'seg.png') of 'folder/key.seg.png'; of what has no key, as '.DS_Store', no extension either."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return (str(path.with_name(stem)), extension.lower()) if stem else ("", "")


def _natural(key: str) -> list[tuple[int, str]]:
    """Orders numbers by value, so that 9 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def _labels(samples: list[IndexedSample]) -> list[int] | None:
    """The class of each sample; None unless all of them have one."""
    labels = []
    for sample in samples:
        told = sample.members.get("cls")
        text = read_location(told).strip() if told and told.size < 20 else b""
        if not text.isdigit():
            return None
        labels.append(int(text))
    return labels


def _captions(sample: IndexedSample) -> tuple[str, ...]:
    told = sample.members.get("txt") or sample.members.get("json")
    if told is None or told.size > captions.MAX_BYTES:
        return ()
    data = read_location(told)
    if "txt" in sample.members:
        return tuple(filter(None, captions.from_bytes(data)))
    with suppress(ValueError):
        return captions.from_json(data)
    return ()

"""The samples in WebDataset tars of other tools: members grouped by their name before the first dot.

KEY.jpg, .png, ... is the image, or a member with another name that begins as an image does; KEY.cls or .class its class;
KEY.txt its captions, one a line; KEY.json has either, under usual keys. Members of a sample may lie anywhere in the tar, links
are followed within it, and of two members with one name the last counts. Where a key has no image of its own, its members are
those of keys with dots (`photo.v1.jpg`). Only headers are read, so a tar of any size opens fast. Members that hold pickles are
never read.
"""

import re
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from diffcli.config import UserError
from diffcli.data import captions
from diffcli.data.files import Span, read_location
from diffcli.data.image_formats import HEAD, extension_of
from diffcli.data.listing import SPLIT_NAMES, Split
from diffcli.data.sample_labels import EXTENSIONS, LONGEST, label_of_bytes, label_of_json, set_labels
from diffcli.data.stream.tar import IMAGES, KNOWN, PICKLES
from diffcli.data.tar_links import target_of, with_links
from diffcli.data.walk import Walk
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, PrepSource, SourceOptions, fingerprint
from diffcli.prep.kinds import WEBDATASET as WHERE

PEEKED = 100  # samples whose .json is searched for a label; where none has one, the others are not searched


class IndexedSample(NamedTuple):
    """The members of one sample, by extension (all after the first dot, in small letters)."""

    key: str
    members: dict[str, Span]

    @property
    def image(self) -> Span | None:
        return next((self.members[e] for e in self.members if e in IMAGES), None)


class ShardSamples(NamedTuple):
    """Samples sorted by key; the numbers of members that hold pickles, that occur twice, and that are dangling links.

    fault: why the tar ends too early, or empty.
    """

    samples: list[IndexedSample]
    pickles: int
    fault: str
    twice: int = 0
    lost_links: int = 0


class SampleItems:
    """The samples of a split, tar after tar. labels: of the samples, or the reason why one has none; None without classes.

    lost: samples that its tars should hold but do not.
    """

    def __init__(self, samples: list[IndexedSample], labels: list[int | str] | None, lost: list[Broken]) -> None:
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
            elif isinstance(label, str):
                yield Broken(sample.key, label)
            else:
                yield _item(sample, image, label)


def open_webdataset(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """A folder of tars, or one of them. Raises UserError where there are none."""
    if not source.exists():
        raise UserError(f"{SOURCE} is '{source}', which does not exist", WHERE)
    files = [source] if source.is_file() else [path for path in Walk(source).files.values() if path.suffix == ".tar"]
    tars = sorted(files, key=lambda path: natural(str(path)))
    if not tars:
        raise UserError(f"{SOURCE} is '{source}', which holds no .tar", WHERE)
    around = source.parent if source.is_file() else source  # whose own name says nothing of what lies in it
    found: dict[Split, list[IndexedSample]] = {}
    lost: dict[Split, list[Broken]] = {}
    passed = Counter[str]()
    for tar in tars:
        contents, split = read_contents(tar), split_of(tar.relative_to(around).with_suffix("").as_posix())
        found.setdefault(split, []).extend(contents.samples)
        lost.setdefault(split, []).extend([Broken(tar.name, contents.fault)] if contents.fault else [])
        passed += Counter(
            {
                "members that hold pickles are left out": contents.pickles,
                "members occur twice, of which the last counts": contents.twice,
                "links that lead to nothing in their tar are left out": contents.lost_links,
            }
        )
    try:
        labels = set_labels(_labels([sample for samples in found.values() for sample in samples]))
    except ValueError as error:
        raise UserError(f"{SOURCE} is '{source}', which {error}", WHERE) from error
    splits: dict[Split, Items] = {}
    first = 0
    for split, samples in found.items():
        own = labels.labels[first : first + len(samples)] if labels.classes else None
        splits[split] = SampleItems(samples, own, lost[split])
        first += len(samples)
    notes = (*(f"{count} {what}" for what, count in passed.items()), *filter(None, [labels.note]))
    digest = fingerprint((tar.name, tar.stat().st_size) for tar in tars)
    return PrepSource(splits, labels.classes or None, digest, notes)


def split_of(name: str) -> Split:
    """'test' for 'captions_val2017', 'train' for a name without a split."""
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_NAMES[word] for word in words if word in SPLIT_NAMES), "train")


def read_contents(tar: Path) -> ShardSamples:
    """The samples of a tar; of a truncated one, those before the cut. Raises OSError if it cannot be opened."""
    members, fault, end, twice = dict[str, Span](), "", tar.stat().st_size, 0
    links: dict[str, str | None] = {}
    for name, found in _members(tar):
        if found is None or (isinstance(found, Span) and found.offset + found.size > end):
            fault = f"it is cut short or garbled after {name or 'its start'}"
            break
        if isinstance(found, Span):
            twice += name in members
            members.pop(name, None)  # a later one takes its place, also in the order
            members[name] = found
        else:
            links[name] = target_of(found)
    members, lost = with_links(members, links) if links else (members, [])
    groups: dict[str, dict[str, Span]] = {}
    pickles = 0
    for name, span in members.items():
        key, extension = _split(name)
        if extension.rpartition(".")[2] in PICKLES:
            pickles += 1
        elif extension:
            groups.setdefault(key, {})[_known(extension, span)] = span
    samples = [IndexedSample(key, group) for key, group in _with_dots(groups).items()]
    return ShardSamples(sorted(samples, key=lambda sample: natural(sample.key)), pickles, fault, twice, len(lost))


def _members(tar: Path) -> Iterator[tuple[str, Span | tarfile.TarInfo | None]]:
    """Names and places of the files in a tar, and its links; (last name, None) if it is truncated."""
    name = ""
    try:
        with tarfile.open(tar, "r:") as file:
            for member in file:
                name = member.name
                if member.isreg():
                    yield name, Span(tar, member.offset_data, member.size)
                elif member.issym() or member.islnk():
                    yield name, member
            with tar.open("rb") as raw:
                raw.seek(file.offset)
                ended = raw.read(tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
    except tarfile.TarError:
        ended = False
    if not ended:
        yield name, None


def _split(name: str) -> tuple[str, str]:
    """('folder/key', 'seg.PNG') of 'folder/key.seg.PNG'; of what has no key, as '.DS_Store', no extension either."""
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return (str(path.with_name(stem)), extension) if stem else ("", "")


def _known(extension: str, span: Span) -> str:
    """The extension; for a member with an unknown one that begins as an image does, that of its format."""
    lower = extension.lower()
    if lower.rpartition(".")[2] in KNOWN:
        return extension
    return extension_of(read_location(span._replace(size=min(span.size, HEAD)))) or extension


def _with_dots(groups: dict[str, dict[str, Span]]) -> dict[str, dict[str, Span]]:
    """Samples by key, with their extensions in small letters. A group without an image of its own may be keys with dots.

    A field of samples with an image, such as `seg.png`, is a field of samples without one too.
    """
    plain = {key for key, group in groups.items() if any(extension.lower() in IMAGES for extension in group)}
    fields = {extension.lower() for key in plain for extension in groups[key]}
    samples: dict[str, dict[str, Span]] = {}
    for key, group in groups.items():
        dotted = [e for e in group if e.lower() not in fields and e.lower().rpartition(".")[2] in IMAGES]
        for extension, span in group.items():
            stem, _, last = extension.rpartition(".") if key not in plain and dotted else ("", "", extension)
            samples.setdefault(f"{key}.{stem}" if stem else key, {})[last.lower()] = span
    return samples


def natural(key: str) -> list[tuple[int, str]]:
    """Orders numbers by value, so that 9 comes before 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", key)]


def _labels(samples: Sequence[IndexedSample]) -> list[str | None]:
    """The label of each sample."""
    found: list[str | None] = []
    searched = True
    for number, sample in enumerate(samples):
        if number == PEEKED:
            searched = any(label is not None for label in found)
        stored = next((sample.members[e] for e in EXTENSIONS if e in sample.members), None)
        if stored is not None:
            found.append(label_of_bytes(read_location(stored._replace(size=min(stored.size, 4 * LONGEST)))))
        elif searched and "json" in sample.members and sample.members["json"].size <= captions.MAX_BYTES:
            found.append(label_of_json(read_location(sample.members["json"])))
        else:
            found.append(None)
    return found


def _item(sample: IndexedSample, image: Span, label: int | None) -> Item | Broken:
    """A sample with its captions, unless these cannot be read."""
    name = f"{image.path.name}/{sample.key}"
    try:
        return Item(name, label, image, _captions(sample))
    except UnicodeDecodeError:
        return Broken(name, f"its captions {captions.NOT_UTF8}")


def _captions(sample: IndexedSample) -> tuple[str, ...]:
    member = sample.members.get("txt") or sample.members.get("json")
    if member is None or member.size > captions.MAX_BYTES:
        return ()
    data = read_location(member)
    if "txt" in sample.members:
        return tuple(filter(None, captions.from_bytes(data)))
    with suppress(ValueError):
        return captions.from_json(data)
    return ()

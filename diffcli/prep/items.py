"""The contract between prep-data and what it reads: a PrepSource is splits of Items, in a fixed order, with class names."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field
from torch import Tensor

from diffcli.config import Config
from diffcli.data.files import FileTree, Location
from diffcli.data.listing import ClassesFrom, Split
from diffcli.data.modes import Range
from diffcli.data.pixels import BrokenImage
from diffcli.data.shards import FieldNote
from diffcli.prep.encode import Picture

SOURCE = "SOURCE"  # what the user typed, for errors


class Item(NamedTuple):
    """One image of a source: an encoded file, pixels uint8 (C, H, W), or what is stored in its place as it is.

    name: as the source calls it, for skipped.jsonl. stored: further members by extension, as they are.

    captions: texts of it, any number. pictures: what lies over the image, such as a mask, by field name, with as many
    pixels. video: an MP4, of which the image is a frame.
    """

    name: str
    label: int | None
    image: Location | np.ndarray | Picture
    captions: tuple[str, ...] = ()
    pictures: Mapping[str, Location | np.ndarray] = {}
    video: bytes | None = None
    stored: Mapping[str, bytes] = {}


class Deferred(Protocol):
    """An item that is made in the worker, since it is slow to decode or to fetch; picklable. Raises BrokenImage."""

    @property
    def name(self) -> str: ...

    def __call__(self) -> Item: ...


class Broken(NamedTuple):
    """What stands for an image that cannot be used, so that it is counted and listed with its reason."""

    name: str
    reason: str

    def __call__(self) -> Item:
        raise BrokenImage(self.name, self.reason)


class Picked(Config):
    """Which downloads are kept, and how. min_size: of the shorter side, in pixels; quality: of JPEG.

    obey_opt_out: leave alone what its owner refuses to machine learning in an X-Robots-Tag header.
    """

    min_size: Annotated[int, Field(ge=1)] = 256
    encode: Literal["jpg", "png"] = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    obey_opt_out: bool = True


class Download(Config):
    """How hard downloads are tried. threads: of each process; timeout: seconds that a host may be silent; retries: of a URL."""

    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    threads: Annotated[int, Field(ge=1)] = 64
    timeout: Annotated[int, Field(ge=1)] = 10
    retries: Annotated[int, Field(ge=0)] = 1


class LatentOptions(Config):
    """What encodes images. encode: float32 (B, channels, H, W) in [-1, 1] -> (B, inputs, H / downscale, W / downscale).

    first_stage, sha256: where it was found, and the digest of its weights. size: that of the images; None: as they are.
    half: store float16 in place of float32. flip_pair: store that of the mirrored image, too.
    """

    encode: Callable[[Tensor], Tensor] = Field(exclude=True)
    first_stage: str = Field(exclude=True)  # the same weights may lie elsewhere
    sha256: str
    channels: int
    inputs: int
    downscale: int
    size: int | None = None
    half: bool = True
    flip_pair: bool = False


class SourceOptions(Config):
    """What some kinds must be told beside SOURCE. table: a file that says what belongs to each image; *_col: its columns.

    field: what the pictures are that lie over the images. range: of deep images, what is black and white. classes: what names
    the class of an image, its folder or the beginning of its name.
    """

    table: Path | None = None
    image_col: str | None = None
    caption_col: str | None = None
    url_col: str | None = None
    field: str | None = None
    classes: ClassesFrom = "folders"
    range: Range | None = None
    picked: Picked = Picked()
    latents: LatentOptions | None = None
    download: Download = Field(default=Download(), exclude=True)  # no part of what is asked for


class Items(Protocol):
    """The images of one split."""

    def __len__(self) -> int: ...

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        """The items at these rising positions."""


class Wanted(NamedTuple):
    """What a source is to fetch: items at rising positions, in shards of so many, but for those that are finished.

    size: the shorter side of larger images, in pixels; workers: processes.
    """

    positions: Sequence[int]
    per_shard: int
    finished: frozenset[int]
    size: int
    workers: int


class Remote(Protocol):
    """Gets the items of a source whose only split lies elsewhere."""

    def fetch(self, wanted: Wanted) -> Iterator[Counter[str]]:
        """Fetches before any item is read; yields how many came to which end so far."""

    def spent(self, positions: Sequence[int]) -> tuple[Path, ...]:
        """The files that are of no more use once the shard of these positions is written."""


class PrepSource(NamedTuple):
    """An opened source. fingerprint: a digest of what is in it, so that a resumed run sees the same; notes: worth saying.

    fields: what lies beside the images, where the source knows it. left_out: how many of its files are none of the set, by
    what they are. levels: what is black and white in deep images.
    """

    splits: dict[Split, Items]
    classes: tuple[str, ...] | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    remote: Remote | None = None
    fields: Mapping[str, FieldNote] = {}
    left_out: Mapping[str, int] = {}
    levels: Range | None = None


def fingerprint(files: Iterable[tuple[str, int]]) -> str:
    """SHA-256 over (name, size in bytes) of the files that a source is made of."""
    digest = hashlib.sha256()
    for name, size in files:
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def tree_fingerprint(tree: FileTree, names: Iterable[str]) -> str:
    """The fingerprint of a source that is made of these files of a tree."""
    return fingerprint((name, tree.size(name)) for name in names)

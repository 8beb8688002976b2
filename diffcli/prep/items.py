"""The contract between prep-data and its sources: a PrepSource has splits of Items, in a fixed order, with class names."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Protocol

import numpy as np
from pydantic import Field
from torch import Tensor

from diffcli.config import Config
from diffcli.data.field_notes import FieldNote
from diffcli.data.files import FileTree, Location
from diffcli.data.listing import ClassesFrom, Split
from diffcli.data.modes import Range
from diffcli.data.pixels import BrokenImage
from diffcli.fields import Fault
from diffcli.prep.encode import Picture

SOURCE = "SOURCE"  # the name of the argument, for errors


class Item(NamedTuple):
    """One image of a source: an encoded file, pixels uint8 (C, H, W), or the member to store in its place.

    name: of the source, for skipped.jsonl. stored: further members by extension, unchanged.

    captions: any number of texts. pictures: pictures of the same size that belong to it, such as a mask, by field name.
    video: an MP4, of which the image is a frame; film: its number of frames, and of frames per second.
    """

    name: str
    label: int | None
    image: Location | np.ndarray | Picture
    captions: tuple[str, ...] = ()
    pictures: Mapping[str, Location | np.ndarray] = {}
    video: bytes | None = None
    stored: Mapping[str, bytes] = {}
    film: tuple[int, float] | None = None


class Deferred(Protocol):
    """An item that a worker makes, because decoding or fetching it is slow; picklable. Raises BrokenImage."""

    @property
    def name(self) -> str: ...

    def __call__(self) -> Item: ...


class Broken(NamedTuple):
    """An image that cannot be used, to be counted and listed with its reason."""

    name: str
    reason: str

    def __call__(self) -> Item:
        raise BrokenImage(self.name, self.reason)


class Picked(Config):
    """The downloads to keep, and their encoding. min_size: of the shorter side, in pixels; quality: of JPEG.

    obey_opt_out: skip images whose owner refuses machine learning in an X-Robots-Tag header.
    """

    min_size: Annotated[int, Field(ge=1)] = 256
    encode: Literal["jpg", "png"] = "jpg"
    quality: Annotated[int, Field(ge=1, le=100)] = 95
    obey_opt_out: bool = True


class Download(Config):
    """How downloads are tried. threads: of each process; timeout: seconds that a host may be silent; retries: of a URL."""

    distributor: Literal["multiprocessing", "pyspark", "ray"] = "multiprocessing"
    threads: Annotated[int, Field(ge=1)] = 64
    timeout: Annotated[int, Field(ge=1)] = 10
    retries: Annotated[int, Field(ge=0)] = 1


class LatentOptions(Config):
    """The encoder of images. encode: float32 (B, channels, H, W) in [-1, 1] -> (B, inputs, H / downscale, W / downscale).

    misfit: the problem with images of a height and width, and the nearest size that fits; None: there is none.
    first_stage, sha256: its path, and the digest of its weights. size: that of the images; None: as they are.
    half: store float16 in place of float32. flip_pair: store that of the mirrored image, too.
    """

    encode: Callable[[Tensor], Tensor] = Field(exclude=True)
    misfit: Callable[[Sequence[int]], Fault | None] = Field(exclude=True)
    first_stage: str = Field(exclude=True)  # the same weights may lie elsewhere
    sha256: str
    channels: int
    inputs: int
    downscale: int
    size: int | None = None
    half: bool = True
    flip_pair: bool = False


class SourceOptions(Config):
    """Further options of some kinds. table: a file with a row for each image; *_col: its columns.

    field: the name of the pictures that belong to the images. range: the values of deep images that become black and white.
    classes: whether the folder or the beginning of the name gives the class of an image.
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
    download: Download = Field(default=Download(), exclude=True)  # no part of the request


class Items(Protocol):
    """The images of one split."""

    def __len__(self) -> int: ...

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        """The items at these rising positions."""


class Wanted(NamedTuple):
    """The items that a source is to fetch: at rising positions, in shards of this size, without finished ones.

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
        """Fetches before any item is read; yields the number of items by outcome so far."""

    def spent(self, positions: Sequence[int]) -> tuple[Path, ...]:
        """The files that are not needed any more after the shard of these positions is written."""


class PrepSource(NamedTuple):
    """An opened source. fingerprint: a digest of its content, so that a resumed run sees the same; notes: for the user.

    fields: those beside the images, if the source knows them. left_out: numbers of files that are not used, by
    type. levels: the values of deep images that are black and white. beside: files to stand beside dataset.json, by name.
    """

    splits: dict[Split, Items]
    classes: tuple[str, ...] | None
    fingerprint: str
    notes: tuple[str, ...] = ()
    remote: Remote | None = None
    fields: Mapping[str, FieldNote] = {}
    left_out: Mapping[str, int] = {}
    levels: Range | None = None
    beside: Mapping[str, bytes] = {}


def fingerprint(files: Iterable[tuple[str, int]]) -> str:
    """SHA-256 over (name, size in bytes) of the files that a source is made of."""
    digest = hashlib.sha256()
    for name, size in files:
        digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def tree_fingerprint(tree: FileTree, names: Iterable[str]) -> str:
    """The fingerprint of a source that is made of these files of a tree."""
    return fingerprint((name, tree.size(name)) for name in names)

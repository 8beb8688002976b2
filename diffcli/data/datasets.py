"""The data sets of a preset: `data: {kind: ..., root: ..., size: ...}` is a config that builds its ImageData.

Every set has one shape, uint8 pixels and int64 labels; its order is that of its files, sorted by name.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt, field_validator

from diffcli.config import UserError, keys_agree, quoted
from diffcli.data import cifar, mnist
from diffcli.data.clips.clip_config import Clips
from diffcli.data.cluttered import DigitsSegmentation
from diffcli.data.dataset import Broken, DataConfig
from diffcli.data.digits_file import read_digits
from diffcli.data.files import open_tree
from diffcli.data.images import ImageData
from diffcli.data.leftovers import check_finished
from diffcli.data.listing import ClassesFrom, Split
from diffcli.data.modes import Range
from diffcli.data.moving_digits import MovingDigits
from diffcli.data.personal import Personal
from diffcli.data.prepared import Shards
from diffcli.data.shards import is_prepared
from diffcli.data.stream.stream_data import Stream, lists_shards


class Digits(DataConfig):
    """The 10,000 test images of MNIST, shipped with diffcli: 28x28, grey.

    Every tenth image is held out: `train` has 9,000, `test` the other 1,000.
    """

    kind: Literal["digits"] = "digits"
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 28
    channels: Literal[1, 3] = 1

    @keys_agree
    def _embedded(self) -> Iterator[str]:
        if self.root is not None:
            yield (
                "root must not be set for kind 'digits', which comes with diffcli; "
                "write a preset for your own pictures by `diffcli presets new NAME --data DIR`, or, for these 28x28 digits, "
                "add --set data.kind=folder for a folder of images, or =mnist for the four files"
            )

    def build(self, split: Split) -> ImageData:
        images, labels, _ = read_digits(split)
        return self._arrays(images, labels, mnist.DIGITS)


class Mnist(DataConfig):
    """MNIST, Fashion-MNIST or KMNIST from its four IDX files, gzipped or plain, anywhere below root."""

    kind: mnist.MnistKind = "mnist"
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 28
    channels: Literal[1, 3] = 1

    def build(self, split: Split) -> ImageData:
        tree = open_tree(self._source(), "data.root")
        names = mnist.find_idx(tree, self.kind, split, "data.root")
        return self._arrays(*mnist.read_split(tree, self.kind, names), mnist.SETS[self.kind].classes)


class Cifar(DataConfig):
    """CIFAR-10 or CIFAR-100: binary or python version, or image folders train/CLASS, test/CLASS; a folder or an archive."""

    kind: cifar.CifarKind = "cifar10"
    size: PositiveInt | tuple[PositiveInt, PositiveInt] = 32

    def build(self, split: Split) -> ImageData:
        source = self._source()
        cifar.check_archive(source, self.kind)
        tree = open_tree(source, "data.root")
        batches = cifar.find_batches(tree, self.kind, split, "data.root")
        if batches:
            return self._arrays(*cifar.read_batches(tree, self.kind, batches), cifar.SETS[self.kind].classes)
        return self._files(tree, split)


class Folder(DataConfig):
    """A folder of images: flat, with class folders, or with folders train and test (or val) around either.

    classes: whether the folder or the beginning of the file name (cat_001.png) gives the class of an image.
    Captions in files beside the images (a.txt of a.png) are the field text, unless `captions` makes others.
    """

    kind: Literal["folder"] = "folder"
    classes: ClassesFrom = Field(
        "folders", description="where class names come from: folders, or the prefix of file names"
    )
    broken: Broken = Field(
        "refuse",
        description="files that cannot be decoded: refuse stops the run; leave_out decodes all files first and skips these",
    )
    range: Range | None = Field(
        None, description="[low, high] of 16-bit or floating-point images: black and white; null is 0 to 65535"
    )

    @field_validator("range")
    @classmethod
    def _rising(cls, range: Range | None) -> Range | None:
        if range is not None and not -math.inf < range.low < range.high < math.inf:
            raise ValueError("range is not [low, high] of two numbers; set data.range=[0, 4095] for example")
        return range

    def build(self, split: Split) -> ImageData:
        source = self._source()
        if source.is_file():
            hint = f"run `diffcli prep-data folder {quoted(source)} --out DIR`, then type --data DIR"
            raise UserError(f"data.root is '{source}', which is a file, not a folder of images", hint)
        check_finished(source, "data.root")
        return self._files(
            open_tree(source, "data.root"),
            split,
            self.classes,
            self.broken,
            captions_beside=self.captions is None,
            levels=self.range,
        )


class NoData(DataConfig):
    """The shape of images without the images: the data of an imported model. channels: any number, so latents too."""

    kind: Literal["none"] = "none"
    channels: PositiveInt = 3  # type: ignore[assignment]  # wider than what a file of images can have

    def build(self, split: Split) -> ImageData:
        raise UserError(
            "data.kind is 'none': the preset of an imported model has no images",
            "name a reference or data: --ref for fid, --set data.kind=folder --data PATH to train",
        )


AnyData = Annotated[
    Digits | DigitsSegmentation | MovingDigits | Mnist | Cifar | Folder | Clips | Personal | Shards | Stream | NoData,
    Field(discriminator="kind"),
]


def at_root(config: DataConfig, place: str | Path) -> DataConfig:
    """`config` with its data at `place`: as shards if `diffcli prep-data` prepared them, as a stream for URLs."""
    same = config.model_dump(
        include={"size", "channels", "flip", "in_memory", "crop", "buckets", "captions", "derived", "grey"},
        exclude_unset=True,
    )
    listed = lists_shards(str(place))
    if not listed and not isinstance(config, Shards | Personal):
        if is_prepared(Path(place)):
            return Shards(root=Path(place), **same)
        check_finished(Path(place).expanduser(), "--data")
    if isinstance(config, Stream):
        return Stream.model_validate(config.model_dump(exclude_unset=True) | {"shards": str(place)})
    if listed:
        return Stream(shards=str(place), **same)
    return type(config).model_validate(config.model_dump(exclude_unset=True) | {"root": place})

"""The data sets of a preset: `data: {kind: ..., root: ..., size: ...}` is a config that builds its ImageData.

Every set has one shape, uint8 pixels and int64 labels; its order is that of its files, sorted by name.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from diffcli.config import Config, UserError, keys_agree, quoted
from diffcli.data import cifar, mnist
from diffcli.data.clips.clip_config import Clips
from diffcli.data.clips.clip_data import clip_specs
from diffcli.data.cluttered import DigitsSegmentation
from diffcli.data.dataset import Broken, DataConfig
from diffcli.data.digits_file import fitted_digits, read_digits
from diffcli.data.files import open_tree
from diffcli.data.images import ImageData, Share
from diffcli.data.leftovers import check_finished
from diffcli.data.listing import ClassesFrom, Split
from diffcli.data.mixture import MixedData, StillClips
from diffcli.data.modes import Range
from diffcli.data.moving_digits import MovingDigits
from diffcli.data.naming import no_root
from diffcli.data.personal import Personal
from diffcli.data.prepared import Shards
from diffcli.data.set_folder import is_prepared
from diffcli.data.stream.stream_data import Stream, lists_shards
from diffcli.fields import FieldSpec


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
            yield no_root(self.kind)

    def build(self, split: Split) -> ImageData:
        return self._arrays(fitted_digits(split, self.shape), read_digits(split)[1].copy(), mnist.DIGITS)


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


Single = Digits | DigitsSegmentation | MovingDigits | Mnist | Cifar | Folder | Clips | Shards
"""Sets with an order of their own, which may be parts of a mixture."""


class MixPart(Config):
    """A part of a mixture. Size, channels and mirroring are those of the mixture."""

    data: Annotated[Single, Field(discriminator="kind")] = Field(
        description="the set; images become clips of one frame"
    )
    weight: PositiveFloat = Field(1.0, description="share of the batches, relative to the other parts of that step")
    first: PositiveInt = Field(1, description="the first step that may read it")
    last: PositiveInt | None = Field(None, description="the last step that may read it; null: that of the run")


class Mix(DataConfig):
    """Images and clips in one run: each batch is of one part, chosen by seed and step; images are clips of one frame, at rate 0.

    Previews, validation and scores read the last part, so it is the one that the model is for. Parts take size, channels, grey
    and flip from the mixture.
    """

    kind: Literal["mix"] = "mix"
    parts: tuple[MixPart, ...] = Field(
        min_length=1,
        examples=[[{"data": {"kind": "clips", "root": "DIR"}}]],
        description="sets with weights and steps; the last is that of previews",
    )

    @model_validator(mode="before")
    @classmethod
    def _inherit(cls, given: Any) -> Any:
        """Gives parts the keys of the mixture that they leave out."""
        if not isinstance(given, Mapping) or not isinstance(given.get("parts"), list | tuple):
            return given
        keys = {name: given[name] for name in INHERITED if given.get(name) is not None}
        return {**given, "parts": [_inheriting(part, keys) for part in given["parts"]]}

    @keys_agree
    def _parts_agree(self) -> Iterator[str]:
        if self.root is not None:
            yield f"root is '{self.root}', but each part has its own; set data.parts.0.data.root instead of data.root"
        if self.size is None:
            yield "size is left out, and all parts of a mixture have one; set data.size=64 for example"
        if self.buckets or self.derived or self.captions or self.in_memory is not None or self.crop != "centre":
            yield "buckets, derived, captions, in_memory and crop are keys of parts; set them in data.parts.0.data"
        for number, part in enumerate(self.parts):
            for name in INHERITED:
                own, whole = getattr(part.data, name), getattr(self, name)
                if own != whole:
                    yield (
                        f"parts.{number}.data.{name} is {own}, but that of the mixture {whole}; "
                        f"leave it out of the part, and set data.{name}"
                    )
            if part.data.buckets:
                yield f"parts.{number}.data.buckets: parts of a mixture have one size; leave it out"
            if part.last is not None and part.last < part.first:
                yield (
                    f"parts.{number}.last is {part.last}, before its first step {part.first}; "
                    f"set data.parts.{number}.last higher, or to null"
                )
        moving = [getattr(part.data, "frames", None) is not None for part in self.parts]
        if any(moving) and not moving[-1]:
            yield (
                f"parts.{len(moving) - 1}, the last one, has images alone, but previews, validation and scores read it; "
                f"put a part of clips last, such as data.parts.{moving.index(True)}"
            )
        if (step := idle_step(self.parts)) is not None:
            yield f"parts leave step {step} without data; let one of them go on: set its last to null, or first to 1"

    @property
    def specs(self) -> dict[str, FieldSpec]:
        has = self._sets[-1].specs
        return has if "clip" in has else clip_specs(self.shape, 1) | {n: s for n, s in has.items() if n != "image"}

    def over(self, name: str) -> FieldSpec:
        return self._sets[-1].over(name)

    @property
    def _sets(self) -> list[DataConfig]:
        """The sets of the parts with the keys of the mixture."""
        keys = {name: getattr(self, name) for name in INHERITED}
        return [part.data.model_copy(update=keys) for part in self.parts]

    def absolute(self) -> "Mix":
        return self.model_copy(
            update={"parts": tuple(p.model_copy(update={"data": p.data.absolute()}) for p in self.parts)}
        )

    @property
    def paths(self) -> list[Path]:
        return [path for part in self.parts for path in part.data.paths]

    def build(self, split: Split) -> ImageData:
        """The mixture for `train`; for `test` that split of the last part."""
        if split != "train":
            return as_clips(self._sets[-1].build(split))
        sets = [as_clips(each.build(split)) for each in self._sets]
        return MixedData(
            [Share(data, part.weight, part.first, part.last) for data, part in zip(sets, self.parts, strict=True)]
        )


INHERITED = ("size", "channels", "grey", "flip")


def _inheriting(part: Any, keys: Mapping[str, Any]) -> Any:
    if not isinstance(part, Mapping) or not isinstance(part.get("data"), Mapping):
        return part
    return {**part, "data": {**keys, **part["data"]}}


def idle_step(parts: Sequence[MixPart]) -> int | None:
    """The first step that no part reads; None if there is none."""
    step = 1
    for part in sorted(parts, key=lambda part: part.first):
        if part.first > step:
            return step
        if part.last is None:
            return None
        step = max(step, part.last + 1)
    return step


def as_clips(data: ImageData) -> ImageData:
    """Data with the field clip: themselves, or their images as clips of one frame."""
    return data if "clip" in data.specs else StillClips(data)


AnyData = Annotated[
    Single | Personal | Mix | Stream | NoData,
    Field(discriminator="kind"),
]


def at_root(config: DataConfig, place: str | Path) -> DataConfig:
    """`config` with its data at `place`: as shards if `diffcli prep-data` prepared them, as a stream for URLs."""
    same = config.model_dump(
        include={"size", "channels", "flip", "in_memory", "crop", "buckets", "captions", "derived", "grey"},
        exclude_unset=True,
    )
    if isinstance(config, Mix):
        raise UserError(
            f"--data {place}: the data of the preset are several sets, data.parts",
            f"name the place of each: --set {quoted(f'data.parts.0.data.root={place}')}",
        )
    if isinstance(config, Clips | Shards) and config.frames is not None:
        clips = {"frames": config.frames, "fps": config.fps, "stride": config.stride}
    else:
        clips = {}
    listed = lists_shards(str(place))
    if listed and clips:
        raise UserError(
            f"--data {place}: clips are read by random access, from a folder of films or a prepared set on disk",
            "copy the shards with their dataset.json to a folder, and name it: --data DIR",
        )
    if not listed and not isinstance(config, Shards | Personal):
        if is_prepared(Path(place)):
            return Shards.model_validate({"root": place, **same, **clips})
        check_finished(Path(place).expanduser(), "--data")
    if isinstance(config, Stream):
        return Stream.model_validate(config.model_dump(exclude_unset=True) | {"shards": str(place)})
    if listed:
        return Stream(shards=str(place), **same)
    return type(config).model_validate(config.model_dump(exclude_unset=True) | {"root": place})

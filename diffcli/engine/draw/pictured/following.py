"""Pictures as conditions, and the sizes of the images that follow from them.

A model enlarges if its condition was smaller than its images by a whole factor in training. Its pictures keep their size, and
its images are larger by that factor. All other pictures are cropped and resized to the size of the images.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from diffcli.config import UserError
from diffcli.diffusion.tiling import Tiles
from diffcli.diffusion.windows import Windows
from diffcli.engine.draw.conditions import condition_specs, enlargement
from diffcli.engine.draw.given import PICTURED, Value, from_files
from diffcli.engine.draw.pictured.exactness import check_exact, exact_overlap
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.model import Model, resized
from diffcli.fields import listed
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig

Size = tuple[int, int]  # (height, width) in pixels


class Gathered(NamedTuple):
    """The conditions by field; the options without the pictures that became conditions."""

    values: dict[str, Value]
    options: SampleOptions
    sizes: tuple[Size, ...]  # sizes of the images: image i has size i mod K; none if no picture decides


class ClipLength(NamedTuple):
    """frames: of a clip; fps: of it, frames per second; trained: frames of the longest clips of training, if known."""

    frames: int
    fps: float
    trained: int | None = None


class Frame(NamedTuple):
    """The frame of images of one size for the networks. cut: (height, width) to keep of the drawn images, None: all.

    tiles: in which they are predicted, of clips windows of frames; at_once: images in a batch then; tiling: their description,
    for the sidecar. clip: the length of clips.
    """

    cut: Size | None = None
    tiles: Tiles | Windows | None = None
    at_once: int | None = None
    tiling: dict[str, Any] | None = None
    clip: ClipLength | None = None

    def kept(self, images: Tensor) -> Tensor:
        """Finished images (B, C, H, W), cut to size."""
        return images if self.cut is None else images[..., : self.cut[0], : self.cut[1]]

    def describe(self) -> dict[str, Any]:
        """For the sidecar."""
        if self.clip is None:
            return {} if self.tiling is None else {"tiles": self.tiling}
        windows = {} if self.tiling is None else {"windows": self.tiling}
        return {"clip": {"frames": self.clip.frames, "fps": self.clip.fps, **windows}}


WHOLE = Frame()


def pictured(model: Model) -> list[str]:
    """The conditions of a model that can be picture files, in order."""
    return [name for name, spec in condition_specs(model).items() if spec.kind in PICTURED]


def picture_conditions(model: Model, options: SampleOptions, given: Mapping[str, Value]) -> Gathered:
    """The values of conditions that are given, and those of --field and --image.

    --image is the one picture that a model reads, unless --strength, --mask, --interpolate or --restore give it another role.
    Raises UserError if several conditions are possible, if a field is given twice, or if a file does not fit the model.
    """
    values, there = dict(given), pictured(model)
    files = {name: (f"--field {name}", paths) for name, paths in options.fields}
    for name, (flag, paths) in files.items():
        if name in values:
            raise UserError(f"{flag}={paths[0]}: '{name}' is given twice", f"give '{name}' once")
    if options.images and options.images_are_conditions and not set(there) <= {*values, *files}:
        if len(there) > 1:
            fields = " ".join(f"--field {name}=FILE" for name in there)
            raise UserError(
                f"--image {options.images[0]}: {model.path} reads several pictures: {', '.join(there)}",
                f"say which is which: {fields}",
            )
        if there:
            files[there[0]] = ("--image", options.images)
            options = options.model_copy(update={"images": ()})
    size = options.size
    for name in sorted(files, key=lambda name: -enlargement(model, name)):
        flag, paths = files[name]
        values[name] = from_files(model, name, paths, size, flag)
        if size is None and len(found := set(drawn_sizes(model, values))) == 1:
            (size,) = found
    sizes = drawn_sizes(model, values)
    if options.size is not None and (other := next((each for each in sizes if each != options.size), None)):
        raise UserError(
            f"--size {listed(options.size)}: images of {listed(other)} follow from the pictures that are given",
            "leave --size out",
        )
    return Gathered(values, options.model_copy(update={"fields": ()}), sizes)


def drawn_sizes(model: Model, values: Mapping[str, Value]) -> tuple[Size, ...]:
    """The sizes of the images that follow from the pictures of a model that enlarges them.

    Raises UserError where two of its pictures make different ones.
    """
    found: dict[str, tuple[Size, ...]] = {}
    for name, value in values.items():
        factor = enlargement(model, name)
        if factor > 1:
            found[name] = tuple((shape[-2] * factor, shape[-1] * factor) for shape in value.shapes if len(shape) == 3)
    if len(found) > 1 and len({size for sizes in found.values() for size in sizes}) > 1:
        names = " and ".join(f"'{name}'" for name in found)
        raise UserError(f"images of different sizes follow from {names}", "give pictures that belong together")
    return next(iter(found.values()), ())


def check_alike(sizes: Sequence[Size]) -> None:
    """Raises UserError where images of several sizes would follow."""
    if len(set(sizes)) > 1:
        shown = ", ".join(listed(size) for size in list(dict.fromkeys(sizes))[:3])
        raise UserError(
            f"the pictures are of several sizes, of which images of {shown} pixels (HxW) would follow",
            "bring them to one size, --size HxW, or give those of one size at a time",
        )


def framed(
    model: Model, options: SampleOptions, values: Mapping[str, Value], size: Size | None
) -> tuple[Model, Frame, dict[str, Size]]:
    """The model for images of `size` (None: as options say), how it sees them, and the sides of pictures, by field, for that.

    Sides that the network cannot take are drawn a little larger, from pictures whose edges are repeated, and cut.
    Raises UserError.
    """
    factors = {name: enlargement(model, name) for name in pictured(model)}
    tile = choose_tile(model, options, bool(factors))
    shape = model.preset.data.shape
    drawn, cut, sides = options.size, None, {}
    if size is not None:
        step = math.lcm(*factors.values(), steps(model).multiple)
        if tile is not None and any(side > edge for side, edge in zip(size, tile, strict=True)):
            step = math.lcm(step, steps(model).shift)
        drawn = math.ceil(size[0] / step) * step, math.ceil(size[1] / step) * step
        if drawn != size:
            cut = size
            sides = {name: (drawn[0] // factors[name], drawn[1] // factors[name]) for name in factors if name in values}
        drawn = None if drawn == tuple(shape[1:]) and options.size is None else drawn
    if cut is not None and options.images:
        raise UserError(
            f"--image {options.images[0]}: images of {listed(cut)} would be begun from it, whose sides {model.path} cannot draw "
            "as they are",
            "cut the pictures that they are drawn of to multiples of what it can first",
        )
    made = resized(model, drawn)
    return made, Frame(cut) if tile is None else cut_frame(made, options, tile, cut), sides


def cut_frame(model: Model, options: SampleOptions, tile: Size, cut: Size | None) -> Frame:
    """The tiles in which a model sees its images, or the whole image if it is no larger. Raises UserError for --overlap."""
    step, task = steps(model).shift, model.task
    assert isinstance(task, DiffusionTask)
    least = exact_overlap(model) if options.exact_tiles else 0
    overlap = max(least, min(min(tile) // 4, min(tile) - step)) if options.overlap is None else options.overlap
    if overlap < least:
        raise UserError(
            f"--overlap {overlap} with --exact-tiles: the network of {model.path} looks further than half of it",
            f"use --overlap {least}, or leave --overlap out",
        )
    if overlap > min(tile) - step:
        near = f"use larger tiles: --tile {2 * least}" if least else f"use --overlap {min(tile) // 4}, or larger tiles"
        what = f"--overlap {overlap}" if options.overlap is not None else f"--tile {min(tile)} with --exact-tiles"
        needed = "" if options.overlap is not None else f", but exact ones must by {overlap}"
        raise UserError(
            f"{what}: tiles of {listed(tile)} pixels of {model.path} overlap by {min(tile) - step} at most{needed}",
            near,
        )
    scale, exact = task.codec.downscale, options.exact_tiles
    size = tile[0] // scale, tile[1] // scale
    tiles = Tiles(size, math.ceil(overlap / scale), step // scale, options.batch_size, exact)
    count = tiles.count(task.latent_shape(1)[2:])
    if count == 1:
        return Frame(cut)
    check_exact(tiles, model, step)
    tiling = {"size": list(tile), "overlap": tiles.overlap * scale, "count": count} | ({"exact": True} if exact else {})
    return Frame(cut, tiles, max(1, options.batch_size // count), tiling)


class Steps(NamedTuple):
    """Pixels. multiple: the sides of what a model draws are multiples of it. shift: tiles begin at multiples of it."""

    multiple: int
    shift: int


def steps(model: Model) -> Steps:
    config, task = model.preset.task, model.task
    assert isinstance(config, DiffusionConfig)
    assert isinstance(task, DiffusionTask)
    return Steps(config.network.multiple * task.codec.downscale, config.network.shift * task.codec.downscale)


def choose_tile(model: Model, options: SampleOptions, reads_pictures: bool) -> Size | None:
    """The size of tiles: --tile, or else the trained size for images that follow from pictures. None: no tiles.

    Exact tiles are at least twice as large as their overlap. Raises UserError.
    """
    if options.whole or (options.tile is None and not reads_pictures):
        for flag, given in (("--overlap", options.overlap), ("--exact-tiles", options.exact_tiles or None)):
            if given is not None:
                shown = flag if given is True else f"{flag} {given}"
                raise UserError(f"{shown}: nothing is cut into tiles", "add --tile N")
        return None
    assert isinstance(model.task, DiffusionTask)
    if model.task.spec.kind not in PICTURED:
        if options.tile is None:
            return None
        raise UserError(f"--tile {options.tile}: {model.path} draws no still images", "leave --tile out")
    step, own = steps(model).shift, model.preset.data.shape
    if options.tile is None:
        least = 2 * exact_overlap(model) if options.exact_tiles else step
        height, width = (max(least, side // step * step) for side in own[1:])
        return height, width
    if options.tile % step:
        near = max(1, round(options.tile / step)) * step
        raise UserError(
            f"--tile {options.tile}: {model.path} draws tiles whose edges are multiples of {step}", f"try --tile {near}"
        )
    return options.tile, options.tile

"""Requests for a first stage: reconstructions of images, interpolations between two, or images from its prior.

Images keep their size if the downscale divides it. Image i of a prior follows from seed + i, as everywhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli import __version__
from diffcli.config import ImageShape, UserError
from diffcli.data.pixels import fit
from diffcli.diffusion.editing import slerp
from diffcli.engine.distributed import Group
from diffcli.engine.draw.edits import described, open_picture
from diffcli.engine.draw.pictures import MemoryPicture
from diffcli.engine.draw.sampling import DEFAULT_N, SampleOptions, check_one_step
from diffcli.engine.model import Model
from diffcli.engine.options.seeds import Seeds, nth_seed, seed_count
from diffcli.engine.stage import StageModel
from diffcli.fields import listed, to_float, to_levels
from diffcli.noise import Noise


class Source(Protocol):
    """The source of latents. beside: the number of pictures of that size side by side in one image."""

    beside: ClassVar[int]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the images that are encoded or decoded."""

    def images(self, stage: StageModel, rows: range) -> Tensor:
        """Images `rows` (B, C, H, W) in [-1, 1] on the stage's device."""

    def describe(self) -> dict[str, Any]:
        """For the sidecar."""


@dataclass(frozen=True)
class Originals:
    """Images that are encoded: uint8 (K, C, H, W) on the CPU; image i is made of the one numbered i mod K."""

    beside: ClassVar[int] = 1
    levels: Tensor
    origin: Sequence[Any]  # where each comes from, as JSON values

    @property
    def size(self) -> tuple[int, int]:
        return self.levels.shape[2], self.levels.shape[3]

    def chosen(self, rows: range) -> Tensor:
        return self.levels[torch.arange(rows.start, rows.stop) % len(self.levels)]

    def images(self, stage: StageModel, rows: range) -> Tensor:
        return stage.reconstruct(to_float(self.chosen(rows).to(stage.model.device)))

    def describe(self) -> dict[str, Any]:
        return {"images": list(self.origin)}


@dataclass(frozen=True)
class SideBySide:
    """Each original, with its reconstruction on the right."""

    beside: ClassVar[int] = 2
    originals: Originals

    @property
    def size(self) -> tuple[int, int]:
        return self.originals.size

    def images(self, stage: StageModel, rows: range) -> Tensor:
        given = to_float(self.originals.chosen(rows).to(stage.model.device))
        return torch.cat([given, stage.reconstruct(given)], dim=3)

    def describe(self) -> dict[str, Any]:
        return self.originals.describe() | {"compare": True}


@dataclass(frozen=True)
class FromPrior:
    """Latents of N(0, 1), that of image i from seed + i, or from number i of several seeds."""

    beside: ClassVar[int] = 1
    size: tuple[int, int]
    seed: Seeds
    n: int

    def latents(self, stage: StageModel, rows: range) -> Tensor:
        seeds = [nth_seed(self.seed, i) for i in rows]
        like = torch.empty(len(seeds), *stage.latent_shape(self.size), device=stage.model.device)
        return Noise(seeds, stage.model.device)(like)

    def images(self, stage: StageModel, rows: range) -> Tensor:
        return stage.decode(self.latents(stage, rows))

    def describe(self) -> dict[str, Any]:
        return {"seeds": [nth_seed(self.seed, i) for i in range(self.n)], "prior": "N(0, 1)"}


@dataclass(frozen=True)
class FromLatents:
    """Latents as they are given: float (K, c, h, w)."""

    beside: ClassVar[int] = 1
    latents: Tensor
    downscale: int

    @property
    def size(self) -> tuple[int, int]:
        return self.latents.shape[2] * self.downscale, self.latents.shape[3] * self.downscale

    def images(self, stage: StageModel, rows: range) -> Tensor:
        places = torch.arange(rows.start, rows.stop) % len(self.latents)
        return stage.decode(self.latents[places].to(stage.model.device))

    def describe(self) -> dict[str, Any]:
        return {"latents": f"a tensor of {listed(tuple(self.latents.shape))}"}


@dataclass(frozen=True)
class Way:
    """`count` images from a latent to another: straight between those of two images, on the arc between two of the prior."""

    beside: ClassVar[int] = 1
    ends: Originals | FromPrior  # of two images
    latents: Tensor  # (2, c, h, w)
    count: int
    straight: bool

    @property
    def size(self) -> tuple[int, int]:
        return self.ends.size

    def images(self, stage: StageModel, rows: range) -> Tensor:
        share = torch.arange(rows.start, rows.stop, dtype=torch.float64) / (self.count - 1)
        a, b = self.latents[:1], self.latents[1:]
        if not self.straight:
            return stage.decode(slerp(a, b, share))
        weight = share.to(a).view(-1, 1, 1, 1)
        return stage.decode((1 - weight) * a + weight * b)

    def describe(self) -> dict[str, Any]:
        return self.ends.describe() | {"interpolate": self.count}


@dataclass(frozen=True)
class Reconstruction:
    """Images that a first stage makes, every choice made; a request like that of a diffusion model."""

    stage: StageModel
    source: Source
    n: int
    batch_size: int

    @property
    def labels(self) -> None:
        """Images of a first stage have no classes."""

    @property
    def parts(self) -> list[tuple["Reconstruction", range]]:
        """All images are of one size."""
        return [(self, range(self.n))]

    @property
    def model(self) -> Model:
        return self.stage.model

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one image: channels, height and width."""
        height, width = self.source.size
        return self.stage.channels, height, width * self.source.beside

    def images(self, rows: range) -> Tensor:
        """The finished images `rows`, computed as one batch: uint8 (B, C, H, W) on the model's device."""
        return to_levels(self.source.images(self.stage, rows))

    def agree(self, group: Group) -> None:
        """Nothing is counted."""

    def captions(self) -> list[str]:
        """Raises UserError: they have no names."""
        raise UserError(f"--captions: images of {self.model.path} have no prompt or class", "leave --captions out")

    def describe(self) -> dict[str, Any]:
        """The sidecar."""
        made = {"n": self.n, **self.stage.describe(self.source.size), "version": __version__}
        return self.model.describe() | made | self.source.describe()


def reconstruction(model: Model, options: SampleOptions) -> Reconstruction:
    """The options completed from the checkpoint of a first stage. Raises UserError if they contradict it or each other."""
    stage = StageModel(model, "--ckpt ")
    check_idle(model, options)
    check_count(options)
    check_size(stage, options.size)
    originals = read_originals(stage, options.images, options.size) if options.images else None
    source: Source
    count = options.interpolate
    if originals is None:
        check_prior(stage)
        height, width = options.size or stage.task.spec.sides[1:]
        n = 2 if count is not None else options.n or seed_count(options.seed) or DEFAULT_N
        source = drawn = FromPrior((height, width), options.seed, n)
        if count is not None:
            source, n = Way(drawn, drawn.latents(stage, range(2)), count, straight=False), count
    else:
        source = SideBySide(originals) if options.compare else originals
        n = len(originals.levels)
        if count is not None:
            ends = stage.encode(to_float(originals.levels.to(stage.model.device)))
            source, n = Way(originals, ends, count, straight=True), count
    return Reconstruction(stage, source, n, options.batch_size)


def given_originals(stage: StageModel, levels: Tensor, origin: Any) -> Originals:
    """Images from Python: uint8 (K, C, H, W). Raises UserError where the stage cannot encode them."""
    shape, name = listed(tuple(levels.shape)), "the images"
    if levels.dtype != torch.uint8 or levels.ndim != 4 or not len(levels) or levels.shape[1] != stage.channels:
        raise UserError(
            f"{name} are {levels.dtype} of {shape}, but {stage.model.path} takes bytes of (K, {stage.channels}, H, W)",
            "give a uint8 tensor of that shape, or the paths of picture files",
        )
    if fault := stage.fault(levels.shape[2:]):
        raise UserError(f"{name} are {fault[0]}", f"resize them, for example to {fault[1][0]}x{fault[1][1]}")
    return Originals(levels.cpu(), [origin])


def given_latents(stage: StageModel, latents: Tensor, batch_size: int) -> Reconstruction:
    """The images of latents from Python, float (K, c, h, w). Raises UserError where they are not the stage's."""
    if not latents.is_floating_point() or latents.ndim != 4 or not latents.numel() or latents.shape[1] != stage.latent:
        raise UserError(
            f"the latents are {latents.dtype} of {listed(tuple(latents.shape))}, but those of {stage.model.path} are "
            f"(K, {stage.latent}, h, w)",
            "give what encode(images) gives",
        )
    if not bool(latents.isfinite().all()):
        raise UserError("the latents hold values that are not finite", "give what encode(images) gives")
    return Reconstruction(stage, FromLatents(latents.float(), stage.downscale), len(latents), batch_size)


def encoded(stage: StageModel, originals: Originals, batch_size: int) -> Tensor:
    """The latents of images, without noise: float32 (K, c, h, w) on the CPU."""
    parts = originals.levels.split(batch_size)
    return torch.cat([stage.encode(to_float(part.to(stage.model.device))).cpu() for part in parts])


def check_idle(model: Model, options: SampleOptions) -> None:
    """Raises UserError for sampling options without effect on a first stage, which encodes and decodes in one step each."""
    own: dict[str, Any] = {"interpolate": None, "compare": False}  # which it can
    drawn = options.model_copy(update=own if options.images else own | {"seed": 0})
    check_one_step(drawn, f"{model.path} is a first stage, which encodes and decodes in one step each")
    if options.fields:
        name = options.fields[0][0]
        raise UserError(
            f"--field {name}: {model.path} is a first stage, which reads no conditions", "leave --field out"
        )


def check_count(options: SampleOptions) -> None:
    """Raises UserError for --n if another option determines the number of images, and for --compare without a pair."""
    if options.n is not None and options.images:
        problem = f"--n {options.n} with {len(options.images)} --image: each image is reconstructed once"
        raise UserError(problem, "leave --n out")
    if options.compare and options.interpolate is not None:
        problem = f"--compare with --interpolate {options.interpolate}: images between two have no original"
        raise UserError(problem, "leave out --compare or --interpolate")


def check_prior(stage: StageModel) -> None:
    """Raises UserError if the distribution of latents is unknown."""
    if stage.bottleneck.variational:
        return
    kind = stage.task.first_stage.bottleneck.kind
    raise UserError(
        f"{stage.model.path}: there is no --image, and latents of a bottleneck of kind '{kind}' cannot be drawn at random",
        "reconstruct images with --image FILE; to draw new ones, train a diffusion model on its latents",
    )


def check_size(stage: StageModel, size: tuple[int, int] | None) -> None:
    """Raises UserError for a --size that the downscale does not divide."""
    if size is not None and (fault := stage.fault(size)):
        problem, near = fault
        raise UserError(
            f"--size {size[0]}x{size[1]}: {stage.model.path} would make images of {problem}",
            f"use --size {near[0]}x{near[1]}",
        )


def read_originals(
    stage: StageModel, files: Sequence[Path | MemoryPicture], size: tuple[int, int] | None = None
) -> Originals:
    """The files, grey or in colour as the stage wants them, in their own size or cut and resized to another (height, width).

    Raises UserError where they cannot be encoded as they are.
    """
    opened = [open_picture("--image", path) for path in files]
    origin = [described(path) for path in files]
    if size is not None:
        return Originals(fitted(opened, ImageShape(stage.channels, *size)), origin)
    for image, path in zip(opened, files, strict=True):
        if image.size != opened[0].size:
            sizes = " and ".join(f"{i.height}x{i.width}" for i in (opened[0], image))
            raise UserError(
                f"--image {path}: is not of the size of --image {files[0]} ({sizes}, HxW)",
                "bring them to one size with --size HxW, or reconstruct images of one size at a time",
            )
    own = opened[0].height, opened[0].width
    if fault := stage.fault(own):
        problem, near = fault
        raise UserError(
            f"--image {files[0]}: is {problem}", f"use --size {near[0]}x{near[1]}, which cuts and resizes it"
        )
    return Originals(fitted(opened, ImageShape(stage.channels, *own)), origin)


def fitted(opened: Sequence[Image.Image], shape: ImageShape) -> Tensor:
    """uint8 (K, C, H, W) of this shape."""
    return torch.from_numpy(np.stack([fit(image, shape) for image in opened]))

"""`--image`, `--mask`, `--strength` and `--interpolate`: starting points other than one new noise for each image."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.pixels import BrokenImage, fit, open_image
from diffcli.diffusion.denoiser import Denoise
from diffcli.diffusion.editing import noised, slerp
from diffcli.diffusion.inversion import invert
from diffcli.diffusion.operators import Known
from diffcli.diffusion.samplers import Sampler
from diffcli.digest import sha256
from diffcli.engine.draw.pictures import FilePicture, MemoryPicture
from diffcli.engine.draw.restore.measured import Measured
from diffcli.engine.options.edit_options import EditOptions
from diffcli.fields import to_float
from diffcli.lookup.given_paths import unreadable
from diffcli.noise import Noise
from diffcli.tasks.diffusion import DiffusionTask

REFINEMENTS = 3  # of each move of an inversion
WHITE = 128  # grey level from which a mask marks a pixel


class Edit(NamedTuple):
    """The options with their files read."""

    options: EditOptions = EditOptions()
    images: Tensor | None = None  # (K, C, H, W) in [-1, 1]; image i of a request begins from the one numbered i mod K
    painted: Tensor | None = None  # bool (H, W)

    def sampler(self, sampler: Sampler, task: DiffusionTask) -> Sampler:
        """The sampler for the remaining part of its walk."""
        level = self.options.level
        return sampler if level == 1 else sampler.starting_at(level, task.denoiser.schedule)

    def begin(
        self, task: DiffusionTask, sampler: Sampler, denoise: Denoise, pure: Tensor, rows: range
    ) -> tuple[Tensor, Denoise]:
        """The starting points of images `rows`, whose noise is `pure`, and the denoiser that keeps known pixels."""
        if self.images is None:
            return pure, denoise
        schedule = task.denoiser.schedule
        chosen = self.images[torch.arange(rows.start, rows.stop) % len(self.images)]
        x0 = task.codec.encode(chosen.to(task.device))
        if self.painted is not None:
            size = task.latent_shape(1)[2:]  # a position of a latent is painted where any of its pixels is
            small = F.adaptive_max_pool2d(self.painted[None, None].float(), size)
            stays = Known(small.to(task.device) == 0)
            denoise = Measured(stays, stays.measure(x0), conditioned=False).bound(task, denoise, sampler)
        start = pure if self.options.level == 1 else noised(schedule, x0, pure, sampler.times(schedule)[0])
        return start, denoise

    def kept(self, task: DiffusionTask, made: Tensor, rows: range) -> Tensor:
        """Finished images `rows`, (B, C, H, W) in [-1, 1], with the given pixels outside of the mask.

        A first stage changes these pixels too, so they are restored here.
        """
        if self.images is None or self.painted is None or task.codec.exact:
            return made
        given = self.images[torch.arange(rows.start, rows.stop) % len(self.images)].to(made)
        return torch.where(self.painted.to(made.device), made, given)

    def ends(self, task: DiffusionTask, sampler: Sampler, denoise: Denoise, seeds: Sequence[int]) -> Tensor:
        """The two noises to interpolate between (2, C, H, W): those of two seeds, or those that lead to the two images."""
        if self.images is None:
            return task.start(seeds)[0]
        schedule = task.denoiser.schedule
        x0 = task.codec.encode(self.images.to(task.device))
        return invert(denoise, schedule, x0, sampler.times(schedule), REFINEMENTS)

    def between(self, ends: Tensor, rows: range) -> Tensor:
        """The points `rows` of the arc between the two ends, which are the first and the last."""
        assert self.options.interpolate is not None
        share = torch.arange(rows.start, rows.stop, dtype=torch.float64) / (self.options.interpolate - 1)
        return slerp(ends[:1], ends[1:], share)

    def describe(self) -> dict[str, Any]:
        """The entries of the sidecar; none if nothing is edited."""
        o = self.options
        if o.interpolate is None and not o.images:
            return {}
        record: dict[str, Any] = {"images": [described(path) for path in o.images]}
        if o.interpolate is not None:
            return record | {"interpolate": o.interpolate}
        return record | {"mask": None if o.mask is None else described(o.mask), "strength": o.level}


class NoNoise(Noise):
    """Takes the place of the noise of a point between two seeds, which does not exist, and refuses samplers that need noise."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler

    def __call__(self, like: Tensor) -> Tensor:
        raise UserError(
            f"--interpolate with sampler {self.sampler.name}: it adds noise on its way, and a point between two seeds has none",
            "use one that does not, for example --sampler ddim --ddim-eta 0",
        )


def read_edit(options: EditOptions, shape: ImageShape) -> Edit:
    """Reads the files in the shape of the model's images: cropped and resized as data of kind folder are."""
    if not options.images:
        return Edit(options)
    opened = [open_picture("--image", path) for path in options.images]
    images = torch.from_numpy(np.stack([fit(image, shape) for image in opened]))
    painted = None if options.mask is None else read_mask(options.mask, opened, options.images, shape)
    return Edit(options, to_float(images), painted)


def read_mask(
    path: Path | MemoryPicture, opened: Sequence[Image.Image], names: Sequence[Path | MemoryPicture], shape: ImageShape
) -> Tensor:
    """The white pixels of a mask, bool (H, W), cropped and resized like its pictures. Raises UserError."""
    mask = open_picture("--mask", path)
    for image, name in zip(opened, names, strict=True):
        if image.size != mask.size:
            sizes = " and ".join(f"{i.height}x{i.width}" for i in (mask, image))
            raise UserError(
                f"--mask {path}: is not of the size of --image {name} ({sizes}, HxW)",
                "paint the mask over that image: white where it is to be drawn anew, black elsewhere",
            )
    grey = fit(mask, shape._replace(channels=1), Image.Resampling.NEAREST)[0]
    painted = torch.from_numpy(grey >= WHITE)
    if not painted.any():
        raise UserError(f"--mask {path}: has no white pixel", "make those pixels white that are to be drawn anew")
    return painted


def open_picture(
    flag: str, path: Path | MemoryPicture, flat: Callable[[Image.Image], Image.Image] | None = None
) -> Image.Image:
    """A picture file, decoded, or one in memory. flag: what names it in errors. flat: as for `open_image`.

    Raises UserError where it cannot be read.
    """
    if flat is not None and isinstance(path, FilePicture):
        path = path.path
    if isinstance(path, MemoryPicture):
        return path.image
    try:
        return open_image(path.read_bytes(), str(path), flat)
    except BrokenImage as error:
        raise UserError(f"{flag} {path}: {error.reason}", "give an image file, PNG or JPEG for example") from error
    except OSError as error:
        raise unreadable(flag, path, error.strerror) from error


def described(path: Path | MemoryPicture) -> dict[str, str]:
    """The entry of a sidecar for a file or for pixels in memory."""
    return path.describe() if isinstance(path, MemoryPicture) else {"file": str(path), "sha256": sha256(path)}

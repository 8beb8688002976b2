"""Writes samples: one grid, a folder of files or an .npz, each with a .json sidecar; and animations."""

import os
import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.clips.film_writing import check_rate, write_frames
from diffcli.data.image_formats import SUFFIXES, VIDEOS
from diffcli.data.walk import is_ignored
from diffcli.engine.draw.out_files import ANIMATIONS, all_or_none, kind_of, whole
from diffcli.engine.draw.out_files import check_output as check_output
from diffcli.engine.draw.pictures import MemoryPicture, write_png
from diffcli.engine.draw.sample import Finished, ImageRequest, SampleOptions
from diffcli.engine.draw.sheets.arrangement import Arrangement
from diffcli.engine.records.output_records import check_record, write_record
from diffcli.fields import listed

PICTURE = 3  # axes of a still image
STILL, CLIP = ".png", ".webp"  # of the files in a folder
HOLD = 1.0  # seconds that an animation shows its last frame, unless --hold is given


def check_apart(path: Path, options: SampleOptions) -> None:
    """Raises UserError, before any work, where the output would take the place of a picture that is read, or join those of a
    folder that is read, or where its record would take that of another file.
    """
    check_record(path)
    place = path.expanduser().absolute().resolve()
    read = [("--image", each) for each in options.images]
    read += [(f"--field {name}", each) for name, paths in options.fields for each in paths]
    read += [] if options.mask is None else [("--mask", options.mask)]
    for flag, given in read:
        if isinstance(given, MemoryPicture):
            continue
        source = given.expanduser().absolute().resolve()
        if place == source:
            what = "would lie among the pictures that are read" if source.is_dir() else "would overwrite what is read"
            raise UserError(f"--out {path}: {what}, {flag} {given}", "give another place")
        if kind_of(path) in SUFFIXES and place.parent == source:
            raise UserError(
                f"--out {path}: lies in {flag} {given}, where the same command would read it the next time",
                "give another folder",
            )


def check_pictures(path: Path, shape: tuple[int, ...], model: Path) -> None:
    """Raises UserError, before any work, where still images, each (C, H, W), would be written as an animation."""
    if len(shape) == PICTURE and kind_of(path) in ANIMATIONS:
        raise UserError(
            f"--out {path}: {model} draws still images, which do not move",
            f"end --out in .png, name a folder, or animate their denoising: diffcli gif --out {path}",
        )


def check_speed(path: Path, description: Mapping[str, Any]) -> None:
    """Raises UserError, before any work, where a file of clips cannot have their rate. description: of a request."""
    if (clip := description.get("clip")) and kind_of(path) in ANIMATIONS:
        check_rate(path, clip["fps"])


def check_sizes(path: Path, req: ImageRequest) -> None:
    """Raises UserError, before any work, where images of several sizes would be written to one file."""
    shapes = list(dict.fromkeys(part.shape for part, _ in req.parts))
    if kind_of(path) and len(shapes) > 1:
        sizes = " and ".join(listed(shape[1:]) for shape in shapes[:2])
        raise UserError(
            f"--out {path}: the images follow from pictures of several sizes ({sizes} pixels, HxW), and it holds one size",
            f"write one file an image: --out {path.with_suffix('')}, or bring the pictures to one size: --size HxW",
        )


def check_kept(path: Path, n: int, suffix: str = STILL) -> None:
    """Raises UserError where a folder would keep other images, or folders, beside the n images that are asked for.

    suffix: of their files.
    """
    stale = [] if kind_of(path) else foreign(path, set(numbered(n, suffix)))
    if stale:
        others = f"{in_all(len(stale) - 1)}, which {'is' if len(stale) == 1 else 'are'}"
        raise UserError(
            f"--out {path}: holds {stale[0]}{others} not among the {n} requested",
            "give an empty folder, so that it holds these images alone",
        )


def foreign(folder: Path, ours: Container[str]) -> list[str]:
    """Pictures and films in a folder that have none of our names, and the folders in it, with a / behind their names; sorted.

    A folder that holds the images of an earlier stage of a cascade is ours.
    """
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if entry.name not in ours and not is_ignored(entry.name)]
    folders = [f"{each.name}/" for each in found if each.is_dir() and not _is_stage(Path(each.path))]
    return sorted(folders + [each.name for each in found if not each.is_dir() and _is_picture(each.name)])


def in_all(more: int) -> str:
    """` and 2 others` behind the first of several names; nothing behind a single one."""
    return f" and {more} other{'s' if more > 1 else ''}" if more else ""


def _is_stage(folder: Path) -> bool:
    """Whether a folder is one that `sample --then` writes for an earlier stage, and holds nothing else."""
    names = (each.name for each in folder.iterdir()) if re.fullmatch(r"stage-\d+", folder.name) else ["of others"]
    return all(is_ignored(name) or re.fullmatch(rf"\d{{6,}}({STILL}|{CLIP})", name) for name in names)


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES | VIDEOS


def numbered(n: int, suffix: str = STILL) -> list[str]:
    """The names of n images in a folder."""
    return [f"{i:06d}{suffix}" for i in range(n)]


def suffix_of(shape: tuple[int, ...]) -> str:
    """The suffix of the file of one image (C, H, W), or clip (C, T, H, W), in a folder."""
    return STILL if len(shape) == PICTURE else CLIP


def stage_path(path: Path, number: int) -> Path:
    """The path for the images of an earlier stage of a cascade: DIR/stage-1, or NAME.stage-1.png beside NAME.png."""
    return path.with_suffix(f".stage-{number}{path.suffix}") if kind_of(path) else path / f"stage-{number}"


def write(
    path: Path, drawn: Iterable[Finished], description: Mapping[str, Any], layout: Arrangement = Arrangement()
) -> None:
    """Writes all images to `path` in the format of its name, then the sidecar. Refuses a folder that would keep other images.

    layout: of a grid. Clips have `clip` in their description; a picture shows their frames side by side, an animation all clips
    in a grid, and a folder has one lossless WebP a clip.
    """
    clip = description.get("clip")
    suffix = STILL if clip is None else CLIP
    names = numbered(description["n"], suffix)
    check_kept(path, len(names), suffix)
    with all_or_none(path) as begun:
        if kind_of(path) == ".npz":
            write_npz(path, drawn)
        elif kind_of(path) == ".png":
            images = torch.cat([d.images for d in drawn])
            with whole(path) as partial:
                write_png(partial, layout.sheet(images, description))
        elif kind_of(path) in ANIMATIONS and clip is not None:
            clips = torch.cat([d.images for d in drawn])
            with whole(path) as partial:
                _write_frames(partial, layout.sheets(clips, description), clip["fps"], exact=True)
        elif clip is not None:
            for name, image in zip(names, images_of(drawn), strict=True):
                begun.append(path / name)
                _write_frames(path / name, list(image.permute(1, 2, 3, 0).numpy()), clip["fps"], exact=True)
        else:
            for name, image in zip(names, images_of(drawn), strict=True):
                begun.append(path / name)
                write_png(path / name, image.permute(1, 2, 0).numpy())
    write_record(path, {**description, **layout.describe()})


def write_npz(path: Path, drawn: Iterable[Finished]) -> None:
    """`arr_0` uint8 NHWC, of clips NTHWC, and, where there are labels, `arr_1` int64."""
    batches = list(drawn)
    arrays: dict[str, Any] = {"arr_0": np.concatenate([d.images.movedim(1, -1).numpy() for d in batches])}
    labels = [d.labels.numpy() for d in batches if d.labels is not None]
    if labels:
        arrays["arr_1"] = np.concatenate(labels)
    with whole(path) as partial:
        np.savez(partial, **arrays)


def write_animation(
    path: Path,
    frames: Iterable[Tensor],
    fps: float,
    description: Mapping[str, Any],
    layout: Arrangement = Arrangement(),
    hold: float = HOLD,
) -> None:
    """Writes grids of uint8 (n, C, *S) as .gif, .webp or .mp4, then the sidecar. hold: seconds that the last one stays."""
    sheets = [layout.sheet(images) for images in frames]
    with all_or_none(path), whole(path) as partial:
        _write_frames(partial, sheets, fps, hold)
    told = {"frames": len(sheets), "fps": fps, "hold": hold}
    write_record(path, {**description, **layout.describe(), **told})


def _write_frames(path: Path, sheets: Sequence[np.ndarray], fps: float, hold: float = 0, exact: bool = False) -> None:
    """`write_frames`. Raises UserError where a package is missing."""
    try:
        write_frames(path, sheets, fps, hold, exact)
    except ImportError as error:
        raise UserError(
            f"--out {path}: writing it needs a package ({error})", "pip install 'imageio[ffmpeg]', or use .gif"
        ) from error


def pick(frames: Iterable[Tensor], total: int, wanted: int | None) -> Iterator[Tensor]:
    """`wanted` of `total` frames, spread evenly, the last and (of two or more) the first always among them."""
    count = min(wanted or total, total)
    chosen = {total - 1} if count == 1 else {round(i * (total - 1) / (count - 1)) for i in range(count)}
    return (frame for i, frame in enumerate(frames) if i in chosen)


def images_of(drawn: Iterable[Finished]) -> Iterator[Tensor]:
    """One image (C, H, W) after the other."""
    for batch in drawn:
        yield from batch.images

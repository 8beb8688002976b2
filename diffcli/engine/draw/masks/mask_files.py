"""Files of masks: mask, probability, variance and an overlay of each image, and one record of all.

    NAME-mask.png          class numbers as grey levels; of two classes black and white
    NAME-probability.png   16 bits: white is probability 1, of the second of two classes, else of the class that the mask has
    NAME-variance.png      16 bits: white is the largest variance that there can be, which the record states
    NAME-overlay.png       the image as the model saw it, tinted where a class is marked

An .npz holds `arr_0` uint8 (N, H, W, 1), the class numbers, `probability` (N, C, H, W), `variance` (N, H, W) and `names`. A .png
is one picture with a row an image: image, mask, probability, variance and overlay.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.image_formats import images_in
from diffcli.data.pixels import fit
from diffcli.engine.draw.edits import described, open_picture
from diffcli.engine.draw.given import Value
from diffcli.engine.draw.masks.segmenting import BINARY, Segmenter, decided, variance
from diffcli.engine.draw.out_files import all_or_none, kind_of, whole
from diffcli.engine.draw.output import foreign, in_all
from diffcli.engine.draw.pictures import write_png
from diffcli.engine.draw.sheets.arrangement import grid
from diffcli.engine.model import Model
from diffcli.engine.records.output_records import write_record

WHITE = 65535
TINT = 0.5  # share of the colour in an overlay
MOST_NAMED = 3  # images in one note
SKEWED = 1.01  # how far aspect ratios may differ before it is said that a part of an image is cut away
COLOURS = ((220, 40, 40), (40, 110, 230), (30, 170, 80), (230, 160, 20), (150, 60, 200), (20, 180, 190))
PARTS = ("mask", "probability", "variance", "overlay")


class SourceImages(NamedTuple):
    """Images to segment: names, pixels uint8 (N, C, H, W), sources, and what was left out."""

    names: list[str]
    levels: Tensor
    origins: list[dict[str, str]]
    skipped: list[dict[str, str]]
    notes: list[str]

    @property
    def value(self) -> Value:
        """The images as the value of a condition."""
        return Value(self.levels, self.origins)


def read_pictures(model: Model, paths: Sequence[Path]) -> SourceImages:
    """The files, and those of folders, cut and resized to the images that the model was trained on.

    Raises UserError for a file that cannot be read, and for folders in which no file can; other unreadable files are left out.
    """
    shape = model.preset.data.shape
    files = [(file, path.is_dir()) for path in paths for file in listed_in(path)]
    names = unique_names([file for file, _ in files])
    found = SourceImages([], torch.empty(0), [], [], [])
    rows, skewed = [], []
    for (file, from_folder), name in zip(files, names, strict=True):
        try:
            image = open_picture("--image", file)
        except UserError as error:
            if not from_folder:
                raise
            found.skipped.append({"file": str(file), "reason": error.problem.partition(": ")[2] or error.problem})
            continue
        ratio = (image.width / image.height) / (shape.width / shape.height)
        if max(ratio, 1 / ratio) > SKEWED:
            skewed.append(f"{file}, {image.height}x{image.width} pixels (HxW)")
        rows.append(fit(image, shape))
        found.names.append(name)
        found.origins.append(described(file))
    if not rows:
        reason = f": {found.skipped[0]['file']}: {found.skipped[0]['reason']}" if found.skipped else ""
        raise UserError(
            f"--image {paths[0]}: holds no picture that can be read{reason}", "give image files, PNG or JPEG"
        )
    if skewed:
        more = f" and {len(skewed) - MOST_NAMED} more" if len(skewed) > MOST_NAMED else ""
        examples = "; ".join(skewed[:MOST_NAMED])
        found.notes.append(
            f"only the middle is segmented of {len(skewed)} of {len(rows)} images, cut to size: {examples}{more}"
        )
    if found.skipped:
        first = found.skipped[0]
        left = (
            f"{len(found.skipped)} of {len(files)} pictures cannot be read and are left out, the first {first['file']}"
        )
        found.notes.append(f"{left} ({first['reason']}); all stand in the record")
    return found._replace(levels=torch.from_numpy(np.stack(rows)))


def listed_in(path: Path) -> list[Path]:
    """A file itself; of a folder its pictures, by name."""
    if not path.is_dir():
        return [path]
    return images_in(path)


def unique_names(files: Sequence[Path]) -> list[str]:
    """The stems of files of images, with the suffix where two have one. Raises UserError where two have one name after all."""
    stems = Counter(file.stem for file in files)
    names = [file.stem if stems[file.stem] == 1 else file.name for file in files]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"--image: two images are called {twice[0]}, and so would their masks be", "segment them apart")
    return names


def check_folder(path: Path, names: Sequence[str]) -> None:
    """Raises UserError where a folder holds other pictures than the masks that are to be written, or folders."""
    ours = {f"{name}-{part}.png" for name in names for part in PARTS}
    stale = [] if kind_of(path) else foreign(path, ours)
    if stale:
        raise UserError(
            f"--out {path}: holds {stale[0]}{in_all(len(stale) - 1)}, not masks of these images alone",
            "give an empty folder",
        )


def write_masks(path: Path, seg: Segmenter, pictures: SourceImages, probabilities: Iterable[Tensor]) -> None:
    """Writes the masks of all images in the format of the path, then the record. probabilities: batch by batch."""
    with all_or_none(path) as begun:
        if kind_of(path) == ".npz":
            _write_npz(path, pictures, probabilities)
        elif kind_of(path) == ".png":
            rows = [row for image, p in _each(pictures, probabilities) for row in _row(image, p)]
            with whole(path) as partial:
                write_png(partial, grid(torch.stack(rows), 1 + len(PARTS)))
        else:
            for name, (image, p) in zip(pictures.names, _each(pictures, probabilities), strict=True):
                _write_one(path / name, image, p, begun)
    record = seg.describe() | stated(seg.classes) | {"images": _listed(pictures), "skipped": pictures.skipped}
    write_record(path, record)


def stated(classes: int) -> dict[str, Any]:
    """The meaning of the grey levels of the files."""
    shown = {"bits": 16, "white": 1.0, "of": "class 1" if classes == BINARY else "the class of the mask"}
    return {"classes": classes, "probability": shown, "variance": {"bits": 16, "white": most_variance(classes)}}


def most_variance(classes: int) -> float:
    """The largest value of `variance`: where all classes are equally likely."""
    return (1 - 1 / classes) / 2


def overlay(image: Tensor, mask: Tensor) -> Tensor:
    """An image uint8 (C, H, W) with the colour of each class but the first over it: uint8 (3, H, W). mask: (H, W)."""
    colours = torch.tensor(COLOURS, dtype=torch.float32)[(mask - 1).clamp(min=0) % len(COLOURS)].movedim(-1, 0)
    plain = image.expand(3, -1, -1).float()
    return torch.where(mask > 0, (1 - TINT) * plain + TINT * colours, plain).round().to(torch.uint8)


def _each(pictures: SourceImages, probabilities: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
    """Each image uint8 (C, H, W) with its probability (C, H, W)."""
    rows = (row for batch in probabilities for row in batch)
    yield from zip(pictures.levels, rows, strict=True)


def _shown(probability: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mask int64 (H, W), the probability that is shown and the variance, both in [0, 1], of (C, H, W)."""
    mask = decided(probability[None])[0]
    classes = len(probability)
    p = probability[1] if classes == BINARY else probability.gather(0, mask)[0]
    return mask[0], p, variance(probability[None])[0] / most_variance(classes)


def _grey(mask: Tensor, classes: int) -> Tensor:
    """A mask as a file has it: of two classes black and white."""
    return (mask * (255 if classes == BINARY else 1)).to(torch.uint8)


def _row(image: Tensor, probability: Tensor) -> list[Tensor]:
    """One row of a picture of all: uint8 (3, H, W) each, the classes of a mask spread over the greys."""
    mask, p, spread = _shown(probability)
    grey = (
        (mask * 255 // (len(probability) - 1)).to(torch.uint8),
        *((255 * x).round().to(torch.uint8) for x in (p, spread)),
    )
    return [image.expand(3, -1, -1), *(x.expand(3, -1, -1) for x in grey), overlay(image, mask)]


def _write_one(stem: Path, image: Tensor, probability: Tensor, begun: list[Path]) -> None:
    mask, p, spread = _shown(probability)
    files = {
        "mask": _grey(mask, len(probability)).numpy(),
        "probability": (p.double() * WHITE).round().numpy().astype(np.uint16),
        "variance": (spread.double() * WHITE).round().numpy().astype(np.uint16),
        "overlay": overlay(image, mask).movedim(0, -1).numpy(),
    }
    for part, levels in files.items():
        begun.append(stem.with_name(f"{stem.name}-{part}.png"))
        with whole(begun[-1]) as partial:
            Image.fromarray(levels).save(partial, "PNG")


def _write_npz(path: Path, pictures: SourceImages, probabilities: Iterable[Tensor]) -> None:
    probability = torch.cat(list(probabilities))
    arrays: dict[str, Any] = {
        "arr_0": decided(probability).to(torch.uint8).movedim(1, -1).numpy(),
        "probability": probability.numpy(),
        "variance": variance(probability).numpy(),
        "names": np.array(pictures.names),
    }
    with whole(path) as partial:
        np.savez(partial, **arrays)


def _listed(pictures: SourceImages) -> list[Mapping[str, str]]:
    return [{"name": name, **origin} for name, origin in zip(pictures.names, pictures.origins, strict=True)]

"""The floor of a first stage: the PSNR that simple codes of the same size reach on the same images.

For a latent of numbers it is the best linear code of as many numbers, for codes the table of patches that k-means finds. Both
are fitted to the training split, or to images spread evenly over a huge one, and cached like references.
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from diffcli.config import ImageShape
from diffcli.engine.score.cache import write_whole
from diffcli.engine.score.onepass import Watch
from diffcli.engine.score.sides import Side
from diffcli.metrics.floors import Cell, cells, joined, linear, table
from diffcli.metrics.nearness import PEAK, psnr_of_bytes
from diffcli.metrics.statistics import FeatureMoments

FORMAT = 1
WHOLE = 4096  # numbers of an image whose principal components are found as a whole; of a larger one those of its cells
IMAGES, READ = 65_536, 2**28  # images to fit a linear code to, at most, and numbers in them
ROWS, NUMBERS, DISTANCES = 2**18, 2**26, 2**30  # of k-means, at most: cells, numbers in them, distances in a round
FEWEST = 4  # cells for each code, else the table would hold its own training data
BATCH = 2**22  # numbers of images that are read at once, about

Floor = dict[str, Any]
"""Floors as JSON: name, kind (linear or table), psnr in dB, what (in words), cell, numbers or codes, fitted_on, images"""


class Size(NamedTuple):
    """The size of a latent. channels: of the latent. bits: of a position of it; None: it consists of numbers."""

    image: ImageShape
    downscale: int
    channels: int
    bits: float | None
    field: str = "image"

    @property
    def positions(self) -> int:
        return self.image.height * self.image.width // self.downscale**2


class Code(Protocol):
    """A floor: rows (N, D) in [0, 1] -> their reconstructions by a code."""

    def __call__(self, rows: Tensor) -> Tensor: ...


class Plan(NamedTuple):
    """A floor to compute. k: numbers of a cell, or rows of the table. images: their number in the fit."""

    kind: str
    cell: Cell
    k: int
    images: int

    def fitted(self, training: Side, field: str, device: torch.device, watch: Watch | None) -> Code:
        rows = rows_of(training, self, field, device, watch)
        if self.kind == "table":
            return table(torch.cat(list(rows)), self.k)
        moments = FeatureMoments()
        for batch in rows:
            moments.update(batch)
        return linear(moments, self.k)

    def described(self, size: Size, training: Side, psnr: float) -> Floor:
        whole = self.cell == size.image[1:]
        of = "whole images" if whole else f"{self.cell[0]}x{self.cell[1]} pixels"
        fitted = f"fitted to {self.images} images of {training.name}"
        counted = {"cell": list(self.cell), "fitted_on": training.name, "images": self.images, "psnr": psnr}
        if self.kind == "table":
            what = f"k-means of {of}, {self.k} codes as in the latent, {fitted}"
            return {"name": "floor", "kind": "table", "what": what, "codes": self.k, **counted}
        numbers = self.k if whole else self.k * size.positions
        what = f"principal components of {of}, {numbers} numbers as in the latent, {fitted}"
        return {"name": "floor", "kind": "linear", "what": what, "numbers": numbers, **counted}


def floors(
    size: Size, training: Side, reference: Side, device: torch.device, cache: Path, watch: Watch | None = None
) -> tuple[list[Floor], list[str]]:
    """The floors of a first stage, and notes on missing ones.

    training, reference: of images of the size's shape; the scores are means over all rows of the reference.
    """
    place = torch.device("cpu") if device.type == "mps" else device  # which has no float64
    found = planned(size, training)
    if isinstance(found, str):
        return [], [f"psnr has no floor: {found}"]
    path = cache_path(found, size, training, reference, cache)
    psnr = None if path is None else read(path)
    notes: list[str] = []
    if psnr is None:
        psnr = measured(found.fitted(training, size.field, place, watch), found.cell, reference, size.field, place)
        notes += [] if path is None else write(path, psnr)
    return [found.described(size, training, psnr)], notes


def planned(size: Size, training: Side) -> Plan | str:
    """The floor of a first stage, or the reason why it has none."""
    image, f, n = size.image, size.downscale, training.size or 0
    numbers = math.prod(image)
    if size.bits is not None:
        codes = round(2**size.bits)
        width = image.channels * f * f
        rows = min(ROWS, NUMBERS // width, DISTANCES // codes)
        images = min(n, -(-rows // size.positions))
        if images * size.positions < FEWEST * codes:
            return f"{codes} codes are too many for k-means of {images * size.positions} cells of {f}x{f} pixels"
        return Plan("table", (f, f), codes, images)
    if size.channels * size.positions >= numbers:
        return f"the latent has {size.channels * size.positions} numbers, an image {numbers}"
    images = min(n, IMAGES, READ // numbers)
    if numbers <= WHOLE and images > size.channels * size.positions:
        return Plan("linear", image[1:], size.channels * size.positions, images)
    if images * size.positions <= size.channels:
        return f"{images} images of {training.name} are too few for {size.channels} principal components"
    return Plan("linear", (f, f), size.channels, images)


def rows_of(training: Side, plan: Plan, field: str, device: torch.device, watch: Watch | None) -> Iterator[Tensor]:
    """The cells of the images that a floor is fitted to, batch by batch: (N, D) float32 in [0, 1]."""
    assert training.read is not None
    assert training.size is not None
    n, done, most = training.size, 0, at_once(training, field)
    if plan.images == n:
        spans = [range(first, min(first + most, n)) for first in range(0, n, most)]
    else:
        chosen = [i * n // plan.images for i in range(plan.images)]
        spans = [range(i, i + 1) for i in chosen]
    rows: list[Tensor] = []
    for found in training.read(spans, {field}):
        rows.append(found[field])
        done += len(found[field])
        if sum(map(len, rows)) >= most or done == plan.images:
            yield cells(torch.cat(rows).to(device).float() / PEAK, plan.cell)
            rows.clear()
            if watch:
                watch(f"floor from {training.name}", done, plan.images)


def at_once(side: Side, field: str) -> int:
    """The number of images of a side that are read at once."""
    return max(1, BATCH // math.prod(side.fields[field].sides))


@torch.no_grad()
def measured(code: Code, cell: Cell, reference: Side, field: str, device: torch.device) -> float:
    """The mean PSNR over the reference of the reconstructions of a code, as bytes."""
    assert reference.read is not None
    assert reference.size is not None
    most = at_once(reference, field)
    spans = [range(first, min(first + most, reference.size)) for first in range(0, reference.size, most)]
    total = 0.0
    for found in reference.read(spans, {field}):
        image = found[field].to(device)
        kept = joined(code(cells(image.float() / PEAK, cell)), cell, tuple(image.shape[1:]))
        total += float(psnr_of_bytes(image, (kept * PEAK).round().clamp(0, PEAK)).double().sum())
    return total / reference.size


def cache_path(plan: Plan, size: Size, training: Side, reference: Side, folder: Path) -> Path | None:
    """The file of a floor; None if one of the sides cannot be identified."""
    if training.fingerprint is None or reference.fingerprint is None:
        return None
    key = f"{FORMAT}\0{plan}\0{size}\0{training.fingerprint}\0{reference.fingerprint}"
    return folder / f"floor-{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"


def read(path: Path) -> float | None:
    """The content of a file; None if it is missing or damaged."""
    try:
        psnr = json.loads(path.read_text())["psnr"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return psnr if isinstance(psnr, float) and math.isfinite(psnr) else None


def write(path: Path, psnr: float) -> list[str]:
    """Writes a file whole or not at all; returns a warning where the folder does not take it."""
    return write_whole(path, lambda file: file.write(json.dumps({"psnr": psnr}).encode()), "the floor")

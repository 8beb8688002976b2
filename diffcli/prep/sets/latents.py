"""prep-data latents: replaces the images of a prepared set by their latents of a first stage; all else is copied.

For each image KEY.latent.npy: (C, h, w), or with a pair (2, C, h, w), that of the mirrored image behind it. For `kl` these are
means, then log-variances, so that training still samples the posterior in each epoch.
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.data.field_notes import FieldNote, empty_file
from diffcli.data.files import printable
from diffcli.data.listing import Split
from diffcli.data.pixels import BrokenImage, decode
from diffcli.data.shards import PreparedSet, ShardFiles, open_shards
from diffcli.fields import LATENT, to_float
from diffcli.prep.encode import Picture
from diffcli.prep.items import SOURCE, Broken, Deferred, Item, Items, LatentOptions, PrepSource, SourceOptions

BATCH = 64  # images that are encoded together
THREADS = 8  # that decode them; the result does not depend on it
EXTENSIONS = {"text": "txt", "vector": "{}.npy", "tokens": "{}.npy", "image": "{}.png", "mask": "{}.png"}
HALF = float(np.finfo(np.float16).max)


class LatentItems:
    """The images of one split, each encoded."""

    def __init__(self, files: ShardFiles, prepared: PreparedSet, shape: ImageShape, options: LatentOptions) -> None:
        self.files, self.shape, self.options = files, shape, options
        self.carried = {
            EXTENSIONS[note.kind].format(name): files.field(name)
            for name, note in prepared.fields.items()
            if note.kind in EXTENSIONS
        }

    def __len__(self) -> int:
        return len(self.files)

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        with ThreadPoolExecutor(THREADS) as pool:
            for first in range(0, len(positions), BATCH):
                places = positions[first : first + BATCH]
                found = list(pool.map(self.image, places))
                whole = [image for image in found if not isinstance(image, Broken)]
                names = [
                    self.files.name(i) for i, image in zip(places, found, strict=True) if not isinstance(image, Broken)
                ]
                latents = iter(self.encoded(torch.from_numpy(np.stack(whole)), names)) if whole else iter(())
                for index, image in zip(places, found, strict=True):
                    yield image if isinstance(image, Broken) else self.item(index, next(latents))

    def image(self, index: int) -> np.ndarray | Broken:
        """uint8 (C, H, W)."""
        try:
            return decode(self.files.read(index), self.files.name(index), self.shape)
        except BrokenImage as error:
            return Broken(self.files.name(index), error.reason)

    def encoded(self, levels: Tensor, names: Sequence[str]) -> np.ndarray:
        """The stored form of images uint8 (B, C, H, W) with these names, in the stored type."""
        x = to_float(levels)
        made = self.options.encode(x)
        if self.options.flip_pair:
            made = torch.stack([made, self.options.encode(x.flip(-1))], dim=1)
        finite = made.flatten(1).isfinite().all(dim=1)
        if not finite.all():
            name = names[int(finite.logical_not().nonzero()[0])]
            raise UserError(
                f"--first-stage {self.options.first_stage}: the latent of {printable(name)} has values that are not finite",
                "train the first stage again, or use another one",
            )
        return made.clamp(-HALF, HALF).half().numpy() if self.options.half else made.float().numpy()

    def item(self, index: int, latent: np.ndarray) -> Item:
        file = io.BytesIO()
        np.save(file, latent)
        size = (self.shape.height, self.shape.width)
        picture = Picture(f"{LATENT}.npy", file.getvalue(), self.shape.channels, size, size)
        label = None if self.files.labels is None else int(self.files.labels[index])
        stored = {extension: files.read(index) for extension, files in self.carried.items() if int(files.size[index])}
        return Item(self.files.name(index), label, picture, stored=stored)


def open_latents(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """A prepared set of images as one of latents. Raises UserError if the first stage cannot encode them."""
    prepared, chosen = open_shards(source, SOURCE), options.latents
    if chosen is None:
        raise UserError(
            "prep-data latents needs a first stage",
            "type --first-stage RUN, the run of an autoencoder or a folder of diffusers",
        )
    if prepared.latents:
        raise UserError(f"{SOURCE} '{source}' holds latents already", "give the set of images that they were made of")
    size = (chosen.size, chosen.size) if chosen.size is not None else prepared.size
    if size is None:
        raise UserError(f"{SOURCE} '{source}' has images of many sizes", "say which size to encode: --size 256")
    if prepared.channels != chosen.channels:
        raise UserError(
            f"--first-stage {chosen.first_stage}: is for images of {chosen.channels} channels, {source} has {prepared.channels}",
            "name a first stage that was trained on such images",
        )
    if fault := chosen.misfit(size):
        raise UserError(
            f"--first-stage {chosen.first_stage}: the images are {fault[0]}",
            f"give another size: --size {min(fault[1])}",
        )
    shape = ImageShape(prepared.channels, *size)
    splits: dict[Split, Items] = {
        split: LatentItems(ShardFiles(source, prepared, split), prepared, shape, chosen) for split in prepared.splits
    }
    shards = [shard.sha256 for split in prepared.splits.values() for shard in split.shards]
    latent = (chosen.inputs, size[0] // chosen.downscale, size[1] // chosen.downscale)
    note = FieldNote(
        kind="latent", encoder=chosen.first_stage, sha256=chosen.sha256, shape=latent, pair=chosen.flip_pair
    )
    carried = {name: other for name, other in prepared.fields.items() if other.kind in EXTENSIONS}
    digest = hashlib.sha256("".join(shards).encode()).hexdigest()
    empties = [source / empty_file(name) for name, other in carried.items() if other.empty is not None]
    beside = {path.name: path.read_bytes() for path in empties}
    return PrepSource(splits, prepared.classes, digest, fields={**carried, LATENT: note}, beside=beside)

"""Two published sets of images with one mask each: ISIC 2018 task 1 (lesions of the skin) and CVC-ClinicDB (polyps).

Files are matched as those of `pairs`, and orphans are counted and listed. Masks are black and white; one that holds
other values is listed and left out. ISIC has its splits, of which validation and test are `test`. CVC-ClinicDB has none: the last
tenth of its frames, by number, is `test`. The frames of a sequence are similar and follow each other, so that at most one
sequence is in both splits.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np

from diffcli.config import UserError
from diffcli.data.field_notes import WHITE
from diffcli.data.files import Location, read_location
from diffcli.data.listing import Split
from diffcli.data.modes import class_values
from diffcli.data.pixels import BrokenImage, open_image
from diffcli.prep.items import SOURCE, Deferred, Item, Items, PrepSource, SourceOptions
from diffcli.prep.kinds import CVC, ISIC
from diffcli.prep.sets.pairs import PairItems, open_pairs

MASK = "mask"
TEST_PART = 10  # of CVC-ClinicDB one part in so many is `test`


class BinaryPair(NamedTuple):
    """An image with a mask that must be black and white, read where it is needed."""

    item: Item

    @property
    def name(self) -> str:
        return self.item.name

    def __call__(self) -> Item:
        """Raises BrokenImage if the mask cannot be read, or holds other values than black and white."""
        source = self.item.pictures[MASK]
        assert isinstance(source, Location)
        mask = np.asarray(open_image(read_location(source), f"{self.name}: its mask", class_values).convert("L"))
        values = set(np.unique(mask).tolist())
        if not (values <= {0, WHITE} or values <= {0, 1}):
            other = min(values - {0, WHITE})
            raise BrokenImage(
                self.name, f"its mask holds the value {other}, which is neither black (0) nor white (255)"
            )
        white = np.where(mask > 0, np.uint8(WHITE), np.uint8(0))
        return self.item._replace(pictures={MASK: white[None]})


class BinaryItems:
    """Pairs with binary masks, and the files without a partner."""

    def __init__(self, pairs: PairItems) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def items(self, positions: Sequence[int]) -> Iterator[Item | Deferred]:
        for found in self.pairs.items(positions):
            yield BinaryPair(found) if isinstance(found, Item) else found


def open_isic(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """ISIC 2018 task 1 in its folders or zips. Raises UserError where there are none."""
    opened = _opened(source, work, options, ISIC)
    parts = _pairs(opened)
    names = [PurePosixPath(name).name for items in parts.values() for name, _ in items.pairs]
    if not any(name.startswith("ISIC_") for name in names):
        problem = f"{SOURCE} is '{source}', which has no images ISIC_*.jpg with masks ISIC_*_segmentation.png"
        raise UserError(problem, ISIC)
    return opened._replace(splits=_binary(parts))


def open_cvc_clinic(source: Path, work: Path, options: SourceOptions) -> PrepSource:
    """CVC-ClinicDB, split by the number of its frames. Raises UserError where there is none."""
    opened = _opened(source, work, options, CVC)
    parts = list(_pairs(opened).values())
    frames = [pair for items in parts for pair in items.pairs]
    other = next((name for name, _ in frames if not PurePosixPath(name).stem.isdecimal()), None)
    if other is not None:
        raise UserError(f"{SOURCE} is '{source}', in which {other} is not called by the number of a frame", CVC)
    frames.sort(key=lambda pair: int(PurePosixPath(pair[0]).stem))
    first = len(frames) - len(frames) // TEST_PART
    train, test = PairItems(parts[0].locations), PairItems(parts[0].locations)
    train.pairs, test.pairs = frames[:first], frames[first:]
    train.alone = [one for items in parts for one in items.alone]
    cut: dict[Split, PairItems] = {"train": train, "test": test}
    return opened._replace(splits=_binary({split: items for split, items in cut.items() if len(items)}))


def _opened(source: Path, work: Path, options: SourceOptions, where: str) -> PrepSource:
    """The source as `pairs` opens it. where: the place to get it."""
    try:
        return open_pairs(source, work, options)
    except UserError as error:
        raise UserError(error.problem, where) from None


def _pairs(opened: PrepSource) -> dict[Split, PairItems]:
    return {split: items for split, items in opened.splits.items() if isinstance(items, PairItems)}


def _binary(parts: Mapping[Split, PairItems]) -> dict[Split, Items]:
    return {split: BinaryItems(items) for split, items in parts.items()}

"""Masks of several annotators of one image: each epoch uses one of them for a sample, scores use all.

A set with annotators has two fields. `mask` (1, H, W) is the mask of one annotator if a sample has a random draw, and otherwise
the consensus, the pixels that at least half of them marked; `masks` (A, H, W) are those of all.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from diffcli.data import captions
from diffcli.data.columns import each
from diffcli.data.images import Column, MaskColumn
from diffcli.fields import FieldSpec

ONE, ALL = "mask", "masks"
NAME = re.compile(r"annotator_(\d+)_mask")  # the field of one of them in a prepared set


class HeldMasks:
    """Masks in memory. masks: uint8 (N, 1, H, W), class numbers."""

    def __init__(self, masks: Tensor, classes: int) -> None:
        self.masks, self.spec = masks, FieldSpec("mask", tuple(masks.shape[1:]), classes)

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        return self.masks[indices]


class DrawnMask:
    """The mask of the annotator that each random draw selects; without draws the consensus."""

    def __init__(self, annotators: Sequence[Column], consensus: Column) -> None:
        self.annotators, self.consensus, self.spec = tuple(annotators), consensus, consensus.spec

    def knowing(self, classes: int) -> "DrawnMask":
        return DrawnMask([_knowing(each, classes) for each in self.annotators], _knowing(self.consensus, classes))

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor | list[str]:
        """(B, 1, H, W)."""
        if draws is None:
            return self.consensus.read(indices, None)
        who = torch.tensor([captions.chosen(len(self.annotators), draw) for draw in each(draws, len(indices))])
        parts = [(who == number).nonzero()[:, 0] for number in range(len(self.annotators))]
        found = [
            _tensor(annotator.read(indices[rows], draws[rows]))
            for annotator, rows in zip(self.annotators, parts, strict=True)
            if len(rows)
        ]
        return torch.cat(found)[torch.cat(parts).argsort()]


class AllMasks:
    """The masks of all annotators, in their order."""

    def __init__(self, annotators: Sequence[Column]) -> None:
        self.annotators = tuple(annotators)
        one = annotators[0].spec
        self.spec = one._replace(shape=(len(annotators), *one.shape[1:]))

    def knowing(self, classes: int) -> "AllMasks":
        return AllMasks([_knowing(each, classes) for each in self.annotators])

    def read(self, indices: Tensor, draws: Tensor | None) -> Tensor:
        """(B, A, H, W)."""
        return torch.cat([_tensor(annotator.read(indices, draws)) for annotator in self.annotators], dim=1)


def consensus(masks: Tensor) -> Tensor:
    """The pixels that at least half of the annotators marked, (N, 1, H, W) from uint8 (N, A, H, W): masks of two classes."""
    return (2 * masks.sum(1, keepdim=True, dtype=torch.int64) >= masks.shape[1]).to(torch.uint8)


def annotated(annotators: Sequence[Column], consensus: Column) -> dict[str, Column]:
    """The two fields of a set with annotators."""
    return {ONE: DrawnMask(annotators, consensus), ALL: AllMasks(annotators)}


def joined_annotators(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns of a prepared set, with the fields of single annotators, if any, joined to the two fields above."""
    numbered = sorted((int(found[1]), name) for name in columns if (found := NAME.fullmatch(name)))
    if not numbered or ONE not in columns:
        return dict(columns)
    rest = {name: column for name, column in columns.items() if not NAME.fullmatch(name)}
    return rest | annotated([columns[name] for _, name in numbered], columns[ONE])


def _knowing(column: Column, classes: int) -> Column:
    return column.knowing(classes) if isinstance(column, MaskColumn) else column


def _tensor(rows: Tensor | list[str]) -> Tensor:
    assert isinstance(rows, Tensor)
    return rows

"""Pairs for properties of two things that do not depend on which two."""

from collections.abc import Sequence
from itertools import cycle, islice
from typing import TypeVar

Row = TypeVar("Row")
Column = TypeVar("Column")


def paired(rows: Sequence[Row], columns: Sequence[Column]) -> list[tuple[Row, Column]]:
    """Every row with some column and every column with some row, as few pairs as that takes, in place of their product."""
    return list(islice(zip(cycle(rows), cycle(columns), strict=True), max(len(rows), len(columns))))

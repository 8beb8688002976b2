"""The contract of an extractor: the fields that it reads of a side, and the named values that it computes for each row.

A metric names its extractors: `features` is a network that --features chose, `bound` and `translation` ask the model under test.
"""

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from diffcli.fields import FieldSpec, Remedies, Specs, check_fields

IMAGES: Specs = {"image": FieldSpec("image", (None, None, None))}
Extracted = Mapping[str, Tensor]  # values of a batch by name, each (B, ...)


class Extractor(Protocol):
    """A map from rows of a side to values, each from its own row alone."""

    reads: Specs  # fields of a row
    gives: Mapping[str, tuple[int, ...]]  # values by name, each with its shape for one row; all are float
    limit: int | None  # rows of a side that it looks at, at most; None is all
    unit: str  # what a row is, in the plural, for reports
    classes: tuple[str, ...] | None  # what its logits stand for, where it gives any and that is known
    notes: list[str]  # notes on conversions and problems, for the report

    def check(self, name: str, fields: Specs) -> None:
        """Raises UserError if it cannot read a side of this name with these fields."""

    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """The values of rows of a side. fields: of these rows, images uint8 (B, C, H, W); rows: their numbers in the side."""

    def describe(self) -> dict[str, Any]:
        """Everything that its values depend on, as JSON values, for the report. For `features`: name and layer.

        The name of `features` holds what identifies the weights: scores of two names do not compare.
        """


def check_images(name: str, fields: Specs, who: str) -> None:
    """Raises UserError where a side of this name has no images. who: what reads them."""
    hint = f"{name} cannot be scored so: give a side of images, such as digits:train (with --ckpt: --ref digits:train)"
    check_fields(IMAGES, fields, f"{name}: {who}", {"image": Remedies(lacking=hint, kind=hint)})

"""Images of several sizes in one request: the size of each follows from its picture."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from torch import Tensor

from diffcli.config import UserError
from diffcli.engine.distributed import Group
from diffcli.engine.draw.pictured.following import Size
from diffcli.engine.draw.request import Request
from diffcli.engine.model import Model
from diffcli.fields import listed


@dataclass(frozen=True)
class Gallery:
    """Requests that differ in the size of their images alone. sizes: that of image i is number i mod K.

    One tally counts the evaluations of all.
    """

    requests: Mapping[Size, Request]
    sizes: tuple[Size, ...]

    @property
    def first(self) -> Request:
        """The request that draws image 0."""
        return self.requests[self.sizes[0]]

    @property
    def model(self) -> Model:
        return self.first.model

    @property
    def n(self) -> int:
        return self.first.n

    @property
    def batch_size(self) -> int:
        return self.first.batch_size

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of image 0: channels, height and width."""
        return self.first.shape

    @property
    def labels(self) -> Tensor | None:
        return self.first.labels

    @property
    def parts(self) -> Iterator[tuple[Request, range]]:
        """Stretches of images of one size, and what draws them."""
        for size, stretch in groupby(range(self.n), lambda i: self.sizes[i % len(self.sizes)]):
            rows = list(stretch)
            part = self.requests[size]
            alone = (
                replace(part, batch_size=1) if len(rows) == 1 else part
            )  # an image beyond the stretch is of another size
            yield alone, range(rows[0], rows[-1] + 1)

    def images(self, rows: range) -> Tensor:
        """Images of one size; see `parts`."""
        return self.requests[self.sizes[rows.start % len(self.sizes)]].images(rows)

    def agree(self, group: Group) -> None:
        """Adds the counts of all ranks on rank 0; all requests count together."""
        self.first.agree(group)

    def captions(self) -> list[str]:
        """Raises UserError: only a grid has captions."""
        raise UserError(f"--captions: images of {self.model.path} have several sizes", "leave --captions out")

    def describe(self) -> dict[str, Any]:
        """The sidecar: that of one request, with the sizes of all images."""
        record = self.first.describe()
        record.pop("size", None)
        record.pop("tiles", None)
        tiled = {
            listed(size): part.frame.tiling for size, part in self.requests.items() if part.frame.tiling is not None
        }
        sizes = [list(self.sizes[i % len(self.sizes)]) for i in range(self.n)]
        return record | {"sizes": sizes} | ({"tiles": tiled} if tiled else {})

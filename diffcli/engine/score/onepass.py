"""One pass over a side feeds every extractor that looks at it; every process extracts its own share of the batches.

Batch k goes to process k modulo their number. Only the values that some metric needs travel to the leading process, which adds
them up in the order of the rows: so the scores are those of a single process.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.config import ImageShape
from diffcli.engine.distributed import Group
from diffcli.engine.score.sides import Side
from diffcli.metrics.extractor import Extracted, Extractor
from diffcli.metrics.summary import Summary

Watch = Callable[[str, int, int | None], None]  # what is read, rows done, rows in all where that is known


class Use(NamedTuple):
    """An extractor in use, and what it fills."""

    extractor: Extractor
    summary: Summary

    def rows_of(self, side: Side) -> int:
        """How many rows of a side it looks at."""
        assert side.size is not None
        return side.size if self.extractor.limit is None else min(side.size, self.extractor.limit)


def spans(n: int, batch_size: int, world: int) -> list[range]:
    """Batches of at most batch_size rows that cover range(n) in order; several processes have equally many where n allows."""
    if world > 1:
        rounds = -(-max(n, 1) // (batch_size * world))
        batch_size = -(-max(n, 1) // (rounds * world))
    return [range(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]


def share(n: int, batch_size: int, group: Group) -> list[range]:
    """This process's batches of n rows."""
    return spans(n, batch_size, group.world)[group.rank :: group.world]


@torch.no_grad()
def sweep(
    side: Side, uses: Mapping[str, Use], group: Group, batch_size: int, watch: Watch | None = None
) -> ImageShape | None:
    """Fills the summaries of `uses` from the rows of a side, on the leading process; the others extract and fill nothing.

    Returns the shape of the side's first image, None where nobody reads images. Raises UserError where a row cannot be read.
    """
    assert side.read is not None
    n = max(use.rows_of(side) for use in uses.values())
    taken = {value for use in uses.values() for value in use.summary.values if value in side.fields}
    fields = taken.union(*(use.extractor.reads for use in uses.values()))
    batches = spans(n, batch_size, group.world)
    mine = side.read(batches[group.rank :: group.world], fields & side.fields.keys())
    shape = None
    for first in range(0, len(batches), group.world):
        dealt = batches[first : first + group.world]
        found = next(mine) if group.rank < len(dealt) else None
        if shape is None and found is not None and "image" in found:
            shape = ImageShape(*found["image"].shape[1:])  # type: ignore[union-attr]
        for use in uses.values():
            parts = [_until(rows, use.rows_of(side)) for rows in dealt]
            own = parts[group.rank] if found is not None else range(0)
            values = _values(use, found, own) if found is not None and own else {}
            _add(use, values, parts, group)
        if watch and group.leads:
            watch(side.name, dealt[-1].stop, n)
    return shape


def _until(rows: range, limit: int) -> range:
    return range(rows.start, max(rows.start, min(rows.stop, limit)))


def _values(use: Use, fields: Mapping[str, Tensor | list[str]], rows: range) -> Extracted:
    """What an extractor gives of the first rows of a batch, and the fields of it that are values themselves."""
    cut = {name: value[: len(rows)] for name, value in fields.items()}
    return {**cut, **use.extractor(cut, rows)}  # type: ignore[dict-item]  # of the fields, only tensors are summarised


def _add(use: Use, values: Extracted, parts: Sequence[range], group: Group) -> None:
    """Brings the values of all processes to the leading one, and adds them to the summary there."""
    counts = [len(rows) for rows in parts]
    if not any(counts):
        return
    if group.world == 1:
        use.summary.update(values)
        return
    gathered = {}
    for name in use.summary.values:
        shape, dtype = use.extractor.gives.get(name, ()), torch.float32
        if name not in use.extractor.gives:  # a field: the label
            dtype = torch.int64
        padded = torch.zeros(max(counts), *shape, dtype=dtype, device=group.device)
        if name in values:
            padded[: len(values[name])] = values[name].to(padded)
        received = group.gather(padded)
        if group.leads:
            whole = zip(received, counts, strict=False)  # in the last round, some processes may have no batch
            gathered[name] = torch.cat([part[:count] for part, count in whole])
    if group.leads:
        use.summary.update(gathered)

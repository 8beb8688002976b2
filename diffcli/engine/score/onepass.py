"""One pass over a side for all of its extractors; every process extracts its own share of the batches.

Batches are dealt in rounds, one for each process. Only the values that some metric needs travel to the leading process, which
adds them up in the order of the rows: so the scores are those of a single process.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

from diffcli.config import ImageShape
from diffcli.engine.distributed import Group
from diffcli.engine.score.sides import Side
from diffcli.metrics.extractor import Extracted, Extractor
from diffcli.metrics.summary import Summary

Watch = Callable[[str, int, int | None], None]  # what is read, rows done, rows in all where that is known


class Use(NamedTuple):
    """An extractor in use, and the summaries that it fills."""

    extractor: Extractor
    summary: Summary

    @property
    def fields(self) -> set[str]:
        """The fields to read: those of the extractor, and those that are summarised themselves."""
        return {*self.extractor.reads, *(value for value in self.summary.values if value not in self.extractor.gives)}

    def rows_of(self, side: Side) -> int:
        """The number of rows of a side that it reads."""
        assert side.size is not None
        return side.size if self.extractor.limit is None else min(side.size, self.extractor.limit)


def spans(n: int, batch_size: int, world: int) -> list[range]:
    """Batches of at most batch_size rows that cover range(n) in order; several processes have equally many where n allows."""
    if world > 1:
        rounds = -(-max(n, 1) // (batch_size * world))
        batch_size = -(-max(n, 1) // (rounds * world))
    return [range(first, min(first + batch_size, n)) for first in range(0, n, batch_size)]


def dealt(counts: Collection[int], batch_size: int, world: int) -> list[list[range]]:
    """Rounds of batches that cover the rows in order: batch r of a round is for process r, and the last may have fewer.

    counts: where extractors stop. No batch crosses one, and every process has its share of the rows up to each.
    """
    found = []
    for first, last in pairwise([0, *sorted(set(counts))]):
        batches = [range(first + rows.start, first + rows.stop) for rows in spans(last - first, batch_size, world)]
        found += [batches[i : i + world] for i in range(0, len(batches), world)]
    return found


def share(n: int, batch_size: int, group: Group) -> int:
    """The number of rows of this process among the first n, at which an extractor stops."""
    return sum(map(len, spans(n, batch_size, group.world)[group.rank :: group.world]))


@torch.no_grad()
def sweep(
    side: Side, uses: Mapping[str, Use], group: Group, batch_size: int, watch: Watch | None = None
) -> ImageShape | None:
    """Fills the summaries of `uses` from the rows of a side, on the leading process; the others extract and fill nothing.

    Returns the shape of the side's first image or frame, None if no extractor reads any. Raises UserError if a row cannot be
    read.
    """
    assert side.read is not None
    counts = {name: use.rows_of(side) for name, use in uses.items()}
    fields = {name for use in uses.values() for name in use.fields} & side.fields.keys()
    rounds = dealt(counts.values(), batch_size, group.world)
    mine = side.read([batches[group.rank] for batches in rounds if group.rank < len(batches)], fields)
    shape = None
    for batches in rounds:
        found = next(mine) if group.rank < len(batches) else None
        if shape is None and found is not None and (seen := found.get("image", found.get("clip"))) is not None:
            shape = ImageShape(seen.shape[1], *seen.shape[-2:])
        for name, use in uses.items():
            if batches[-1].stop <= counts[name]:
                own = {} if found is None else {**found, **use.extractor(found, batches[group.rank])}
                _add(use, own, [len(rows) for rows in batches], group)
        if watch and group.leads:
            watch(side.name, batches[-1].stop, max(counts.values()))
    return shape


def _add(use: Use, values: Extracted, counts: Sequence[int], group: Group) -> None:
    """Brings the values of all processes, `counts` rows of each, to the leading one, and adds them to the summary there."""
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
        parts = zip(group.gather(padded), counts, strict=False)  # in a last round, some processes have no batch
        gathered[name] = [part[:count] for part, count in parts]
    if group.leads:
        use.summary.update({name: torch.cat(parts) for name, parts in gathered.items()})

"""A network on pieces of pictures with the result of whole pictures, if pieces overlap by its reach.

Layers over all positions (group norms, the mean of channel attention) take their statistics from passes over all pieces: one pass
for each layer, in the order of the network, each up to that layer. The memory is that of the pieces that are computed together.
Attention among positions has no such statistics.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffcli.networks.channel_blocks import PositionMean
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.split_norms import Enough, RunningMoments, added, grouped, normed, standing_in

Calls = Iterable[Callable[[], object]]
"""Functions that each call the network with some pieces, together with all pieces."""


class Cutout(NamedTuple):
    """A piece of the picture `row`: its (height, width) in positions, and the positions that it owns."""

    row: int
    size: tuple[int, int]
    own: tuple[slice, slice]

    def of(self, x: Tensor) -> Tensor:
        """(C, h, w), at any resolution -> the part that the piece owns."""
        (height, width), (down, across) = self.size, self.own
        h, w = x.shape[1:]
        rows = slice(down.start * h // height, down.stop * h // height)
        return x[:, rows, across.start * w // width : across.stop * w // width]


class InPieces:
    """See the module. parts: the pieces of the call of the network that comes next."""

    def __init__(self, network: nn.Module) -> None:
        self.layers = [layer for layer in network.modules() if isinstance(layer, GroupNorm | PositionMean)]
        self.parts: Sequence[Cutout] = ()

    @contextmanager
    def settled(self, passes: Callable[[], Calls]) -> Iterator[None]:
        """Context in which layers use the statistics of whole pictures. passes: a pass over all pieces."""
        with standing_in(self.layers, lambda layer: Standing(layer, self)) as standing:
            for _ in self.layers:
                if not seen(passes()):
                    break
                for each in standing:
                    each.turn()
            yield


def seen(calls: Calls) -> bool:
    """Makes the calls. False if the first of them runs to its end, so that all statistics are known."""
    for call in calls:
        try:
            call()
        except Enough:
            continue
        return False
    return True


class Standing:
    """Takes the place of a layer: in its turn it sums up statistics of each picture, afterwards it uses them."""

    def __init__(self, layer: GroupNorm | PositionMean, pieces: InPieces) -> None:
        self.layer, self.pieces = layer, pieces
        self.moments: dict[int, RunningMoments] = {}  # by row
        self.known = False

    def turn(self) -> None:
        """A pass is over."""
        self.known = bool(self.moments)

    def __call__(self, x: Tensor, modulation: Tensor | None = None) -> Tensor:
        """The same as GroupNorm.forward, or PositionMean.forward."""
        norm, parts = self.layer, self.pieces.parts
        x, modulation = added(x, modulation)
        if not self.known:
            for each, part in zip(x, parts, strict=True):
                own = part.of(each)
                values = grouped(norm, own[None])[0] if isinstance(norm, GroupNorm) else own.flatten(1)
                self.moments.setdefault(part.row, RunningMoments()).join(values)
            raise Enough
        found = [self.moments[part.row] for part in parts]
        mean = torch.stack([each.mean for each in found])
        if not isinstance(norm, GroupNorm):
            return mean.to(x.dtype)
        return normed(norm, x, modulation, mean, torch.stack([each.variance for each in found]))

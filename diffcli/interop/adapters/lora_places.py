"""Which layer of diffusers' networks each of ours is, and low-rank changes on their way from one to the other.

Where ours is three of theirs, one layer for queries, keys and values, three changes of ranks a, b and c become one of rank
a + b + c: A is theirs one under the other, B has theirs as blocks beside each other, so that B A is exactly theirs. Back, each
block takes the columns of B that are not 0 in its rows, with the same rows of A.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.interop import published_dit
from diffcli.interop.imported import on_meta
from diffcli.interop.unets import diffusers_unet
from diffcli.interop.weight_files import Rule, write
from diffcli.networks.dit import DiT
from diffcli.networks.lora import LowRank
from diffcli.networks.unet import UNet
from diffcli.preset import Preset

WEIGHT = ".weight"


class LayerPlace(NamedTuple):
    """A layer of ours and those of theirs that it is: one, or several whose rows it holds.

    shape, shapes: of the weights, ours and theirs. rows: theirs to ours, (*theirs) -> [ours]; back: the other way.
    """

    layer: str
    shape: torch.Size
    theirs: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    rows: Callable[..., Sequence[Tensor]]
    back: Callable[..., Sequence[Tensor]]

    def joined(self, changes: Mapping[str, LowRank]) -> LowRank:
        """Ours, of those of theirs that are there. Raises ValueError where a matrix has another shape than their layer's."""
        parts = [changes.get(name) for name in self.theirs]
        for name, part, shape in zip(self.theirs, parts, self.shapes, strict=True):
            if part is not None and not fits(part, shape):
                raise ValueError(
                    f"{name} is {list(shape)}, but its change {list(part.up.shape)} times {list(part.down.shape)}"
                )
        present = [part for part in parts if part is not None]
        scale, width = present[0].alpha / present[0].rank, sum(part.rank for part in present)
        ups, first = [], 0
        for part, shape in zip(parts, self.shapes, strict=True):
            up = torch.zeros(shape[0], width)
            if part is not None:
                own = part.alpha / part.rank
                block = part.up.float().flatten(1)
                up[:, first : first + part.rank] = block if own == scale else block * (own / scale)
                first += part.rank
            ups.append(up)
        up = ups[0] if len(ups) == 1 else self.rows(*ups)[0].reshape(self.shape[0], width)
        down = torch.cat([part.down.float().reshape(part.rank, *self.shape[1:]) for part in present])
        return LowRank(down, up.reshape(self.shape[0], width, *[1] * (len(self.shape) - 2)), scale * width)

    def split(self, change: LowRank) -> dict[str, LowRank]:
        """Theirs, those that change anything."""
        up = change.up.float().flatten(1)  # (C', r)
        ups = [up] if len(self.theirs) == 1 else self.back(up.reshape(self.shape[0], -1, *[1] * (len(self.shape) - 2)))
        found = {}
        for name, shape, rows in zip(self.theirs, self.shapes, ups, strict=True):
            rows = rows.reshape(shape[0], -1)
            used = rows.any(dim=0) if len(self.theirs) > 1 else torch.ones(rows.shape[1], dtype=torch.bool)
            if not used.any():
                continue
            count = int(used.sum())
            found[name] = LowRank(
                change.down.float()[used].reshape(count, *shape[1:]),
                rows[:, used].reshape(shape[0], count, *[1] * (len(shape) - 2)),
                change.alpha * count / change.rank,
            )
        return found


def fits(change: LowRank, shape: Sequence[int]) -> bool:
    """Whether a change is one of a weight of this shape."""
    inputs = torch.Size(shape[1:]).numel()
    return change.down.numel() == change.rank * inputs and change.up.flatten(1).shape == (shape[0], change.rank)


def layer_places(preset: Preset) -> dict[str, LayerPlace]:
    """The layers of the denoiser of a preset that theirs has too, by our names. Raises UserError where none is theirs."""
    task = on_meta(preset)
    network, ours = task.denoiser.network, task.state_dict()
    if isinstance(network, UNet):
        rules = diffusers_unet.diffusers_rules(network, ours, null=False)
    elif isinstance(network, DiT):
        rules = published_dit.diffusers_rules(network.config, ours)
    else:
        raise UserError(
            f"task.network is a {type(network).__name__}, which other libraries do not have",
            "low-rank changes go out and come in for U-Nets and DiTs alone",
        )
    return {place.layer: place for rule in rules for place in places_of(rule, ours)}


def places_of(rule: Rule, ours: Mapping[str, Tensor]) -> Iterator[LayerPlace]:
    """The place of a rule that is about the weight of one layer of ours; none for tables, norms and what theirs repeats."""
    if len(rule.ours) != 1 or not rule.theirs or not rule.ours[0].endswith(WEIGHT) or rule.ours[0] not in ours:
        return
    shape = ours[rule.ours[0]].shape
    there: dict[str, Any] = write([rule], ours)
    shapes = tuple(there[name].shape for name in rule.theirs)
    if len(shape) < 2 or sum(each[0] for each in shapes) != shape[0]:
        return
    layer = rule.ours[0].removesuffix(WEIGHT)
    theirs = tuple(name.removesuffix(WEIGHT) for name in rule.theirs)
    yield LayerPlace(layer, shape, theirs, shapes, rule.read, rule.write)


def component(preset: Preset) -> str:
    """What diffusers calls the network of a preset in a pipeline."""
    return "unet" if isinstance(on_meta(preset).denoiser.network, UNet) else "transformer"

"""Which tensor of one task stands for which of another, and which of its rows and columns.

Modules correspond by name, those of a list by class and order, so that a block that was put in between moves no other; below
those of different classes nothing corresponds. What differs in shape is taken where a rule knows what its rows and columns mean:

    table of classes    rows by the names of the classes; the null row stays
    output of classes   rows likewise
    first layer         columns of x and of each condition; zeros where the source knows no such condition
    vector of a network columns of each condition, likewise
    last layer          rows of the mean; zeros for the variance, where the source learned none
    grid of positions   bicubic interpolation
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from diffcli.data.naming import alike
from diffcli.networks.dit import DiT
from diffcli.networks.trunk import AttentionPool
from diffcli.networks.unet import UNet
from diffcli.tasks.classifier import ClassifierTask
from diffcli.tasks.conditioners.classes import ClassConditioner
from diffcli.tasks.conditioners.conditioner import Conditioner
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.task import Task

Classes = Sequence[str] | None
Places = tuple[int | None, ...]  # of each row or column of ours the source's, None: it has none


class Pair(NamedTuple):
    """A module of ours and that of the source that it corresponds to, each with its place."""

    ours: nn.Module
    theirs: nn.Module
    place: str
    source: str


class Move(NamedTuple):
    """How a tensor of ours is made of one of the source. None: all rows, all columns, as they are.

    zeros: what the source does not have, be it all of it, is 0 and not as it was drawn. grid: a table (D, 1 + n n) of a square of
    positions after a single one.
    """

    key: str
    rows: Places | None = None
    columns: Places | None = None
    zeros: bool = False
    grid: bool = False

    @property
    def whole(self) -> bool:
        """Whether the tensor is that of the source."""
        return self.rows is None and self.columns is None and not self.grid

    def share(self) -> float:
        """Of the tensor that is the source's, 0 to 1."""
        share = 1.0
        for places in (self.rows, self.columns):
            share *= 1.0 if places is None else sum(place is not None for place in places) / max(1, len(places))
        return share

    def made(self, ours: Tensor, theirs: Tensor) -> Tensor:
        """Our tensor after the move."""
        if self.whole:
            return theirs.to(ours.dtype).to(ours.device)
        theirs = theirs.to(ours.device, ours.dtype)
        if self.grid:
            return interpolated(theirs, ours.shape[-1])
        rows, columns = self.rows or tuple(range(len(ours))), self.columns
        filled = torch.zeros_like(ours) if self.zeros else ours.detach().clone()
        mine = torch.tensor([i for i, place in enumerate(rows) if place is not None], device=ours.device)
        given = torch.tensor([place for place in rows if place is not None], device=ours.device)
        if not len(mine):
            return filled
        if columns is None:
            filled[mine] = theirs[given]
            return filled
        across = torch.tensor([i for i, place in enumerate(columns) if place is not None], device=ours.device)
        taken = torch.tensor([place for place in columns if place is not None], device=ours.device)
        if len(across):
            filled[mine[:, None], across] = theirs[given[:, None], taken]
        return filled


def interpolated(positions: Tensor, length: int) -> Tensor:
    """(D, 1 + n n) -> (D, 1 + m m), length = 1 + m m: the first stays, the square of the others is enlarged bicubically."""
    first, square = positions[:, :1], positions[:, 1:]
    old, new = round(square.shape[1] ** 0.5), round((length - 1) ** 0.5)
    grid = square.unflatten(1, (old, old))[None].float()
    larger = torch.nn.functional.interpolate(grid, size=(new, new), mode="bicubic", antialias=new < old)[0]
    return torch.cat([first, larger.flatten(1).to(positions.dtype)], dim=1)


def pairs(ours: nn.Module, theirs: nn.Module, place: str = "", source: str = "") -> Iterator[Pair]:
    """Both modules and all below them that correspond, from the outside in; nothing where they are of two classes."""
    if type(ours) is not type(theirs):
        return
    yield Pair(ours, theirs, place, source)
    for name, other in matched_children(ours, theirs):
        yield from pairs(
            ours.get_submodule(name), theirs.get_submodule(other), joined(place, name), joined(source, other)
        )


def matched_children(ours: nn.Module, theirs: nn.Module) -> Iterator[tuple[str, str]]:
    """The names of the children that may correspond; of lists the first, second, ... of each class."""
    if not isinstance(ours, nn.ModuleList):
        there = dict(theirs.named_children())
        yield from ((name, name) for name, _ in ours.named_children() if name in there)
        return
    numbered: dict[tuple[type, int], str] = {}
    count: Counter[type] = Counter()
    for name, child in theirs.named_children():
        numbered[type(child), count[type(child)]] = name
        count[type(child)] += 1
    count.clear()
    for name, child in ours.named_children():
        if other := numbered.get((type(child), count[type(child)])):
            yield name, other
        count[type(child)] += 1


def joined(place: str, name: str) -> str:
    return f"{place}.{name}" if place else name


def rules(ours: Task, theirs: Task, names: Classes, source_names: Classes) -> dict[str, Move]:
    """How the tensors whose rows or columns have a meaning are made of the source's, by our key."""
    found: dict[str, Move] = {}
    known = {pair.ours: pair for pair in pairs(ours, theirs)}
    for pair in known.values():
        match pair.ours, pair.theirs:
            case ClassConditioner() as mine, ClassConditioner() as other if (
                mine.embedding.weight.shape[1:] == other.embedding.weight.shape[1:]
            ):
                rows = class_rows(mine.num_classes, other.num_classes, names, source_names)
                rows = (*rows, other.num_classes)  # the null
                found[f"{pair.place}.embedding.weight"] = Move(f"{pair.source}.embedding.weight", rows=rows)
            case AttentionPool() as mine, AttentionPool() as other if mine.position.shape != other.position.shape:
                if len(mine.position) == len(other.position) and squares(mine.position, other.position):
                    found[f"{pair.place}.position"] = Move(f"{pair.source}.position", grid=True)
            case ClassifierTask() as mine, ClassifierTask() as other:
                rows = class_rows(mine.num_classes, other.num_classes, names, source_names)
                for kind in ("weight", "bias"):
                    found[f"network.head.{kind}"] = Move(f"network.head.{kind}", rows=rows)
            case DiffusionTask() as mine, DiffusionTask() as other:
                below = {id(p.ours): p.theirs for p in known.values() if isinstance(p.ours, Conditioner)}
                for key, move in ends(mine, other, below).items():
                    found[joined(pair.place, key)] = move._replace(key=joined(pair.source, move.key))
    return found


def squares(*positions: Tensor) -> bool:
    return all(round((p.shape[1] - 1) ** 0.5) ** 2 == p.shape[1] - 1 for p in positions)


def class_rows(ours: int, theirs: int, names: Classes, source_names: Classes) -> Places:
    """For each of our classes that of the source: of the same name, or of the same number where one has no names."""
    if names is None or source_names is None:
        return tuple(i if i < theirs else None for i in range(ours))
    numbers = {alike(name): i for i, name in enumerate(source_names) if i < theirs}
    return tuple(numbers.get(alike(names[i])) if i < len(names) else None for i in range(ours))


def ends(ours: DiffusionTask, theirs: DiffusionTask, conditioners: dict[int, nn.Module]) -> dict[str, Move]:
    """What a denoiser is told first and says last. conditioners: the source's, by the identity of ours."""
    place = "denoiser.network"
    mine, other = ours.denoiser.network, theirs.denoiser.network
    both = (ours, theirs)
    channels, source_channels = (task.latent_shape(1)[1] for task in both)
    order = [conditioners.get(id(c)) for c in ours.named_conditioners.values()]
    told = [list(task.named_conditioners.values()) for task in both]
    there = [next((i for i, c in enumerate(told[1]) if c is each), None) for each in order]
    mine_told, other_told = ([c.shape for c in each] for each in told)
    spatial = columns([s.spatial for s in mine_told], [s.spatial for s in other_told], there)
    vector = columns([s.vector for s in mine_told], [s.vector for s in other_told], there)
    found: dict[str, Move] = {}
    if isinstance(mine, UNet) and isinstance(other, UNet):
        stem, vectors, head, fold = "stem", "embedding.vector", "head", mine.config.fold**2
        same = mine.config.fold == other.config.fold
    elif isinstance(mine, DiT) and isinstance(other, DiT):
        stem, vectors, head, fold = "x_embedder.proj", "y_embedder", "final_layer.linear", 1
        same = mine.config.patch == other.config.patch
    else:
        return {}
    if channels == source_channels and same:
        inputs = (*range(channels), *(None if c is None else channels + c for c in spatial))
        spread = tuple(None if c is None else c * fold + i for c in inputs for i in range(fold))
        found[f"{place}.{stem}.weight"] = Move(f"{place}.{stem}.weight", columns=spread, zeros=True)
        found |= last_layer(f"{place}.{head}", mine, channels, *(task.denoiser.learn_variance for task in both))
    found[f"{place}.{vectors}.weight"] = Move(f"{place}.{vectors}.weight", columns=vector, zeros=True)
    found[f"{place}.{vectors}.bias"] = Move(f"{place}.{vectors}.bias", zeros=True)
    if isinstance(mine, DiT) and isinstance(mine.y_embedder, nn.Identity):  # which adds a table as it is
        for i, (each, c) in enumerate(zip(there, told[0], strict=True)):
            if each is None and isinstance(c, ClassConditioner):
                found[f"conditioners.{i}.embedding.weight"] = Move("", zeros=True)
    return found


def columns(widths: Sequence[int], source_widths: Sequence[int], there: Sequence[int | None]) -> Places:
    """Where the columns of ours, side by side in these widths, stand in the source.

    there: of each part of ours the number of the source's that it is.
    """
    begins = [sum(source_widths[:i]) for i in range(len(source_widths))]
    found: list[int | None] = []
    for width, part in zip(widths, there, strict=True):
        fits = part is not None and source_widths[part] == width
        found += [begins[part] + i if fits and part is not None else None for i in range(width)]
    return tuple(found)


def last_layer(place: str, network: nn.Module, channels: int, variance: bool, source_variance: bool) -> dict[str, Move]:
    """Rows of the output: of each position of a patch or fold those of the mean, then those of the variance."""
    many, known = (channels * (2 if learned else 1) for learned in (variance, source_variance))
    if isinstance(network, DiT):  # the channel counts fastest
        pixels = network.config.patch**2
        rows = tuple(p * known + c if c < known else None for p in range(pixels) for c in range(many))
    else:
        assert isinstance(network, UNet)
        pixels = network.config.fold**2
        rows = tuple(r if r < known * pixels else None for r in range(many * pixels))
    return {f"{place}.{kind}": Move(f"{place}.{kind}", rows=rows, zeros=True) for kind in ("weight", "bias")}

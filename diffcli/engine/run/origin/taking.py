"""What a task takes of the model that it starts from: decided by shapes alone, said in words, and done.

A network of which less than half fits is another one, and is refused: it would be a run from random weights in disguise.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.config import UserError, quoted
from diffcli.engine.model import Model
from diffcli.engine.run.origin.correspondence import Classes, Move, joined, pairs, rules
from diffcli.engine.run.origin.source_reading import KEY
from diffcli.engine.run.origin.unasked import Unasked, unasked
from diffcli.engine.run.roles.parameter_roles import parts
from diffcli.fields import listed
from diffcli.networks.lora import of_change
from diffcli.networks.temporal import OVER_TIME
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.task import Task

LEAST = 0.5  # share of the smaller one of both main networks that must fit
SHOWN = 3  # tensors that a line names
NAMED = 12  # classes

Shapes = Mapping[str, tuple[int, ...]]


class Misfit(NamedTuple):
    """A tensor whose shape is another in the source."""

    name: str
    shape: tuple[int, ...]
    source: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name} is {_shown(self.shape)}, there {_shown(self.source)}"


class Taking(NamedTuple):
    """What is taken, by our key, and what is not. zeroed: new inputs, which are 0 so that the model begins as the source.

    new: ours without a source. left_out: the source's without a use. share: of the main network that is taken, 0 to 1.
    unasked: classes that are gone, of which a bias keeps what the source was told where none was asked for.
    """

    moves: dict[str, Move]
    zeroed: tuple[str, ...]
    misfits: tuple[Misfit, ...]
    new: tuple[str, ...]
    left_out: tuple[str, ...]
    share: float
    unasked: Sequence[Unasked] = ()

    def covers(self, names: Iterable[str]) -> bool:
        """Whether all of these tensors are those of the source."""
        return all(name in self.moves for name in names)


def matched(ours: Task, model: Model, names: Classes, available: Iterable[str], stage: bool = True) -> Taking:
    """What a task can take of a model. names: of the classes of its data. available: the tensors that the model has.

    stage: whether its first stage is taken, too. Raises UserError where less than half of the network would fit.
    """
    theirs = model.task
    if type(ours) is not type(theirs):
        raise UserError(
            f"{KEY}: {model.path} is {model.preset.task.noun}, which cannot begin the training of a {type(ours).__name__}",
            "name a model of the same task; a first stage is named in task.codec.from",
        )
    shapes, there = (_shapes(task, stage) for task in (ours, theirs))
    there = {key: there[key] for key in available if key in there}
    same = dict(_corresponding(ours, theirs))
    special = rules(ours, theirs, names, model.classes)
    moves: dict[str, Move] = {}
    zeroed, misfits, new = [], [], []
    for key, shape in shapes.items():
        rule, other = special.get(key), same.get(key)
        if rule is not None and rule.key in there and _fits(rule, shape, there[rule.key]):
            moves[key] = _simple(rule, shape, there[rule.key])
        elif other in there and shape == there[other]:
            moves[key] = Move(other)
        elif other in there:
            misfits.append(Misfit(key, shape, there[other]))
        elif rule is not None and rule.zeros:
            zeroed.append(key)
        else:
            new.append(key)
    kept = [pair.theirs for pair in pairs(ours, theirs)]
    gone = [each for each in unasked(ours, theirs, kept) if each.bias in moves and each.read <= there.keys()]
    used = {move.key for move in moves.values()} | {same.get(misfit.name, "") for misfit in misfits}
    used = used.union(*(each.read for each in gone))
    left_out = tuple(key for key in there if key not in used)
    share = _share(ours, theirs, moves, shapes)
    taking = Taking(moves, tuple(zeroed), tuple(misfits), tuple(new), left_out, share, gone)
    if taking.share < LEAST:
        raise _another(model, taking)
    return taking


def _shapes(task: Task, stage: bool) -> dict[str, tuple[int, ...]]:
    """Of all that lies in a network: what does not is the state of a training."""
    inside = task.keys_of(network.name for network in task.networks if stage or network.name != "codec")
    return {key: tuple(value.shape) for key, value in task.state_dict().items() if key in inside and not of_change(key)}


def _corresponding(ours: Task, theirs: Task) -> Iterator[tuple[str, str]]:
    """Our keys and the source's, wherever modules correspond."""
    for pair in pairs(ours, theirs):
        own, other = (dict(m.named_parameters(recurse=False)) | dict(m.named_buffers(recurse=False)) for m in pair[:2])
        yield from ((joined(pair.place, name), joined(pair.source, name)) for name in own if name in other)


def _fits(rule: Move, shape: tuple[int, ...], source: tuple[int, ...]) -> bool:
    """Whether a rule makes a tensor of this shape of one of the source's shape."""
    if len(shape) != len(source):
        return False
    if rule.grid:
        return shape[0] == source[0]
    for axis, places in ((0, rule.rows), (1, rule.columns)):
        if places is not None and (axis >= len(shape) or len(places) != shape[axis]):
            return False
        if places is None and axis < len(shape) and shape[axis] != source[axis]:
            return False
        if places is not None and any(place is not None and place >= source[axis] for place in places):
            return False
    return shape[2:] == source[2:]


def _simple(rule: Move, shape: tuple[int, ...], source: tuple[int, ...]) -> Move:
    """The same rule, without places that change nothing."""
    rows = None if rule.rows == tuple(range(source[0])) else rule.rows
    columns = None if len(shape) > 1 and rule.columns == tuple(range(source[1])) else rule.columns
    return (
        Move(rule.key)
        if rows is None and columns is None and not rule.grid
        else rule._replace(rows=rows, columns=columns)
    )


def _share(ours: Task, theirs: Task, moves: Mapping[str, Move], shapes: Shapes) -> float:
    """What share of the smaller one of both main networks is taken."""
    main = [task.networks[0].name for task in (ours, theirs)]
    inside = {key for key in ours.keys_of([main[0]]) if key in shapes}
    sizes = {key: float(torch.Size(shapes[key]).numel()) for key in inside}
    taken = sum(sizes[key] * moves[key].share() for key in inside if key in moves)
    whole = [
        sum(v.numel() for k, v in t.state_dict().items() if k in t.keys_of([n]))
        for t, n in zip((ours, theirs), main, strict=True)
    ]
    return taken / max(1, min(whole))


def _another(model: Model, taking: Taking) -> UserError:
    found = [str(misfit) for misfit in taking.misfits[:SHOWN]]
    found += [f"{name} is not there" for name in taking.new[: SHOWN - len(found)]]
    return UserError(
        f"{KEY}: {model.path} is of another network, of which {taking.share:.0%} fits: {'; '.join(found)}",
        f"take its network: diffcli presets new NAME --data DIR --from {quoted(model.path)}; or name a model of this one",
    )


@torch.no_grad()
def take(task: Task, taking: Taking, tensors: Mapping[str, Tensor]) -> None:
    """Gives a task on its device what it takes of the source's tensors."""
    state = task.state_dict()
    for key, move in taking.moves.items():
        state[key].copy_(move.made(state[key], tensors[move.key]))
    for key in taking.zeroed:
        state[key].zero_()
    for each in taking.unasked:
        state[each.bias].add_(each.made(tensors).to(state[each.bias]))


def told(task: Task, model: Model, taking: Taking, names: Classes) -> dict[str, str]:
    """What is taken and what is not, for people, by what it is about."""
    sizes = {name: p.numel() for name, p in task.named_parameters() if not of_change(name)}
    whole = sum(sizes.values())
    taken = round(sum(size * taking.moves[name].share() for name, size in sizes.items() if name in taking.moves))
    facts = {"taken": f"{taken:,} of {whole:,} parameters of {model.path}, step {model.step:,}"}
    if lines := [*_of_classes(task, model, taking, names)]:
        facts["taken rows"] = "; ".join(lines)
    parted = [
        name
        for name, move in taking.moves.items()
        if move.zeros and None in (*(move.rows or ()), *(move.columns or ()))
    ]
    if quiet := [*parted, *taking.zeroed]:
        facts["added as 0"] = _few(quiet) + ": it begins as if this were not there"
    if gone := [each.condition for each in taking.unasked]:
        facts["no classes"] = f"{_few(gone)} of the source: it begins as the source does where no class is asked for"
    if taking.misfits:
        facts["fresh"] = _few([str(misfit) for misfit in taking.misfits])
    grids = [name for name, move in taking.moves.items() if move.grid]
    if grids:
        facts["interpolated"] = _few(grids)
    over = [name for name in taking.new if OVER_TIME in name.split(".")]
    if over:
        count = sum(sizes.get(name, 0) for name in over)
        facts["over time"] = f"{count:,} new parameters (*.{OVER_TIME}.*): on each frame it begins as the source does"
    if new := [name for name in taking.new if name not in over]:
        facts["new"] = _few(parts(new, 5))
    if taking.left_out:
        facts["left out"] = _few(parts(taking.left_out, 5))
    return facts


def _of_classes(task: Task, model: Model, taking: Taking, names: Classes) -> Iterator[str]:
    """Which rows of the first table of classes are the source's, which are new, which of the source's are not used."""
    for key, move in taking.moves.items():
        if move.rows is None or move.zeros:
            continue
        count = len(move.rows) - (1 if key.endswith("embedding.weight") else 0)
        mine = [_name(names, i) for i in range(count)]
        same = [mine[i] for i in range(count) if move.rows[i] is not None]
        fresh = [mine[i] for i in range(count) if move.rows[i] is None]
        before = model.classes or tuple(map(str, range(max([p for p in move.rows if p is not None], default=0))))
        gone = [name for i, name in enumerate(before) if i not in move.rows]
        for word, some in (("taken for", same), ("new for", fresh), ("left out of", gone)):
            if some:
                yield f"{word} {', '.join(some[:NAMED])}{', ...' * (len(some) > NAMED)}"
        return


def _name(names: Classes, i: int) -> str:
    return names[i] if names is not None and i < len(names) else str(i)


def _few(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN:,} more" if len(names) > SHOWN else "")


def _shown(shape: tuple[int, ...]) -> str:
    return listed(shape) if shape else "a number"


def warnings(ours: Task, theirs: Task) -> list[str]:
    """What is allowed and probably not meant: weights that mean something else from now on. One sentence each."""
    if not isinstance(ours, DiffusionTask) or not isinstance(theirs, DiffusionTask):
        return []
    found = []
    mine, other = ours.denoiser, theirs.denoiser
    if mine.target != other.target:
        found.append(
            f"task.target is {mine.target}, that of the model in {KEY} is {other.target}: its network must learn another output; "
            f"keep it with --set task.target={other.target}"
        )
    if mine.schedule != other.schedule:
        found.append(
            f"task.schedule is {mine.schedule!r}, that of the model in {KEY} {other.schedule!r}: "
            "noise levels and times mean something else to its network"
        )
    if type(ours.codec) is not type(theirs.codec):
        found.append(f"task.codec is another one than that of the model in {KEY}: its network saw other images")
    return found

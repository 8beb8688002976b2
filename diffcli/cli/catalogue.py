"""The output of `presets list`: the presets by their data, with size, time and needs.

Presets are read but not validated, so the list is fast and a broken file hides no other.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

SHIPPED = ("digits, which ship with diffcli", "")
NONE = ("no data: presets for published weights", "diffcli import FILE --as NAME --out DIR")
IDX = ("mnist", "the four IDX files, --data FOLDER; without SOURCE `diffcli prep-data mnist` says where to get them")
CIFAR = ("cifar10", "--data FOLDER; without SOURCE `diffcli prep-data cifar10` says where to get it")
TIME = re.compile(r"\b((?:about )?(?:two|ten|\d+) (?:minutes|hours|days) (?:of|on) [\w ]+?)(?=[.,;:)]|$)", re.MULTILINE)


class Entry(NamedTuple):
    """A line of the list. size: of the images; work: steps x batch, with the training time if the file states it."""

    name: str
    size: str
    work: str
    about: str
    needs: str


def catalogue(files: Mapping[str, Path]) -> dict[tuple[str, str], list[Entry]]:
    """The presets by (data, how to get them), cheapest first."""
    groups: dict[tuple[str, str], list[Entry]] = {SHIPPED: [], IDX: [], CIFAR: []}
    for name, path in sorted(files.items()):
        text = path.read_text(encoding="utf-8", errors="replace")
        tree = _tree(text)
        groups.setdefault(_data(_part(tree, "data")), []).append(_entry(name, text, tree))
    return {group: entries for group, entries in groups.items() if entries}


def lines(groups: Mapping[tuple[str, str], Iterable[Entry]]) -> Iterator[str]:
    """The list as it is printed: a heading for each kind of data, and a line for each preset below it."""
    for number, ((data, how), entries) in enumerate(groups.items()):
        if number:
            yield ""
        yield f"{data}:" + (f"  {how}" if how else "")
        for entry in entries:
            needs = f"; needs {entry.needs}" if entry.needs else ""
            yield f"  {entry.name:<24} {entry.size:<9} {entry.work:<14} {entry.about}{needs}"


def _tree(text: str) -> Mapping[str, Any]:
    import yaml

    from diffcli.lookup.preset_files import NOT_YAML

    quick = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # sixty files in a fifth of the time

    try:
        tree = yaml.load(text, quick)
    except NOT_YAML:
        return {}
    return tree if isinstance(tree, Mapping) else {}


def _part(tree: Any, *keys: str) -> Any:
    """The value at a path of a raw tree; an empty mapping if there is none."""
    for key in keys:
        tree = tree.get(key, {}) if isinstance(tree, Mapping) else {}
    return tree


def _data(data: Any) -> tuple[str, str]:
    """Heading and how to get it."""
    from diffcli.prep.kinds import KINDS

    parts = _part(data, "parts")
    if isinstance(parts, list) and parts:  # a mixture: the last is what the model is for
        return _data(_part(parts[-1], "data"))
    kind, root = str(_part(data, "kind") or ""), str(_part(data, "root") or "")
    if kind.startswith(("digits", "moving_digits")):
        return SHIPPED
    known = {"none": NONE, "mnist": IDX, "cifar10": CIFAR}
    if kind in known:
        return known[kind]
    name = Path(root).name
    prepared = max((each for each in KINDS if name.startswith(each)), key=len, default="")
    prepared = "imagenet" if prepared == "imagenet64" else prepared
    return (
        (prepared, "prepare it first; the comments of the file show the command")
        if prepared
        else ("your own data", "--data")
    )


def _entry(name: str, text: str, tree: Mapping[str, Any]) -> Entry:
    first = text.partition("\n")[0].lstrip("# ")
    about = first.partition(" - ")[2] or first
    comments = "\n".join(line for line in text.splitlines()[1:] if line.startswith("#"))
    edge = _part(tree, "data", "size") or {"cifar10": 32}.get(str(_part(tree, "data", "kind")), 28)
    steps, batch = _part(tree, "train", "steps"), _part(tree, "train", "batch_size") or 128
    work = f"{_short(steps)} x {batch}" if isinstance(steps, int) else ""
    measured = TIME.search(comments)
    if measured and not re.search("minutes|hours|days", about):
        about += f" ({measured[1]})"
    return Entry(name, f"{edge}x{edge}", work, about, ", ".join(_needs(tree)))


def _needs(tree: Mapping[str, Any]) -> Iterator[str]:
    """What else a preset needs: a first stage, an encoder, embeddings of the data."""
    source = _part(tree, "task", "codec", "from")
    if source:
        yield f"{Path(str(source)).name} trained before"
    conditioners = _part(tree, "task", "conditioners")
    for each in conditioners if isinstance(conditioners, list) else ():
        model = _part(each, "encoder", "model")
        if model:
            yield f"the encoder {model}"
        elif _part(each, "kind") == "embedding":
            yield "embeddings of the images (prep-data --embed clip)"


def _short(number: int) -> str:
    return f"{number / 1000:g}k" if number >= 1000 else str(number)

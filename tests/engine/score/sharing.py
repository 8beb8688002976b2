"""Every kind of side scored by one process of several: `python -m tests.engine.score.sharing FOLDER` writes what it found."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from diffcli.data import images as data_images
from diffcli.data.stream.stream_data import Stream
from diffcli.diffusion.denoiser import Denoiser
from diffcli.engine.distributed import Group, join
from diffcli.engine.draw.sample import SampleOptions, load_model, request
from diffcli.engine.score import npz, sides
from diffcli.engine.score.bound import VariationalBound
from diffcli.engine.score.evaluate import evaluate
from diffcli.engine.score.generated import samples
from diffcli.engine.score.sides import Side, data_side, resolve
from diffcli.metrics.scores import metrics_by_name
from tests.conftest import ROOT
from tests.engine.score.making import ALL, Toy

BATCH = 3
FORMAT_1 = ROOT / "tests/fixtures/format1"
STREAM = Stream(shards="unread.tar", test_shards=str(FORMAT_1 / "pets-prepared/train-000000.tar"), size=8)
SIDES: dict[str, Callable[[Path], Side]] = {
    "folder": lambda folder: resolve(str(folder / "images")),
    "npz": lambda folder: resolve(str(folder / "stored.npz")),
    "compressed": lambda folder: resolve(str(folder / "compressed.npz")),
    "prepared": lambda folder: resolve(f"{FORMAT_1 / 'pets-prepared'}:train"),
    "stream": lambda folder: data_side("stream:test", STREAM, "test"),
}
TERMS = 51  # of the bound of the kept run


@contextmanager
def counting(seen: Counter[str]) -> Iterator[None]:
    """Counts images that are decoded, rows that are unpacked and images that are denoised."""
    decode, open_image, take, denoise = data_images.decode, sides.open_image, npz.take, Denoiser.forward

    def counted(name: str, what: Callable[..., Any], n: Callable[..., int] = lambda *_: 1) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            seen[name] += n(*arguments)
            return what(*arguments, **more)

        return call

    with (
        mock.patch.object(data_images, "decode", counted("decoded", decode)),
        mock.patch.object(sides, "open_image", counted("decoded", open_image)),
        mock.patch.object(
            npz, "take", counted("decoded", take, lambda file, dtype, shape: shape[0] * (len(shape) > 1))
        ),
        mock.patch.object(Denoiser, "forward", counted("denoised", denoise, lambda self, x, *_: len(x))),
    ):
        yield


def found(folder: Path, group: Group, cache: Path) -> dict[str, Any]:
    """Of every side: its report as JSON (null on other processes than the leading one), and what this process looked at."""
    results = {name: _scored(build(folder), ALL, group, cache / name) for name, build in SIDES.items()}
    model = load_model(FORMAT_1 / "diffusion", group.device)
    req = request(model, SampleOptions(n=7, seed=3, batch_size=BATCH))
    results["samples"] = _scored(samples(req), ALL, group, cache / "samples")
    return results | {f"bound {n}": _bounded(n, group) for n in (7, 1)}


def _scored(side: Side, names: list[str], group: Group, cache: Path) -> dict[str, Any]:
    toy, seen = Toy(), Counter[str]()
    toy.classes = side.classes or ("dark", "bright")
    toy.notes.append(f"process {group.rank}")
    known = "label" in side.fields and len(toy.classes) == 2
    metrics = metrics_by_name(names if known else [n for n in names if n != "accuracy"])
    both = {"samples": side, "reference": SIDES["npz"](cache.parent.parent)}
    with counting(seen):
        report = evaluate(metrics, both, {"features": toy}, group, batch_size=BATCH, cache=cache)
    return {"report": report and report.as_dict(), **seen, "seen": toy.seen}


def _bounded(n: int, group: Group) -> dict[str, Any]:
    model, seen = load_model(FORMAT_1 / "diffusion", group.device), Counter[str]()
    req = request(model, SampleOptions(n=n, seed=3, batch_size=BATCH))
    reference = {"reference": resolve(str(FORMAT_1 / "reference.npz"))}
    with counting(seen):
        report = evaluate(
            metrics_by_name(["bpd"]), reference, {"bound": VariationalBound(req, None)}, group, batch_size=BATCH
        )
    return {"report": report and report.as_dict(), **seen}


def in_this_process(place: Path) -> None:
    """Leaves what this process of the group found in the folder."""
    with join("cpu") as group:
        told = found(place, group, place / f"cache-{group.world}")
        (place / f"rank-{group.rank}.json").write_text(json.dumps(told))

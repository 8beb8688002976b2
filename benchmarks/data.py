"""Data: our reader beside plain webdataset and torchvision's ImageFolder, prep-data, the reader's memory, and data-wait.

    python benchmarks/data.py [--cifar10 FOLDER] [--images 2000] [--rounds 5] [--workers 2] [--json FILE]

Every reader gives shuffled batches of float32 in [-1, 1] of the same images: 32x32 PNGs (class folders below FOLDER/train, or
noise made on the spot) and 256x256 JPEGs (made on the spot). Ours reads shards by random access, in an order that a resumed run
continues exactly; webdataset shuffles the same shards and a buffer of 1000; ImageFolder reads loose files. All have as many
workers, they take turns, and a turn begins with batches that are not counted, those that were read ahead while it waited. Told
are medians over the rounds, and our rate over that of each other in the same round.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

import diffcli.torchvision_compat  # noqa: F401  before torchvision
from diffcli import preset as presets
from diffcli.data.images import FileImages
from diffcli.data.loader import batches
from diffcli.data.prepared import Shards
from diffcli.engine.distributed import Group
from diffcli.engine.run.loop import Loop
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import build_state, resolved
from diffcli.fields import to_float
from diffcli.prep.prepare import prepare

BATCH = 64
CPU = torch.device("cpu")
Reader = Iterator[Tensor]


def picture(rng: np.random.Generator, size: int) -> Image.Image:
    """Noise with the detail of a photograph: a quarter as fine as its pixels."""
    small = rng.integers(0, 256, (max(2, size // 4), max(2, size // 4), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((size, size), Image.Resampling.BICUBIC)


def make(root: Path, count: int, size: int, kind: str) -> Path:
    """`count` pictures in ten class folders below root/train."""
    rng = np.random.default_rng(0)
    for number in range(count):
        folder = root / "train" / f"class-{number % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(rng, size).save(folder / f"{number:06d}.{kind}", quality=90)
    return root


def ours(shards: Path, size: int, workers: int) -> Reader:
    data = Shards(root=shards, size=size, in_memory=False).build("train")
    feed = batches(data, batch_size=BATCH, seed=0, first=0, last=10**9, flip=False, device=CPU, workers=workers)
    return (batch["image"] for _, batch in feed)


def webdataset(shards: Path, size: int, workers: int) -> Reader:
    import webdataset as wds

    urls = sorted(map(str, shards.glob("train-*.tar")))
    data = wds.WebDataset(urls, shardshuffle=len(urls)).shuffle(1000).decode("rgb8").to_tuple("png;jpg")
    data = (
        data.map_tuple(lambda array: torch.from_numpy(array.transpose(2, 0, 1).copy()))
        .repeat()
        .batched(BATCH, partial=False)
    )
    for (images,) in DataLoader(data, batch_size=None, num_workers=workers):
        yield to_float(images)


def image_folder(folder: Path, size: int, workers: int) -> Reader:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import PILToTensor

    data = ImageFolder(folder / "train", PILToTensor())
    loader = DataLoader(data, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True)
    while True:
        for images, _ in loader:
            yield to_float(images)


def turn(reader: Reader, ahead: int, count: int) -> float:
    """Images per second of `count` batches, after those that may have been read before."""
    for _ in range(ahead):
        next(reader)
    start = time.perf_counter()
    for _ in range(count):
        assert next(reader).shape[0] == BATCH
    return count * BATCH / (time.perf_counter() - start)


def compare(folder: Path, shards: Path, size: int, workers: int, rounds: int, seconds: float) -> dict[str, list[float]]:
    """The rates of all readers, round by round."""
    readers: dict[str, Reader] = {
        "diffcli": ours(shards, size, workers),
        "webdataset": webdataset(shards, size, workers),
        "ImageFolder": image_folder(folder, size, workers),
    }
    ahead = 2 * workers + 2
    count = max(10, round(turn(readers["diffcli"], ahead, 10) * seconds / BATCH))
    rates: dict[str, list[float]] = {name: [] for name in readers}
    for _ in range(rounds):
        for name, reader in readers.items():
            rates[name].append(turn(reader, ahead, count))
    return rates


def prepared(kind: str, source: Path, out: Path, **more: Any) -> float:
    """Writes the shards; images per second."""
    start = time.perf_counter()
    *_, last = prepare(kind, source, out, images_per_shard=256, **more)
    return last.written / (time.perf_counter() - start)


def growth(shards: Path, size: int, n: int) -> tuple[float, float]:
    """MiB that this process grows by while it reads n images, and then 10 n more, without workers."""
    reader, sizes = ours(shards, size, 0), [resident()]
    for count in (n, 10 * n):
        for _ in range(-(-count // BATCH)):
            next(reader)
        sizes.append(resident())
    return sizes[1] - sizes[0], sizes[2] - sizes[1]


def resident() -> float:
    """MiB of memory that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def data_wait(shards: Path, steps: int = 3, batch: int = 8) -> float:
    """The share of a training step of the preset cifar10 that waits for shards, by the counter of `diffcli train`."""
    overrides = ["data.in_memory=false", f"train.batch_size={batch}", f"train.steps={steps + 1}", "train.keep_last=1"]
    overrides += ["train.every.log=0", "train.every.save=0", "train.every.preview=0"]
    preset = resolved(presets.load("cifar10", overrides, shards), CPU)
    data = preset.data.build("train")
    assert isinstance(data, FileImages)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDir(Path(folder))
        steps_of = Loop(preset, run, Group(0, 1, CPU), build_state(preset, CPU), data, {}).steps(0)
        first, *_, last = (next(steps_of) for _ in range(steps))
        steps_of.close()
    return last.waited / (last.waited / last.data_wait - first.waited / first.data_wait) if last.data_wait else 0.0


def told(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):9.{digits}f}   ({min(values):.{digits}f} to {max(values):.{digits}f})"


def measure(args: argparse.Namespace, work: Path) -> dict[str, Any]:
    small = args.cifar10 or make(work / "small", args.images, 32, "png")
    sets: dict[str, tuple[Path, int]] = {"CIFAR-10, 32x32 PNG": (small, 32)}
    sets["256x256 JPEG"] = make(work / "large", args.images, 256, "jpg"), 256
    found: dict[str, Any] = {"rates": {}, "prep": {}, "growth": {}}
    for name, (folder, size) in sets.items():
        shards = work / f"shards-{size}"
        found["prep"][f"folder of {name}"] = prepared(
            "folder", folder, shards, workers=args.workers, limit=None if size > 32 else 20_000
        )
        found["rates"][name] = compare(folder, shards, size, args.workers, args.rounds, args.seconds)
        found["growth"][name] = growth(shards, size, args.images // 2)
    found["prep"]["256x256 JPEG to 64x64 PNG"] = prepared(
        "folder", sets["256x256 JPEG"][0], work / "resized", workers=args.workers, size=64
    )
    found["data_wait"] = data_wait(work / "shards-32")
    return found


def report(found: dict[str, Any], rounds: int) -> None:
    for name, rates in found["rates"].items():
        print(f"\n{name}: images/s, median of {rounds} rounds (least to most); our rate over theirs")
        for reader, values in rates.items():
            ratios = [a / b for a, b in zip(rates["diffcli"], values, strict=True)]
            print(f"  {reader:16s}{told(values, 0):36s}{told(ratios, 2) if reader != 'diffcli' else ''}")
    print("\nprep-data, images/s")
    for name, rate in found["prep"].items():
        print(f"  {name:40s}{rate:9.0f}")
    print("\nmemory of the reader: MiB more after N images, and after 10 N further ones")
    for name, (first, then) in found["growth"].items():
        print(f"  {name:40s}{first:9.1f}{then:9.1f}")
    print(f"\nshare of a training step of the preset cifar10 that waits for data: {found['data_wait']:.2%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, help="folder with train/CLASS/*.png; noise where it is left out")
    parser.add_argument("--images", type=int, default=2000, help="pictures to make of each kind (default 2000)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn (default 2)")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        found = measure(args, Path(work))
    report(found, args.rounds)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

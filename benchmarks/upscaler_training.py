"""Training speed of an upscaler beside the unconditional model of its size: images/s and the median ratio.

    python benchmarks/upscaler_training.py [--preset cifar10-upscale-16-32] [--rounds 20] [--steps 2] [--batch 32] [--workers 1]
        [--clock wall|processor]

Both train as `diffcli train` does, with the network, precision and optimizer of the preset, on random images that are decoded
before; only the upscaler has conditions and what they are made of. Both stand ready in one process and take turns of a few steps
each, so that a slow minute of the machine meets both; a round's ratio compares neighbours in time.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from train_speed import machine, spread
from turns import CLOCKS, add_clock

from diffcli import preset as presets
from diffcli.data.pixels import to_image, to_png
from diffcli.engine.distributed import join
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import train
from diffcli.prep.prepare import prepare

WARM = 3  # steps before the clock starts
NAMES = ("upscaler", "unconditional")


def prepared(folder: Path, images: int, size: int) -> Path:
    """A set of random images."""
    rng, files = np.random.default_rng(0), folder / "images" / "train"
    files.mkdir(parents=True)
    for i in range(images):
        levels = rng.integers(0, 256, (3, size, size)).astype(np.uint8)
        (files / f"{i:06d}.png").write_bytes(to_png(to_image(levels)))
    list(prepare("folder", folder / "images", folder / "set"))
    return folder / "set"


def tree(name: str, conditional: bool, root: Path, flags: argparse.Namespace) -> dict[str, Any]:
    """The preset, on the images of `root`; without its conditions, where it is not conditional."""
    told = presets.load(name).model_dump(mode="json")
    derived = told["data"]["derived"]
    told["data"] = {"kind": "shards", "root": str(root), "size": told["data"]["size"], "in_memory": True, "flip": True}
    if conditional:
        told["data"]["derived"] = derived
    else:
        told["task"]["conditioners"] = []
    every = {"log": 0, "preview": 0, "save": 0}
    told["train"] |= {"batch_size": flags.batch, "workers": flags.workers, "every": every, "steps": 1_000_000}
    return told


def seconds(steps: Iterator[object], count: int, clock: str) -> float:
    """The median time of so many steps."""
    found, now = [], CLOCKS[clock]
    for _ in range(count):
        begun = now()
        next(steps)
        found.append(now() - begun)
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10-upscale-16-32")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2, help="of a turn")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--workers", type=int, default=1, help="that read images and make conditions of them")
    add_clock(parser)  # without the workers that read
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    size = presets.load(flags.preset).data.shape[1]
    with TemporaryDirectory() as name, join(flags.device) as group:
        root = prepared(Path(name), flags.images, size)
        runs = {}
        for kind in NAMES:
            run = RunDir(Path(name) / kind)
            run.claim()
            chosen = presets.build(tree(flags.preset, kind == "upscaler", root, flags), "bench.yaml")
            runs[kind] = iter(train(chosen, run, group))
            seconds(runs[kind], WARM, flags.clock)
        rates: dict[str, list[float]] = {kind: [] for kind in NAMES}
        for _ in range(flags.rounds):
            for kind, steps in runs.items():
                rates[kind].append(flags.batch / seconds(steps, flags.steps, flags.clock))
        print(json.dumps(machine()))
        for kind, found in rates.items():
            print(f"{kind:14} {spread(found, 1)} images/s")
        ratios = [a / b for a, b in zip(*rates.values(), strict=True)]
        print(f"{'ratio':14} {spread(ratios, 3)}")
        for steps in runs.values():
            steps.close()  # type: ignore[attr-defined]


if __name__ == "__main__":
    main()

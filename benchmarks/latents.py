"""How fast a latent model is fed: images/s of training with latents from memory, from disk, and encoded on the fly.

    python benchmarks/latents.py [--size 64] [--images 640] [--batch 64] [--threads 1]

Random images and weights: a first stage as kl-f8-256 but narrow, and a small transformer.
"""

import argparse
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from diffcli import __version__, checkpoint
from diffcli import preset as presets
from diffcli.cli.options import Device
from diffcli.cli.preparing import encoding
from diffcli.data.pixels import to_image, to_png
from diffcli.engine.distributed import join
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import train
from diffcli.prep.items import SourceOptions
from diffcli.prep.prepare import prepare

WARM = 5  # steps before the clock starts
STAGE = {
    "network": {"width": 64, "mult": [1, 2, 2, 2], "depth": 1, "latent": 4},
    "bottleneck": {"kind": "kl"},
    "channels": 3,
}


def tree(data: dict[str, Any], codec: dict[str, Any], batch: int, steps: int) -> dict[str, Any]:
    return {
        "name": "bench",
        "data": data,
        "task": {
            "kind": "diffusion",
            "target": "flow",
            "schedule": {"kind": "flow"},
            "network": {"kind": "dit", "patch": 1, "width": 192, "depth": 4, "heads": 4},
            "codec": {"kind": "latent", **codec},
        },
        "train": {"steps": steps, "batch_size": batch, "workers": 0, "every": {"log": 0, "preview": 0, "save": 0}},
    }


def rate(chosen: dict[str, Any], folder: Path, device: str) -> float:
    """Images a second: the median of the steps after the first ones, what is written left out."""
    run = RunDir(folder)
    run.claim()
    with join(device) as group:  # type: ignore[arg-type]
        found = [p.images_per_s for p in train(presets.build(chosen, "bench"), run, group) if p.step > WARM]
    return statistics.median(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="auto")
    flags = parser.parse_args()
    torch.set_num_threads(flags.threads)
    with TemporaryDirectory() as name:
        root, rng = Path(name), np.random.default_rng(0)
        (root / "images" / "train").mkdir(parents=True)
        for i in range(flags.images):
            levels = rng.integers(0, 256, (3, flags.size, flags.size)).astype(np.uint8)
            (root / "images" / "train" / f"{i:06d}.png").write_bytes(to_png(to_image(levels)))
        list(prepare("folder", root / "images", root / "set"))
        stage = presets.build(tree({"kind": "none", "size": flags.size}, {"first_stage": STAGE}, 1, 1), "stage")
        record = {"step": 1, "preset": stage.model_dump(mode="json"), "version": __version__, "classes": None}
        checkpoint.save_average(root / "stage", stage.task.build(stage.specs).sampled_state(), record)
        begun = time.perf_counter()
        latents = encoding("latents", root / "set", root / "stage", None, True, False, Device(flags.device))
        list(prepare("latents", root / "set", root / "latents", options=SourceOptions(latents=latents)))
        print(f"prep-data latents: {flags.images / (time.perf_counter() - begun):.0f} images/s")
        source = {"from": str(root / "stage")}
        ways = {"encoded on the fly": ("set", True), "from disk": ("latents", False), "from memory": ("latents", True)}
        rates: dict[str, list[float]] = {way: [] for way in ways}
        for i in range(flags.rounds):  # alternating, so that a slow minute of the machine meets all
            for way, (folder, memory) in ways.items():
                data = {"kind": "shards", "root": str(root / folder), "size": flags.size, "in_memory": memory}
                chosen = tree(data, source, flags.batch, flags.steps)
                rates[way].append(rate(chosen, root / f"run {i} {way}", flags.device))
        for way, found in rates.items():
            ratios = sorted(a / b for a, b in zip(found, rates["encoded on the fly"], strict=True))
            spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
            print(f"{way}: {statistics.median(found):.0f} images/s, {spread} times those encoded on the fly")


if __name__ == "__main__":
    main()

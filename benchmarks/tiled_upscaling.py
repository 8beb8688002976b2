"""Peak memory and speed of upscaling a picture in tiles and whole, for images of several edges.

    python benchmarks/tiled_upscaling.py [--edges 512,2048] [--width 16] [--tile 128] [--steps 2] [--batch 8] [--device cpu|cuda]

A U-Net of random weights (mult 1, 2, residual blocks), as one trained to make images of the edge of a tile of pictures half as
large; DDIM. Every case lives in a process of its own. Memory is that above the loaded model: of the process on a CPU (its peak
resident size), of torch's allocator on CUDA. The random picture and the finished image are part of it.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.train_speed import machine
from diffcli import preset as presets
from diffcli.engine.distributed import Group
from diffcli.engine.draw.given import Value
from diffcli.engine.draw.sample import SampleOptions, draw, request
from diffcli.engine.model import Model

MIB = 2**20


def tree(tile: int, width: int, steps: int) -> dict[str, Any]:
    """The preset of the upscaler."""
    network = {"kind": "unet", "width": width, "mult": [1, 2], "blocks": ["res"], "middle": ["res"], "attend_at": []}
    return {
        "name": "bench",
        "data": {"kind": "cifar10", "size": tile, "derived": [{"kind": "low_res", "factor": 2}]},
        "task": {
            "kind": "diffusion",
            "schedule": {"kind": "linear", "steps": 1000},
            "network": network,
            "conditioners": [{"kind": "spatial", "field": "low_res", "channels": 3}],
        },
        "train": {"steps": 1},
        "sampler": {"kind": "ddim", "steps": steps},
    }


def resident(key: str) -> float:
    """MiB of this process: VmRSS, now, or VmHWM, at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line for line in lines if line.startswith(key)).split()[1]) / 1024


def measured(flags: argparse.Namespace, edge: int, whole: bool) -> dict[str, float]:
    """Seconds and MiB of one image, in this process."""
    torch.set_num_threads(flags.threads)
    device = torch.device(flags.device)
    preset = presets.build(tree(flags.tile, flags.width, flags.steps), "bench.yaml")
    task = preset.task.build(preset.specs).eval().requires_grad_(False).to(device)
    model = Model(Path("bench"), 0, preset, task, None, True, "")
    picture = torch.randint(0, 256, (1, 3, edge // 2, edge // 2), dtype=torch.uint8)
    values = {"low_res": Value(picture, "random")}
    options = SampleOptions(n=1, whole=whole, batch_size=flags.batch)
    warm = {"low_res": Value(picture[..., : flags.tile // 2, : flags.tile // 2], "random")}
    list(draw(request(model, options, given=warm), Group(0, 1, device)))
    req = request(model, options, given=values)
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated() / MIB if device.type == "cuda" else resident("VmRSS")
    begun = time.perf_counter()
    list(draw(req, Group(0, 1, device)))
    seconds = time.perf_counter() - begun
    peak = torch.cuda.max_memory_allocated() / MIB if device.type == "cuda" else resident("VmHWM")
    tiles = 1 if req.frame.told is None else req.frame.told["count"]
    return {"seconds": seconds, "mib": peak - before, "tiles": tiles}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--edges", default="512,2048", help="of the images, in pixels")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8, help="tiles at once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.case:
        edge, how = flags.case.split(",")
        print(json.dumps(measured(flags, int(edge), how == "whole")))
        return
    print(json.dumps(machine()))
    for edge in map(int, flags.edges.split(",")):
        for how in ("tiles", "whole"):
            command = [sys.executable, __file__, *sys.argv[1:], "--case", f"{edge},{how}"]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            print(
                f"{edge}x{edge} {how:5}  {found['tiles']:4} tiles  {found['mib']:8.0f} MiB  {1 / found['seconds']:.4f} images/s",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""Sampling speed beside diffusers on this machine: one model, one sampler, images/s, median ratios and peak memory.

    python benchmarks/sample_speed.py [--rounds 5] [--steps 20] [--batch 32] [--only fp32]
        [--clock processor] [--json FILE]

The model is the U-Net of peers.py (channels 64, 128, 128, attention at 16x16, 32x32x3) with random weights, written as a
checkpoint of this project and exported for diffusers, so that both read the same weights; DDIM, uniform steps. Ours is what
`diffcli sample` runs, theirs is their `DDIMPipeline`. As in train_speed.py every contender lives in a process of its own, they
alternate, and a round's ratio compares neighbours in time. The images of both are compared first: they must be the same.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from train_speed import machine, spread
from turns import CLOCKS, Worker, add_clock

import diffcli.torchvision_compat  # noqa: F401  before diffusers imports torchvision
from diffcli import preset as presets
from diffcli.engine.tuning import FAST_BF16, cpu_flags

SIZE = 32
OURS = ("fp32", "fp32 compiled", "bf16", "bf16 compiled")
THEIRS = "diffusers fp32"
TREE: dict[str, Any] = {
    "name": "bench",
    "data": {"kind": "cifar10", "size": SIZE},
    "task": {
        "kind": "diffusion",
        "schedule": {"kind": "linear", "steps": 1000},
        "network": {
            "kind": "unet",
            "width": 64,
            "mult": [1, 2, 2],
            "blocks": ["res", "attention", "res", "attention"],
            "attend_at": [16],
            "head_dim": 64,
            "resample": "conv",
        },
    },
    "train": {"steps": 1},
}


class Contender(NamedTuple):
    """What stands ready to draw a batch: uint8 (B, 3, 32, 32) from the noise of seeds 0 to B - 1."""

    about: str
    draw: Callable[[], Tensor]


def prepare(folder: Path) -> None:
    """Writes FOLDER/ours, a checkpoint of random weights of the size of trained ones, and FOLDER/theirs, its export."""
    from diffcli import checkpoint
    from diffcli.interop.exporting import export_diffusers

    preset = presets.build(TREE, "bench")
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        state = preset.task.build(preset.specs).state_dict()
        state = {
            k: v if bool(v.any()) else 0.02 * torch.randn_like(v) for k, v in state.items()
        }  # zero layers hide what is before
    record = {"preset": preset.model_dump(mode="json"), "step": 0, "classes": None}
    checkpoint.save_average(folder / "ours", state, record)
    export_diffusers(preset, state, None, folder / "theirs")


def ours(folder: Path, how: str, steps: int, batch: int) -> Contender:
    """`diffcli sample --precision ... [--compile]`."""
    from diffcli.engine.distributed import Group
    from diffcli.engine.draw.sample import SampleOptions, draw, load_model, request

    precision, _, compiled = how.partition(" ")
    group = Group(rank=0, world=1, device=torch.device("cpu"))
    model = load_model(folder / "ours", group.device, precision=precision, compile=bool(compiled))
    req = request(model, SampleOptions(n=batch, batch_size=batch, sampler="ddim", steps=steps))
    return Contender("diffcli", lambda: torch.cat([drawn.images for drawn in draw(req, group)]))


def theirs(folder: Path, steps: int, batch: int) -> Contender:
    """Their pipeline, given our noise: it takes none, so the generator that it draws from is replaced."""
    import diffusers

    from diffcli.noise import Noise

    pipeline = diffusers.DDIMPipeline(
        diffusers.UNet2DModel.from_pretrained(folder / "theirs" / "unet"),
        diffusers.DDIMScheduler.from_pretrained(folder / "theirs" / "scheduler"),
    )
    pipeline.unet.eval()
    pipeline.set_progress_bar_config(disable=True)
    noise = Noise(range(batch), torch.device("cpu"))(torch.empty(batch, 3, SIZE, SIZE))
    diffusers.pipelines.ddim.pipeline_ddim.randn_tensor = lambda *_, **__: noise.clone()

    def run() -> Tensor:
        how: dict[str, Any] = {"use_clipped_model_output": True, "output_type": "np"}  # as ours
        images = pipeline(batch_size=batch, num_inference_steps=steps, **how).images
        return torch.from_numpy(images).permute(0, 3, 1, 2).mul(255).round().to(torch.uint8)

    return Contender(f"diffusers {diffusers.__version__}", run)


def work(folder: Path, name: str, steps: int, batch: int, clock: str) -> None:
    """The worker's side: build, draw once into FOLDER, then answer every line with a rate and the peak of its memory."""
    contender = theirs(folder, steps, batch) if name == THEIRS else ours(folder, name, steps, batch)
    now = CLOCKS[clock]
    start = now()
    torch.save(contender.draw(), folder / f"{name}.pt")
    print(json.dumps({"about": contender.about, "first_s": now() - start}), flush=True)
    for _ in sys.stdin:
        start = now()
        contender.draw()
        rate = batch / (now() - start)
        print(json.dumps({"rate": rate, "peak_mb": peak_mb()}), flush=True)


def peak_mb() -> float:
    """The most memory that this process has had so far; nan where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), float("nan"))


def difference(folder: Path, name: str) -> float:
    """The mean absolute difference of the images of two contenders, in levels of 255."""
    a, b = (torch.load(folder / f"{key}.pt").float() for key in (name, THEIRS))
    return float((a - b).abs().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20, help="DDIM steps of a batch (default 20)")
    parser.add_argument("--batch", type=int, default=32, help="images of a batch (default 32)")
    parser.add_argument("--only", nargs="*", default=OURS, help="which of ours to measure")
    add_clock(parser)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.folder, args.worker, args.steps, args.batch, args.clock)
    if 1000 % args.steps:
        parser.error(
            f"--steps {args.steps} does not divide 1000, so diffusers takes other times; type --steps 20 for example"
        )
    fast = FAST_BF16 & cpu_flags()
    names = [name for name in args.only if fast or not name.startswith("bf16")]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(folder)
        same = "--folder", place, "--steps", str(args.steps), "--batch", str(args.batch), "--clock", args.clock
        workers = {name: Worker(__file__, *same, "--worker", name) for name in (*names, THEIRS)}
        found: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
        try:
            for i in range(args.rounds):
                for name, worker in workers.items():
                    found[name].append(worker.told())
                shown = ", ".join(f"{name} {found[name][-1]['rate']:.2f}" for name in workers)
                print(f"round {i + 1}/{args.rounds}: {shown}", file=sys.stderr, flush=True)
        finally:
            for worker in workers.values():
                worker.close()
        apart = {name: difference(folder, name) for name in names}
    rates = {name: [turn["rate"] for turn in turns] for name, turns in found.items()}
    pairs = [(name, THEIRS) for name in names]
    pairs += [(f"bf16{c}", f"fp32{c}") for c in ("", " compiled") if {f"bf16{c}", f"fp32{c}"} <= set(names)]
    ratios = {f"{a} / {b}": [x / y for x, y in zip(rates[a], rates[b], strict=True)] for a, b in pairs}
    print("  ".join(f"{key} {value}" for key, value in machine().items()))
    what = f"DDIM, {args.steps} steps, batches of {args.batch}, {SIZE}x{SIZE}x3"
    print(f"\n{what}, {args.clock} time; median of {args.rounds} rounds (least to most)\n")
    print(f"  {'':18s}{'images/s':28s}{'peak MB':>10s}{'first batch s':>15s}{'levels from theirs':>20s}")
    for name, values in rates.items():
        peak, first = found[name][-1]["peak_mb"], workers[name].about["first_s"]
        print(f"  {name:18s}{spread(values, 2):28s}{peak:10.0f}{first:15.1f}{apart.get(name, 0.0):20.3f}")
    print("\nratio: median of the rounds (least to most)")
    for name, values in ratios.items():
        print(f"  {name:36s}{spread(values, 2)}")
    if not fast:
        print(f"\nbf16 was skipped: the processor has none of {', '.join(sorted(FAST_BF16))}, so it would be emulated")
    if args.json:
        about = {name: worker.about["about"] for name, worker in workers.items()}
        told = {
            "machine": machine(),
            "command": sys.argv,
            "about": about,
            "turns": found,
            "ratios": ratios,
            "apart": apart,
        }
        args.json.write_text(json.dumps(told, indent=1))
    return None


if __name__ == "__main__":
    main()

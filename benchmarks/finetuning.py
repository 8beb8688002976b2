"""Full fine-tuning, LoRA and ControlNet beside diffusers and peft: images/s and memory of the same network on this machine.

    python benchmarks/finetuning.py [--rounds 5] [--steps 3] [--ways full lora control] [--json FILE]
    python benchmarks/finetuning.py --plan            # the memory of Stable Diffusion 1.x, counted and not run

Both train a UNet2DConditionModel on noise: ours as `diffcli train` does, theirs in the loops of diffusers' examples. Both clip
the gradient, step AdamW and average what they train. Each side and way lives in a process of its own; one works at a time, and
they alternate. A turn is one step to warm the caches, then `--steps` timed ones in processor time, of which the median counts.
Memory is the growth of the resident size from before the network is built to its peak. A small network is trained for two steps
before that, so that what the libraries import late counts on neither side.
"""

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from turns import ROOT, Worker

SIDES, WAYS = ("diffcli", "diffusers"), ("full", "lora", "control")
BATCH, SIZE, TOKENS, WIDTH, RANK = 8, 32, 16, 64, 8
CHANNELS = (64, 128, 128)
UNET: dict[str, Any] = {
    "sample_size": SIZE,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": CHANNELS,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 4,
}
SMALL = UNET | {"block_out_channels": (64, 64, 64)}  # that has all layers imported
PUBLISHED = {"sample_size": 64, "cross_attention_dim": 768}  # of Stable Diffusion 1.x, beside the library's defaults
Trained = tuple[list[nn.Parameter], Callable[[], object]]  # what is trained, and one update of it


def batches() -> Iterator[dict[str, Tensor]]:
    """Images, tokens of captions and pictures that lead, all noise, for ever."""
    step = 0
    while True:
        yield {
            "image": torch.rand(BATCH, 3, SIZE, SIZE) * 2 - 1,
            "clip_tokens": torch.randn(BATCH, TOKENS, WIDTH),
            "edges": torch.rand(BATCH, 1, SIZE, SIZE) * 2 - 1,
            "position": torch.arange(BATCH),
            "stream": torch.arange(BATCH) + step * BATCH,
        }
        step += 1


def tree(way: str, config: dict[str, Any], size: int, width: int, **train: Any) -> dict[str, Any]:
    """A raw preset of ours of a U-Net of diffusers. size: of its images; width: of its tokens."""
    from diffcli.interop.foreign import Foreign
    from diffcli.interop.unets.diffusers_conditional import DEFAULTS, read_config

    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in config.items()}
    tokens = {"kind": "embedding", "field": "clip_tokens", "stored": "sequence", "gives": "tokens", "width": width}
    task = {"kind": "diffusion", "network": read_config(Foreign(listed, DEFAULTS, "bench")), "conditioners": [tokens]}
    if way == "control":
        task["control"] = [{"field": "edges"}]
    if way == "lora":
        train["lora"] = {"rank": RANK}
    common = {"steps": 10**9, "ema": 0.9999, "optimizer": {"kind": "adamw", "lr": 1e-4}}
    return {
        "name": "bench",
        "data": {"kind": "cifar10", "size": size},
        "task": task,
        "train": common | {"every": {"log": 0, "preview": 0, "save": 0}} | train,
    }


def specs(size: int, width: int, channels: int = 3) -> dict[str, Any]:
    from diffcli.fields import FieldSpec

    return {
        "image": FieldSpec("image", (channels, size, size)),
        "clip_tokens": FieldSpec("tokens", (None, width)),
        "edges": FieldSpec("image", (1, size, size)),
    }


def ours(way: str, network: dict[str, Any] = UNET) -> Trained:
    """The updates of `diffcli train`, as they are. network: a config of diffusers."""
    from diffcli import preset as presets
    from diffcli.data.images import MemoryImages
    from diffcli.engine.distributed import Group
    from diffcli.engine.run.loop import Loop
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.state import build_state
    from diffcli.engine.tuning import tune_allocator

    tune_allocator()
    group = Group(rank=0, world=1, device=torch.device("cpu"))
    raw = tree(way, network, SIZE, WIDTH, batch_size=BATCH, precision="fp32")
    preset = presets.build(raw, "bench")
    begin = (lambda task: task.controlled.begin_as_base()) if way == "control" else None
    state = build_state(preset, group.device, specs(SIZE, WIDTH), begin)
    unread = MemoryImages(torch.zeros(BATCH, 3, SIZE, SIZE, dtype=torch.uint8))
    loop = Loop(preset, RunDir(Path(mkdtemp())), group, state, unread, {})
    state.task.train()
    data, steps = batches(), iter(range(1, 10**9))

    def update() -> object:
        step = next(steps)
        return loop.settle(loop.update(step, next(data), stopping=False))

    return [p for p in state.task.parameters() if p.requires_grad], update


def theirs(way: str, config: dict[str, Any] = UNET) -> Trained:
    """The loops of train_text_to_image.py, train_text_to_image_lora.py and train_controlnet.py, with an average in each."""
    from diffusers import ControlNetModel, DDPMScheduler, UNet2DConditionModel
    from diffusers.training_utils import EMAModel

    network = UNet2DConditionModel(**config)
    led: nn.Module | None = None
    if way != "full":
        network.requires_grad_(False)
    if way == "lora":
        from peft import LoraConfig

        network.add_adapter(LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["to_q", "to_k", "to_v", "to_out.0"]))
    if way == "control":
        led = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=(16,), conditioning_channels=1)
        led.train()
    trained = [p for p in (led or network).parameters() if p.requires_grad]
    scheduler, optimizer = DDPMScheduler(num_train_timesteps=1000), torch.optim.AdamW(trained, lr=1e-4)
    ema, data = EMAModel(trained, decay=0.9999, use_ema_warmup=True), batches()

    def update() -> None:
        batch = next(data)
        clean, tokens = batch["image"], batch["clip_tokens"]
        noise, at = torch.randn_like(clean), torch.randint(0, 1000, (BATCH,))
        noisy, more = scheduler.add_noise(clean, noise, at), {}
        if led is not None:
            down, middle = led(noisy, at, tokens, controlnet_cond=batch["edges"], return_dict=False)
            more = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        F.mse_loss(network(noisy, at, tokens, **more).sample, noise).backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(trained)

    return trained, update


def work(side: str, way: str) -> None:
    """A worker: builds, says what it trains, then answers each line with a turn of so many steps."""
    import diffcli.torchvision_compat  # noqa: F401  before others import torchvision

    torch.set_num_threads(1)
    make = ours if side == "diffcli" else theirs
    first_trained, first_update = make(way, SMALL)
    first_update()
    first_update()
    del first_trained, first_update
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what the small network has left free goes back to the system, and is grown anew
    before = resident()
    trained, update = make(way)
    update()
    update()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    count = sum(p.numel() for p in trained)
    print(json.dumps({"trained": count, "mib": peak - before}), flush=True)
    for line in sys.stdin:
        update()
        seconds = []
        for _ in range(int(line)):
            begun = time.process_time()
            update()
            seconds.append(time.process_time() - begun)
        print(json.dumps({"rate": BATCH / statistics.median(seconds)}), flush=True)


def resident() -> float:
    """MiB of memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE") / 2**20


def measure(ways: list[str], rounds: int, steps: int) -> list[dict[str, Any]]:
    found = []
    for way in ways:
        workers = {side: Worker(__file__, "--worker", side, way) for side in SIDES}
        rates: dict[str, list[float]] = {side: [] for side in SIDES}
        for _ in range(rounds):
            for side, worker in workers.items():
                rates[side].append(worker.turn(steps))
        for worker in workers.values():
            worker.close()
        ratios = [a / b for a, b in zip(rates[SIDES[0]], rates[SIDES[1]], strict=True)]
        found.append({"way": way, "rates": rates, "ratios": ratios, "about": {s: w.about for s, w in workers.items()}})
        print(told(found[-1]), flush=True)
    return found


def told(row: dict[str, Any]) -> str:
    ratios, about = sorted(row["ratios"]), row["about"]
    each = [
        f"{side} {statistics.median(row['rates'][side]):.2f} images/s, {about[side]['mib']:.0f} MiB, "
        f"{about[side]['trained']:,} trained"
        for side in SIDES
    ]
    spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}) times as fast"
    return f"{row['way']:8s} {'; '.join(each)}; {spread}"


def plan() -> Iterator[str]:
    """Rows of a table: what Stable Diffusion 1.x takes to be trained in bf16 with one image at once, in GiB."""
    from diffcli import preset as presets
    from diffcli.engine.run.phases import phases_of
    from diffcli.engine.run.roles.needed_memory import GIB, measure, needed
    from diffcli.engine.run.state import build_on_meta

    yield "| way | trained | weights | gradients | optimizer | average | copies in bf16 | activations | with save_memory | all |"
    yield "|---|---|---|---|---|---|---|---|---|---|"
    for way, kind in (("full", "adamw"), ("full", "adamw8bit"), ("lora", "adamw"), ("control", "adamw")):
        totals, told = [], []
        for saving in (False, True):
            raw = tree(way, PUBLISHED, 64, 768, precision="bf16", optimizer={"kind": kind, "lr": 1e-5})
            raw["task"]["network"]["save_memory"] = saving
            preset = presets.build(raw, "Stable Diffusion")
            task = build_on_meta(preset, specs(64, 768, channels=4)).train()
            phases = phases_of(task, preset.train)
            values = needed(task, phases, preset.train, measure(task, preset, phases), 1)
            sizes = {name: value / GIB for name, value in values.items()}
            totals.append(sum(sizes.values()))
            weights = sizes.pop("trained weights") + sizes.pop("frozen weights")
            told.append([weights, *sizes.values()])
        trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
        parts = " | ".join(f"{size:.2f}" for size in told[0])
        name = f"{way}, {kind}" if way == "full" else f"{way}, rank {RANK}" * (way == "lora") or way
        yield f"| {name} | {trained / 1e6:.1f} M | {parts} | {told[1][-1]:.2f} | {totals[0]:.1f}, saving {totals[1]:.1f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps a turn (default 3)")
    parser.add_argument(
        "--ways", nargs="+", choices=WAYS, default=list(WAYS), help="those that are measured (default all)"
    )
    parser.add_argument("--plan", action="store_true", help="count the memory of Stable Diffusion 1.x, and run nothing")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.worker:
        return work(*args.worker)
    if args.plan:
        for line in plan():
            print(line, flush=True)
        return None
    found = measure(args.ways, args.rounds, args.steps)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return None


if __name__ == "__main__":
    main()

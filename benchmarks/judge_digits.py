"""An independent judge of drawn digits: a strong MNIST classifier in plain torch that shares no code with diffcli.

    python benchmarks/judge_digits.py train MNIST_DIR --weights judge.safetensors
    python benchmarks/judge_digits.py judge SAMPLES.npz --weights judge.safetensors

`train` reads the four IDX files (`.gz` or not) of MNIST_DIR, learns from the 60,000 training images and is tested on the
10,000 test images. `judge` reads `arr_0` (uint8 NHWC, N x 28 x 28 x 1) and `arr_1` (labels asked for), or where there is none
the prompts in the .json beside it, each of which names one digit as a word or a numeral. It prints the share of samples that
the classifier reads as the label asked for, per class and in total, and how varied each class is: the root mean square
distance between two samples of a class, in the judge's features and in pixels, as a share of that of real test digits
(1 is as varied as real ones, 0 is one image repeated).
"""

import argparse
import gzip
import json
import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

CLASSES = 10
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
Tensors = list[Tensor] | tuple[Tensor, ...]
CPU = Path("/proc/cpuinfo")
FAST_BF16 = CPU.is_file() and bool({"avx512_bf16", "amx_bf16"} & set(CPU.read_text().split()))  # else it is emulated
MEAN, STD = 0.1307, 0.3081  # of MNIST pixels in [0, 1]


class Judge(nn.Module):
    """Three stages of 3x3 convolutions with batch norm, a residual at each; images float (B, 1, 28, 28) in [0, 1]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        w = (width, 2 * width, 4 * width)
        self.stem = _conv(1, w[0])
        self.stages = nn.ModuleList([_Stage(w[0], w[0]), _Stage(w[0], w[1]), _Stage(w[1], w[2])])
        self.head = nn.Linear(2 * w[2], CLASSES)
        self.width = width

    def features(self, x: Tensor) -> Tensor:
        """Mean and maximum over positions of the last stage: (B, 8 * width)."""
        x = self.stem((x - MEAN) / STD)
        for i, stage in enumerate(self.stages):
            x = stage(x if i == 0 else F.max_pool2d(x, 2))  # 28, 14, 7
        return torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1).float()

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 10)."""
        return self.head(self.features(x))


class _Stage(nn.Module):
    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.enter = _conv(c_in, c_out)
        self.body = _conv(c_out, c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return x + self.body(x)


def _conv(c_in: int, c_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True))


def read_idx(folder: Path, stem: str) -> Tensor:
    """One IDX file of unsigned bytes (LeCun 1998), `.gz` or plain, as a uint8 tensor."""
    zipped = folder / f"{stem}.gz"
    raw = gzip.decompress(zipped.read_bytes()) if zipped.exists() else (folder / stem).read_bytes()
    if raw[:3] != b"\x00\x00\x08":
        raise SystemExit(f"error: {folder / stem}: not an IDX file of unsigned bytes")
    shape = np.frombuffer(raw, ">u4", count=raw[3], offset=4).astype(int)
    return torch.from_numpy(np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape).copy())


def read_mnist(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """Images float (N, 1, 28, 28) in [0, 1] and labels int64 (N,) of `train` or `t10k`."""
    images = read_idx(folder, f"{split}-images-idx3-ubyte")[:, None].float() / 255
    return images, read_idx(folder, f"{split}-labels-idx1-ubyte").long()


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Every image turned by up to 12 degrees, scaled and sheared by up to 12%, moved by up to 2.5 pixels."""

    def spread(limit: float) -> Tensor:
        return (2 * torch.rand(len(x), generator=rng) - 1) * limit

    angle, shear, scale_x, scale_y = spread(math.radians(12)), spread(0.12), 1 + spread(0.12), 1 + spread(0.12)
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack(
        [cos * scale_x, shear - sin, spread(2.5 / 14), sin + shear, cos * scale_y, spread(2.5 / 14)], 1
    )
    return F.grid_sample(
        x, F.affine_grid(matrix.view(-1, 2, 3), list(x.shape), align_corners=False), align_corners=False
    )


@torch.no_grad()
def read_all(judge: Judge, images: Tensor, batch: int = 1000) -> tuple[Tensor, Tensor]:
    """Class probabilities (N, 10), averaged over the image and its four one-pixel shifts, and features (N, D)."""
    judge.eval()
    probabilities, features = [], []
    for x in images.split(batch):
        with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BF16):
            feats = [judge.features(torch.roll(x, move, (2, 3))) for move in ((0, 0), (0, 1), (1, 0), (0, -1), (-1, 0))]
        probabilities.append(torch.stack([judge.head(f).softmax(1) for f in feats]).mean(0))
        features.append(feats[0])
    return torch.cat(probabilities), torch.cat(features)


def spread_within(values: Tensor, labels: Tensor) -> Tensor:
    """Root mean square distance between two different items of a class, per class: sqrt(2 tr Cov); nan below two items."""
    return torch.stack(
        [(2 * values[labels == k].flatten(1).double().var(0, unbiased=True).sum()).sqrt() for k in range(CLASSES)]
    )


def train(args: argparse.Namespace) -> None:
    """Train, test and save the judge."""
    images, labels = read_mnist(args.data, "train")
    judge = Judge(args.width)
    judge.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    rng = torch.Generator().manual_seed(args.seed)
    for p in judge.parameters():
        if p.ndim > 1:
            nn.init.kaiming_normal_(p, nonlinearity="relu" if p.ndim == 4 else "linear", generator=rng)
    steps = args.epochs * (len(images) // args.batch_size)
    optimizer = torch.optim.SGD(judge.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    curve = torch.optim.lr_scheduler.OneCycleLR(optimizer, args.lr, total_steps=steps, pct_start=0.2)
    average = torch.optim.swa_utils.AveragedModel(judge, multi_avg_fn=_ema(0.995), use_buffers=True)
    start = time.perf_counter()
    for epoch in range(args.epochs):
        judge.train()
        order, hits = torch.randperm(len(images), generator=rng), 0
        for rows in order[: len(order) // args.batch_size * args.batch_size].view(-1, args.batch_size):
            x = augment(images[rows], rng).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=FAST_BF16):
                logits = judge(x).float()
            loss = F.cross_entropy(logits, labels[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            curve.step()
            average.update_parameters(judge)
            hits += int((logits.argmax(1) == labels[rows]).sum())
        print(f"epoch {epoch + 1}/{args.epochs}  augmented train accuracy {hits / len(order):.4%}", end="  ")
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    _finish(average.module, args)


def _ema(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    def update(averaged: Tensors, current: Tensors, count: Tensor | int) -> None:
        keep = min(decay, (1 + int(count)) / (10 + int(count)))
        for a, c in zip(averaged, current, strict=True):
            a.lerp_(c, 1 - keep) if a.is_floating_point() else a.copy_(c)

    return update


def _finish(judge: nn.Module, args: argparse.Namespace) -> None:
    assert isinstance(judge, Judge)
    images, labels = read_mnist(args.data, "t10k")
    probabilities, features = read_all(judge, images)
    accuracy = (probabilities.argmax(1) == labels).double().mean().item()
    state = {k: v.contiguous() for k, v in judge.state_dict().items()}
    state["reference.features"] = spread_within(features, labels)
    state["reference.pixels"] = spread_within(images, labels)
    args.weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, args.weights, {"width": str(judge.width), "test_accuracy": f"{accuracy:.4f}"})
    print(f"test accuracy {accuracy:.2%} of {len(images)} images; weights in {args.weights}")


def load(weights: Path) -> tuple[Judge, dict[str, Tensor], float]:
    """The judge, the spread of real test digits in `features` and in `pixels` per class, and its test accuracy."""
    with safe_open(weights, "pt") as file:
        state, notes = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118 - not a dict
    reference = {name: state.pop(f"reference.{name}") for name in ("features", "pixels")}
    judge = Judge(int(notes["width"]))
    judge.load_state_dict(state)
    return judge, reference, float(notes["test_accuracy"])


def read_samples(path: Path) -> tuple[Tensor, Tensor]:
    """Images float (N, 1, 28, 28) in [0, 1], of another size resized to this, and labels int64 (N,) of an `.npz` of samples."""
    with np.load(path, allow_pickle=False) as file:
        if "arr_0" not in file.files:
            raise SystemExit(f"error: {path}: needs arr_0 (images), has {', '.join(file.files)}")
        images = torch.from_numpy(file["arr_0"])
        labels = torch.from_numpy(file["arr_1"]) if "arr_1" in file.files else prompted(Path(f"{path}.json"))
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[3] != 1 or labels.shape != images.shape[:1]:
        raise SystemExit(
            f"error: {path}: arr_0 is {images.dtype} {tuple(images.shape)}, arr_1 {tuple(labels.shape)}, "
            "not uint8 (N, H, W, 1) and (N,)"
        )
    levels = images.permute(0, 3, 1, 2).float() / 255
    if levels.shape[2:] != (28, 28):
        levels = F.interpolate(levels, (28, 28), mode="bicubic", antialias=True).clamp(0, 1)
    return levels, labels.long()


def prompted(sidecar: Path) -> Tensor:
    """int64 (N,): the one digit that each prompt of the samples names."""
    prompts = json.loads(sidecar.read_text())["prompts"] if sidecar.is_file() else None
    if not prompts:
        raise SystemExit(f"error: {sidecar.with_suffix('.npz')}: has no arr_1 (labels), and {sidecar} no prompts")
    labels = []
    for prompt in prompts:
        words = re.findall(r"[a-z]+|\d", prompt.lower())
        named = {digit for digit in range(CLASSES) if WORDS[digit] in words or str(digit) in words}
        if len(named) != 1:
            raise SystemExit(f"error: {sidecar}: the prompt {prompt!r} names {len(named)} digits, not one")
        labels += named
    return torch.tensor(labels)


def judge_samples(args: argparse.Namespace) -> None:
    """Print how many samples are what they were asked to be, and how varied they are."""
    judge, reference, test_accuracy = load(args.weights)
    images, labels = read_samples(args.samples)
    labels += args.first
    probabilities, features = read_all(judge, images)
    right = probabilities.argmax(1) == labels
    varied = {
        "features": spread_within(features, labels) / reference["features"],
        "pixels": spread_within(images, labels) / reference["pixels"],
    }
    rows: list[dict[str, Any]] = []
    for k in labels.unique().tolist():  # the classes that were asked for
        of_class = labels == k
        share = right[of_class].double().mean().item()
        rows.append(
            {"class": k, "n": int(of_class.sum()), "right": share} | {f: v[k].item() for f, v in varied.items()}
        )
    total = {"n": len(images), "right": right.double().mean().item()} | {
        f: v[labels.unique()].mean().item() for f, v in varied.items()
    }
    if args.json:
        print(json.dumps({"total": total, "classes": rows, "judge_test_accuracy": test_accuracy}))
        return
    print(
        f"judge: {test_accuracy:.2%} on the MNIST test images. Variety is relative to real test digits (1 = as varied)"
    )
    print("class      n    right  variety: features  pixels")
    for row in [*rows, {"class": "all"} | total]:
        print(f"{row['class']:>5} {row['n']:6d} {row['right']:8.2%} {row['features']:18.3f} {row['pixels']:7.3f}")


def main() -> None:
    """Parse the command line and run `train` or `judge`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    learn = commands.add_parser("train", help="train the judge on MNIST and save it")
    learn.add_argument("data", type=Path, help="folder of the four MNIST IDX files")
    learn.add_argument("--epochs", type=int, default=14)
    learn.add_argument("--batch-size", type=int, default=250, help="images a step")
    learn.add_argument("--lr", type=float, default=0.15, help="peak learning rate")
    learn.add_argument("--width", type=int, default=32, help="channels of the first stage")
    learn.add_argument("--seed", type=int, default=0)
    learn.set_defaults(run=train)
    score = commands.add_parser("judge", help="judge samples")
    score.add_argument("samples", type=Path, help=".npz with arr_0 (images), and arr_1 (labels) or prompts beside it")
    score.add_argument(
        "--first", type=int, default=0, help="the digit of label 0, of a model that knows only the last ones"
    )
    score.add_argument("--json", action="store_true", help="print one JSON object")
    score.set_defaults(run=judge_samples)
    for command in (learn, score):
        command.add_argument("--weights", type=Path, required=True, help="safetensors file of the judge")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()

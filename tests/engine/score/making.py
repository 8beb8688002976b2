"""What tests of scoring share: a small extractor, and images written as every kind of side."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffcli.engine.distributed import Group
from diffcli.engine.score.evaluate import evaluate
from diffcli.engine.score.report import Report
from diffcli.engine.score.sides import Side
from diffcli.metrics.extractor import IMAGES, Extracted, check_images
from diffcli.metrics.scores import metrics_by_name
from diffcli.noise import Noise

ALL = ["fid", "kid", "is", "precision", "recall", "accuracy"]


ALONE = Group(0, 1, torch.device("cpu"))


class Toy:
    """Means of the four quarters of an image; brightness decides between two classes. Counts the images it sees."""

    reads, limit, unit = IMAGES, None, "images"
    classes: tuple[str, ...] | None = ("dark", "bright")

    def __init__(self) -> None:
        self.name = "toy"
        self.gives = {"features": (4,), "logits": (2,)}
        self.notes: list[str] = []
        self.seen = 0

    def check(self, name, fields) -> None:
        check_images(name, fields, self.name)

    def __call__(self, fields, rows: range) -> Extracted:
        images = fields["image"]
        assert len(images) == len(rows)
        self.seen += len(images)
        x = torch.nn.functional.adaptive_avg_pool2d(images.float().mean(1, keepdim=True) / 64, 2).flatten(1)
        bright = x.mean(1) - 2
        return {"features": x, "logits": torch.stack([-bright, bright], 1)}

    def describe(self) -> dict[str, str]:
        return {"name": self.name, "layer": "quarters"}


def score(real: Side, fake: Side, names: list[str], extractor, **more) -> Report:
    """Fake scored against real."""
    extractors = {} if extractor is None else {"features": extractor}
    report = evaluate(metrics_by_name(names), {"samples": fake, "reference": real}, extractors, ALONE, **more)
    assert report is not None
    return report


def pixels(seed: int, n: int, channels: int = 1, size: int = 8) -> np.ndarray:
    """Random uint8 (N, H, W, C), each image of a brightness of its own."""
    noise = Noise(range(1000 * seed, 1000 * seed + n), torch.device("cpu"))
    level = noise(torch.empty(n, 1, 1, 1)) * 40 + 128
    return (level + noise(torch.empty(n, size, size, channels)) * 30).clamp(0, 255).to(torch.uint8).numpy()


def labels(images: np.ndarray) -> np.ndarray:
    return (images.mean((1, 2, 3)) > 128).astype(np.int64)


def write_npz(path: Path, images: np.ndarray, save=np.savez) -> Path:
    save(path, arr_0=images, arr_1=labels(images))
    return path


def write_folder(path: Path, images: np.ndarray) -> Path:
    for i, image in enumerate(images):
        file = path / f"part{i % 3}" / f"{i:05d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.squeeze()).save(file)
    return path


def spans(n: int, batch_size: int) -> list[range]:
    return [range(i, min(i + batch_size, n)) for i in range(0, n, batch_size)]


def read(side: Side, batch_size: int = 7) -> Tensor:
    return torch.cat([fields["image"] for fields in side.read(spans(side.size, batch_size), ["image"])])


def as_set(images: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in images}


DIFFUSION = """
kind: diffusion
target: v
schedule: {kind: cosine, steps: 1000}
network: {kind: unet, width: 32, mult: [1], blocks: [res], attend_at: [], head_dim: 32}
conditioners: [{kind: class, num_classes: 10, dim: 8}]
"""


FIRST_STAGE = """
kind: autoencoder
network: {width: 8, mult: [1, 2, 2], depth: 1, latent: 1, groups: 4}
bottleneck: {kind: kl}
"""


def save_run(path: Path, task: str) -> Path:
    """A run directory of preset digits with an untrained task of this kind."""
    import yaml

    from diffcli import checkpoint, preset

    tree = {"name": "tiny", "data": {"kind": "digits"}, "task": yaml.safe_load(task), "train": {"steps": 1}}
    built = preset.build(tree, "test")
    with torch.random.fork_rng():
        weights = built.task.build(built.specs).state_dict()
    record = {"preset": built.model_dump(mode="json"), "classes": list("0123456789"), "version": "0"}
    checkpoint.save(path / "checkpoints", 7, {"ema": weights, "task": weights, "optimizer": {}}, record)
    return path

"""`--features`: the network that turns images into features, Inception or a classifier that diffcli itself trained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.engine.model import load_model
from diffcli.engine.score.report import size_text
from diffcli.engine.score.sight.clip_classifier import ClipClassifier
from diffcli.engine.score.sight.conversion import converted
from diffcli.engine.score.sight.tower import TowerFeatures
from diffcli.fields import Specs, to_float
from diffcli.lookup.given_paths import check_features, check_weights
from diffcli.metrics.extractor import IMAGES, Extracted, Extractor, check_images
from diffcli.metrics.inception import InceptionFeatures
from diffcli.metrics.motion.clip_networks import TorchScriptI3d
from diffcli.tasks.classifier import ClassifierTask

R3D = "r3d_18"
EXPORTED = ".safetensors"  # a file of weights that diffcli wrote


@runtime_checkable
class ScoringTask(Protocol):
    """The interface of a classifier task: penultimate features, and logits from them."""

    def features(self, x: Tensor) -> Tensor: ...

    def logits(self, features: Tensor) -> Tensor: ...


class ClassifierFeatures:
    """Penultimate features and logits of a trained classifier; other sizes and channels are converted, which is noted."""

    layer = "penultimate"
    reads = IMAGES
    limit: int | None = None
    unit = "images"

    def __init__(
        self,
        task: ScoringTask,
        name: str,
        shape: ImageShape,
        classes: tuple[str, ...] | None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.task, self.name, self.shape, self.device = task, name, shape, torch.device(device)
        self.notes: list[str] = []
        probe = self({"image": torch.zeros(1, *shape, dtype=torch.uint8)}, range(1))
        self.gives: Mapping[str, tuple[int, ...]] = {name: tuple(value.shape[1:]) for name, value in probe.items()}
        self.classes: tuple[str, ...] | None = classes or tuple(str(k) for k in range(self.gives["logits"][0]))

    @torch.no_grad()
    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """`features` (B, D) and `logits` (B, K)."""
        features = self.task.features(self._fit(to_float(fields["image"].to(self.device))))
        return {"features": features, "logits": self.task.logits(features)}

    def check(self, name: str, fields: Specs) -> None:
        check_images(name, fields, f"--features {self.name}")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "layer": self.layer}

    def _fit(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1] in the shape that the classifier was trained with."""
        found = ImageShape(*x.shape[1:])
        if found == self.shape:
            return x
        note = f"images of {size_text(found)} were converted to the {size_text(self.shape)} of {self.name}"
        if note not in self.notes:
            self.notes.append(note)
        return converted(x, self.shape)


def extractor_for(features: str, weights: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of `--features inception|r3d_18|RUN|FILE|CLIP` and `--weights FILE`. Raises UserError."""
    if features.lower() == "inception":
        return InceptionFeatures(weights, device)
    if features.lower() == R3D:
        from diffcli.metrics.motion.r3d import R3d18  # which imports torchvision

        return R3d18(weights, device)
    check_features(features)
    path = Path(features).expanduser()
    check_weights(weights, features)
    if path.is_file() and path.suffix != EXPORTED:
        return TorchScriptI3d(path, device)
    if (path / "config.json").is_file():
        return TowerFeatures(path, device)
    return _of_run(path, device)


def _of_run(path: Path, device: torch.device | str) -> Extractor:
    model = load_model(path, torch.device(device), precision="fp32")
    task = model.task
    if not isinstance(task, ScoringTask):
        raise UserError(
            f"--features {path} is a run of a {model.preset.task.kind} task, which has no features to score with",
            "train a classifier: of digits by `diffcli train --preset digits-classifier`, "
            "of your own classes by `diffcli presets new NAME --data DIR --task classifier`",
        )
    name = f"{model.preset.name}-step{model.step}-{model.digest[:8]}"
    if isinstance(task, ClassifierTask) and task.spec.kind == "clip":
        return ClipClassifier(task, name, model.classes, device)
    return ClassifierFeatures(task, name, model.preset.data.shape, model.classes, device)

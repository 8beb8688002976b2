"""The features of a classifier of clips that diffcli trained, for FVD where no published network is at hand."""

import torch
from torch import Tensor

from diffcli.config import ImageShape
from diffcli.engine.score.report import size_text
from diffcli.engine.score.sight.conversion import converted
from diffcli.metrics.motion.clip_networks import ClipNetwork
from diffcli.tasks.classifier import ClassifierTask


class ClipClassifier(ClipNetwork):
    """Penultimate features and logits; frames of another size or number of channels are converted, which is noted."""

    layer = "penultimate"

    def __init__(
        self, task: ClassifierTask, name: str, classes: tuple[str, ...] | None, device: torch.device | str = "cpu"
    ) -> None:
        super().__init__(device)
        channels, self.frames, *size = task.spec.sides
        self.task, self.name, self.shape = task, name, ImageShape(channels, *size)
        self.protocol = f"frames of {size_text(self.shape)}; values in [-1, 1]; trained with {self.frames} frames"
        found = self.values(torch.zeros(1, *task.spec.sides, device=self.device))
        self.gives = {name: tuple(value.shape[1:]) for name, value in found.items()}
        self.classes = classes or tuple(str(k) for k in range(self.gives["logits"][0]))

    @torch.no_grad()
    def values(self, clips: Tensor) -> dict[str, Tensor]:
        found = ImageShape(clips.shape[1], *clips.shape[3:])
        if found != self.shape:
            note = f"frames of {size_text(found)} were converted to the {size_text(self.shape)} of {self.name}"
            self.notes += [note] if note not in self.notes else []
            frames = converted(clips.movedim(2, 1).flatten(0, 1), self.shape)
            clips = frames.unflatten(0, (len(clips), -1)).movedim(1, 2)
        features = self.task.features(clips)
        return {"features": features, "logits": self.task.logits(features)}

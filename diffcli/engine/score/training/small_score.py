"""A small score while a run trains (`train.every.score`): samples of the averaged model against some of the data.

Seeds, rows of the reference (spread evenly) and features are the same every time. So its curve shows progress, and its best step
is the checkpoint to keep. For scores to report, use `diffcli fid` with more images.
"""

from pathlib import Path

import torch

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.stream.stream_data import StreamData
from diffcli.ema import at_rest
from diffcli.engine.distributed import Group
from diffcli.engine.draw.request import request
from diffcli.engine.draw.rows import row_fields
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.model import Model
from diffcli.engine.score import generated
from diffcli.engine.score.evaluate import FEATURES, evaluate
from diffcli.engine.score.features import extractor_for
from diffcli.engine.score.pairs.drawn_pairs import deriving, fitted
from diffcli.engine.score.sides import Side, data_side, resolve, spread
from diffcli.engine.tuning import autocast
from diffcli.metrics.metric import Role
from diffcli.metrics.scores import metrics_by_name
from diffcli.preset import Preset
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.task import Task

MOST = 10_000  # rows of the reference
BATCH = 64


class SmallScore:
    """The score of a run. name: metric, features and numbers of images. Raises UserError if it cannot be computed."""

    def __init__(self, preset: Preset, run: Path, group: Group, task: Task, data: ImageData) -> None:
        cfg, key = preset.train.score, "train.every.score"
        if not isinstance(task, DiffusionTask) or task.spec.kind != "image":
            raise UserError(
                f"{key} is {preset.train.every.score}, but {preset.task.noun} draws no images to score",
                f"use --set {key}=0, and train.every.validate for the loss on held-out images",
            )
        self.preset, self.run, self.group, self.data = preset, run, group, data
        self.metrics = metrics_by_name([cfg.metric], {})
        try:
            self.extractor = extractor_for(cfg.features, None, group.device)
        except UserError as error:
            raise UserError(
                f"train.score.features is {cfg.features}: {error.problem}",
                f"{error.hint}; set train.score.features, or {key}=0",
            ) from error
        self.reference = spread(self._whole(), MOST)
        self.name = (
            f"{cfg.metric}, features {self.extractor.describe()['name']}, {cfg.n} samples against "
            f"{self.reference.size} images of {self.reference.name}"
        )

    @torch.no_grad()
    def __call__(self, task: Task, step: int) -> float:
        """The score of a task's samples, the same on every process; lower is better."""
        cfg = self.preset.train.score
        model = Model(self.run, step, self.preset, task, self.data.classes, True, "", fields=self.data.specs)
        conditions = deriving(model, fitted(model, self.reference, None)) if row_fields(model) else None
        options = SampleOptions(n=cfg.n, batch_size=min(BATCH, self.preset.train.batch_size))
        with at_rest(task), autocast(self.group.device, self.preset.train.precision):
            samples = generated.samples(request(model, options, conditions))
            sides: dict[Role, Side] = {"reference": self.reference, "samples": samples}
            report = evaluate(self.metrics, sides, {FEATURES: self.extractor}, self.group, batch_size=BATCH)
        found = 0.0 if report is None else report.scores[cfg.metric]
        return float(self.group.sum(torch.full((1,), found, device=self.group.device)))

    def _whole(self) -> Side:
        """`train.score.reference`, else the training data."""
        chosen = self.preset.train.score.reference
        if chosen is not None:
            return resolve(chosen, self.preset.data.size)
        if isinstance(self.data, StreamData):
            raise UserError(
                f"train.every.score is {self.preset.train.every.score}, but a stream has no rows to compare with",
                "set train.score.reference to a folder of images, a prepared set or .npz statistics",
            )
        return data_side(f"{self.preset.name}:train", self.preset.data, "train")

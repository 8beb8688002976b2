"""The loss of the averaged model on held-out images: a rising curve is a sign of memorising.

Images, times and noise are the same every time; they follow from the position of an image in the split alone. So the curve is
smooth and does not depend on batches or on the number of processes.
"""

import torch
from torch import Tensor

from diffcli import noise
from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.loader import evaluation_batches
from diffcli.ema import at_rest
from diffcli.engine.distributed import Group
from diffcli.engine.tuning import autocast
from diffcli.noise import Domain
from diffcli.preset import Preset
from diffcli.tasks.task import Task

SEED = -1  # a seed that no preset has, so the noise differs from that of training


class Validation:
    """The held-out images of a run, spread evenly over the split `test` of its data. Raises UserError where it has none."""

    def __init__(self, preset: Preset, group: Group, task: Task) -> None:
        self.cfg, self.group = preset.train, group
        self.data = held_out(preset).select(task.reads).knowing(task.reads)
        count = min(self.cfg.validate_images, len(self.data))
        self.rows = torch.arange(count) * len(self.data) // count  # the first ones of sorted data are all of one class

    @torch.no_grad()
    def loss(self, task: Task, step: int = 1) -> float:
        """The mean loss of a task's first phase over these images, of which every rank takes its share; the same on every rank.

        step: the step passed to the task. Nothing waits for the device before the end.
        """
        mine = self.group.shares(len(self.rows))[self.group.rank]
        places = torch.arange(mine.start, mine.stop)
        size = max(1, self.cfg.batch_size // (self.cfg.accumulate * self.group.world))
        workers = self.cfg.workers if self.data.in_files else 0
        feed = evaluation_batches(self.data, self.rows[places], size, self.group.device, workers)
        parts, phase = [part for part in places.split(size) if len(part)], task.phases[0].name
        losses: list[Tensor] = []
        with task.comparable(), at_rest(task):
            for place, batch in zip(parts, feed, strict=True):
                batch["position"], batch["stream"] = place, noise.derive(SEED, Domain.TRAIN, place)
                with autocast(self.group.device, self.cfg.precision):
                    losses.append(task(batch, phase, step)["loss"].float())
        total = torch.zeros(2, dtype=torch.float64)
        if losses:
            counts = torch.tensor([len(part) for part in parts], dtype=torch.float64)
            total = torch.stack([torch.stack(losses).cpu().double() @ counts, counts.sum()])
        mean = self.group.mean(total.to(self.group.device, torch.float32))
        return float(mean[0] / mean[1])


def held_out(preset: Preset) -> ImageData:
    """The split `test` of a preset's data, its files left files: few of them are read."""
    try:
        return preset.data.model_copy(update={"in_memory": False}).build("test")
    except UserError as error:
        raise UserError(
            f"train.every.validate is {preset.train.every.validate}, but there is nothing to validate on: {error.problem}",
            "set data.validation to a prepared set (data.kind shards), add a split test, or set train.every.validate to 0",
        ) from error

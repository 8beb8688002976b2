"""What is said of the images of a preview: class or text of each, and the frame rate of clips."""

from collections.abc import Sequence

import torch
from torch import Tensor

from diffcli.fields import Batch
from diffcli.tasks.conditioners.frame_rate import FPS
from diffcli.tasks.task import Task

WORDS = ("text", "label")  # the fields of data that people can read


def captions(task: Task, fields: Batch, classes: Sequence[str] | None, n: int) -> list[str] | None:
    """One caption for each of n images of a preview: its text, its class, or both; None if the task reads neither.

    fields: of the data, one row for each image; classes: their names, or None. Tasks whose conditions have no words, or whose
    previews are not in the order of the data, have no captions.
    """
    read = {name for each in task.named_conditioners.values() for name in each.reads}
    found = [_words(fields[name], classes) for name in WORDS if name in read and name in fields]
    if not found or any(len(words) != n for words in found):
        return None
    return [" / ".join(parts) for parts in zip(*found, strict=True)]


def rate_of(fields: Batch) -> float | None:
    """Frames per second of the first clip of a preview that is not still; None if the data say none."""
    rates = torch.as_tensor(fields[FPS]).flatten().tolist() if FPS in fields else []
    return next((rate for rate in rates if rate > 0), None)


def _words(values: Tensor | list[str], classes: Sequence[str] | None) -> list[str]:
    if not isinstance(values, Tensor):
        return list(values)
    numbers = values.tolist()
    return [classes[i] if classes is not None and 0 <= i < len(classes) else str(i) for i in numbers]

"""The contract of what a preset names in `task`: it builds the task, and judges the rest of the preset by it."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

from diffcli.config import Config, ImageShape
from diffcli.tasks.guide import Drawing
from diffcli.tasks.task import Task


class TaskConfig(Config):
    """What builds a task. The defaults are those of a task that draws no images."""

    kind: str

    @abstractmethod
    def build(self, shape: ImageShape) -> Task:
        """The task for images of this shape, its weights from torch's current generator."""

    def check_drawing(self, drawing: Drawing) -> None:
        """Raises ValueError ("what is wrong; what to do") where the preset draws in a way that this task cannot."""
        drawing.check_unguided(self.kind)
        drawing.check_no_guide(self.kind)
        drawing.check_no_prior()
        drawing.check_variance(learned=False)

    def check_buckets(self, sizes: Sequence[tuple[int, int]]) -> None:
        """Raises ValueError where the network cannot take images of one of these sizes (height, width) of data.buckets."""

    def advice(self) -> list[str]:
        """What is allowed but probably not meant, one sentence each."""
        return []

    def resolved(self) -> Self:
        """The same task, its local folders named by their whole path, so that they are found from anywhere."""
        return self

    def valueless(self) -> Self:
        """The same arithmetic without a look at losses or images: tensors of a plan are on the meta device and have no values."""
        return self

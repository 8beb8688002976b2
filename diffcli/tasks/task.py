"""The contract of everything that the engine can train.

A task owns every weight and knows its losses; it knows no optimizer, rank, file or step. All its random draws follow from the
batch: `stream` holds one seed a sample, so a result does not depend on how samples were dealt to micro-batches or processes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from torch import Tensor, nn

from diffcli.diffusion.samplers import Sampler
from diffcli.tasks.conditioners.conditioner import Conditioner

Batch = Mapping[str, Any]
"""Named fields, tensors (B, ...) or lists of B strings: image (B, C, H, W) in [-1, 1], label, text, ... and, in training, index,
position and stream, each (B,) int64."""


class Task(nn.Module, ABC):
    """What is trained."""

    phases: ClassVar[tuple[str, ...]] = ("main",)  # one optimizer each, stepped in this order

    def trained(self, phase: str) -> list[nn.Parameter]:
        """The parameters that this phase's optimizer steps."""
        return list(self.parameters())

    def hidden(self) -> set[nn.Parameter]:
        """The matrices between input and output: weights of linear layers but the network's last, its `head`.

        Tables of classes are no linear layers, and the first layer of an image, patches or pixels, is a convolution.
        """
        last = self.network_to_compile.head
        return {m.get_parameter("weight") for m in self.modules() if isinstance(m, nn.Linear) and m is not last}

    @contextmanager
    def only(self, phase: str) -> Iterator[None]:
        """Within it, gradients reach this phase's parameters alone."""
        mine = {id(p) for p in self.trained(phase)}
        others = [p for p in self.parameters() if id(p) not in mine and p.requires_grad]
        for p in others:
            p.requires_grad_(False)
        try:
            yield
        finally:
            for p in others:
                p.requires_grad_(True)

    @property
    @abstractmethod
    def network_to_compile(self) -> nn.Module:
        """The module that takes nearly all of a step's time."""

    @property
    @abstractmethod
    def reads(self) -> frozenset[str]:
        """The fields of the data that it takes: no other is read from disk."""

    @property
    def named_conditioners(self) -> dict[str, Conditioner]:
        """Its conditioners, each by its key in a preset."""
        return {}

    @property
    def embeddings(self) -> dict[str, tuple[int, ...]]:
        """The embeddings among them, each with its shape in one sample: (D,), or (L, D) for a sequence."""
        return {}

    def check(self, batch: Batch) -> None:
        """Raises UserError where the data lack a field or hold a value that this task cannot take. For CPU batches."""

    @abstractmethod
    def forward(self, batch: Batch, phase: str) -> dict[str, Tensor]:
        """Means over the batch: "loss", and named terms for the log; each ()."""

    def after_update(self, gather: Callable[[Tensor], Tensor]) -> None:
        """Called once an update, on every rank, after all micro-batches: what the task remembers of them beside its weights.

        gather: rows (n, ...) of this rank -> those of all ranks, in rank order.
        """

    @abstractmethod
    def preview(self, batch: Batch, sampler: Sampler, guidance: float) -> Tensor | None:
        """Images (B, C, H, W) in [-1, 1] for the run log, one for each row of a batch of data; None where it has none."""

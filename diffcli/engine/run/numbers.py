"""The numbers of a step, copied from the device to the host in the background."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Numbers:
    """Named numbers of one step, available as soon as their computation has been started."""

    step: int
    names: tuple[str, ...]
    values: Tensor  # (n,); of CUDA on the host, else where they were computed
    there: torch.cuda.Event | None  # when CUDA has copied them

    def read(self) -> dict[str, float]:
        """The numbers by name; waits for this step, not for work that was started later."""
        if self.there is not None:
            self.there.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


def on_their_way(step: int, names: Iterable[str], together: Tensor) -> Numbers:
    """The numbers `together` (n,), copied in the background if the device supports it."""
    if together.device.type != "cuda":
        return Numbers(step, tuple(names), together, None)
    host = together.to("cpu", non_blocking=True)  # which torch puts into pinned memory
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(together.device))
    return Numbers(step, tuple(names), host, there)

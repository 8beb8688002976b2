"""What a picture is worth to a model that it leads: the loss without it minus that with it, at equal noise, over a run.

Control takes hold all at once ("sudden convergence", Zhang et al. 2023, section 3.3, arXiv 2302.05543): at the first of several
looks in a row at which the gain is above its noise, which is twice the standard error of its mean over a batch.
"""

import torch
from torch import Tensor, nn

ERRORS = 2.0  # standard errors of the mean that a gain is above noise by
LOOKS = 3  # in a row


class ControlGain(nn.Module):
    """since: the step at which control took hold, 0 before. Buffers alone, which travel in checkpoints."""

    since: Tensor
    began: Tensor  # the first look of those in a row
    looks: Tensor  # how many there are in a row

    def __init__(self) -> None:
        super().__init__()
        for name in ("since", "began", "looks"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def take(self, gained: Tensor, step: int) -> None:
        """Takes in the gains of the samples of a global batch (B,) at a step, in order of position; waits for no device."""
        gained = gained.double() if gained.device.type != "mps" else gained.float()
        error = gained.std(correction=0) * len(gained) ** -0.5
        above = (gained.mean() > ERRORS * error).long()
        self.began.copy_(torch.where(self.looks == 0, step, self.began))
        self.looks.copy_((self.looks + 1) * above)
        now = (self.since == 0) & (self.looks >= LOOKS)
        self.since.copy_(torch.where(now, self.began, self.since))

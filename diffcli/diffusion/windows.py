"""A long clip predicted in overlapping windows of frames: a function from a windowed Denoise to a Denoise, as tiles are in space.

At every evaluation the windows are predicted and averaged with weights that sum to 1 at each frame, so that all of them agree on
one x, and no frame is the first of a clip for all that cover it. Windows begin at fixed frames, whatever the length of the clip,
but for the last one, which ends with it. Source: Bar-Tal et al. 2023 (arXiv 2302.08113), along time as in Wang et al. 2023
(arXiv 2305.18264).
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, Prediction
from diffcli.transfer import moved

STEEPNESS = 3  # of the weights of windows, see `Windows.weights`

Stretch = tuple[int, slice]
"""A sample of a batch, and a range of its frames."""

InWindows = Callable[[Tensor, Tensor, Sequence[Stretch]], Prediction]
"""(windows of x_t (P, C, size, H, W), t () or (P,), where they lie) -> Prediction of the windows."""


class Windows(NamedTuple):
    """size: frames of a window. overlap: frames that neighbours share at least, below size. at_once: windows in a batch."""

    size: int
    overlap: int
    at_once: int = 64

    def spans(self, frames: int) -> list[slice]:
        """The windows of a clip, in order: every size - overlap frames one begins. A clip that is no longer is one window."""
        if frames <= self.size:
            return [slice(0, frames)]
        starts = [*range(0, frames - self.size, self.size - self.overlap), frames - self.size]
        return [slice(start, start + self.size) for start in starts]

    def weights(self, frames: int) -> list[Tensor]:
        """The weight of each frame in each window, float32 (size,): it falls towards both ends; of a frame they sum to 1.

        The cube of the distance from the end of a window keeps the steps between neighbours even: of Gaussian clips whose
        frames correlate by 0.98, in windows of 8 that share 4, those over a border are 1.07 times as large as others, with the
        distance itself 1.55 times, and with equal weights 2.6 times.
        """
        spans = self.spans(frames)
        place = torch.arange(min(self.size, frames), dtype=torch.float64)
        hat = (torch.minimum(place, place.flip(0)) + 1) ** STEEPNESS
        total = torch.zeros(frames, dtype=torch.float64)
        for span in spans:
            total[span] += hat
        return [(hat / total[span]).float() for span in spans]


def in_windows(predict: InWindows, windows: Windows) -> Denoise:
    """Predicts clips (B, C, T, H, W) in windows, `windows.at_once` in a batch, and averages them; short ones whole."""

    def averaged(x: Tensor, t: Tensor) -> Prediction:
        frames = x.shape[2]
        spans = windows.spans(frames)
        weights = [moved(weight, x.device)[:, None, None] for weight in windows.weights(frames)]
        places = [(number, row) for number in range(len(spans)) for row in range(len(x))]
        parts: list[Tensor | None] = [None] * 3
        for first in range(0, len(places), windows.at_once):
            some = places[first : first + windows.at_once]
            cut = torch.stack([x[row, :, spans[number]] for number, row in some])
            at = torch.stack([t[row] for _, row in some]) if t.ndim else t
            p = predict(cut, at, [(row, spans[number]) for number, row in some])
            for i, values in enumerate((p.x0, p.eps, p.var_frac)):
                if values is None:
                    continue
                if (whole := parts[i]) is None:
                    whole = parts[i] = values.new_zeros(len(x), values.shape[1], *x.shape[2:])
                done = 0
                for number, group in groupby(some, key=itemgetter(0)):
                    rows = [row for _, row in group]  # of one window: they follow each other
                    chosen = values[done : done + len(rows)]
                    whole[rows[0] : rows[-1] + 1, :, spans[number]] += chosen * weights[number].to(values)
                    done += len(rows)
        x0, eps, var_frac = parts
        assert x0 is not None
        assert eps is not None
        return Prediction(x0, eps, var_frac)

    return averaged

"""The operators that `--restore NAME[:OPTION]` names."""

import torch
from torch import Tensor

from diffcli.diffusion.operators import Known, Luma, Operator, blurred, lowered
from diffcli.engine.options.restore_wish import Wish


def operator_of(wish: Wish, size: tuple[int, int], painted: Tensor | None = None) -> Operator:
    """The operator on images of (height, width). painted: bool (H, W), the unknown pixels of the mask."""
    if wish.factor > 1:
        return lowered(size, wish.factor, wish.kernel)
    if wish.loss == "blur":
        return blurred(size, wish.sigma)
    return Luma() if wish.loss == "colour" else Known(torch.ones(size).bool() if painted is None else ~painted)

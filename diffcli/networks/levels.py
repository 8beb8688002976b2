"""The stages of a U-Net's level: blocks in order, of which the first may change the width; and the levels themselves.

Contract of a block: see layers.py.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from diffcli.networks.blocks import BLOCKS, BlockName
from diffcli.networks.layers import BlockOptions, Pointwise, Signal


class Stage(nn.Module):
    """Blocks in order; the first takes the width from `channels` to `out_channels`, by a 1x1 projection if necessary."""

    def __init__(self, names: Sequence[BlockName], channels: int, out_channels: int, options: BlockOptions) -> None:
        super().__init__()
        starts = bool(names) and BLOCKS[names[0]].changes_width
        project = channels != out_channels and not starts
        self.project = Pointwise(channels, out_channels) if project else None
        widths = [channels if starts else out_channels] + [out_channels] * len(names)
        self.blocks = nn.ModuleList(
            BLOCKS[name].build(width, out_channels, options) for name, width in zip(names, widths, strict=False)
        )

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        if self.project is not None:
            x = self.project(x)
        for block in self.blocks:
            x = block(x, signal)
        return x


class Level(nn.Module):
    """The stages at one size, and the resampling to the next size, if there is one."""

    def __init__(self, stages: list[Stage], resample: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample

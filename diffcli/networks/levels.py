"""The stages of a U-Net's level: blocks in order, of which the first may change the width; and the levels themselves.

Contract of a block: see layers.py.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from diffcli.networks.blocks import BLOCKS, BlockName
from diffcli.networks.frames import TimeLayers
from diffcli.networks.layers import BlockOptions, Pointwise, Signal


class Stage(nn.Module):
    """Blocks in order; the first takes the width from `channels` to `out_channels`, by a 1x1 projection if necessary.

    attend: makes the attention among frames that follows one among positions.
    """

    def __init__(
        self,
        names: Sequence[BlockName],
        channels: int,
        out_channels: int,
        options: BlockOptions,
        attend: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        starts = bool(names) and BLOCKS[names[0]].changes_width
        project = channels != out_channels and not starts
        self.project = Pointwise(channels, out_channels) if project else None
        widths = [channels if starts else out_channels] + [out_channels] * len(names)
        self.blocks = nn.ModuleList(
            BLOCKS[name].build(width, out_channels, options) for name, width in zip(names, widths, strict=False)
        )
        attending = [i for i, name in enumerate(names) if BLOCKS[name].mixes]
        self.places = {block: i for i, block in enumerate(attending)}  # of a block its attention among frames
        self.temporal = TimeLayers(attend, *[out_channels] * len(attending))

    def forward(self, x: Tensor, signal: Signal) -> Tensor:
        if self.project is not None:
            x = self.project(x)
        for i, block in enumerate(self.blocks):
            x = block(x, signal)
            if i in self.places:
                x = self.temporal.after(self.places[i], x, signal.frames)
        return x


class Level(nn.Module):
    """The stages at one size, and the resampling to the next size, if there is one."""

    def __init__(self, stages: list[Stage], resample: nn.Module | None) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.resample = resample

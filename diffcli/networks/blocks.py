"""Every block that a preset can name in `task.network.blocks` and `.middle`: how it is made and what it needs.

Contract of a block: see layers.py. To add one, write its module and give it a name and a `BlockKind` here.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import nn

from diffcli.networks.layers import Attention, BlockOptions, ResBlock

BlockName = Literal["res", "attention"]


class BlockKind(NamedTuple):
    """How a block of one name is made, where it may stand and what it needs."""

    build: Callable[[int, int, BlockOptions], nn.Module]  # (channels, out_channels, options)
    changes_width: bool = False  # starts a stage; the others keep their width
    heads: bool = False  # positions attend in heads of head_dim: only at the sizes of attend_at, and in the middle
    tokens: bool = False  # reads the tokens of a condition
    patches: bool = False  # attends among patches


BLOCKS: dict[BlockName, BlockKind] = {
    "res": BlockKind(ResBlock, changes_width=True),
    "attention": BlockKind(lambda c, _, options: Attention(c, options.head_dim), heads=True),
}


def stages(blocks: tuple[BlockName, ...]) -> list[list[BlockName]]:
    """[res, attention, res] -> [[res, attention], [res]]: each stage after the first starts where width may change."""
    grouped: list[list[BlockName]] = [[]]
    for name in blocks:
        if BLOCKS[name].changes_width and grouped[-1]:
            grouped.append([])
        grouped[-1].append(name)
    return grouped

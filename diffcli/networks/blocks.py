"""The blocks for `task.network.blocks` and `.middle`: their construction and their needs.

Contract of a block: see layers.py. To add one, write its module and give it a name and a `BlockKind` here.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from torch import nn

from diffcli.networks.attention_blocks import CrossAttentionBlock, PatchAttention, SpatialTransformer
from diffcli.networks.channel_blocks import ChannelAttention, ClassAttention
from diffcli.networks.conv_blocks import ConvNext, WsResBlock, dense, inception, vgg
from diffcli.networks.layers import Attention, BlockOptions, ResBlock

BlockName = Literal[
    "res",
    "ws_res",
    "convnext",
    "vgg",
    "dense",
    "inception",
    "attention",
    "patch_attention",
    "cross_attention",
    "spatial_transformer",
    "class_attention",
    "channel_attention",
]


class BlockKind(NamedTuple):
    """The construction of a block, the places where it may be used, and its needs."""

    build: Callable[[int, int, BlockOptions], nn.Module]  # (channels, out_channels, options)
    changes_width: bool = False  # starts a stage; the others keep their width
    hears: bool = False  # receives time and condition vector
    heads: bool = False  # positions attend in heads of head_dim: only at the sizes of attend_at, and in the middle
    tokens: bool = False  # reads the tokens of a condition
    patches: bool = False  # attends among patches
    reach: int | None = None  # reach in positions, without means over all positions; None: it depends on every position

    @property
    def mixes(self) -> bool:
        """Whether positions attend to each other: attention among frames follows, where there is any."""
        return self.heads and self.reach is None


BLOCKS: dict[BlockName, BlockKind] = {
    "res": BlockKind(ResBlock, changes_width=True, hears=True, reach=2),
    "ws_res": BlockKind(WsResBlock, changes_width=True, hears=True, reach=2),
    "convnext": BlockKind(ConvNext, changes_width=True, hears=True, reach=3),
    "vgg": BlockKind(vgg, changes_width=True, hears=True, reach=2),
    "dense": BlockKind(dense, changes_width=True, hears=True, reach=4),
    "inception": BlockKind(inception, changes_width=True, hears=True, reach=2),
    "attention": BlockKind(lambda c, _, options: Attention(c, options.head_dim, options.qkv), heads=True),
    "patch_attention": BlockKind(lambda c, _, options: PatchAttention(c, options), heads=True, patches=True),
    "cross_attention": BlockKind(
        lambda c, _, options: CrossAttentionBlock(c, options), heads=True, tokens=True, reach=0
    ),
    "spatial_transformer": BlockKind(lambda c, _, options: SpatialTransformer(c, options), heads=True, tokens=True),
    "class_attention": BlockKind(lambda c, _, options: ClassAttention(c, options), hears=True, reach=0),
    "channel_attention": BlockKind(lambda c, _, options: ChannelAttention(c), reach=0),
}


def stages(blocks: tuple[BlockName, ...]) -> list[list[BlockName]]:
    """[res, attention, res] -> [[res, attention], [res]]: each stage after the first starts where width may change."""
    grouped: list[list[BlockName]] = [[]]
    for name in blocks:
        if BLOCKS[name].changes_width and grouped[-1]:
            grouped.append([])
        grouped[-1].append(name)
    return grouped

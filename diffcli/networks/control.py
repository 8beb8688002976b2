"""Control: a trained network that stays as it is, and branches that lead it by a picture which lies over its images.

A branch is a copy of the first part of its base, which also sees the picture; all that it says goes through layers that begin at
zero and is added to what the base keeps on its way: to every skip and the middle of a U-Net, after each of the first half of the
blocks of a transformer. So the whole is the base bit for bit before its first step, and wherever the scale of a branch is 0.
Source: Zhang et al. 2023, fig. 3 and eq. 2 (arXiv 2302.05543); transformers: Chen et al. 2024 (PixArt-delta, arXiv 2401.05252).
"""

from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.dit import DiT
from diffcli.networks.dropout import number_dropouts
from diffcli.networks.layers import Pointwise, zero
from diffcli.networks.registry import AnyNetwork
from diffcli.networks.saving import run
from diffcli.networks.unet import UNet

WIDTHS = (16, 32, 96, 256)  # of the published encoder of hints, for latents at an eighth of the pixels


class HintEncoder(nn.Module):
    """A picture (B, C, H, W) -> (B, out, H / f, W / f), 0 at first, where f is the product of the strides.

    For each stride a convolution that keeps the width and one of that stride to the next width, SiLU after each.
    """

    def __init__(self, channels: int, widths: Sequence[int], strides: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.inner = nn.ModuleList()
        for before, after, stride in zip(widths[:-1], widths[1:], strides, strict=True):
            self.inner.append(nn.Conv2d(before, before, 3, padding=1))
            self.inner.append(nn.Conv2d(before, after, max(3, stride), stride=stride, padding=1 if stride < 3 else 0))
        self.leave = zero(nn.Conv2d(widths[-1], out_channels, 3, padding=1))

    @property
    def reach(self) -> int:
        """Pixels farther than this from a position have no part in it."""
        found, pixels = 1, 1  # of `enter`; along the edge of a position that a layer reads
        for layer in cast(Iterable[nn.Conv2d], self.inner):
            found += pixels * (layer.kernel_size[0] // 2)
            pixels *= layer.stride[0]
        return found + pixels

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.enter(x))
        for layer in self.inner:
            h = F.silu(layer(h))
        return self.leave(h)


def strides_of(factor: int) -> list[int]:
    """The prime factors of how many pixels lie along the edge of a position, small ones first; [1] for one pixel."""
    found, rest, prime = [], factor, 2
    while rest > 1:
        while rest % prime == 0:
            found.append(prime)
            rest //= prime
        prime += 1
    return found or [1]


def widths_of(strides: Sequence[int]) -> list[int]:
    """As many of WIDTHS as there are strides and one more, the last of them repeated."""
    return [WIDTHS[min(i, len(WIDTHS) - 1)] for i in range(len(strides) + 1)]


class UNetBranch(nn.Module):
    """The stem, the levels on the way down and the middle of a U-Net, and a zero 1x1 convolution for each tensor it keeps."""

    def __init__(self, copied: UNet, hint: HintEncoder) -> None:
        super().__init__()
        copied.up, copied.norm, copied.head = nn.ModuleList(), nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.hint, self.copied = hint, copied
        self.zeros = nn.ModuleList(zero(Pointwise(c, c)) for c in (*copied.kept_widths, copied.config.widths[-1]))

    def forward(self, x: Tensor, time: Tensor, cond: Conditioning, picture: Tensor) -> list[Tensor]:
        """What is added to each tensor that the decoder of the base reads, in the order of `UNet.encode`."""
        found = self.copied.encode(x, self.copied.signal(time, cond), cond, self.hint(picture))
        return [layer(h) for layer, h in zip(self.zeros, found, strict=True)]


class DiTBranch(nn.Module):
    """The embedding and the first half of the blocks of a transformer, and a zero linear layer after each block."""

    def __init__(self, copied: DiT, hint: HintEncoder) -> None:
        super().__init__()
        copied.blocks, copied.final_layer = copied.blocks[: (len(copied.blocks) + 1) // 2], nn.Identity()  # type: ignore[assignment]
        self.hint, self.copied, width = hint, copied, copied.config.width
        self.zeros = nn.ModuleList(zero(nn.Linear(width, width)) for _ in copied.blocks)

    def forward(self, x: Tensor, time: Tensor, cond: Conditioning, picture: Tensor) -> list[Tensor]:
        """What is added after each of the first blocks of the base, (B, L, D) each."""
        h, inputs = self.copied.begin(x, time, cond)
        h, found = h + self.hint(picture).flatten(2).transpose(1, 2), []
        for block, layer in zip(self.copied.blocks, self.zeros, strict=True):
            h = run(block, h, inputs, save_memory=self.copied.config.save_memory)
            found.append(layer(h))
        return found


Branch = UNetBranch | DiTBranch


def build_branch(
    config: AnyNetwork, shape: tuple[int, ...], cond: CondShape, channels: int, pixels: int, widths: Sequence[int] = ()
) -> Branch:
    """A branch for networks that `config` builds for `shape` and `cond`, its weights from torch's current generator.

    channels: of the hint. pixels: of the hint along the edge of an element of x. widths: of its encoder; none: as published.
    Raises ValueError where there are too few of them.
    """
    steps = strides_of(pixels * config.multiple)
    if widths and len(widths) <= len(steps):
        raise ValueError(f"a position is {pixels * config.multiple} pixels wide, which takes {len(steps) + 1} widths")
    strides = [*repeat(1, max(0, len(widths) - 1 - len(steps))), *steps]
    network = config.build(shape, shape[0], cond)
    encoded = network.stem.out_channels if isinstance(network, UNet) else cast(DiT, network).config.width
    hint = HintEncoder(channels, widths or widths_of(strides), strides, encoded)
    return UNetBranch(network, hint) if isinstance(network, UNet) else DiTBranch(cast(DiT, network), hint)


class Controlled(nn.Module):
    """A base and its branches, called as the base is: cond.hints tells each branch its picture and scale; see the module.

    What the branches add is summed up. One that is told nothing is not run.
    """

    def __init__(self, base: nn.Module, branches: Iterable[Branch]) -> None:
        super().__init__()
        self.base = base
        self.branches = nn.ModuleList(branches)
        number_dropouts(self)

    @property
    def head(self) -> nn.Module:
        """The last layer, under the name that it has in every network."""
        return cast(nn.Module, self.base.head)

    def forward(self, x: Tensor, time: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        plain, added = cond._replace(hints=None), list[Tensor]()
        for branch, hint in zip(self.branches, cond.hints or repeat(None), strict=False):
            if hint is None or hint.scale == 0:
                continue
            found = branch(x, time, plain, hint.picture)
            found = found if hint.scale == 1 else [hint.scale * each for each in found]
            added = [one + other for one, other in zip(added, found, strict=True)] if added else found
        y: Tensor = self.base(x, time, plain._replace(residuals=tuple(added) or None))
        return y

    def begin_as_base(self) -> None:
        """Gives every branch the weights of the base that it is a copy of a part of."""
        weights = self.base.state_dict()
        for branch in cast(Iterable[Branch], self.branches):
            own = branch.copied.state_dict()
            branch.copied.load_state_dict({name: weights[name] for name in own})

"""Layers over time, which make a network of clips of one of images: `task.network.temporal` of a U-Net or a transformer.

After each convolution over space stands one over time, after each attention among positions one among frames: of each position
to itself at other times, so that no T H W square is made. All are residual and end in zeros: before training, a network with
them is the network of images on every frame. At one frame they are passed by, whatever they have learned. Convolutions take 0
before the first frame and after the last one, attention has positions relative to each other alone: neither knows a length.
Source: Singer et al. 2022, section 3.2 (Make-A-Video, arXiv 2209.14792).
"""

from collections.abc import Callable, Sequence
from typing import Literal, assert_never

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from diffcli.config import Config, UserError
from diffcli.networks.frames import Frames
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.layers import Pointwise, attend, sinusoid, zero
from diffcli.networks.network import NetworkConfig
from diffcli.networks.patches import Rotation, rotate

Positions = Literal["relative", "rotary"]
Convolution = Literal["separable", "full"]
OVER_TIME = "temporal"  # in the name of every parameter of a layer over time, and of no other
FARTHEST = 32  # frames: pairs that lie farther apart share one bias
LARGE = 2**14  # numbers of a frame, from which a call for each frame takes less time than its reading from memory
MANY = 32  # frames, above which all pairs of them are too many
ROWS = 2**15  # that one attention takes; kernels of CUDA count at most 65,535
EPS = 1e-6  # of norms of tokens, queries and keys


class TemporalConfig(Config):
    """Attention among the frames of a clip, after each among the positions of a frame."""

    attention: bool = Field(True, description="attention of each position to itself in the other frames")
    positions: Positions = Field(
        "relative",
        description="how attention knows time: a learned bias for each distance in frames, or rotary: queries and keys turned",
    )
    heads: int | None = Field(
        None,
        ge=1,
        description="of attention among frames, each as wide as one among positions; null: as many (unet), half as many (dit)",
    )


class ConvTemporalConfig(TemporalConfig):
    """The same, and convolutions over time."""

    convolution: Convolution | None = Field(
        "separable",
        description="over 3 frames after each over space: one for each channel and then all channels (separable), or full, "
        "at about twice the time of a step; null: none",
    )

    @property
    def follower(self) -> Callable[[int], nn.Module] | None:
        """Makes the layer that follows a convolution of so many channels; None: none does."""
        match self.convolution:
            case "separable":
                return SeparableOverTime
            case "full":
                return FullOverTime
            case None:
                return None
            case _:
                assert_never(self.convolution)


class NetworkOverTime(NetworkConfig):
    """A network of images, which `temporal` makes one of clips (B, C, T, H, W) of any T."""

    temporal: TemporalConfig | None = None

    def check_axes(self, shape: tuple[int, ...]) -> None:
        found = "x".join(map(str, shape))
        if len(shape) == 4 and self.temporal is None:
            raise UserError(
                f"task.network.temporal is null, so the network is one of images, but task.field names clips, which are {found} "
                "in diffusion space",
                "use --set 'task.network.temporal={}' for layers over time, or choose another task.field",
            )
        if len(shape) == 3 and self.temporal is not None:
            raise UserError(
                f"task.network.temporal is for clips, but task.field names images, which are {found} in diffusion space",
                "use --set task.network.temporal=null, or --set task.field=clip with data of clips: a prepared set gives its "
                "videos with --set data.frames=16",
            )
        if len(shape) not in (3, 4):
            super().check_axes(shape)

    def check_over_time(self, head_dims: Sequence[int]) -> None:
        """Raises UserError where attention among frames follows none among positions, or has heads that cannot be turned.

        head_dims: channels of a head of each attention among positions.
        """
        if self.temporal is None or not self.temporal.attention:
            return
        if not head_dims:
            raise UserError(
                "task.network.temporal.attention is true, but no block attends among positions, which it would follow",
                "set task.network.temporal.attention=false, or put attention into task.network.blocks or .middle",
            )
        odd = [channels for channels in head_dims if channels % 2]
        if odd and self.temporal.positions == "rotary":
            raise UserError(
                f"task.network.temporal.positions is 'rotary', which turns pairs of channels, but a head has {odd[0]}",
                "choose heads of an even width, or --set task.network.temporal.positions=relative",
            )


class Across(torch.autograd.Function):
    """y[t] = a x[t - 1] + b x[t] + c x[t + 1] for each channel, 0 where there is no such frame: without copies of x.

    x: (B T, C, H, W), taps (3, C): a, b, c.
    """

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, taps: Tensor, frames: int) -> Tensor:
        ctx.save_for_backward(x, taps)
        ctx.frames = frames  # type: ignore[attr-defined]
        return mixed(x, taps, frames)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, taps = ctx.saved_tensors  # type: ignore[attr-defined]
        frames: int = ctx.frames  # type: ignore[attr-defined]
        return mixed(grad, taps.flip(0), frames), products(grad, x, frames).to(taps.dtype), None


def mixed(x: Tensor, taps: Tensor, frames: int) -> Tensor:
    """See `Across`."""
    h = x.unflatten(0, (-1, frames))  # (B, T, C, H, W)
    before, now, after = taps.to(x.dtype)[:, :, None, None]
    large = x.device.type == "cpu" and x[0].numel() >= LARGE
    if large and not torch.compiler.is_compiling():  # frame by frame, each is read from memory once
        y = torch.empty_like(h)
        for clip, made in zip(h, y, strict=True):
            for t in range(frames):
                torch.mul(clip[t], now, out=made[t])
                if t > 0:
                    made[t].addcmul_(clip[t - 1], before)
                if t + 1 < frames:
                    made[t].addcmul_(clip[t + 1], after)
        return y.flatten(0, 1)
    y = h * now
    y[:, 1:].addcmul_(h[:, :-1], before)
    y[:, :-1].addcmul_(h[:, 1:], after)
    return y.flatten(0, 1)


def products(grad: Tensor, x: Tensor, frames: int) -> Tensor:
    """(3, C): for each channel the products of grad[t] with x[t - 1], x[t] and x[t + 1], summed over all t and positions."""
    g, h = (each.unflatten(0, (-1, frames)).flatten(3) for each in (grad, x))  # (B, T, C, H W)
    wide = torch.promote_types(x.dtype, torch.float32)
    together = x.is_contiguous() and frames <= MANY
    if together and not torch.compiler.is_compiling():  # of all pairs of frames, as matrices: fewer passes over memory
        pairs = torch.stack(
            [torch.bmm(one.transpose(0, 1), other.permute(1, 2, 0)) for one, other in zip(g, h, strict=True)]
        )
        return torch.stack([pairs.diagonal(apart, 2, 3).sum((0, 2), dtype=wide) for apart in (-1, 0, 1)])
    beside = (g[:, 1:], h[:, :-1]), (g, h), (g[:, :-1], h[:, 1:])
    return torch.stack([(one * other).sum((0, 1, 3), dtype=wide) for one, other in beside])


class SeparableOverTime(nn.Module):
    """A convolution of 3 frames for each channel, and a zero 1x1 convolution of all channels; residual.

    Source: Tran et al. 2019, section 3 (channel-separated convolutions, arXiv 1904.02811).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.empty(3, channels))
        nn.init.uniform_(self.taps, -(3**-0.5), 3**-0.5)
        self.out = zero(Pointwise(channels, channels, bias=False))

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """x: (B T, C, H, W)."""
        y: Tensor = self.out(Across.apply(x, self.taps, frames.count), onto=x)
        return y


class FullOverTime(nn.Module):
    """A zero convolution of 3 frames and all channels; residual. Source: as the module's, eq. 7."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = zero(nn.Conv2d(channels, channels, (3, 1), padding=(1, 0), bias=False))

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """x: (B T, C, H, W)."""
        h = frames.apart(x).transpose(1, 2).flatten(3)  # (B, C, T, H W), of channels last without a copy
        return x + self.conv(h).transpose(1, 2).flatten(0, 1).unflatten(2, x.shape[2:])


class FrameAttention(nn.Module):
    """Attention among the frames (N, T, width) of each position, its output zero at first.

    bias: learned, for each head and distance in frames (Shaw et al. 2018, section 3.2, arXiv 1803.02155; Raffel et al. 2019).
    """

    def __init__(self, width: int, heads: int, head_dim: int, positions: Positions, qk_norm: bool = False) -> None:
        super().__init__()
        self.heads, self.head_dim = heads, head_dim
        self.qkv = nn.Linear(width, 3 * heads * head_dim)
        self.q_norm = nn.RMSNorm(head_dim, eps=EPS) if qk_norm else None
        self.k_norm = nn.RMSNorm(head_dim, eps=EPS) if qk_norm else None
        self.bias = nn.Parameter(torch.zeros(heads, 2 * FARTHEST + 1)) if positions == "relative" else None
        self.out = zero(nn.Linear(heads * head_dim, width))

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (N, heads, T, D) each
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q.float()).to(v), self.k_norm(k.float()).to(v)
        if self.bias is None:
            turn = frames.once("turn", self.head_dim, lambda: turning(frames.count, self.head_dim, x.device))
            q, k = rotate(q, turn).to(v), rotate(k, turn).to(v)
            bias = None
        else:
            distance = frames.once("distance", FARTHEST, lambda: distances(frames.count, x.device))
            bias = self.bias[:, distance][None].to(v.dtype)  # (1, heads, T, T)
        parts = zip(q.split(ROWS), k.split(ROWS), v.split(ROWS), strict=True)
        made = [attend(*part, None, bias) for part in parts]
        h = torch.cat(made) if len(made) > 1 else made[0]
        y: Tensor = self.out(h.transpose(1, 2).flatten(2))
        return y


def distances(frames: int, device: torch.device) -> Tensor:
    """(T, T) int64: for a frame that reads and one that is read the entry of a table of biases of -FARTHEST..FARTHEST."""
    times = torch.arange(frames, device=device)
    return (times[None] - times[:, None]).clamp(-FARTHEST, FARTHEST) + FARTHEST


def turning(frames: int, head_dim: int, device: torch.device) -> Rotation:
    """Angles of rotary embedding of times (T, head_dim / 2). Source: Su et al. 2021 (arXiv 2104.09864), eq. 34."""
    cos, sin = sinusoid(torch.arange(frames, device=device), head_dim).chunk(2, dim=1)
    return Rotation(cos, sin)


class MapAttention(nn.Module):
    """Norm of each frame, attention among frames at each position of a map; residual. For a U-Net."""

    def __init__(self, channels: int, config: TemporalConfig, head_dim: int) -> None:
        super().__init__()
        self.norm = GroupNorm(channels)
        heads = config.heads or channels // head_dim
        self.attention = FrameAttention(channels, heads, head_dim, config.positions)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """x: (B T, C, H, W)."""
        h = frames.apart(self.norm(x)).permute(0, 3, 4, 1, 2)  # (B, H, W, T, C)
        h = self.attention(h.flatten(0, 2), frames).unflatten(0, (h.shape[:3]))
        return x + h.permute(0, 3, 4, 1, 2).flatten(0, 1)


class TokenAttentionOverTime(nn.Module):
    """Layer norm, attention among frames of each token; residual. For a transformer."""

    def __init__(self, width: int, heads: int, config: TemporalConfig, qk_norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=EPS)
        own = config.heads or max(1, heads // 2)
        self.attention = FrameAttention(width, own, width // heads, config.positions, qk_norm)

    def forward(self, x: Tensor, frames: Frames) -> Tensor:
        """x: (B T, L, D)."""
        h = frames.apart(self.norm(x)).transpose(1, 2)  # (B, L, T, D)
        h = self.attention(h.flatten(0, 1), frames).unflatten(0, h.shape[:2])
        return x + h.transpose(1, 2).flatten(0, 1)


LAYERS = (SeparableOverTime, FullOverTime, MapAttention, TokenAttentionOverTime)
"""The layers over time, each residual and the identity at first: forward(x of all frames, frames)."""

"""The diffusion transformer: forward(x (B, C, H, W), time (B,), cond) -> (B, out, H, W), H and W multiples of the patch.

Patches become tokens; time and condition vector modulate every block by adaLN-Zero: x + gate * f(norm(x) (1 + scale) + shift),
with shift, scale and gate 0 at first, so that an untrained block is the identity. Parameters have the published names.
Source: Peebles & Xie 2022 (arXiv 2212.09748); tokens by cross-attention as in Chen et al. 2023 (PixArt-alpha, 2310.00426).
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any, Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from diffcli.config import ImageShape, UserError
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.dropout import Dropout, MaskBits, mask_bits, number_dropouts
from diffcli.networks.frames import Frames, folded, frames_of, of_clips, of_each_frame, unfolded
from diffcli.networks.layers import attend, sinusoid, zero
from diffcli.networks.network import divisors, listed
from diffcli.networks.patches import Rotation, patchify, rotate, rotation, sincos, unpatchify
from diffcli.networks.saving import SAVE_MEMORY, run
from diffcli.networks.temporal import FrameAttention, NetworkOverTime, TemporalConfig, TokenAttentionOverTime

TIME_WIDTH = 256  # of the sinusoid of the time
SIZES = {
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}
EPS = 1e-6  # of every norm, but for `mlp_eps`


class DiTConfig(NetworkOverTime):
    """The published sizes are S 384 wide, 12 deep, 6 heads; B 768, 12, 12; L 1024, 24, 16; XL 1152, 28, 16; patch 2, 4 or 8.

    size: one of them, for those of width, depth and heads that are not given. It is replaced by these three, so that a written
    preset never has a size that differs from the network.
    """

    kind: Literal["dit"] = "dit"
    patch: int = Field(2, ge=1, description="pixels along the edge of a token")
    size: Literal["S", "B", "L", "XL"] | None = Field(
        None, description="a published size, for those of width, depth and heads that are not given"
    )
    width: int = Field(768, ge=1, description="of the tokens")
    depth: int = Field(12, ge=1, description="blocks")
    heads: int = Field(12, ge=1, description="of each attention; a divisor of width")
    positions: Literal["sincos", "rotary"] = Field(
        "sincos", description="position embedding of tokens; rotary also works at sizes that were not trained"
    )
    qk_norm: bool = Field(False, description="RMS norm of queries and keys (arXiv 2302.05442): stable at high rates")
    dropout: float = Field(0.0, ge=0, lt=1, description="share of activations dropped in training")
    save_memory: bool = Field(False, description=SAVE_MEMORY)
    temporal: TemporalConfig | None = Field(None, description="layers over time, for clips; null: for images")
    max_period: float = Field(10_000, gt=1, description="of the time's sinusoid; foreign weights may need another")
    time_scale: float = Field(1.0, gt=0, description="times 0..1000 become 0..1000 * this; foreign weights may need it")
    mlp_eps: float = Field(EPS, gt=0, description="of the norm before the MLP; foreign weights may need another")

    @model_validator(mode="before")
    @classmethod
    def _of_size(cls, given: Any) -> Any:
        size = str(given.get("size")) if isinstance(given, Mapping) else ""
        if size not in SIZES:
            return given
        own = {name: given[name] for name in SIZES[size] if name in given}
        for other, published in SIZES.items():
            if own == published and other != size:
                raise ValueError(
                    f"size is '{size}', but width {own['width']}, depth {own['depth']} and heads {own['heads']} are those of "
                    f"'{other}'; "
                    + " ".join(f"--set task.network.{name}={value}" for name, value in SIZES[size].items())
                )
        return {**SIZES[size], **given, "size": None}

    def build(self, shape: tuple[int, ...], out_channels: int, cond: CondShape) -> "DiT":
        self.check_patch(ImageShape(shape[0], *shape[-2:]))
        self.check_width()
        return DiT(self, shape[0], out_channels, cond)

    @property
    def multiple(self) -> int:
        return self.patch

    def check_patch(self, shape: ImageShape) -> None:
        side = gcd(shape.height, shape.width)
        if side % self.patch:
            raise UserError(
                f"task.network.patch is {self.patch}, which does not divide the training size {shape.height}x{shape.width}",
                f"choose a divisor of both sides: {listed(divisors(side))}, or change data.size",
            )

    def check_buckets(self, sizes: Sequence[tuple[int, int]]) -> None:
        for height, width in sizes:
            if height % self.patch or width % self.patch:
                raise ValueError(
                    f"data.buckets holds {height}x{width}, which task.network.patch {self.patch} does not divide; "
                    "set data.buckets to sizes that are multiples of it"
                )

    def check_width(self) -> None:
        if self.width % self.heads:
            raise UserError(
                f"task.network.heads is {self.heads}, which does not divide the width {self.width}",
                f"choose a divisor of the width: {listed(divisors(self.width))}",
            )
        self.check_over_time([self.width // self.heads])
        rotary = self.positions == "rotary"
        channels = self.width // self.heads if rotary else self.width
        if channels % 4:
            what = f"width / heads is {channels}" if rotary else f"width is {channels}"
            raise UserError(
                f"task.network.positions is '{self.positions}', which needs a multiple of 4, but {what}",
                f"set task.network.width to a multiple of {4 * self.heads}",
            )


class BlockInputs(NamedTuple):
    """The inputs of every block beside its tokens."""

    emb: Tensor  # (B, D)   time and condition vector
    tokens: Tensor | None  # (B, M, Dt)
    mask: Tensor | None  # (B, M) bool   the tokens to read; None: all
    rotation: Rotation | None
    bits: MaskBits | None  # random bits for dropout
    frames: Frames | None = None  # of clips, whose tokens and mask have one row for all of their frames


class DiT(nn.Module):
    """See the module's docstring; built by `DiTConfig`. A condition vector as wide as the network is added as it is."""

    def __init__(self, config: DiTConfig, channels: int, out_channels: int, cond: CondShape) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.x_embedder = PatchEmbedder(channels + cond.spatial, width, config.patch)
        self.t_embedder = TimeEmbedder(width, config.max_period, config.time_scale)
        self.y_embedder = nn.Linear(cond.vector, width) if cond.vector not in (0, width) else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, cond.tokens) for _ in range(config.depth))
        self.final_layer = FinalLayer(width, config.patch**2 * out_channels)
        self.apply(initialise)
        number_dropouts(self)

    @property
    def head(self) -> nn.Linear:
        """The last layer, by the name that all networks use."""
        return self.final_layer.linear

    def forward(self, x: Tensor, time: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        h, inputs = self.begin(x, time, cond)
        added = cond.residuals or ()  # after each of the first blocks
        for i, block in enumerate(self.blocks):
            h = run(block, h, inputs, save_memory=self.config.save_memory)
            if i < len(added):
                h = h + added[i]
        y = unpatchify(self.final_layer(h, inputs.emb), self.config.patch, (x.shape[-2], x.shape[-1]))
        return unfolded(y, x)

    def begin(self, x: Tensor, time: Tensor, cond: Conditioning) -> tuple[Tensor, "BlockInputs"]:
        """The tokens (B, L, D) of x with their positions, and what every block receives beside them."""
        size, patch, frames = (x.shape[-2], x.shape[-1]), self.config.patch, frames_of(x)
        if size[0] % patch or size[1] % patch:
            raise UserError(
                f"images are {size[0]}x{size[1]}, which task.network.patch {patch} does not divide",
                f"give sizes that are multiples of {patch}",
            )
        grid = (size[0] // patch, size[1] // patch)
        emb = self.t_embedder(time)
        if cond.vector is not None:
            emb = emb + self.y_embedder(cond.vector)
        x = folded(x if cond.spatial is None else torch.cat([x, cond.spatial], dim=1))
        h = self.x_embedder(x).float()  # (B, L, D)
        turn = None
        if self.config.positions == "sincos":
            h = h + sincos(grid, self.config.width, x.device)
        else:
            turn = rotation(grid, self.config.width // self.config.heads, x.device)
        emb = of_each_frame(emb, frames)
        return h, BlockInputs(emb, cond.tokens, cond.mask, turn, mask_bits(cond.seeds), frames)


class PatchConv(nn.Conv2d):
    """A linear layer on patches, (B, C, H, W) -> (B, L, D), its weight kept as the convolution of stride `patch` that it is."""

    def __init__(self, channels: int, width: int, patch: int, bias: bool = True) -> None:
        super().__init__(channels, width, patch, stride=patch, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.permute(0, 2, 3, 1).flatten(1)  # (D, p * p * C)
        return F.linear(patchify(x, self.kernel_size[0]), weight, self.bias)


class PatchEmbedder(nn.Module):
    """The first layer, under its published name."""

    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = PatchConv(channels, width, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x)


class TimeEmbedder(nn.Module):
    """(B,) -> (B, D)."""

    def __init__(self, width: int, max_period: float, scale: float) -> None:
        super().__init__()
        self.max_period = max_period
        self.scale = scale
        self.mlp = nn.Sequential(nn.Linear(TIME_WIDTH, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, time: Tensor) -> Tensor:
        return self.mlp(sinusoid(time * self.scale, TIME_WIDTH, self.max_period))


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, eps: float = EPS) -> Tensor:
    """Layer norm of x (B, L, D), then gain and offset of each sample, (B, D) each."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Self-attention, cross-attention where there are tokens, and an MLP; each on a residual that starts at 0."""

    def __init__(self, config: DiTConfig, tokens: int) -> None:
        super().__init__()
        width = config.width
        self.mlp_eps = config.mlp_eps
        self.attn = SelfAttention(width, config.heads, config.qk_norm)
        over = config.temporal
        attends = over is not None and over.attention
        self.temporal = TokenAttentionOverTime(width, config.heads, over, config.qk_norm) if over and attends else None
        self.cross_attn = TokenReader(width, config.heads, tokens) if tokens else None
        self.mlp = nn.Sequential(
            OrderedDict(
                fc1=nn.Linear(width, 4 * width),
                act=nn.GELU(approximate="tanh"),
                fc2=nn.Linear(4 * width, width),
            )
        )
        self.dropout1, self.dropout2 = Dropout(config.dropout), Dropout(config.dropout)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, inputs: BlockInputs) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(inputs.emb).chunk(6, dim=1)
        h = self.attn(modulated_norm(x, shift1, scale1), inputs.rotation)
        x = x + gate1[:, None] * self.dropout1(h, inputs.bits)
        if self.temporal is not None and inputs.frames is not None:
            x = self.temporal(x, inputs.frames)
        if self.cross_attn is not None:
            x = x + self.cross_attn(x, inputs.tokens, inputs.mask)
        h = self.mlp(modulated_norm(x, shift2, scale2, self.mlp_eps))
        return x + gate2[:, None] * self.dropout2(h, inputs.bits)


class SelfAttention(nn.Module):
    """Attention of tokens (B, L, D) to each other."""

    def __init__(self, width: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm = nn.RMSNorm(width // heads, eps=EPS) if qk_norm else None
        self.k_norm = nn.RMSNorm(width // heads, eps=EPS) if qk_norm else None
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, turn: Rotation | None) -> Tensor:
        qkv = self.qkv(x).unflatten(2, (3, self.heads, -1))  # (B, L, 3, heads, D / heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, heads, L, D / heads) each
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q.float()), self.k_norm(k.float())
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        return self.proj(attend(q.to(v), k.to(v), v).transpose(1, 2).flatten(2))


class TokenReader(nn.Module):
    """Attention of tokens (B, L, D) to those of the condition (B, M, Dt); its output is zero-initialised."""

    def __init__(self, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_linear = nn.Linear(width, width)
        self.kv_linear = nn.Linear(tokens, 2 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, tokens: Tensor, mask: Tensor | None) -> Tensor:
        q = self.q_linear(of_clips(x, len(tokens))).unflatten(2, (self.heads, -1)).transpose(1, 2)
        k, v = self.kv_linear(tokens).unflatten(2, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(attend(q, k, v, mask).transpose(1, 2).flatten(2)).view_as(x)


class FinalLayer(nn.Module):
    """Modulated norm and the linear layer to the values of a patch."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(emb).chunk(2, dim=1)
        return self.linear(modulated_norm(x, shift, scale))


def initialise(module: nn.Module) -> None:
    """Xavier for linear layers with biases 0; the time's layers normal, 0.02 wide; modulations and ends 0. For nn.Module.apply,
    which visits a module after its children."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        nn.init.zeros_(cast(Tensor, module.bias))
    elif isinstance(module, TimeEmbedder):
        for layer in (module.mlp[0], module.mlp[2]):
            nn.init.normal_(cast(nn.Linear, layer).weight, std=0.02)
    elif isinstance(module, Block | FinalLayer):
        zero(module.adaLN_modulation)
        zero(module.linear if isinstance(module, FinalLayer) else nn.Identity())
    elif isinstance(module, TokenReader):
        zero(module.proj)
    elif isinstance(module, FrameAttention):
        zero(module.out)

"""The U-Net of improved- and guided-diffusion, written down from the papers and the names in its published state dicts.

Plain and slow: attention is a softmax of products, norms and sinusoids are torch's own or spelled out.
Source: Nichol & Dhariwal 2021 (arXiv 2102.09672); Dhariwal & Nichol 2021 (arXiv 2105.05233), appendix on the architecture.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Flags(NamedTuple):
    """Their command-line flags, small."""

    image_size: int = 16
    num_channels: int = 32
    channel_mult: tuple[float, ...] = (1, 2)
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (8,)
    num_heads: int = 4
    num_head_channels: int | None = None
    learn_sigma: bool = True
    classes: int | None = None
    use_scale_shift_norm: bool = True
    resblock_updown: bool = False
    use_new_attention_order: bool = False


class Res(nn.Module):
    def __init__(self, channels: int, out: int, emb: int, flags: Flags, resample: str = "") -> None:
        super().__init__()
        self.scale_shift, self.resample = flags.use_scale_shift_norm, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * out if self.scale_shift else out))
        end = nn.Conv2d(out, out, 3, padding=1)
        self.out_layers = nn.Sequential(nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.0), end)
        self.skip_connection = nn.Identity() if channels == out else nn.Conv2d(channels, out, 1)

    def resized(self, x: Tensor) -> Tensor:
        if self.resample == "down":
            return F.avg_pool2d(x, 2)
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if self.resample == "up" else x

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers[2](self.resized(self.in_layers[:2](x)))
        told = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = told.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + told)
        return self.skip_connection(self.resized(x)) + h


class Attend(nn.Module):
    def __init__(self, channels: int, flags: Flags) -> None:
        super().__init__()
        self.heads = channels // flags.num_head_channels if flags.num_head_channels else flags.num_heads
        self.new_order = flags.use_new_attention_order
        self.norm = nn.GroupNorm(32, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        flat = self.norm(x).flatten(2)
        (n, channels, length), dim = flat.shape, flat.shape[1] // self.heads
        if self.new_order:  # all queries, all keys, all values; heads within each
            q, k, v = (part.reshape(n * self.heads, dim, length) for part in self.qkv(flat).chunk(3, dim=1))
        else:  # for each head its query, key and value
            q, k, v = self.qkv(flat).reshape(n * self.heads, 3 * dim, length).split(dim, dim=1)
        weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(dim), dim=-1)  # (N heads, to, from)
        h = (v @ weight.transpose(1, 2)).reshape(n, channels, length)
        return x + self.proj_out(h).reshape(x.shape)


class Down(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))


class OpenAIUNet(nn.Module):
    """forward(x (B, 3, H, W), index (B,), label (B,) or None)."""

    def __init__(self, flags: Flags) -> None:
        super().__init__()
        self.width = flags.num_channels
        emb = 4 * self.width
        self.time_embed = nn.Sequential(nn.Linear(self.width, emb), nn.SiLU(), nn.Linear(emb, emb))
        if flags.classes:
            self.label_emb = nn.Embedding(flags.classes, emb)
        sizes = [flags.image_size // 2**i for i in range(len(flags.channel_mult))]
        widths = [int(self.width * m) for m in flags.channel_mult]
        channels, kept = widths[0], [widths[0]]
        first = nn.ModuleList([nn.Conv2d(3, widths[0], 3, padding=1)])
        self.input_blocks, self.output_blocks = nn.ModuleList([first]), nn.ModuleList()
        for i, (size, out) in enumerate(zip(sizes, widths, strict=True)):
            for _ in range(flags.num_res_blocks):
                blocks: list[nn.Module] = [Res(channels, out, emb, flags)]
                blocks += [Attend(out, flags)] if size in flags.attention_resolutions else []
                self.input_blocks.append(nn.ModuleList(blocks))
                channels = out
                kept.append(channels)
            if i < len(sizes) - 1:
                lower = Res(channels, channels, emb, flags, "down") if flags.resblock_updown else Down(channels)
                self.input_blocks.append(nn.ModuleList([lower]))
                kept.append(channels)
        middle = [Res(channels, channels, emb, flags), Attend(channels, flags), Res(channels, channels, emb, flags)]
        self.middle_block = nn.ModuleList(middle)
        for i, (size, out) in reversed(list(enumerate(zip(sizes, widths, strict=True)))):
            for j in range(flags.num_res_blocks + 1):
                blocks = [Res(channels + kept.pop(), out, emb, flags)]
                channels = out
                blocks += [Attend(out, flags)] if size in flags.attention_resolutions else []
                if i and j == flags.num_res_blocks:
                    blocks.append(Res(out, out, emb, flags, "up") if flags.resblock_updown else Up(out))
                self.output_blocks.append(nn.ModuleList(blocks))
        outputs = 6 if flags.learn_sigma else 3
        self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), nn.Conv2d(channels, outputs, 3, padding=1))

    def forward(self, x: Tensor, index: Tensor, label: Tensor | None = None) -> Tensor:
        half = self.width // 2
        angle = index[:, None].double() * 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], dim=1).to(x))
        if label is not None:
            emb = emb + self.label_emb(label)
        kept: list[Tensor] = []
        h = x
        for n, blocks in enumerate(self.input_blocks):
            for block in blocks:
                h = block(h) if n == 0 else block(h, emb)
            kept.append(h)
        for block in self.middle_block:
            h = block(h, emb)
        for blocks in self.output_blocks:
            h = torch.cat([h, kept.pop()], dim=1)
            for block in blocks:
                h = block(h, emb)
        return self.out(h)


class Pool(nn.Module):
    """The mean of all positions attends to itself and them, in the new order of attention."""

    def __init__(self, channels: int, head_dim: int, length: int, outputs: int) -> None:
        super().__init__()
        self.heads = channels // head_dim
        self.positional_embedding = nn.Parameter(torch.randn(channels, length + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        flat = torch.cat([flat.mean(2, keepdim=True), flat], dim=2) + self.positional_embedding
        n, channels, length = flat.shape
        dim = channels // self.heads
        q, k, v = (part.reshape(n * self.heads, dim, length) for part in self.qkv_proj(flat).chunk(3, dim=1))
        weight = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(dim), dim=-1)
        return self.c_proj((v @ weight.transpose(1, 2)).reshape(n, channels, length))[:, :, 0]


class OpenAIClassifier(nn.Module):
    """forward(x (B, 3, H, W), index (B,)) -> logits (B, classes): the first half of their U-Net, and the pool."""

    def __init__(self, flags: Flags, classes: int) -> None:
        super().__init__()
        whole = OpenAIUNet(flags)
        self.width, self.time_embed = whole.width, whole.time_embed
        self.input_blocks, self.middle_block = whole.input_blocks, whole.middle_block
        channels = int(flags.num_channels * flags.channel_mult[-1])
        side = flags.image_size // 2 ** (len(flags.channel_mult) - 1)
        head_dim = flags.num_head_channels or channels
        self.out = nn.Sequential(nn.GroupNorm(32, channels), nn.SiLU(), Pool(channels, head_dim, side**2, classes))

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        half = self.width // 2
        angle = index[:, None].double() * 10_000 ** (-torch.arange(half, dtype=torch.float64) / half)
        emb = self.time_embed(torch.cat([angle.cos(), angle.sin()], dim=1).to(x))
        h = x
        for n, blocks in enumerate(self.input_blocks):
            for block in blocks:
                h = block(h) if n == 0 else block(h, emb)
        for block in self.middle_block:
            h = block(h, emb)
        return self.out(h)

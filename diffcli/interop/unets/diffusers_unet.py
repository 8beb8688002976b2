"""UNet2DModel and UNet2DConditionModel of diffusers: their tensors as a table of renamings."""

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from diffcli.interop.unets.places import NETWORK, BlockNames, Side, WeightPlace, block_rules, class_rules, places
from diffcli.interop.weight_files import ForeignTensors, Rule, absent, layer, layers
from diffcli.networks.layers import Attention
from diffcli.networks.unet import UNet

LABELS = "class_embedding.weight"
ENDS = {
    "embedding.time.2": "time_embedding.linear_2",
    "stem": "conv_in",
    "norm": "conv_norm_out",
    "head": "conv_out",
}
RES = {
    "norm1": "norm1",
    "conv1": "conv1",
    "modulate": "time_emb_proj",
    "norm2": "norm2",
    "conv2": "conv2",
    "skip": "conv_shortcut",
}
SIDES = {"down": "down_blocks.{}", "middle": "mid_block", "up": "up_blocks.{}"}
FOLDERS = {"res": "resnets", "attention": "attentions", "transformer": "attentions"}
RESAMPLE = {"down": "downsamplers.0", "up": "upsamplers.0"}
CONV: dict[Side, str] = {"down": "conv", "up": "conv"}
DEPRECATED = {  # what old files call the layers of attention
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def diffusers_rules(
    network: UNet,
    ours: ForeignTensors,
    null: bool,
    gone: Sequence[str] = (),
    sines_first: bool = False,
    linear: bool = False,
) -> list[Rule]:
    """ours: the tensors of the task. null: whether their table of classes has a row for "no class".

    gone: prefixes of blocks that theirs lacks. sines_first: the order of their time embedding. linear: whether their spatial
    transformers are entered and left by linear layers.
    """
    rules = layers(NETWORK, "", ENDS)
    rules += time_rules(f"{NETWORK}.embedding.time.0", "time_embedding.linear_1", sines_first)
    for place, theirs in named(network):
        if theirs.startswith(tuple(gone)):
            mine = f"{NETWORK}.{place.name}."
            rules.append(absent((name for name in ours if name.startswith(mine)), ours))
            continue
        rules += block_rules(place, theirs, ours, BlockNames(RES, attention_rules, CONV), linear)
    return rules + class_rules(ours, LABELS, null)


def named(network: UNet) -> Iterator[tuple[WeightPlace, str]]:
    """Their names: blocks are counted by kind within each level."""
    seen: Counter[tuple[str, str]] = Counter()
    for place in places(network):
        level = SIDES[place.side].format(place.level)
        if place.stage == -1:
            yield place, f"{level}.{RESAMPLE[place.side]}"
        else:
            folder = FOLDERS[place.kind]
            yield place, f"{level}.{folder}.{seen[level, folder]}"
            seen[level, folder] += 1


def attention_rules(mine: str, theirs: str, attention: Attention) -> list[Rule]:
    """Three linear layers, where ours is one 1x1 convolution: for each head its q, k and v, or all q, all k, all v."""
    shape = (3, attention.heads) if attention.by_part else (attention.heads, 3)
    heads = 1 if attention.by_part else 0

    def join(*parts: Tensor) -> list[Tensor]:  # (C, C) or (C,) each
        qkv = torch.stack([part.unflatten(0, (attention.heads, -1)) for part in parts], dim=1 - heads).flatten(0, 2)
        return [qkv[..., None] if qkv.ndim == 2 else qkv]

    def split(qkv: Tensor) -> Sequence[Tensor]:  # (3C, C, 1) or (3C,)
        parts = qkv.unflatten(0, (*shape, -1)).unbind(1 - heads)
        return [(part[..., 0] if qkv.ndim == 3 else part).flatten(0, 1) for part in parts]

    def add_axis(weight: Tensor) -> list[Tensor]:
        return [weight[..., None]]

    def drop_axis(weight: Tensor) -> list[Tensor]:
        return [weight[..., 0]]

    weights, biases = (tuple(f"{theirs}.to_{name}.{part}" for name in "qkv") for part in ("weight", "bias"))
    return [
        *layer(f"{mine}.norm", f"{theirs}.group_norm"),
        Rule((f"{mine}.qkv.weight",), weights, join, split),
        Rule((f"{mine}.qkv.bias",), biases, join, split),
        Rule((f"{mine}.out.weight",), (f"{theirs}.to_out.0.weight",), add_axis, drop_axis),
        Rule((f"{mine}.out.bias",), (f"{theirs}.to_out.0.bias",)),
    ]


def time_rules(mine: str, theirs: str, sines_first: bool) -> list[Rule]:
    """The layer on the time's sinusoid: our columns are cosines, then sines, then a 0 where the width is odd."""

    def swap(weight: Tensor) -> list[Tensor]:
        half = weight.shape[1] // 2
        first, second, rest = weight.split([half, half, weight.shape[1] - 2 * half], dim=1)
        return [torch.cat([second, first, rest], dim=1) if sines_first else weight]

    return [
        Rule((f"{mine}.weight",), (f"{theirs}.weight",), swap, swap),
        Rule((f"{mine}.bias",), (f"{theirs}.bias",)),
    ]


def current(theirs: ForeignTensors) -> dict[str, Tensor]:
    """Their tensors under today's names."""
    renamed = {}
    for name, tensor in theirs.items():
        for old, new in DEPRECATED.items():
            name = name.replace(old, new) if "attentions." in name else name
        renamed[name] = tensor
    return renamed

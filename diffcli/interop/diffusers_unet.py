"""UNet2DModel of diffusers: its configuration to and from ours, and its tensors as a table of renamings."""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor

from diffcli.interop.foreign import Foreign
from diffcli.interop.places import NETWORK, Place, class_rules, held, places
from diffcli.interop.weights import Rule, Tensors, absent, layer, layers
from diffcli.networks.layers import Attention
from diffcli.networks.unet import UNet

LABELS = "class_embedding.weight"
PERIOD = 10_000

DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [224, 448, 672, 896],
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
}
EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "freq_shift": (0, 1),
    "mid_block_type": ("UNetMidBlock2D", None),
    "mid_block_scale_factor": (1,),
    "downsample_padding": (0, 1),
    "downsample_type": ("conv", "resnet"),
    "upsample_type": ("conv", "resnet"),
    "act_fn": ("silu", "swish"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "class_embed_type": (None,),
}
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
RESAMPLE = {"down": "downsamplers.0", "up": "upsamplers.0"}
DEPRECATED = {  # what old files call the layers of attention
    ".query.": ".to_q.",
    ".key.": ".to_k.",
    ".value.": ".to_v.",
    ".proj_attn.": ".to_out.0.",
}


def diffusers_rules(
    network: UNet, ours: Tensors, null: bool, gone: Sequence[str] = (), sines_first: bool = False
) -> list[Rule]:
    """ours: the tensors of the task. null: whether their table of classes has a row for "no class".

    gone: prefixes of blocks that theirs lacks. sines_first: the order of their time embedding.
    """
    rules = layers(NETWORK, "", ENDS)
    rules += time_rules(f"{NETWORK}.embedding.time.0", "time_embedding.linear_1", sines_first)
    for place in places(network):
        mine, theirs = f"{NETWORK}.{place.name}", named(place)
        if theirs.startswith(tuple(gone)):
            rules.append(absent((name for name in ours if name.startswith(f"{mine}.")), ours))
            continue
        match place.kind:
            case "res":
                rules += layers(mine, theirs, held(RES, mine, ours))
            case "attention":
                rules += attention_rules(mine, theirs, cast(Attention, place.module))
            case "resample":
                rules += layer(f"{mine}.conv", f"{theirs}.conv")
    return rules + class_rules(ours, LABELS, null)


def named(place: Place) -> str:
    """Their name of a block: they count by kind within each level."""
    side = SIDES[place.side].format(place.level)
    if place.stage == -1:
        return f"{side}.{RESAMPLE[place.side]}"
    in_middle = place.side == "middle"  # res, attention, res
    if place.kind == "attention":
        return f"{side}.attentions.{0 if in_middle else place.stage}"
    return f"{side}.resnets.{place.stage // 2 if in_middle else place.stage}"


def attention_rules(mine: str, theirs: str, attention: Attention) -> list[Rule]:
    """Three linear layers, where ours is one 1x1 convolution that holds for each head its q, k and v."""
    heads = attention.heads

    def join(*parts: Tensor) -> list[Tensor]:  # (C, C) or (C,) each
        qkv = torch.stack(parts).unflatten(1, (heads, -1)).transpose(0, 1).flatten(0, 2)
        return [qkv[..., None] if qkv.ndim == 2 else qkv]

    def split(qkv: Tensor) -> Sequence[Tensor]:  # (3C, C, 1) or (3C,)
        parts = qkv.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(1, 2)
        return (parts[..., 0] if qkv.ndim == 3 else parts).unbind(0)

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


def current(theirs: Tensors) -> dict[str, Tensor]:
    """Their tensors under today's names."""
    renamed = {}
    for name, tensor in theirs.items():
        for old, new in DEPRECATED.items():
            name = name.replace(old, new) if "attentions." in name else name
        renamed[name] = tensor
    return renamed


def read_config(config: Foreign) -> dict[str, Any]:
    """The raw tree of `task.network`. Raises UserError naming the key of theirs that we cannot express."""
    config.demand(EXPRESSIBLE)
    widths = config.get("block_out_channels")
    width = widths[0]
    config.demand({"time_embedding_dim": (None, 4 * width)})
    if any(w % width for w in widths):
        raise config.refuse("block_out_channels", "where the first does not divide the others, as diffcli's width must")
    check_norms(config)
    half = width // 2
    return {
        "kind": "unet",
        "width": width,
        "mult": [w // width for w in widths],
        "blocks": ["res", "attention"] * config.get("layers_per_block"),
        "attend_at": attended_sizes(config),
        **heads(config, widths),
        "dropout": config.get("dropout"),
        "embed": {"default": "add", "scale_shift": "scale_shift"}[config.get("resnet_time_scale_shift")],
        "resample": resampling(config),
        "groups": config.get("norm_num_groups"),
        "norm_eps": config.get("norm_eps"),
        "max_period": PERIOD ** (half / (half - 1)) if config.get("freq_shift") else PERIOD,
        "down_padding": "end" if config.get("downsample_padding") == 0 else "both",
    }


def heads(config: Foreign, widths: Sequence[int]) -> dict[str, int]:
    """head_dim, or one head where they have no dimension."""
    dim = config.get("attention_head_dim")
    if dim is None:
        return {"heads": 1}
    attended = [w for w, (down, up) in zip(widths, attends(config), strict=True) if down or up]
    if any(w % dim for w in [*attended, widths[-1]]):
        raise config.refuse("attention_head_dim", f"which does not divide block_out_channels {list(widths)}")
    return {"head_dim": dim}


def check_norms(config: Foreign) -> None:
    """Every norm has the same number of groups here."""
    groups, of_middle = config.get("norm_num_groups"), config.get("attn_norm_num_groups")
    if not isinstance(groups, int):
        raise config.refuse("norm_num_groups", "but diffcli needs a number")
    attends_in_middle = config.get("mid_block_type") and config.get("add_attention")
    without = of_middle is None and config.get("resnet_time_scale_shift") != "default"
    if attends_in_middle and (without or of_middle not in (None, groups)):
        raise config.refuse("attn_norm_num_groups", f"but diffcli's attention has a norm of norm_num_groups = {groups}")


def attends(config: Foreign) -> list[tuple[bool, bool]]:
    """Whether the encoder and the decoder attend at each level."""
    down, up = config.get("down_block_types"), config.get("up_block_types")
    return [
        (d.endswith("AttnDownBlock2D"), u.endswith("AttnUpBlock2D")) for d, u in zip(down, reversed(up), strict=True)
    ]


def attended_sizes(config: Foreign) -> list[int]:
    """Feature-map sizes at which either side attends."""
    size = config.get("sample_size")
    if size is None:
        raise config.refuse("sample_size", "so nobody knows the size of the images", "write the size into the file")
    sizes = [size if isinstance(size, int) else max(size)]
    for _ in config.get("block_out_channels")[1:]:
        sizes.append(-(-sizes[-1] // 2))
    return [s for s, either in zip(sizes, attends(config), strict=True) if any(either)]


def resampling(config: Foreign) -> str:
    """residual or conv: the one way in which all levels resample."""
    ways = {
        "down_block_types": {
            "DownBlock2D": "conv",
            "AttnDownBlock2D": config.get("downsample_type"),
            "ResnetDownsampleBlock2D": "resnet",
        },
        "up_block_types": {
            "UpBlock2D": "conv",
            "AttnUpBlock2D": config.get("upsample_type"),
            "ResnetUpsampleBlock2D": "resnet",
        },
    }
    found = set()
    for key, known in ways.items():
        names = [name.removeprefix("UNetRes") for name in config.get(key)]
        if not set(names) <= set(known):
            raise config.refuse(key, f"of which diffcli has {', '.join(known)}")
        found |= {known[name] for name in names[:-1]}  # the last does not resample
        if len(found) > 1:
            raise config.refuse(
                key, "which resample by convolutions and by residual blocks; diffcli's U-Net by one of them"
            )
    return "residual" if found == {"resnet"} else "conv"


def gone(config: Foreign) -> list[str]:
    """Prefixes of the parts that ours has and theirs lacks: the attention of one side only, and the middle."""
    found = []
    if config.get("mid_block_type") is None:
        found.append("mid_block.")
    elif not config.get("add_attention"):
        found.append("mid_block.attentions.")
    last = len(config.get("block_out_channels")) - 1
    for level, (down, up) in enumerate(attends(config)):
        if up and not down:
            found.append(f"down_blocks.{level}.attentions.")
        if down and not up:
            found.append(f"up_blocks.{last - level}.attentions.")
    return found

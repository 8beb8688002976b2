"""UNet2DModel of diffusers: its configuration to and from `task.network`, refused by key where the two differ.

What UNet2DConditionModel has in common with it (`read_common`, `write_common`, `refuse_inexpressible`) is here, too.

The keys and their defaults are those of the library's documentation; what a weight can express is left to diffusers_unet.py.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from diffcli.config import ImageShape, UserError
from diffcli.interop import blockers
from diffcli.interop.foreign import Foreign, one_sided
from diffcli.networks.group_norm import GroupNorm
from diffcli.networks.layers import Attention
from diffcli.networks.unet import UNet, stages

PERIOD = 10_000
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}
EMBEDS = {"default": "add", "scale_shift": "scale_shift"}

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
    "act_fn": tuple(ACTIVATIONS),
    "resnet_time_scale_shift": tuple(EMBEDS),
    "class_embed_type": (None,),
}
UNLIKE = {"mult": "at this data.size", "width": "beside another first level", "groups": "at these widths"}
OWN = {
    "blocks": "--set 'task.network.blocks=[res, attention]', or [res] alone",
    "middle": "--set 'task.network.middle=[res, res]'",
    "resample": "--set task.network.resample=residual",
}
LIKE = {  # what to train with, for keys that both classes see alike
    "activation": "--set task.network.activation=silu",
    "fold": "--set task.network.fold=1",
    "max_period": f"--set task.network.max_period={PERIOD}",
    "mult": "a data.size that can be halved at every level",
    "width": "task.network.mult that begins with 1",
}


def read_config(config: Foreign) -> dict[str, Any]:
    """The raw tree of `task.network`. Raises UserError naming the key of theirs that we cannot express."""
    config.demand(EXPRESSIBLE)
    common = read_common(config)
    check_norms(config)
    return {
        **common,
        "blocks": (["res", "attention"] if common["attend_at"] else ["res"]) * config.get("layers_per_block"),
        "middle": middle(config),
        **heads(config, level_widths(config)),
        "resample": resampling(config),
    }


def read_common(config: Foreign) -> dict[str, Any]:
    """The keys of `task.network` that both classes say alike."""
    widths = level_widths(config)
    width = widths[0]
    if not isinstance(config.get("norm_num_groups"), int):
        raise config.refuse("norm_num_groups", "but diffcli needs a number")
    return {
        "kind": "unet",
        "width": width,
        "mult": [w // width for w in widths],
        "attend_at": attended_sizes(config),
        "dropout": config.get("dropout"),
        "activation": ACTIVATIONS[config.get("act_fn")],
        "embed": EMBEDS[config.get("resnet_time_scale_shift")],
        "groups": config.get("norm_num_groups"),
        "norm_eps": config.get("norm_eps"),
        "max_period": shifted_period(width) if config.get("freq_shift") else PERIOD,
        "down_padding": "end" if config.get("downsample_padding") == 0 else "both",
    }


def shifted_period(width: int) -> float:
    """The period at which our frequencies are theirs with freq_shift 1, which reach 1 / PERIOD itself."""
    half = width // 2
    return float(PERIOD ** (half / (half - 1)))


def middle(config: Foreign) -> list[str]:
    """The blocks of the middle."""
    if config.get("mid_block_type") is None:
        return []
    return ["res", "attention", "res"] if config.get("add_attention") else ["res", "res"]


def heads(config: Foreign, widths: Sequence[int]) -> dict[str, int]:
    """head_dim, or one head where they have no dimension."""
    dim = config.get("attention_head_dim")
    if dim is None:
        return {"heads": 1}
    attended = [w for w, (down, up) in zip(widths, attends(config), strict=True) if down or up]
    if "attention" in middle(config):
        attended.append(widths[-1])
    if any(w % dim for w in attended):
        raise config.refuse("attention_head_dim", f"which does not divide block_out_channels {list(widths)}")
    return {"head_dim": dim}


def check_norms(config: Foreign) -> None:
    """Every norm has the same number of groups here."""
    groups, of_middle = config.get("norm_num_groups"), config.get("attn_norm_num_groups")
    without = of_middle is None and config.get("resnet_time_scale_shift") != "default"
    if "attention" in middle(config) and (without or of_middle not in (None, groups)):
        raise config.refuse("attn_norm_num_groups", f"but diffcli's attention has a norm of norm_num_groups = {groups}")


def level_widths(config: Foreign) -> list[int]:
    """The channels of each level, the finest first. Raises UserError where ours cannot have them."""
    widths = config.get("block_out_channels")
    config.demand({"time_embedding_dim": (None, 4 * widths[0])})
    if any(w % widths[0] for w in widths):
        raise config.refuse("block_out_channels", "where the first does not divide the others, as diffcli's width must")
    return list(widths)


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
    """See `one_sided`."""
    return one_sided(attends(config), "down_blocks.", "up_blocks.")


def write_config(network: UNet, shape: ImageShape) -> dict[str, Any]:
    """Their configuration of our network. Raises UserError naming the key of ours that they cannot express."""
    config = network.config
    check_expressible(network, shape)
    attend = attending(network, shape, "attention")
    residual = config.resample == "residual"
    plain = {"down": "ResnetDownsampleBlock2D", "up": "ResnetUpsampleBlock2D"}
    if not residual:
        plain = {"down": "DownBlock2D", "up": "UpBlock2D"}
    way = "resnet" if residual else "conv"
    return {
        **write_common(network),
        "down_block_types": ["AttnDownBlock2D" if here else plain["down"] for here in attend],
        "up_block_types": ["AttnUpBlock2D" if here else plain["up"] for here in reversed(attend)],
        "mid_block_type": "UNetMidBlock2D" if config.middle else None,
        "add_attention": "attention" in config.middle,
        "downsample_type": way,
        "upsample_type": way,
        "attention_head_dim": head_dim(network),
        "attn_norm_num_groups": next(iter(norm_groups(network))),
    }


def attending(network: UNet, shape: ImageShape, block: str) -> list[bool]:
    """Whether the blocks of each level attend, by blocks of this name."""
    config = network.config
    sizes = config.sizes(max(shape.height, shape.width))
    return [size in config.attend_at and block in config.blocks for size in sizes]


def write_common(network: UNet) -> dict[str, Any]:
    """The keys of theirs that both classes say alike."""
    config = network.config
    return {
        "block_out_channels": config.widths,
        "layers_per_block": len(stages(config.blocks)),
        "downsample_padding": 0 if config.down_padding == "end" else 1,
        "freq_shift": 0 if config.max_period == PERIOD else 1,
        "flip_sin_to_cos": True,
        "dropout": config.dropout,
        "act_fn": config.activation,
        "norm_num_groups": next(iter(norm_groups(network))),
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.embed == "scale_shift" else "default",
    }


def check_expressible(network: UNet, shape: ImageShape) -> None:
    """Raises UserError naming each key of `task.network` that UNet2DModel does not have."""
    config = network.config
    own = {
        "middle": list(config.middle) in ([], ["res", "res"], ["res", "attention", "res"]),
        "resample": config.resample in ("residual", "conv"),
    }
    refuse_inexpressible("UNet2DModel", network, shape, "attention", own, OWN)


def refuse_inexpressible(
    name: str, network: UNet, shape: ImageShape, attention: str, own: Mapping[str, bool], like: Mapping[str, str]
) -> None:
    """Raises UserError naming each key of `task.network` that the class `name` of theirs cannot be.

    attention: the block that may follow every res. own: whether it can be that, for keys that the classes see differently.
    like: what to train with, for these and for blocks.
    """
    config = network.config
    grouped = stages(config.blocks)
    factor = 2 ** (len(config.mult) - 1)
    periods = (float(PERIOD), shifted_period(config.width))
    checks = {
        "fold": config.fold == 1,
        "blocks": any(all(names == stage for names in grouped) for stage in (["res"], ["res", attention])),
        **own,
        "activation": config.activation in ACTIVATIONS,
        "max_period": any(math.isclose(config.max_period, period, rel_tol=1e-9) for period in periods),
        "mult": shape.height % factor == 0 and shape.width % factor == 0,  # they cannot halve an odd size
        "width": config.widths[0] == config.width,  # theirs embed time as wide as the first level
        "groups": len(norm_groups(network)) == 1,  # they have one number for all norms
    }
    like = {**LIKE, **like, "groups": f"--set task.network.groups={common_groups(network)}"}
    errors = []
    for key, expressible in checks.items():
        if not expressible:
            found = json.dumps(config.model_dump(mode="json")[key])
            errors.append(
                UserError(
                    f"task.network.{key} is {found}, which diffusers' {name} cannot express {UNLIKE.get(key, '')}".rstrip(),
                    f"export a model that was trained with {like[key]}",
                )
            )
    blockers.raise_joined(errors)


def norm_groups(network: UNet) -> set[int]:
    """The numbers of groups that the norms of a network have."""
    return {module.groups for module in network.modules() if isinstance(module, GroupNorm)}


def common_groups(network: UNet) -> int:
    """A number of groups that every norm of a network can have, at most that of its preset."""
    widths = [module.weight.numel() for module in network.modules() if isinstance(module, GroupNorm)]
    return math.gcd(network.config.groups, *widths)


def head_dim(network: UNet) -> int | None:
    """attention_head_dim; None is one head."""
    attentions = [module for module in network.modules() if isinstance(module, Attention)]
    if all(attention.heads == 1 for attention in attentions):
        return None
    dims = {attention.norm.weight.numel() // attention.heads for attention in attentions}
    if len(dims) > 1:
        raise UserError(
            f"task.network.heads is {network.config.heads}, so heads have {', '.join(map(str, sorted(dims)))} channels; "
            "diffusers' UNet2DModel has one number of channels for all",
            "export a model that was trained with task.network.head_dim",
        )
    return dims.pop()

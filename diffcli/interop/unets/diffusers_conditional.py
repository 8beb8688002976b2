"""UNet2DConditionModel of diffusers, the U-Net of Stable Diffusion: its configuration to and from `task.network`.

The keys and their defaults are those of the library's documentation. Its `attention_head_dim` is a number of heads; its spatial
transformers have a norm of their own epsilon, 1e-6, which is no key of theirs.
"""

from collections.abc import Sequence
from typing import Any

from diffcli.config import ImageShape, UserError
from diffcli.interop.foreign import Foreign
from diffcli.interop.unets.diffusers_config import (
    PERIOD,
    attended_sizes,
    attends,
    level_widths,
    norm_groups,
    shifted_period,
)
from diffcli.networks.attention_blocks import SpatialTransformer
from diffcli.networks.blocks import stages
from diffcli.networks.unet import UNet

TRANSFORMER_EPS = 1e-6

DEFAULTS: dict[str, Any] = {
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "only_cross_attention": False,
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "dual_cross_attention": False,
    "use_linear_projection": False,
    "class_embed_type": None,
    "addition_embed_type": None,
    "num_class_embeds": None,
    "upcast_attention": False,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
BLOCKS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu"}
EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn", None),
    "only_cross_attention": (False,),
    "downsample_padding": (0, 1),
    "mid_block_scale_factor": (1,),
    "act_fn": tuple(ACTIVATIONS),
    "reverse_transformer_layers_per_block": (None,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "dual_cross_attention": (False,),
    "class_embed_type": (None,),
    "addition_embed_type": (None,),
    "num_class_embeds": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "resnet_skip_time_act": (False,),
    "resnet_out_scale_factor": (1.0,),
    "time_embedding_type": ("positional",),
    "time_embedding_act_fn": (None,),
    "timestep_post_act": (None,),
    "time_cond_proj_dim": (None,),
    "freq_shift": (0, 1),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "attention_type": ("default",),
    "class_embeddings_concat": (False,),
    "mid_block_only_cross_attention": (None, False),
    "cross_attention_norm": (None,),
}


def read_config(config: Foreign) -> dict[str, Any]:
    """The raw tree of `task.network`. Raises UserError naming the key of theirs that we cannot express."""
    config.demand(EXPRESSIBLE)
    widths = level_widths(config)
    width = widths[0]
    for key, known in BLOCKS.items():
        if not set(config.get(key)) <= set(known):
            raise config.refuse(key, f"of which diffcli has {', '.join(known)}")
    if not isinstance(config.get("norm_num_groups"), int):
        raise config.refuse("norm_num_groups", "but diffcli needs a number")
    if single(config, "transformer_layers_per_block") != 1:
        raise config.refuse("transformer_layers_per_block", "but diffcli's spatial transformers have one layer")
    attended = attended_sizes(config)
    transformer = ["res", "spatial_transformer"]
    return {
        "kind": "unet",
        "width": width,
        "mult": [w // width for w in widths],
        "blocks": (transformer if attended else ["res"]) * single(config, "layers_per_block"),
        "middle": [*transformer, "res"] if config.get("mid_block_type") else [],
        "attend_at": attended,
        **heads(config, widths),
        "dropout": config.get("dropout"),
        "activation": ACTIVATIONS[config.get("act_fn")],
        "embed": {"default": "add", "scale_shift": "scale_shift"}[config.get("resnet_time_scale_shift")],
        "resample": "conv",
        "groups": config.get("norm_num_groups"),
        "norm_eps": config.get("norm_eps"),
        "transformer_eps": TRANSFORMER_EPS,
        "max_period": shifted_period(width) if config.get("freq_shift") else PERIOD,
        "down_padding": "end" if config.get("downsample_padding") == 0 else "both",
    }


def single(config: Foreign, key: str) -> int:
    """The one number that all levels have under a key, which may be a list."""
    values = config.get(key)
    found = set(values) if isinstance(values, list) else {values}
    if len(found) != 1 or not isinstance(next(iter(found)), int):
        raise config.refuse(key, "but diffcli has one number for all levels")
    return int(found.pop())


def heads(config: Foreign, widths: Sequence[int]) -> dict[str, int]:
    """`heads`, where every attention has as many, or `head_dim`, where every head is as wide."""
    key = "num_attention_heads" if config.get("num_attention_heads") else "attention_head_dim"
    values = config.get(key)
    counts = values if isinstance(values, list) else [values] * len(widths)
    acting = [(n, w) for n, w, sides in zip(counts, widths, attends(config), strict=True) if any(sides)]
    if config.get("mid_block_type"):
        acting.append((counts[-1], widths[-1]))
    if any(w % n for n, w in acting):
        raise config.refuse(key, f"which does not divide block_out_channels {list(widths)}")
    if len({n for n, _ in acting}) <= 1:
        return {"heads": acting[0][0]} if acting else {}
    dims = {w // n for n, w in acting}
    if len(dims) > 1:
        raise config.refuse(key, "of which diffcli has one number for all levels, or heads of one width")
    return {"head_dim": dims.pop()}


def write_config(network: UNet, shape: ImageShape) -> dict[str, Any]:
    """Their configuration of our network, whose input is of this shape. Raises UserError naming the key of ours that differs."""
    config = network.config
    check_expressible(network, shape)
    sizes = config.sizes(max(shape.height, shape.width))
    attend = [s in config.attend_at and "spatial_transformer" in config.blocks for s in sizes]
    widths = [config.width * m for m in config.mult]
    return {
        "down_block_types": [BLOCKS["down_block_types"][not here] for here in attend],
        "up_block_types": [BLOCKS["up_block_types"][not here] for here in reversed(attend)],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if config.middle else None,
        "block_out_channels": widths,
        "layers_per_block": len(stages(config.blocks)),
        "downsample_padding": 0 if config.down_padding == "end" else 1,
        "freq_shift": 0 if config.max_period == PERIOD else 1,
        "flip_sin_to_cos": True,
        "dropout": config.dropout,
        "act_fn": config.activation,
        "attention_head_dim": config.heads or [max(w // config.head_dim, 1) for w in widths],
        "norm_num_groups": next(iter(norm_groups(network))),
        "norm_eps": config.norm_eps,
        "cross_attention_dim": network.options.tokens,
        "use_linear_projection": False,
        "resnet_time_scale_shift": "scale_shift" if config.embed == "scale_shift" else "default",
    }


def check_expressible(network: UNet, shape: ImageShape) -> None:
    """Raises UserError at the first key of `task.network` that UNet2DConditionModel does not have."""
    config = network.config
    grouped = stages(config.blocks)
    factor = 2 ** (len(config.mult) - 1)
    pair = ["res", "spatial_transformer"]
    transformers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    checks = {
        "blocks": (
            all(names == ["res"] for names in grouped) or all(names == pair for names in grouped),
            "[res, spatial_transformer] by turns",
        ),
        "middle": (list(config.middle) in ([], [*pair, "res"]), "[res, spatial_transformer, res] or []"),
        "resample": (config.resample == "conv", "conv"),
        "activation": (config.activation in ACTIVATIONS, "silu, gelu or relu"),
        "max_period": (config.max_period in (PERIOD, shifted_period(config.width)), str(PERIOD)),
        "mult": (shape.height % factor == 0 and shape.width % factor == 0, "a size that can be halved at every level"),
        "groups": (len(norm_groups(network)) == 1, "a number that divides all widths"),
        "transformer_eps": (all(module.norm.eps == TRANSFORMER_EPS for module in transformers), f"{TRANSFORMER_EPS:g}"),
    }
    for key, (expressible, instead) in checks.items():
        if not expressible:
            raise UserError(
                f"task.network.{key} is {config.model_dump(mode='json')[key]}, which diffusers' UNet2DConditionModel cannot be",
                f"export a model that was trained with task.network.{key} {instead}",
            )

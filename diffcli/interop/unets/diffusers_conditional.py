"""UNet2DConditionModel of diffusers, the U-Net of Stable Diffusion: its configuration to and from `task.network`.

The keys and their defaults are those of the library's documentation. Its `attention_head_dim` is a number of heads; its spatial
transformers have a norm of their own epsilon, 1e-6, which is no key of theirs.
"""

from collections.abc import Sequence
from typing import Any

from diffcli.config import ImageShape
from diffcli.interop.foreign import Foreign
from diffcli.interop.unets.diffusers_config import (
    ACTIVATIONS,
    EMBEDS,
    attending,
    attends,
    level_widths,
    read_common,
    refuse_inexpressible,
    write_common,
)
from diffcli.networks.attention_blocks import SpatialTransformer
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
OWN = {  # what to train with
    "blocks": "--set 'task.network.blocks=[res, spatial_transformer]', or [res] alone",
    "middle": "--set 'task.network.middle=[res, spatial_transformer, res]'",
    "resample": "--set task.network.resample=conv",
    "transformer_eps": f"--set task.network.transformer_eps={TRANSFORMER_EPS:g}",
}
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
    "resnet_time_scale_shift": tuple(EMBEDS),
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
    common = read_common(config)
    for key, known in BLOCKS.items():
        if not set(config.get(key)) <= set(known):
            raise config.refuse(key, f"of which diffcli has {', '.join(known)}")
    if single(config, "transformer_layers_per_block") != 1:
        raise config.refuse("transformer_layers_per_block", "but diffcli's spatial transformers have one layer")
    transformer = ["res", "spatial_transformer"]
    return {
        **common,
        "blocks": (transformer if common["attend_at"] else ["res"]) * single(config, "layers_per_block"),
        "middle": [*transformer, "res"] if config.get("mid_block_type") else [],
        **heads(config, level_widths(config)),
        "resample": "conv",
        "transformer_eps": TRANSFORMER_EPS,
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
    attend = attending(network, shape, "spatial_transformer")
    common = write_common(network)
    return {
        **common,
        "down_block_types": [BLOCKS["down_block_types"][not here] for here in attend],
        "up_block_types": [BLOCKS["up_block_types"][not here] for here in reversed(attend)],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if config.middle else None,
        "attention_head_dim": config.heads or [max(w // config.head_dim, 1) for w in common["block_out_channels"]],
        "cross_attention_dim": network.options.tokens,
        "use_linear_projection": False,
    }


def check_expressible(network: UNet, shape: ImageShape) -> None:
    """Raises UserError at the first key of `task.network` that UNet2DConditionModel does not have."""
    config = network.config
    transformers = [module for module in network.modules() if isinstance(module, SpatialTransformer)]
    own = {
        "middle": list(config.middle) in ([], ["res", "spatial_transformer", "res"]),
        "resample": config.resample == "conv",
        "transformer_eps": all(module.norm.eps == TRANSFORMER_EPS for module in transformers),
    }
    refuse_inexpressible("UNet2DConditionModel", network, shape, "spatial_transformer", own, OWN)

"""The configurations of diffusers' AutoencoderKL and VQModel, to and from ours; and ours out of the tensors of CompVis' layout.

The keys and their defaults are those of the library's documentation. Both libraries have norms of epsilon 1e-6.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.interop.foreign import Foreign, one_sided
from diffcli.interop.stages.autoencoder_rules import CODEBOOK, COMPVIS, parts
from diffcli.interop.weight_files import ForeignTensors
from diffcli.networks.autoencoder import AutoencoderConfig, FirstStageConfig
from diffcli.networks.bottlenecks import Kl
from diffcli.networks.vector_quantiser import Vq

CLASSES = ("AutoencoderKL", "VQModel")
EPS, GROUPS = 1e-6, 32
PLAIN, ATTENDING = 0, 1
TYPES = {
    "down_block_types": ("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
    "up_block_types": ("UpDecoderBlock2D", "AttnUpDecoderBlock2D"),
}
COMMON: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "mid_block_add_attention": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
OWN: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {"latent_channels": 4},
    "VQModel": {
        "latent_channels": 3,
        "num_vq_embeddings": 256,
        "vq_embed_dim": None,
        "norm_type": "group",
        "lookup_from_codebook": False,
    },
}


class Scaling(NamedTuple):
    """z = (latent - shift) / scale, both (C,) float32."""

    shift: Tensor
    scale: Tensor


def defaults(name: str) -> dict[str, Any]:
    """Keys of a class and their defaults."""
    return COMMON | OWN[name]


def read_config(config: Foreign) -> dict[str, Any]:
    """The raw tree of a FirstStageConfig. Raises UserError with a key of theirs that diffcli cannot express."""
    config.demand({"act_fn": ("silu", "swish"), "norm_type": ("group", None), "lookup_from_codebook": (False, None)})
    widths, width = config.get("block_out_channels"), config.get("block_out_channels")[0]
    if any(w % width for w in widths):
        raise config.refuse("block_out_channels", "where the first does not divide the others, as diffcli's width must")
    if config.get("out_channels") != config.get("in_channels"):
        raise config.refuse("out_channels", f"but in_channels is {config.get('in_channels')}")
    latent, features = config.get("latent_channels"), None
    bottleneck: dict[str, Any] = {"kind": "kl"}
    if config.get("num_vq_embeddings") is not None:
        bottleneck = {"kind": "vq", "codes": config.get("num_vq_embeddings"), "start": "random"}
        features, latent = latent, config.get("vq_embed_dim") or latent
    return {
        "network": {
            "width": width,
            "mult": [w // width for w in widths],
            "depth": config.get("layers_per_block"),
            "attend": [2**i for i, sides in enumerate(attends(config)) if any(sides)],
            "middle_attention": config.get("mid_block_add_attention"),
            "latent": latent,
            "features": None if features == latent else features,
            "groups": config.get("norm_num_groups"),
            "norm_eps": EPS,
        },
        "bottleneck": bottleneck,
        "channels": config.get("in_channels"),
    }


def attends(config: Foreign) -> list[tuple[bool, bool]]:
    """Whether the encoder and the decoder attend at each level, the finest first."""
    sides = []
    for key, known in TYPES.items():
        names = config.get(key)
        if not set(names) <= set(known):
            raise config.refuse(key, f"of which diffcli has {', '.join(known)}")
        sides.append([name == known[ATTENDING] for name in names])
    return list(zip(sides[0], reversed(sides[1]), strict=True))


def gone(config: Foreign) -> list[str]:
    """See `one_sided`."""
    return one_sided(attends(config), "encoder.down_blocks.", "decoder.up_blocks.")


def scaling(config: Foreign, channels: int) -> Scaling:
    """Theirs is (latent - shift) times a factor, or first divided by a deviation of each channel."""
    means, deviations = config.get("latents_mean"), config.get("latents_std")
    shift, scale = torch.full((channels,), float(config.get("shift_factor") or 0)), torch.ones(channels)
    if means is not None and deviations is not None:
        shift, scale = torch.tensor(means), torch.tensor(deviations)
    return Scaling(shift, scale / config.get("scaling_factor"))


def derived(theirs: ForeignTensors, source: str) -> dict[str, Any]:
    """The raw tree of the FirstStageConfig of tensors in CompVis' layout: all that their configuration says is a shape."""
    levels = numbers(theirs, "encoder.down.")
    depth = len(numbers(theirs, "encoder.down.0.block."))
    widths = [theirs[f"encoder.down.{i}.block.{depth - 1}.conv2.weight"].shape[0] for i in range(len(levels))]
    width, channels = theirs["encoder.conv_in.weight"].shape[:2]
    if any(w % width for w in widths) or "quant_conv.weight" not in theirs or "decoder.conv_in.weight" not in theirs:
        raise UserError(
            f"{source}: its encoder, {' to '.join(map(str, widths))} wide, is none that diffcli has",
            "it can only be used with the library that wrote it",
        )
    given, latent = theirs["quant_conv.weight"].shape[0], theirs["post_quant_conv.weight"].shape[1]
    features = theirs["decoder.conv_in.weight"].shape[1]
    bottleneck: dict[str, Any] = {"kind": "kl"}
    if CODEBOOK in theirs:
        bottleneck = {"kind": "vq", "codes": len(theirs[CODEBOOK]), "start": "random"}
    elif given != 2 * latent:
        raise UserError(
            f"{source}: its encoder gives {given} channels for latents of {latent}, but holds no {CODEBOOK}",
            "only autoencoders with a normal posterior or a codebook of that name can be imported",
        )
    attending = {
        i for i in range(len(levels)) for side in ("encoder.down", "decoder.up") if attended(theirs, f"{side}.{i}")
    }
    return {
        "network": {
            "width": width,
            "mult": [w // width for w in widths],
            "depth": depth,
            "attend": [2**i for i in sorted(attending)],
            "middle_attention": "encoder.mid.attn_1.q.weight" in theirs,
            "latent": latent,
            "features": None if features == latent else features,
            "groups": GROUPS,
            "norm_eps": EPS,
        },
        "bottleneck": bottleneck,
        "channels": channels,
    }


def numbers(theirs: ForeignTensors, prefix: str) -> set[str]:
    """The numbers of a list of modules."""
    return {name.removeprefix(prefix).partition(".")[0] for name in theirs if name.startswith(prefix)}


def attended(theirs: ForeignTensors, level: str) -> bool:
    return f"{level}.attn.0.q.weight" in theirs


def gone_of(theirs: ForeignTensors, config: AutoencoderConfig) -> list[str]:
    """As `gone`, of tensors in CompVis' layout."""
    found = [
        part.theirs
        for side in ("encoder", "decoder")
        for part in parts(config, COMPVIS, side)
        if part.kind == "attention"
    ]
    return [f"{name}." for name in found if f"{name}.q.weight" not in theirs]


def check_expressible(stage: FirstStageConfig) -> None:
    """Raises UserError naming every key of a first stage that neither class of theirs has."""
    network, kind = stage.network, stage.bottleneck.kind
    widths = [network.width * m for m in network.mult]
    checks = {
        "bottleneck.kind": (kind in ("kl", "vq"), kind, "kl"),
        "bottleneck.own": (not (isinstance(stage.bottleneck, Vq) and stage.bottleneck.own), "true", "false"),
        "vector": (stage.vector == 0, stage.vector, None),
        "network.patch": (network.patch == 1, network.patch, 1),
        "network.whole": (network.whole is None, network.whole, None),
        "network.middle_blocks": (network.middle_blocks == 2, network.middle_blocks, 2),
        "network.norm_eps": (network.norm_eps == EPS, network.norm_eps, EPS),
        "network.groups": (not any(w % network.groups for w in widths), network.groups, math.gcd(GROUPS, *widths)),
        "network.features": (kind == "vq" or network.features in (None, network.latent), network.features, None),
    }
    wrong, typed = [], []
    for key, (expressible, found, instead) in checks.items():
        if not expressible:
            name = "embedding" if key == "vector" else key
            wrong.append(f"{key} {found}")
            typed.append(f"--set task.{name}={'null' if instead is None else instead}")
    if wrong:
        raise UserError(
            f"the first stage has {' and '.join(wrong)}, which the autoencoders of diffusers do not have",
            f"it cannot be exported; to export, train another one with {' '.join(typed)}",
        )


def write_config(stage: FirstStageConfig, factor: float, size: int) -> dict[str, Any]:
    """Their configuration of our first stage; factor: what latents are multiplied by. size: of images."""
    network = stage.network
    here = [2**i in network.attend for i in range(len(network.mult))]
    common = {
        "in_channels": stage.channels,
        "out_channels": stage.channels,
        "down_block_types": [TYPES["down_block_types"][each] for each in here],
        "up_block_types": [TYPES["up_block_types"][each] for each in reversed(here)],
        "block_out_channels": [network.width * m for m in network.mult],
        "layers_per_block": network.depth,
        "act_fn": "silu",
        "norm_num_groups": network.groups,
        "sample_size": size,
        "scaling_factor": factor,
        "mid_block_add_attention": network.middle_attention,
        "latent_channels": network.features or network.latent,
    }
    if isinstance(stage.bottleneck, Kl):
        return {"_class_name": "AutoencoderKL", **common}
    assert isinstance(stage.bottleneck, Vq)
    quantiser = {"num_vq_embeddings": stage.bottleneck.codes, "vq_embed_dim": network.latent, "norm_type": "group"}
    return {"_class_name": "VQModel", **common, **quantiser}

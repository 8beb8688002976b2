"""Diffusion transformers: DiT and SiT in the layout of their authors, DiTTransformer2DModel of diffusers.

DiT's parameters have the published names here too. SiT is the same network on the flow path with time run backwards, in
[0, 1], and the opposite sign of velocity: tau = 1 - t and v = x0 - eps, folded here into the layers that time enters and
velocity leaves. SiT's outputs for a variance, which it never uses, are dropped.
Source: Peebles & Xie 2022 (arXiv 2212.09748); Ma et al. 2024 (SiT, arXiv 2401.08740), section 2.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.interop import blockers
from diffcli.interop.foreign import Foreign
from diffcli.interop.unets.places import CLASSES, NETWORK
from diffcli.interop.weight_files import ForeignTensors, Rule, layers, some
from diffcli.networks.dit import TIME_WIDTH, DiTConfig
from diffcli.networks.patches import sincos

MARK = "x_embedder.proj.weight"  # a name by which their files are known
LABELS = "y_embedder.embedding_table.weight"
POSITIONS = "pos_embed"  # fixed, and in their files all the same
TIME_SCALE = 1e-3  # SiT gets times 0..1, others 0..1000
HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # by the published widths, S, B, L and XL; shapes do not determine them
ROUND = 10  # divisor of the number of classes; decides whether a further row is "no class" if nothing else does
GUIDED = 3  # channels, of the four of their latents
PERIOD = 10_000
DIFFUSERS_PERIOD = PERIOD ** (TIME_WIDTH / (TIME_WIDTH - 2))  # their frequencies reach 1 / PERIOD itself

ENDS = {name: name for name in ("x_embedder.proj", "t_embedder.mlp.2", "final_layer.adaLN_modulation.1")}
TIME, FINAL = "t_embedder.mlp.0", "final_layer.linear"
BLOCK = {name: name for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1")}

DIFFUSERS_ENDS = {
    "x_embedder.proj": "pos_embed.proj",
    "final_layer.adaLN_modulation.1": "proj_out_1",
    "final_layer.linear": "proj_out_2",
}
DIFFUSERS_BLOCK = {
    "attn.proj": "attn1.to_out.0",
    "mlp.fc1": "ff.net.0.proj",
    "mlp.fc2": "ff.net.2",
    "adaLN_modulation.1": "norm1.linear",
}
DIFFUSERS_SHARED = {  # one tensor of ours, a copy in every block of theirs
    f"{NETWORK}.t_embedder.mlp.0.weight": "norm1.emb.timestep_embedder.linear_1.weight",
    f"{NETWORK}.t_embedder.mlp.0.bias": "norm1.emb.timestep_embedder.linear_1.bias",
    f"{NETWORK}.t_embedder.mlp.2.weight": "norm1.emb.timestep_embedder.linear_2.weight",
    f"{NETWORK}.t_embedder.mlp.2.bias": "norm1.emb.timestep_embedder.linear_2.bias",
    CLASSES: "norm1.emb.class_embedder.embedding_table.weight",
}
DEFAULTS: dict[str, Any] = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "in_channels": 4,
    "out_channels": None,
    "num_layers": 28,
    "dropout": 0.0,
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,
    "norm_eps": 1e-5,
}
FORMER = "Transformer2DModel"  # a class of many transformers; DiT is the one with ada_norm_zero
FORMER_DEFAULTS = DEFAULTS | {
    "attention_head_dim": 88,
    "in_channels": None,
    "num_layers": 1,
    "attention_bias": False,
    "sample_size": None,
    "patch_size": None,
    "activation_fn": "geglu",
    "num_embeds_ada_norm": None,
    "norm_type": "layer_norm",
    "norm_elementwise_affine": True,
}
EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "attention_bias": (True,),
    "activation_fn": ("gelu-approximate",),
    "norm_type": ("ada_norm_zero",),
    "norm_elementwise_affine": (False,),
}
OTHER_TRANSFORMERS: dict[str, tuple[Any, ...]] = {  # keys of Transformer2DModel that make it something else
    "cross_attention_dim": (None,),
    "num_vector_embeds": (None,),
    "caption_channels": (None,),
    "only_cross_attention": (None, False),
    "double_self_attention": (None, False),
}
NEEDED = ("in_channels", "sample_size", "patch_size", "num_embeds_ada_norm")


def dit_rules(config: DiTConfig, ours: ForeignTensors, null: bool, flow: bool, variance: bool) -> list[Rule]:
    """The authors' layout. flow: SiT's conventions, where `variance` says whether theirs has outputs for it."""
    rules = layers(NETWORK, "", ENDS)
    for n in range(config.depth):
        rules += layers(f"{NETWORK}.blocks.{n}", f"blocks.{n}", BLOCK)
    rules += class_rules(ours, LABELS, null)
    if not flow:
        return rules + layers(NETWORK, "", {TIME: TIME, FINAL: FINAL})
    take, give = against_velocity(config.patch**2, variance)
    return [
        *rules,
        Rule((f"{NETWORK}.{TIME}.weight",), (f"{TIME}.weight",), against_time, against_time),
        Rule((f"{NETWORK}.{TIME}.bias",), (f"{TIME}.bias",)),
        *(Rule((f"{NETWORK}.{FINAL}.{part}",), (f"{FINAL}.{part}",), take, give) for part in ("weight", "bias")),
    ]


def against_time(weight: Tensor) -> list[Tensor]:
    """The layer on cosines and sines of f (1 - tau), for those of f tau: a reflection, so its own inverse.

    cos(f (1 - tau)) = cos f cos(f tau) + sin f sin(f tau) and sin(f (1 - tau)) = sin f cos(f tau) - cos f sin(f tau).
    """
    half = TIME_WIDTH // 2
    f = torch.exp(torch.arange(half, dtype=torch.float64, device=weight.device) * (-math.log(PERIOD) / half))
    cosines, sines = weight.double().chunk(2, dim=1)
    turned = [cosines * f.cos() + sines * f.sin(), cosines * f.sin() - sines * f.cos()]
    return [torch.cat(turned, dim=1).to(weight)]


def against_velocity(
    pixels: int, variance: bool
) -> tuple[Callable[[Tensor], list[Tensor]], Callable[[Tensor], list[Tensor]]]:
    """The last layer with its sign changed, its outputs ordered by pixel of the patch, then channel; and back."""

    def take(theirs: Tensor) -> list[Tensor]:
        by_pixel = theirs.unflatten(0, (pixels, -1))
        kept = by_pixel.shape[1] // 2 if variance else by_pixel.shape[1]
        return [-by_pixel[:, :kept].flatten(0, 1)]

    def give(ours: Tensor) -> list[Tensor]:
        by_pixel = -ours.unflatten(0, (pixels, -1))
        unused = [torch.zeros_like(by_pixel)] if variance else []
        return [torch.cat([by_pixel, *unused], dim=1).flatten(0, 1)]

    return take, give


def class_rules(ours: ForeignTensors, theirs: str, null: bool) -> list[Rule]:
    """The table of class embeddings, as wide as the network; ours ends in a row for "no class", theirs where `null`."""
    if CLASSES not in ours:
        return []
    return [
        Rule(
            (CLASSES,),
            (theirs,),
            lambda table: [table if null else torch.cat([table, torch.zeros(1, table.shape[1])])],
            lambda table: [table if null else table[:-1]],
        )
    ]


def diffusers_rules(config: DiTConfig, ours: ForeignTensors) -> list[Rule]:
    """DiTTransformer2DModel, whose table of classes always ends in "no class"."""
    rules = layers(NETWORK, "", DIFFUSERS_ENDS)
    blocks = [f"transformer_blocks.{n}" for n in range(config.depth)]
    for n, theirs in enumerate(blocks):
        mine = f"{NETWORK}.blocks.{n}"
        rules += layers(mine, theirs, DIFFUSERS_BLOCK)
        for part in ("weight", "bias"):
            names = tuple(f"{theirs}.attn1.to_{name}.{part}" for name in "qkv")
            rules.append(
                Rule((f"{mine}.attn.qkv.{part}",), names, lambda *qkv: [torch.cat(qkv)], lambda qkv: qkv.chunk(3))
            )
    for mine, name in DIFFUSERS_SHARED.items():
        rules.append(shared(mine, tuple(f"{block}.{name}" for block in blocks)))
    return rules


def shared(ours: str, theirs: tuple[str, ...]) -> Rule:
    """One tensor of ours of which theirs has a copy in every block."""

    def take(*copies: Tensor) -> Sequence[Tensor]:
        different = [name for name, copy in zip(theirs, copies, strict=True) if not torch.equal(copy, copies[0])]
        if different:
            raise UserError(
                f"{some(different)}: differ from {theirs[0]}; diffcli's DiT embeds time and class once for all blocks, "
                "as the published ones do",
                "this model can only be used with the library that wrote it",
            )
        return copies[:1]

    return Rule((ours,), theirs, take, lambda tensor: [tensor] * len(theirs))


def check_positions(theirs: Tensor, config: DiTConfig, source: str) -> None:
    """Raises UserError unless the positions in a file, (1, L, D), are the fixed ones that the network computes itself."""
    side = math.isqrt(theirs.shape[1])
    ours = sincos((side, side), config.width, torch.device("cpu"))
    if config.positions != "sincos" or theirs[0].shape != ours.shape or not torch.allclose(theirs[0], ours, atol=1e-3):
        raise UserError(
            f"{source}: {POSITIONS} {list(theirs.shape)} is not the sin-cos embedding of the paper at width {config.width}",
            "name a preset of that width and task.network.positions sincos; learned positions cannot be imported",
        )


def derived(
    theirs: ForeignTensors, arguments: Mapping[str, Any], source: str
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Raw keys of a preset of the DiT or SiT in a state dict, and notes of what was taken for granted.

    arguments: the arguments of its training, if the file has them. Raises UserError if its heads are unknown, or if a SiT
    follows another path.
    """
    width, channels, patch, _ = theirs[MARK].shape
    if width not in HEADS or LABELS not in theirs or POSITIONS not in theirs:
        raise UserError(
            f"{source}: a DiT {width} wide is none of the published sizes ({', '.join(map(str, HEADS))}), "
            "and shapes do not determine its heads",
            "write a preset that describes it and give --as PRESET",
        )
    flow, notes = follows_flow(arguments, source), []
    if flow is None:
        notes.append(f"{source} is assumed to be a DiT; a SiT, which has the same tensors, needs --as sit-xl-2")
    classes, null = counted_classes(len(theirs[LABELS]), arguments)
    if "num_classes" not in arguments:
        row = "a row for no class" if null else "none for no class, so it cannot be guided"
        notes.append(f"{source}: {len(theirs[LABELS])} rows of classes are assumed to be {classes} classes and {row}")
    depth = len({name.split(".")[1] for name in theirs if name.startswith("blocks.")})
    variance = theirs[f"{FINAL}.bias"].numel() // patch**2 == 2 * channels
    network = {"kind": "dit", "patch": patch, "width": width, "depth": depth, "heads": HEADS[width]}
    raw = {
        "data": {"kind": "none", "size": patch * math.isqrt(theirs[POSITIONS].shape[1]), "channels": channels},
        "task": {
            "kind": "diffusion",
            "target": "flow" if flow else "eps",
            "learn_variance": variance and not flow,
            "schedule": {"kind": "flow"} if flow else {"kind": "linear", "steps": 1000},
            "network": network | ({"time_scale": TIME_SCALE} if flow else {}),
            "conditioners": [{"kind": "class", "num_classes": classes, "dim": width}],
            "drop_condition": 0.1 if null else 0.0,
            "codec": {"kind": "pixels", "clip": channels in (1, 3)},
        },
        "sampler": {"kind": "heun", "steps": 125} if flow else {"kind": "ddpm", "steps": 250, "spacing": "linspace"},
        **({"guidance": 4, "guide": {"channels": GUIDED}} if null and channels > GUIDED else {}),
    }
    return raw, tuple(notes)


def follows_flow(arguments: Mapping[str, Any], source: str) -> bool | None:
    """Whether a file is a SiT, whose training arguments name its path; None if the file has no such arguments."""
    if not arguments:
        return None
    for key, ours in {"path_type": "Linear", "prediction": "velocity"}.items():
        if arguments.get(key, ours) != ours:
            raise UserError(
                f"{source}: was trained with {key} {arguments[key]!r}, which diffcli does not have",
                f"only a SiT of {key} {ours} can be imported",
            )
    return "path_type" in arguments


def counted_classes(rows: int, arguments: Mapping[str, Any]) -> tuple[int, bool]:
    """Number of classes in a table of so many rows, and whether it ends in a row for "no class".

    Training without dropped classes has no such row. If the file has no arguments, a round number of rows has none.
    """
    known = arguments.get("num_classes")
    null = rows == known + 1 if isinstance(known, int) else rows % ROUND != 0
    return rows - null, null


def read_config(config: Foreign) -> dict[str, Any]:
    """The raw tree of `task.network`. Raises UserError naming the key of theirs that we cannot express."""
    config.demand(EXPRESSIBLE | OTHER_TRANSFORMERS)
    for key in NEEDED:
        if config.get(key) is None:
            raise config.refuse(key, "but a DiT needs a number")
    heads = config.get("num_attention_heads")
    return {
        "kind": "dit",
        "patch": config.get("patch_size"),
        "width": heads * config.get("attention_head_dim"),
        "depth": config.get("num_layers"),
        "heads": heads,
        "dropout": config.get("dropout"),
        "max_period": DIFFUSERS_PERIOD,
        "mlp_eps": config.get("norm_eps"),
    }


def write_config(config: DiTConfig) -> dict[str, Any]:
    """Their configuration of our network. Raises UserError naming the key of ours that they cannot express."""
    errors = []
    for key, value in {"positions": "sincos", "qk_norm": False}.items():
        if getattr(config, key) != value:
            found = json.dumps(getattr(config, key))
            errors.append(
                UserError(
                    f"task.network.{key} is {found}, which diffusers' DiT does not have",
                    f"to export, train with --set task.network.{key}={value if key == 'positions' else 'false'}",
                )
            )
    if not math.isclose(config.max_period, DIFFUSERS_PERIOD, rel_tol=1e-6):
        errors.append(
            UserError(
                f"task.network.max_period is {config.max_period:g}, but diffusers' DiT embeds time with {DIFFUSERS_PERIOD:.6g}, "
                "unlike the paper's code, so the times would differ",
                f"to export, train with --set task.network.max_period={DIFFUSERS_PERIOD!r}",
            )
        )
    blockers.raise_joined(errors)
    return {
        "num_attention_heads": config.heads,
        "attention_head_dim": config.width // config.heads,
        "num_layers": config.depth,
        "patch_size": config.patch,
        "dropout": config.dropout,
        "norm_eps": config.mlp_eps,
        **{key: values[0] for key, values in EXPRESSIBLE.items()},
    }

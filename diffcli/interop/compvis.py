"""The single files of latent-diffusion and Stable Diffusion (CompVis): U-Net, first stage and conditions in one state dict.

The tensors determine everything except attention heads and sizes of training, which are assumed to be those of published models.
Averaged weights, which such files hold under names without dots, are used if there are any.
Source: Rombach et al. 2021 (arXiv 2112.10752), tables 12 to 15; the layout of their code.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.interop.first_stages import INSIDE, ForeignStage, from_compvis
from diffcli.interop.foreign import Foreign
from diffcli.interop.pipelines import DROPPED, GUIDANCE
from diffcli.interop.scheduler import DEFAULTS, recognised
from diffcli.interop.stages.stage_config import EPS, GROUPS, Scaling
from diffcli.interop.unets import places
from diffcli.interop.weight_files import ForeignTensors, Rule

UNET = "model.diffusion_model."
MARK = f"{UNET}input_blocks.0.0.weight"  # a name by which their files are known
AVERAGE = "model_ema."
CLASSES = "cond_stage_model.embedding.weight"  # (K + 1, D); the last row is no class
# a name of a text encoder's tensors -> which encoder it is; its weights are not taken from the file
READ_BY: dict[str, dict[str, Any]] = {
    "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": {
        "model": "openai/clip-vit-large-patch14",
    },
    "cond_stage_model.model.token_embedding.weight": {
        "model": "ViT-H-14",
        "library": "open_clip",
        "pretrained": "laion2b_s32b_b79k",
        "layer": -2,
    },
}
HEADS: dict[
    tuple[int, int | None], dict[str, int]
] = {  # by (width, width of tokens), since shapes do not determine them
    (320, 768): {"heads": 8},
    (320, 1024): {"head_dim": 64},
    (192, 512): {"heads": 1},
    (224, None): {"head_dim": 32},
    (192, None): {"heads": 8},
}
KL_SCALE = 0.18215  # factor for latents of a normal posterior, if a file has none
TRAINED_AT = {True: 512, False: 256}  # pixels, of models of texts and of the others


class LatentFile(NamedTuple):
    """The parts of such a file."""

    unet: dict[str, Tensor]
    stage: ForeignStage
    classes: Tensor | None
    texts: dict[str, Any] | None  # the encoder that reads them
    betas: Tensor | None
    notes: tuple[str, ...]

    @property
    def linear(self) -> bool:
        """Whether its spatial transformers have linear layers at both ends, not convolutions."""
        return any(name.endswith(".proj_in.weight") and tensor.ndim == 2 for name, tensor in self.unet.items())

    @property
    def tokens(self) -> int | None:
        """Width of the tokens for its spatial transformers."""
        name = "attn2.to_k.weight"
        return next((tensor.shape[1] for key, tensor in self.unet.items() if key.endswith(name)), None)


def parts(theirs: ForeignTensors, source: str) -> LatentFile:
    """The content of a file. Raises UserError if the first stage is missing."""
    if not any(name.startswith(INSIDE) for name in theirs):
        raise UserError(
            f"{source}: holds a U-Net of latent-diffusion, but no first stage ({INSIDE}*)",
            "give the whole file of the model",
        )
    stage = from_compvis(theirs, source)
    latent = stage.config.network.latent
    factor = float(theirs["scale_factor"]) if "scale_factor" in theirs else None
    factor = factor or (KL_SCALE if stage.config.bottleneck.kind == "kl" else 1.0)
    stage = stage._replace(scaling=Scaling(torch.zeros(latent), torch.full((latent,), 1 / factor)))
    texts = next((dict(encoder) for name, encoder in READ_BY.items() if name in theirs), None)
    notes = []
    if texts is not None:
        notes.append(
            f"texts are read by {texts['model']}, whose weights are not imported from {source}; give its folder by "
            "sample --set task.conditioners.0.encoder.model=FOLDER"
        )
    if texts is not None and texts.get("library") == "open_clip":
        notes.append(f"{source} is assumed to predict the noise at 512 pixels; a model of v at 768 needs --as PRESET")
    unet = {name.removeprefix(UNET): averaged(name, theirs) for name in theirs if name.startswith(UNET)}
    return LatentFile(unet, stage, theirs.get(CLASSES), texts, theirs.get("betas"), tuple(notes))


def class_rules(ours: ForeignTensors) -> list[Rule]:
    """Their table of classes, a token each, which has a row for no class as ours does."""
    return [Rule((places.CLASSES,), (CLASSES,))] if places.CLASSES in ours else []


def averaged(name: str, theirs: ForeignTensors) -> Tensor:
    """The average of a tensor of the U-Net, where the file has one."""
    found = theirs.get(AVERAGE + name.removeprefix("model.").replace(".", ""))
    return theirs[name] if found is None else found


def derived(file: LatentFile, source: str) -> dict[str, Any]:
    """Raw keys `data`, `task`, `sampler` and `guidance` of a preset. Raises UserError if heads or conditions are unknown."""
    width = file.unet["input_blocks.0.0.weight"].shape[0]
    size = TRAINED_AT[file.texts is not None]
    if (width, file.tokens) not in HEADS or (file.tokens is not None and file.texts is None and file.classes is None):
        heard = "nothing" if file.tokens is None else f"tokens {file.tokens} wide"
        raise UserError(
            f"{source}: a U-Net {width} wide, told {heard}, is none of the published ones, and shapes do not determine its heads",
            "write a preset that describes it and give --as PRESET",
        )
    stage = file.stage.config
    network = shape_of(file.unet, size // stage.network.downscale) | HEADS[width, file.tokens]
    task: dict[str, Any] = {
        "kind": "diffusion",
        "target": "eps",
        "schedule": schedule(file.betas, source),
        "network": network,
        "codec": {"kind": "latent", "first_stage": stage.model_dump(mode="json")},
    }
    raw: dict[str, Any] = {"sampler": {"kind": "ddim", "steps": 50}}
    if file.texts is not None:
        encoder = {"kind": "clip", "padding": "read", **file.texts}
        conditioner: dict[str, Any] = {
            "kind": "pretrained",
            "encoder": encoder,
            "width": file.tokens,
            "unconditional": "empty",
        }
        task |= {"conditioners": [conditioner], "drop_condition": DROPPED}
        raw["guidance"] = GUIDANCE
    elif file.classes is not None:
        rows, dim = file.classes.shape
        conditioner = {"kind": "class", "num_classes": rows - 1, "dim": dim, "tokens": 1}
        task |= {"conditioners": [conditioner], "drop_condition": DROPPED}
    return raw | {"data": {"kind": "none", "size": size, "channels": stage.channels}, "task": task}


def schedule(betas: Tensor | None, source: str) -> dict[str, Any]:
    """The schedule of the betas of a file; that of Stable Diffusion if it has none."""
    values: dict[str, Any] = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    if betas is not None:
        ends = {"beta_start": float(betas[0]), "beta_end": float(betas[-1])}
        values = {"trained_betas": betas.double().tolist(), "num_train_timesteps": len(betas), **ends}
    return recognised(Foreign(values, DEFAULTS, source)).model_dump()


def shape_of(unet: ForeignTensors, size: int) -> dict[str, Any]:
    """`task.network` for the tensors of a U-Net, without its heads. size: of latents in training."""
    width = unet["input_blocks.0.0.weight"].shape[0]
    count = 1 + max(int(name.split(".")[1]) for name in unet if name.startswith("input_blocks."))
    levels: list[list[int]] = [[]]
    for i in range(1, count):
        if f"input_blocks.{i}.0.op.weight" in unet:
            levels.append([])
        else:
            levels[-1].append(i)
    widths = [unet[f"input_blocks.{level[-1]}.0.out_layers.3.weight"].shape[0] for level in levels]
    attends = [f"input_blocks.{level[0]}.1.norm.weight" in unet for level in levels]
    block = "spatial_transformer" if any(".transformer_blocks." in name for name in unet) else "attention"
    modulation = unet["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    return {
        "kind": "unet",
        "width": width,
        "mult": [w // width for w in widths],
        "blocks": (["res", block] if any(attends) else ["res"]) * len(levels[0]),
        "middle": ["res", block, "res"],
        "attend_at": [size // 2**i for i, here in enumerate(attends) if here],
        "embed": "scale_shift" if modulation == 2 * widths[0] else "add",
        "resample": "conv",
        "groups": GROUPS,
        "transformer_eps": EPS if block == "spatial_transformer" else None,
    }

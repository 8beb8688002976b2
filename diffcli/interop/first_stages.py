"""First stages of other people: diffusers' AutoencoderKL and VQModel, and the layout of taming-transformers and latent-diffusion.

A diffusers folder has a configuration, which is read by key; the other layout has only tensors. Between a latent and diffusion,
other libraries have one factor and perhaps a shift; diffcli has z = (latent - shift) / scale for each channel.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffcli.config import UserError
from diffcli.interop.foreign import Foreign, read_json
from diffcli.interop.stages import stage_config
from diffcli.interop.stages.autoencoder_rules import COMPVIS, DIFFUSERS, QUANT, stage_rules
from diffcli.interop.stages.stage_config import Scaling
from diffcli.interop.unets.diffusers_unet import current
from diffcli.interop.weight_files import ForeignTensors, read, read_tensors, weights_in, write
from diffcli.networks.autoencoder import Autoencoder, FirstStageConfig
from diffcli.networks.bottlenecks import Kl
from diffcli.networks.vector_quantiser import Vq
from diffcli.networks.weightless import weightless

CONFIG = "config.json"
COMPVIS_MARK = "encoder.down.0.block.0.conv1.weight"
INSIDE = "first_stage_model."  # where latent diffusion keeps it in its files
KEPT = ("encoder", "decoder", *QUANT, "quantize")  # its parts
PUBLISHED = stage_config.CLASSES


class ForeignStage(NamedTuple):
    """An imported first stage. scaling: None if their files do not contain it."""

    config: FirstStageConfig
    tensors: dict[str, Tensor]  # of an Autoencoder
    scaling: Scaling | None


def is_folder(path: Path) -> bool:
    """Whether a folder holds a first stage of diffusers."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("_class_name") in PUBLISHED


def from_diffusers(folder: Path) -> ForeignStage:
    """AutoencoderKL or VQModel. Raises UserError with a key or tensors of theirs that diffcli cannot express."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: holds no {CONFIG} of a first stage", f"give a folder of {' or '.join(PUBLISHED)}")
    values = read_json(folder / CONFIG)
    name = values.get("_class_name")
    if name not in PUBLISHED:
        raise UserError(
            f"{folder / CONFIG}: _class_name is {name!r}", f"a first stage of diffusers is {' or '.join(PUBLISHED)}"
        )
    config = Foreign(values, stage_config.defaults(name), str(folder / CONFIG))
    stage = FirstStageConfig.model_validate(stage_config.read_config(config))
    theirs = current(read_tensors(weights_in(folder)))
    ours = on_meta(stage).state_dict()
    quant = {part: bool(config.get(f"use_{part}")) for part in QUANT}
    rules = stage_rules(stage.network, stage.bottleneck, ours, DIFFUSERS, stage_config.gone(config), quant)
    tensors = read(rules, theirs, ours, str(weights_in(folder)))
    return ForeignStage(stage, tensors, stage_config.scaling(config, stage.network.latent))


def from_compvis(theirs: ForeignTensors, source: str) -> ForeignStage:
    """taming-transformers' VQGAN, latent-diffusion's VQModel or AutoencoderKL: tensors below `INSIDE`, or at the top.

    Parts for training alone (discriminator, LPIPS) are left out. Raises UserError for other files.
    """
    inside = {name.removeprefix(INSIDE): tensor for name, tensor in theirs.items() if name.startswith(INSIDE)} or theirs
    kept = {name: tensor for name, tensor in inside.items() if name.partition(".")[0] in KEPT}
    if COMPVIS_MARK not in kept:
        raise UserError(
            f"{source}: holds no first stage in the layout of taming-transformers or latent-diffusion",
            "give a VQGAN, or an autoencoder of latent-diffusion",
        )
    stage = FirstStageConfig.model_validate(stage_config.derived(kept, source))
    ours = on_meta(stage).state_dict()
    gone = stage_config.gone_of(kept, stage.network)
    rules = stage_rules(stage.network, stage.bottleneck, ours, COMPVIS, gone)
    return ForeignStage(stage, read(rules, kept, ours, source), None)


def to_diffusers(
    stage: FirstStageConfig, tensors: ForeignTensors, scaling: Scaling, size: int
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of the AutoencoderKL or VQModel that is this first stage, with its scaling.

    Channels of their own scale are folded into the 1x1 convolutions around the latent. size: of images. Raises UserError with
    a key of ours that they do not have.
    """
    stage_config.check_expressible(stage)
    ours = dict(tensors)
    scale, shift = scaling.scale.double(), scaling.shift.double()
    alike = bool((scale == scale[0]).all()) and not shift.any()
    if not alike:
        ours |= folded(stage, ours, shift, scale)
    config = stage_config.write_config(stage, 1 / float(scale[0]) if alike else 1.0, size)
    return config, write(stage_rules(stage.network, stage.bottleneck, ours, DIFFUSERS), ours)


def folded(stage: FirstStageConfig, ours: Mapping[str, Tensor], shift: Tensor, scale: Tensor) -> dict[str, Tensor]:
    """The tensors around the bottleneck of a first stage whose latents are (latent - shift) / scale of this one's."""
    weight, bias = ours["quant_conv.weight"].double(), ours["quant_conv.bias"].double()
    after, behind = ours["post_quant_conv.weight"].double(), ours["post_quant_conv.bias"].double()
    c = len(scale)
    found = {}
    weight[:c], bias[:c] = weight[:c] / scale[:, None, None, None], (bias[:c] - shift) / scale
    if isinstance(stage.bottleneck, Kl):
        bias[c:] -= 2 * scale.log()
    elif isinstance(stage.bottleneck, Vq):
        if bool((scale != scale[0]).any()):
            raise UserError(
                "the latents of a vector quantiser have a scale for each channel, so that other codes would be the nearest ones",
                "only latents with a single scale can be exported with a quantiser; train the model again to get them",
            )
        found["bottleneck.codebook"] = ((ours["bottleneck.codebook"].double() - shift) / scale).float()
    behind = behind + (after[..., 0, 0] @ shift)
    after = after * scale[None, :, None, None]
    found |= {"quant_conv.weight": weight.float(), "quant_conv.bias": bias.float()}
    return found | {"post_quant_conv.weight": after.float(), "post_quant_conv.bias": behind.float()}


def on_meta(stage: FirstStageConfig) -> Autoencoder:
    """The first stage without memory for its weights."""
    with weightless():
        return stage.build()

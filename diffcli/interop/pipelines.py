"""The parts of a diffusers pipeline beside network and scheduler: a first stage, and a text encoder.

The first stage becomes part of the checkpoint. The text encoder stays in its folder, which the preset names; the record has the
digest of its weights, as with any pretrained encoder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.encoders.libraries import TEXT_ENCODER, TOKENIZER
from diffcli.interop import first_stages
from diffcli.interop.first_stages import ForeignStage
from diffcli.interop.foreign import Foreign, read_json
from diffcli.interop.stages.stage_config import Scaling
from diffcli.preset import Preset
from diffcli.tasks.diffusion_config import DiffusionConfig

STAGES = ("vae", "vqvae")  # folders of a pipeline
CONFIG = "config.json"
TOWERS = ("CLIPTextModel", "CLIPTextModelWithProjection")
PLACE, ALONE = "codec.first_stage", "autoencoder"  # where a latent model keeps it, and where an autoencoder does
DROPPED, GUIDANCE = 0.1, 7.5  # share of texts that Stable Diffusion was trained without, and its usual scale


class Neighbours(NamedTuple):
    """The parts of a pipeline beside its network, each with its folder."""

    stage: ForeignStage | None = None
    stage_folder: Path | None = None
    encoder: Path | None = None


def neighbours(path: Path, index: Mapping[str, Any]) -> Neighbours:
    """The parts of the pipeline with this model_index.json. Raises UserError if one is missing or of another class."""
    found = [name for name in STAGES if held(index, name)]
    folder = path / found[0] if found else None
    if folder is not None and not (folder / CONFIG).is_file():
        raise UserError(f"{path}: its {found[0]} holds no {CONFIG}", "download the folder again, whole")
    stage = None if folder is None else first_stages.from_diffusers(folder)
    return Neighbours(stage, folder, text_encoder(path) if held(index, TEXT_ENCODER) else None)


def held(index: Mapping[str, Any], name: str) -> bool:
    """Whether the index of a pipeline names a part."""
    entry = index.get(name)
    return isinstance(entry, list) and len(entry) > 1 and entry[1] is not None


def text_encoder(path: Path) -> Path:
    """The folder of the text tower of a pipeline."""
    folder = path / TEXT_ENCODER
    for part in (folder / CONFIG, path / TOKENIZER):
        if not part.exists():
            raise UserError(f"{path}: {part.relative_to(path)} is not there", "download the folder again, whole")
    kind = (read_json(folder / CONFIG).get("architectures") or [None])[0]
    if kind not in TOWERS:
        raise UserError(
            f"{folder / CONFIG}: architectures is {kind!r}, but diffcli reads texts of such pipelines with {TOWERS[0]}",
            "it can only be used with the library that wrote it",
        )
    return folder


def check(beside: Neighbours, config: Foreign) -> None:
    """Raises UserError if the parts do not fit the network with this configuration."""
    together = "put the parts of one model together"
    if beside.stage is not None and config.get("in_channels") != beside.stage.config.network.latent:
        latent = beside.stage.config.network.latent
        why = f"but the first stage in {beside.stage_folder} has latents of {latent} channels"
        raise config.refuse("in_channels", why, together)
    if beside.encoder is not None and config.get("cross_attention_dim") != token_width(beside.encoder).get(
        "hidden_size"
    ):
        found = json.dumps(config.get("cross_attention_dim"))
        why = f"but {config.source} attends to tokens of cross_attention_dim {found}"
        raise token_width(beside.encoder).refuse("hidden_size", why, together)


def token_width(encoder: Path) -> Foreign:
    """The configuration of a text tower, as far as its width."""
    return Foreign(read_json(encoder / CONFIG), {"hidden_size": 512}, str(encoder / CONFIG))


def join(raw: dict[str, Any], beside: Neighbours, path: Path) -> None:
    """Puts codec, conditioner and the size of images into the raw preset of a network."""
    if beside.stage is not None:
        join_stage(raw, beside.stage, path)
    if beside.encoder is not None:
        encoder = {"kind": "clip", "model": str(path.absolute()), "padding": "read"}
        width = token_width(beside.encoder).get("hidden_size")
        conditioner = {"kind": "pretrained", "encoder": encoder, "width": width, "unconditional": "empty"}
        raw["task"] |= {"conditioners": [conditioner], "drop_condition": DROPPED}
        raw["guidance"] = GUIDANCE


def join_stage(raw: dict[str, Any], stage: ForeignStage, path: Path) -> None:
    """The codec of a latent model. Raises UserError if the scheduler clips latents, which have no range."""
    if raw["task"]["codec"]["clip"]:
        raise UserError(
            f"{path}: its scheduler has clip_sample true, but the model generates latents, which have no range",
            "set clip_sample to false in scheduler/scheduler_config.json",
        )
    factor, size = stage.config.network.downscale, raw["data"]["size"]
    raw["data"]["size"] = size * factor if isinstance(size, int) else [side * factor for side in size]
    raw["data"]["channels"] = stage.config.channels
    raw["task"]["codec"] = {"kind": "latent", "first_stage": stage.config.model_dump(mode="json")}


def stage_tensors(stage: ForeignStage | None) -> dict[str, Tensor]:
    """The tensors of a task's codec; scale 1 and shift 0 if the files lack them."""
    if stage is None:
        return {}
    latent = stage.config.network.latent
    shift, scale = stage.scaling or Scaling(torch.zeros(latent), torch.ones(latent))
    return {
        **{f"{PLACE}.{name}": tensor for name, tensor in stage.tensors.items()},
        "codec.shift": shift,
        "codec.scale": scale,
    }


def staged(given: Preset, stage: ForeignStage | None) -> tuple[Preset, ForeignStage | None]:
    """A preset of --as with the first stage of its latent codec filled in: the one beside the network, else that of codec.from.

    Raises UserError for a latent model without a first stage of another library.
    """
    task = given.task
    if not isinstance(task, DiffusionConfig) or task.codec.kind != "latent":
        return given, None
    if stage is None:
        source = task.codec.source
        if source is None or not first_stages.is_folder(source.expanduser()):
            raise UserError(
                f"--as {given.name}: task.codec.from is {source}, which is no first stage of diffusers",
                "name the folder of an AutoencoderKL or VQModel there",
            )
        stage = first_stages.from_diffusers(source.expanduser())
    raw = given.model_dump(mode="json")
    raw["task"]["codec"] |= {"first_stage": stage.config.model_dump(mode="json"), "from": None}
    return presets.build(raw, f"--as {given.name}"), stage


def encoder_record(preset: Preset) -> dict[str, Any]:
    """`encoders` of a checkpoint's record: each that a conditioner names, with the digest of its weights, which are loaded."""
    found = {}
    assert isinstance(preset.task, DiffusionConfig)
    for i, conditioner in enumerate(preset.task.conditioners):
        if conditioner.kind != "pretrained":
            continue
        key, encoder = f"task.conditioners.{i}", conditioner.encoder.build()
        encoder.key = f"{key}.encoder.model"
        found[key] = {"model": encoder.config.model, "library": encoder.config.library, "sha256": encoder.digest}
    return {"encoders": found} if found else {}

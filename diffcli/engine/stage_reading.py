"""The first stage that a latent model begins with: read from the run of an autoencoder or a folder of diffusers.

A run reads it once, before its first step: its configuration becomes part of the resolved preset, its weights part of the task,
its digest part of the record of every checkpoint, under `first_stage: {from, sha256}`. Latents on disk carry the same digest.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcli import checkpoint, preset
from diffcli.config import UserError, quoted
from diffcli.data.field_notes import FieldNote
from diffcli.data.images import ImageData
from diffcli.data.latent_data import Latents
from diffcli.engine.loading import fill, load_weights
from diffcli.engine.model import specs_of, weights_to_sample
from diffcli.interop import first_stages
from diffcli.lookup import preset_files
from diffcli.networks.autoencoder import Autoencoder, FirstStageConfig
from diffcli.networks.weightless import weightless
from diffcli.preset import Preset
from diffcli.tasks.autoencoder.autoencoder_config import AutoencoderTaskConfig
from diffcli.tasks.codecs.latent import LatentCodec, LatentCodecConfig
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.task import Task

KEY = "task.codec.from"
RECORD = "first_stage"  # key of a checkpoint's record


class FirstStage(NamedTuple):
    """A first stage. digest: SHA-256 of its configuration and weights, independent of their place."""

    config: FirstStageConfig
    tensors: dict[str, Tensor]
    digest: str
    origin: str

    def build(self, device: torch.device) -> Autoencoder:
        """The network itself, in evaluation mode and without gradients."""
        with weightless():
            built = self.config.build()
        fill(built, self.tensors, Path(self.origin))
        return built.to(device).eval().requires_grad_(False)


def read(path: Path, key: str = KEY) -> FirstStage:
    """The first stage at a path: a run or checkpoint of an autoencoder or of a latent model, or a folder of diffusers.

    key: the key or flag that names it, for errors. Raises UserError where there is none.
    """
    path = path.expanduser()
    if is_foreign(path):
        config, tensors = foreign(path, key)
    else:
        found, record, config, prefix = located(path, key)
        weights = weights_to_sample(found, record)
        tensors = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    return FirstStage(config, tensors, digest_of(config, tensors), str(path))


def describe(path: Path, key: str = KEY) -> FirstStageConfig:
    """The configuration of the first stage at a path, read without weights if possible. Raises UserError as `read` does."""
    path = path.expanduser()
    return foreign(path, key)[0] if is_foreign(path) else located(path, key)[2]


def is_foreign(path: Path) -> bool:
    """Whether a folder is one of diffusers: it describes a model in config.json."""
    return path.is_dir() and (path / first_stages.CONFIG).is_file()


def foreign(path: Path, key: str) -> tuple[FirstStageConfig, dict[str, Tensor]]:
    """The first stage of a folder of diffusers."""
    try:
        found = first_stages.from_diffusers(path)
    except UserError as error:
        raise UserError(f"{key}: {error.problem}", error.hint) from error
    return found.config, found.tensors


def located(path: Path, key: str) -> tuple[Path, dict[str, Any], FirstStageConfig, str]:
    """A checkpoint, its record, the first stage that it holds, and what the names of its weights begin with."""
    refuse_other_folder(path, key)
    try:
        found = checkpoint.locate(path)
        record = checkpoint.read_record(found)
        resolved = preset.build(record.get("preset"), f"{found}/{checkpoint.RECORD}")
    except UserError as error:
        raise UserError(f"{key}: {error.problem}", error.hint if path.exists() else to_train(path)) from None
    task = resolved.task
    if isinstance(task, DiffusionConfig) and isinstance(task.codec, LatentCodecConfig):
        return found, record, task.codec.required, "codec.first_stage."
    if not isinstance(task, AutoencoderTaskConfig):
        raise UserError(
            f"{key}: {path} was trained as {task.noun}, not as an autoencoder",
            "name the run of a first stage, such as one of the presets mnist-vae, cifar10-kl or kl-f8-256",
        )
    with weightless():
        built = task.build(specs_of(record, resolved, found))
    return found, record, built.first_stage, "autoencoder."


def refuse_other_folder(path: Path, key: str) -> None:
    """Raises UserError for a folder that is neither a run nor a first stage of diffusers: a whole pipeline, or pictures."""
    if not path.is_dir() or (path / checkpoint.RECORD).is_file() or (path / "checkpoints").is_dir():
        return
    if checkpoint.checkpoints(path) or (path / "preset.yaml").is_file() or any(path.glob("*.safetensors")):
        return
    inside = next((path / name for name in ("vae", "vqvae") if is_foreign(path / name)), None)
    raise UserError(
        f"{key}: {path} is neither a run of diffcli nor a first stage of diffusers",
        to_train(path) if inside is None else f"it holds one: give {quoted(inside)}",
    )


def to_train(path: Path) -> str:
    """What to type if a first stage is missing: the command that trains it, if its folder has the name of a preset."""
    if path.name in preset_files.available():
        return f"train it first: diffcli train --preset {path.name} --run-dir {quoted(path)}"
    return "give the run of an autoencoder (diffcli train --preset mnist-vae) or a folder of diffusers"


def digest_of(config: FirstStageConfig, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over the settings that affect the result and every tensor, by name."""
    digest = hashlib.sha256(json.dumps(config.deciding, sort_keys=True).encode())
    for name in sorted(tensors):
        value = tensors[name].detach().to("cpu").contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data if value.numel() else b"")
    return digest.hexdigest()


def codec_of(chosen: Preset) -> LatentCodecConfig | None:
    """The latent codec of a preset, if it has one."""
    codec = chosen.task.codec if isinstance(chosen.task, DiffusionConfig) else None
    return codec if isinstance(codec, LatentCodecConfig) else None


def completed(chosen: Preset) -> Preset:
    """The preset with the configuration of its first stage filled in, if it does not describe it.

    Where it names none, the first stage is that of the model that it starts from.
    """
    codec = codec_of(chosen)
    if codec is not None and codec.source is None and chosen.origin is not None:
        codec = codec.model_copy(update={"source": chosen.origin.path})
    if codec is None or codec.source is None:
        return chosen
    source = codec.source.expanduser().absolute()
    if codec.first_stage is None:
        codec = codec.model_copy(update={"first_stage": describe(codec.source)})
    codec = codec.model_copy(update={"source": source})
    return chosen.model_copy(update={"task": chosen.task.model_copy(update={"codec": codec})})


def begun(chosen: Preset) -> FirstStage | None:
    """The first stage that a new run of a completed preset begins with; None where it needs none or a model brings it."""
    codec = codec_of(chosen)
    if codec is None or chosen.task.led_by:
        return None
    if codec.source is None:
        raise UserError(
            f"{KEY} is missing: a new run takes the weights of its first stage from there",
            f"name the run of an autoencoder: --set {KEY}=runs/mnist-vae",
        )
    stage = read(codec.source)
    if stage.config != codec.first_stage:
        raise UserError(
            f"{KEY}: {codec.source} holds another first stage than task.codec.first_stage describes",
            "leave task.codec.first_stage out: --set task.codec.first_stage=null",
        )
    return stage


def install(task: Task, stage: FirstStage) -> None:
    """Gives the codec of a task on its device the weights of its first stage. Raises UserError where they do not fit it."""
    codec = latent_codec(task)
    assert codec is not None
    load_weights(codec.first_stage, stage.tensors, Path(stage.origin))


def latent_codec(task: Task) -> LatentCodec | None:
    """The codec of a task that diffuses latents."""
    codec = task.codec if isinstance(task, DiffusionTask) else None
    return codec if isinstance(codec, LatentCodec) else None


def agreed(
    task: Task, data: ImageData, stage: FirstStage | None, before: Mapping[str, Any] | None
) -> dict[str, dict[str, str]]:
    """`first_stage` for the record of a run, or nothing where it has none. before: the record that it goes on from.

    Raises UserError where latents of the data, which training reads, were made by another first stage.
    """
    if latent_codec(task) is None:
        return {}
    found = (before or {}).get(RECORD) if stage is None else {"from": stage.origin, "sha256": stage.digest}
    note = noted(task, data)
    if note is not None and found is not None and note.sha256 != found["sha256"]:
        raise UserError(
            f"data: the latents were made by {note.encoder}, weights {str(note.sha256)[:12]}..., but the model's first stage is "
            f"{found['from']}, weights {found['sha256'][:12]}...",
            "make them again: diffcli prep-data latents SET --first-stage RUN --out DIR; or name theirs in task.codec.from",
        )
    return {} if found is None else {RECORD: found}


def check_planned(chosen: Preset, task: Task, data: ImageData) -> None:
    """Raises UserError as `agreed` does for a new run of a completed preset; reads no first stage where there are no latents."""
    if noted(task, data) is not None and not chosen.task.led_by:
        agreed(task, data, begun(chosen), None)


def noted(task: Task, data: ImageData) -> FieldNote | None:
    """The note of the first stage that made the latents of a task's data, if it reads latents."""
    return next((c.note for name, c in data.columns.items() if isinstance(c, Latents) and name in task.reads), None)

"""A checkpoint made ready to use: its preset read, its task built, its weights loaded, its networks in their precision."""

from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcli import checkpoint, preset
from diffcli.config import UserError
from diffcli.engine import data_records
from diffcli.engine.casting import run_in, suited
from diffcli.engine.loading import fill, place
from diffcli.engine.lora import lora_bases
from diffcli.engine.lora.lora_weights import used_weights, warn
from diffcli.engine.records import encoder_records
from diffcli.engine.tuning import choose_precision, compile_network, has_tf32, tune
from diffcli.engine.words import word_files, word_training
from diffcli.fields import OVER_PIXELS, PICTURES, Specs, from_record
from diffcli.lookup.changeable import moves_encoder
from diffcli.networks.weightless import weightless
from diffcli.preset import Preset
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig
from diffcli.tasks.task import Task


@dataclass(frozen=True)
class Model:
    """A checkpoint made ready to use."""

    path: Path
    step: int
    preset: Preset
    task: Task
    classes: tuple[str, ...] | None
    ema: bool
    digest: str  # SHA-256 of the file of the weights in use
    precision: str = "fp32"  # of its networks: fp32, bf16 or fp16
    compiled: bool = False
    size: tuple[int, int] | None = None  # (height, width) of its images, if other than in training
    fields: Specs | None = None  # fields of the training data; None: those of its preset
    untrained: frozenset[int] = frozenset()  # classes without an image in its data
    base: Mapping[str, Any] | None = None  # the model that a checkpoint of low-rank changes changes
    loras: tuple[Mapping[str, Any], ...] = ()  # the changes of --lora: path, scale, sha256
    embeddings: tuple[Mapping[str, Any], ...] = ()  # the words of --embedding: path, token, sha256

    @property
    def device(self) -> torch.device:
        return next(self.task.parameters()).device

    @property
    def trained_on(self) -> Specs:
        """The fields of its training data, in their shapes."""
        return self.preset.specs if self.fields is None else self.fields

    def describe(self) -> dict[str, Any]:
        """The description of the model for a sidecar or report: JSON values."""
        tf32 = self.precision == "fp32" and has_tf32(self.device)
        return {
            "checkpoint": str(self.path),
            "step": self.step,
            "ema": self.ema,
            "weights_sha256": self.digest,
            "precision": "fp32 (TF32)" if tf32 else self.precision,
            "compiled": self.compiled,
            **({} if self.size is None else {"size": list(self.size)}),
            **({} if self.base is None else {"base": dict(self.base)}),
            **({"loras": [dict(each) for each in self.loras]} if self.loras else {}),
            **({"embeddings": [dict(each) for each in self.embeddings]} if self.embeddings else {}),
        }


def load_model(
    path: Path,
    device: torch.device,
    use_ema: bool = True,
    overrides: Sequence[str] = (),
    precision: str = "auto",
    compile: bool = False,
    base: Path | None = None,
    loras: Sequence[str] = (),
    embeddings: Sequence[Path] = (),
) -> Model:
    """The newest whole checkpoint at PATH, in eval mode. Raises UserError where there is none or it is damaged.

    overrides: KEY=VALUE; only new places of pretrained encoders are applied. precision: auto, fp32, bf16 or fp16, see `run_in`
    and `suited`. base: of a checkpoint of low-rank changes, the present place of the model that they change. loras: PATH[:SCALE]
    of changes that are merged into the weights, see `lora_weights`. embeddings: words that texts may hold, see `word_files`.
    The weights are read once; the task is built on the meta device, so no random weights are made.
    """
    tune(device)
    chosen = choose_precision(precision, device)
    found = checkpoint.locate(path)
    record = checkpoint.read_record(found)
    moved = filter(moves_encoder, overrides)
    resolved = preset_to_draw(record, found, moved)
    part = "ema" if use_ema else "task"
    if not checkpoint.holds(part, found, record) and checkpoint.holds("ema", found, record):
        raise UserError(f"--no-ema: {found} holds an average only", "leave --no-ema out")
    fields = specs_of(record, resolved, found)
    with weightless():
        built = word_training.built(resolved, fields)
    chosen = suited(built, chosen)
    used = used_weights(built, resolved, found, record, use_ema, base, loras)
    tensors, words, notes = word_files.add_words(built, used.tensors, embeddings, record, used.identity)
    warn((*used.notes, *notes))
    built.forget_unsampled()
    fill(built, tensors, found)
    encoder_records.promise(built, record, found)
    task = place(built, device, chosen, training=False).eval().requires_grad_(False)
    run_in(task, device, chosen)
    if compile:
        for network in task.networks_in_use:
            compile_network(network)
    made = _recorded(found, record, resolved, task, fields, use_ema, used.sha256, chosen, compile)
    return replace(made, base=used.base, loras=used.loras, embeddings=tuple(words))


def without_weights(path: Path) -> Model:
    """The newest whole checkpoint at PATH on the meta device, without reading weights. Raises UserError."""
    found = checkpoint.locate(path)
    record = checkpoint.read_record(found)
    resolved = preset_to_draw(record, found)
    fields = specs_of(record, resolved, found)
    with weightless():
        task = word_training.built(resolved, fields).eval()
    made = _recorded(found, record, resolved, task, fields, ema=True, digest="")
    return replace(made, base=lora_bases.named(record))


def weights_to_sample(path: Path, record: dict[str, Any]) -> dict[str, Tensor]:
    """The averaged weights of a located checkpoint, whole: where it is a change of another, merged into that."""
    if lora_bases.named(record) is None:
        return checkpoint.read_part(path, "ema", record)
    resolved = preset_to_draw(record, path)
    with weightless():
        task = word_training.built(resolved, specs_of(record, resolved, path))
    return used_weights(task, resolved, path, record, use_ema=True).tensors


def preset_to_draw(record: Mapping[str, Any], path: Path, overrides: Iterable[str] = ()) -> Preset:
    """The preset of a located checkpoint, whose conditioners read what a person can give."""
    trained = preset.build(record.get("preset"), f"{path}/{checkpoint.RECORD}", overrides)
    return trained.model_copy(update={"task": trained.task.for_drawing()})


def _recorded(
    path: Path,
    record: Mapping[str, Any],
    resolved: Preset,
    task: Task,
    fields: Specs | None,
    ema: bool,
    digest: str,
    precision: str = "fp32",
    compiled: bool = False,
) -> Model:
    """The model of a checkpoint, with step, classes and trained classes from its record."""
    classes = tuple(record["classes"]) if record.get("classes") else None
    step, untrained = record["step"], data_records.untrained(record)
    return Model(
        path, step, resolved, task, classes, ema, digest, precision, compiled, fields=fields, untrained=untrained
    )


def resized(model: Model, size: tuple[int, int] | None) -> Model:
    """The same model for images of another (height, width). Raises UserError if it does not support them.

    The weights are shared. None: the size of training.
    """
    if size is None:
        return model
    task, flag = model.task, f"--size {size[0]}x{size[1]}"
    if not isinstance(task, DiffusionTask) or task.spec.kind not in PICTURES:
        raise UserError(f"{flag}: {model.path} draws no pictures", "leave --size out")
    over = [name for name, spec in task.reads.items() if name != task.field and spec.kind in OVER_PIXELS and spec.fixed]
    if over:
        raise UserError(
            f"{flag}: {model.path} reads '{over[0]}', which lies over images of the size that it was trained on",
            "leave --size out",
        )
    config = model.preset.task
    assert isinstance(config, DiffusionConfig)
    step = config.network.multiple * task.codec.downscale
    if size[0] % step or size[1] % step:
        near = "x".join(str(max(1, round(side / step)) * step) for side in size)
        raise UserError(f"{flag}: {model.path} draws sides that are multiples of {step}", f"try --size {near}")
    if fault := task.codec.misfit(size):
        raise UserError(f"{flag}: {model.path} would draw images of {fault[0]}", "leave --size out")
    changed = copy(task)  # shares modules and weights with the original
    changed.spec = task.spec._replace(shape=(*task.spec.shape[:-2], *size))
    data = model.preset.data.model_copy(update={"size": size})
    preset = model.preset.model_copy(update={"data": data})
    return replace(model, size=size, task=changed, preset=preset, fields=model.trained_on)


def lengthened(model: Model, frames: int) -> Model:
    """The same model for clips of so many frames; the weights are shared."""
    assert isinstance(model.task, DiffusionTask)
    return replace(model, task=model.task.of_frames(frames), fields=model.trained_on)


def specs_of(record: Mapping[str, Any], preset: Preset, path: Path) -> Specs:
    """The fields that a checkpoint's task was built for; those of its preset if the record, of an earlier version, has none.

    Latents of the training data are left out, since sampling, scoring and editing work on images.
    """
    if "fields" not in record:
        return preset.specs
    try:
        fields = from_record(record["fields"])
    except ValueError as error:
        raise UserError(
            f"{path}/{checkpoint.RECORD}: 'fields' is none of fields ({str(error).splitlines()[0]})",
            "it was changed by hand: copy the checkpoint again from where it was written",
        ) from error
    return preset.specs | {name: spec for name, spec in fields.items() if spec.kind != "latent"}

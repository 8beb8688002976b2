"""Exports a diffcli checkpoint as a folder for the pipelines of diffusers, without using that library.

model_index.json  scheduler/scheduler_config.json  unet|transformer/{config.json, diffusion_pytorch_model.safetensors}; a latent
model has vae|vqvae/ of the same two files, and one of texts text_encoder/ and tokenizer/, which transformers writes. The names of
classes lie in id2label.json, where `import` finds them.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.diffusion.samplers import Ddpm
from diffcli.encoders.encoder import Encoder
from diffcli.encoders.libraries import TEXT_ENCODER, TOKENIZER, Towers
from diffcli.interop import blockers, control_nets, first_stages, published_dit
from diffcli.interop.diffusers_folder import CONFIG, NAMES, PIPELINE, SCHEDULER
from diffcli.interop.imported import diffusion, on_meta
from diffcli.interop.importing import check_empty
from diffcli.interop.pipelines import ALONE, PLACE
from diffcli.interop.scheduler import write_scheduler
from diffcli.interop.stages.stage_config import Scaling, check_expressible
from diffcli.interop.unets import diffusers_conditional, diffusers_config, diffusers_unet
from diffcli.interop.weight_files import WEIGHTS, ForeignTensors, write
from diffcli.networks.dit import DiT
from diffcli.networks.unet import UNet
from diffcli.preset import Preset
from diffcli.tasks.autoencoder.autoencoder_config import AutoencoderTaskConfig
from diffcli.tasks.codecs.latent import LatentCodecConfig
from diffcli.tasks.conditioners.pretrained import PretrainedConditionerConfig
from diffcli.tasks.control.led_weights import own_tensors
from diffcli.tasks.diffusion_config import DiffusionConfig

VERSION = "0.32.0"  # of diffusers: the oldest that the tests have read such folders with
FOLDERS = {"UNet2DModel": "unet", "UNet2DConditionModel": "unet", "DiTTransformer2DModel": "transformer"}
PIPELINES = {
    "UNet2DModel": "LDMPipeline",
    "UNet2DConditionModel": "StableDiffusionPipeline",
    "DiTTransformer2DModel": "DiTPipeline",
}
NUMBERED = 1000  # classes that DiTPipeline knows
LOST = ("log_snr", "karras")  # spacings of ours
TOKENIZER_CLASS = "CLIPTokenizer"


class WrittenPart(NamedTuple):
    """One network of a folder: its configuration and its tensors."""

    folder: str
    config: dict[str, Any]
    tensors: dict[str, Tensor]

    @property
    def named(self) -> list[str]:
        """The name of its class in a pipeline's index."""
        return ["diffusers", self.config["_class_name"]]


def export_diffusers(
    preset: Preset,
    tensors: ForeignTensors,
    classes: tuple[str, ...] | None,
    out: Path,
    encoder: Encoder | None = None,
) -> Path:
    """Writes the folder. tensors: those of the preset's task. encoder: of its texts, where it is at hand already.

    Raises UserError, and writes nothing, if it cannot be done.
    """
    check_empty(out)
    check(preset)
    if isinstance(preset.task, AutoencoderTaskConfig):
        return written(out, [stage_alone(preset, tensors)], {})
    branches = control_nets.exported(preset, tensors)
    preset, tensors = control_nets.alone(preset), own_tensors(tensors) if branches else tensors
    parts = [network(preset, tensors), *first_stage(preset, tensors), *(WrittenPart(*branch) for branch in branches)]
    planned = {**write_scheduler(preset), "_diffusers_version": VERSION}
    index = {**index_of(parts, classes), "scheduler": ["diffusers", planned["_class_name"]]}
    towers = None
    for reader in told_by(preset):
        towers = (encoder or reader.encoder.build()).towers
        index |= {TEXT_ENCODER: ["transformers", "CLIPTextModel"], TOKENIZER: ["transformers", TOKENIZER_CLASS]}
    named: dict[str, dict[str, Any]] = (
        {NAMES: {str(n): name for n, name in enumerate(classes or ())}} if classes else {}
    )
    return written(out, parts, {SCHEDULER: planned, PIPELINE: index, **named}, towers)


def check(preset: Preset) -> None:
    """Raises one UserError with all reasons in the preset against an export: target and schedule first."""
    preset = control_nets.alone(preset)
    task, stage = preset.task, None
    if isinstance(task, AutoencoderTaskConfig):
        check_expressible(task.first_stage(preset.data.shape.channels))
        return
    if not isinstance(task, DiffusionConfig):
        problem = f"task.kind is '{task.kind}': diffusers has no pipeline for {task.noun}"
        raise UserError(problem, "it cannot go out; diffusion models and first stages can")
    if task.network.temporal is not None:
        problem = (
            "task.network.temporal makes it a model of clips, and diffusers has no class for a network of these layers"
        )
        raise UserError(problem, "it cannot go out; the model of images that it began from can")
    texts = blockers.refusals([lambda: told_by(preset)])
    own: list[Callable[[], object]] = [
        lambda: write_scheduler(preset),
        lambda: check_conditions(preset),
        lambda: check_time(preset),
    ]
    own += [] if texts else [lambda: network_config(preset)]
    if isinstance(diffusion(preset).codec, LatentCodecConfig):
        stage = blockers.refusals([lambda: check_stage(preset)])
    else:
        own.append(lambda: first_stage(preset, {}))
    errors = blockers.refusals(own)
    if errors and stage:  # another training than that of this model
        lone, first = blockers.joined(errors), blockers.joined(stage)
        raise UserError(f"{lone.problem}; and {first.problem}", f"{lone.hint}; and first, {first.hint}")
    blockers.raise_joined([*errors, *(stage or [])])


def notes(preset: Preset) -> list[str]:
    """Differences between their pipeline and diffcli for an exported model."""
    found: list[str] = []
    if isinstance(preset.task, AutoencoderTaskConfig):
        return found
    classes = next((c.num_classes for c in diffusion(preset).conditioners if c.kind == "class"), None)
    if isinstance(on_meta(preset).denoiser.network, DiT) and classes != NUMBERED:
        found.append(
            f"DiTPipeline takes {NUMBERED} for no class, but this model has {classes} classes: call it with guidance_scale=1, or "
            f"guide with its transformer, whose class {classes} is none"
        )
    if preset.sampler.spacing in LOST or (
        preset.sampler.spacing == "linspace" and not isinstance(preset.sampler, Ddpm)
    ):
        found.append(
            f"sampler.spacing is {preset.sampler.spacing}, which the scheduler does not have: it spaces times as trailing"
        )
    return found


def written(
    out: Path, parts: Sequence[WrittenPart], files: Mapping[str, dict[str, Any]], towers: Towers | None = None
) -> Path:
    """Writes networks, other files of JSON, and a text encoder; returns the folder."""
    new = not out.exists()
    try:
        for folder, config, weights in parts:
            (out / folder).mkdir(parents=True, exist_ok=True)
            plain = {name: weight.contiguous() for name, weight in weights.items()}  # whatever layout they are run in
            save_file(plain, out / folder / WEIGHTS[0], metadata={"format": "pt"})
            write_json(out / folder / CONFIG, config)
        if towers is not None:
            towers.save_text(out / TEXT_ENCODER, out / TOKENIZER)
        for name, content in files.items():
            (out / name).parent.mkdir(exist_ok=True)
            write_json(out / name, content)
    except OSError as error:
        for made in [out] if new else list(out.iterdir()):  # it was empty
            shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror})", "free some space, or give another place"
        ) from error
    return out


def stage_alone(preset: Preset, tensors: ForeignTensors) -> WrittenPart:
    """The first stage of an autoencoder's checkpoint, its latents as they are."""
    task, shape = preset.task, preset.data.shape
    assert isinstance(task, AutoencoderTaskConfig)
    stage = task.first_stage(shape.channels)
    inside = {name.removeprefix(f"{ALONE}."): value for name, value in tensors.items() if name.startswith(f"{ALONE}.")}
    plain = Scaling(torch.zeros(task.network.latent), torch.ones(task.network.latent))
    return WrittenPart(".", *first_stages.to_diffusers(stage, inside, plain, max(shape.height, shape.width)))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def index_of(parts: list[WrittenPart], classes: tuple[str, ...] | None) -> dict[str, Any]:
    """model_index.json, but for its scheduler and its text encoder."""
    name = parts[0].config["_class_name"]
    controls = [part for part in parts if part.folder.startswith(control_nets.FOLDER)]
    parts = [part for part in parts if part not in controls]
    latent = len(parts) > 1
    pipeline = PIPELINES[name] if latent or name == "DiTTransformer2DModel" else "DDPMPipeline"
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": VERSION}
    index |= {part.folder: part.named for part in parts}
    if pipeline == "DiTPipeline":
        index |= {"vae": parts[1].named if latent else [None, None], "id2label": dict(enumerate(classes or ())) or None}
    elif pipeline == "StableDiffusionPipeline":
        index |= {part: [None, None] for part in ("safety_checker", "feature_extractor", "image_encoder")}
        index["requires_safety_checker"] = False
        if len(controls) == 1:  # the pipeline of several has no index that names them
            index |= {"_class_name": "StableDiffusionControlNetPipeline", control_nets.FOLDER: controls[0].named}
    return index


def network(preset: Preset, tensors: ForeignTensors) -> WrittenPart:
    """Their network, its configuration and its tensors."""
    built = on_meta(preset).denoiser.network
    name, config = network_config(preset)
    ours = {name: tensor for name, tensor in tensors.items() if not name.startswith("codec.")}
    if isinstance(built, DiT):
        return part(name, config, write(published_dit.diffusers_rules(built.config, ours), ours))
    assert isinstance(built, UNet)
    null = not told_by(preset) and diffusion(preset).drop_condition > 0
    return part(name, config, write(diffusers_unet.diffusers_rules(built, ours, null), ours))


def network_config(preset: Preset) -> tuple[str, dict[str, Any]]:
    """The class and the configuration of their network. Raises UserError if there is none."""
    task, made = diffusion(preset), on_meta(preset)
    built, shape = made.denoiser.network, ImageShape(*made.codec.latent_shape(made.shape))
    common = {"sample_size": size_of(shape), "in_channels": shape.channels}
    common["out_channels"] = common["in_channels"] * (2 if task.learn_variance else 1)
    classes = next((c.num_classes for c in task.conditioners if c.kind == "class"), None)
    if isinstance(built, DiT):
        config = {**common, **published_dit.write_config(built.config), "num_embeds_ada_norm": classes}
        return "DiTTransformer2DModel", config
    assert isinstance(built, UNet)
    if told_by(preset):
        return "UNet2DConditionModel", common | diffusers_conditional.write_config(built, shape)
    rows = None if classes is None else classes + (task.drop_condition > 0)
    return "UNet2DModel", {**common, **diffusers_config.write_config(built, shape), "num_class_embeds": rows}


def part(name: str, config: dict[str, Any], tensors: dict[str, Tensor]) -> WrittenPart:
    return WrittenPart(FOLDERS[name], {"_class_name": name, **config}, tensors)


def first_stage(preset: Preset, tensors: ForeignTensors) -> list[WrittenPart]:
    """The first stage of a latent model, for the pipeline of its network."""
    codec, data = diffusion(preset).codec, preset.data.shape
    if not isinstance(codec, LatentCodecConfig):
        if told_by(preset):
            raise UserError(
                "task.conditioners reads texts without a first stage, but StableDiffusionPipeline draws in a latent space",
                "export a model with task.codec.kind latent",
            )
        return []
    stage = codec.required
    inside = {name.removeprefix(f"{PLACE}."): value for name, value in tensors.items() if name.startswith(f"{PLACE}.")}
    scaling = Scaling(tensors["codec.shift"], tensors["codec.scale"])
    config, weights = first_stages.to_diffusers(stage, inside, scaling, max(data.height, data.width))
    unet = not isinstance(on_meta(preset).denoiser.network, DiT)
    return [WrittenPart("vqvae" if unet and not told_by(preset) else "vae", config, weights)]


def check_stage(preset: Preset) -> None:
    """Raises UserError if diffusers has no class for the first stage of a latent model."""
    codec = diffusion(preset).codec
    assert isinstance(codec, LatentCodecConfig)
    stage = codec.required
    texts = any(isinstance(c, PretrainedConditionerConfig) for c in diffusion(preset).conditioners)
    if texts and stage.bottleneck.kind != "kl":
        raise UserError(
            f"the first stage has bottleneck.kind {stage.bottleneck.kind}, but StableDiffusionPipeline wants an AutoencoderKL",
            "export a model whose first stage was trained with bottleneck.kind kl",
        )
    check_expressible(stage)


def told_by(preset: Preset) -> list[PretrainedConditionerConfig]:
    """The one conditioner that reads texts as StableDiffusionPipeline does; None if the model reads no texts.

    Raises UserError with the key that differs from that pipeline.
    """
    conditioners = diffusion(preset).conditioners
    texts = [c for c in conditioners if isinstance(c, PretrainedConditionerConfig)]
    if not texts:
        return []
    reader = texts[0]
    wanted: dict[str, tuple[Any, Any]] = {
        "gives": (reader.gives, "tokens"),
        "dim": (reader.dim, None),
        "unconditional": (reader.unconditional, "empty"),
        "encoder.kind": (reader.encoder.kind, "clip"),
        "encoder.library": (reader.encoder.library, "transformers"),
        "encoder.padding": (reader.encoder.padding, "read"),
        "encoder.layer": (reader.encoder.layer, -1),
        "encoder.length": (reader.encoder.length, None),
    }
    if len(conditioners) > 1:
        kinds = ", ".join(c.kind for c in conditioners)
        raise UserError(
            f"task.conditioners are {kinds}, but StableDiffusionPipeline takes only texts",
            "export a model with one conditioner",
        )
    for key, (found, needed) in wanted.items():
        if found != needed:
            raise UserError(
                f"task.conditioners.0.{key} is {json.dumps(found)}, unlike in StableDiffusionPipeline",
                f"export a model that was trained with task.conditioners.0.{key} {json.dumps(needed)}",
            )
    return texts


def check_conditions(preset: Preset) -> None:
    """Raises UserError if their network does not take the conditions of ours."""
    task = diffusion(preset)
    if not told_by(preset):
        check_conditioners(preset)
    none = all(c.kind != "class" for c in task.conditioners)
    if isinstance(on_meta(preset).denoiser.network, DiT) and (none or not task.drop_condition > 0):
        raise UserError(
            f"task.conditioners is {list(task.conditioners)} with task.drop_condition {task.drop_condition:g}, but "
            "DiTTransformer2DModel always has classes and a row for no class",
            "export a class-conditional DiT that was trained with --set task.drop_condition=0.1",
        )


def check_conditioners(preset: Preset) -> None:
    """Raises UserError for conditions that no such network of theirs takes."""
    kinds = ["class in tokens" if c.kind == "class" and c.tokens else c.kind for c in diffusion(preset).conditioners]
    if kinds not in ([], ["class"]):
        raise UserError(
            f"task.conditioners are {', '.join(kinds)}, which the networks of diffusers do not take",
            "such a model cannot be exported; models without conditions, of classes alone, and of texts as Stable Diffusion can",
        )


def check_time(preset: Preset) -> None:
    """Raises UserError if their network would get other times than ours was trained with."""
    schedule = diffusion(preset).schedule
    steps = getattr(schedule, "steps", 1000)
    scale = getattr(diffusion(preset).network, "time_scale", 1.0)
    if abs(scale * 1000 / steps - 1) > 1e-6:
        raise UserError(
            f"task.schedule.steps is {steps} with task.network.time_scale {scale:g}: the network was trained with times up to "
            f"{1000 * scale:g}, in diffusers it would get the index of the step",
            f"to export, train with --set task.network.time_scale={steps / 1000:g} (or task.schedule.steps 1000)",
        )


def size_of(shape: ImageShape) -> int | list[int]:
    """sample_size: one number for squares."""
    return shape.height if shape.height == shape.width else [shape.height, shape.width]

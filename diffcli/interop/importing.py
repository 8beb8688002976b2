"""Published weights in: a file or folder of other people becomes a preset and the tensors of its task.

A diffusers folder says in its configuration what it is; a state dict does not, so a preset named by --as does. Every name and
shape is checked before anything is made.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diffcli import __version__, checkpoint
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.interop import compvis, first_stages, pipelines, published_dit, scheduler
from diffcli.interop.first_stages import ForeignStage
from diffcli.interop.foreign import Foreign, read_json
from diffcli.interop.unets import diffusers_conditional, diffusers_config, diffusers_unet, openai
from diffcli.interop.unets.places import CLASSES, class_rules
from diffcli.interop.weight_files import ForeignTensors, Rule, read, read_tensors, weights_in
from diffcli.networks.dit import DiT
from diffcli.networks.unet import UNet
from diffcli.preset import Preset
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig

CONFIG = "config.json"
PIPELINE = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
NETWORKS = ("unet", "transformer")  # folders of a pipeline
FAMILIES = {
    "UNet2DModel": diffusers_config,
    "UNet2DConditionModel": diffusers_conditional,
    "DiTTransformer2DModel": published_dit,
}
NOT_TOLD = (  # keys that --as may set as it likes: not the architecture, or checked with the tensors
    "data.kind",
    "sampler",
    "guidance",
    "task.network.dropout",
    "task.drop_condition",
    "task.conditioners",
)
STAGE_SIZE = 256  # of the images of a first stage, which takes any size
STEPS = 100_000  # of a training that nobody asked for yet: a preset must say something


class Imported(NamedTuple):
    """A foreign model as ours."""

    preset: Preset
    tensors: dict[str, Tensor]  # of the task
    classes: tuple[str, ...] | None
    notes: tuple[str, ...]  # what the files do not say, and was taken for granted
    record: Mapping[str, Any] = {}  # entries of the checkpoint's record: the digests of encoders


def load(path: Path, given: Preset | None) -> Imported:
    """Reads a file or folder. given: the preset of --as. Raises UserError where anything does not fit."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder", "give a .pt or .safetensors file, or a diffusers folder")
    return from_folder(path, given) if path.is_dir() else from_file(path, given)


def save(imported: Imported, out: Path, source: Path) -> Path:
    """Writes out/step-00000000, a checkpoint that sample, gif and fid take: published weights are averages. Returns its path."""
    check_empty(out)
    record = {
        "step": 0,
        "preset": imported.preset.model_dump(mode="json"),
        "classes": imported.classes,
        "version": __version__,
        "imported_from": source.name,
        **imported.record,
    }
    return checkpoint.save_average(checkpoint.step_dir(out, 0), imported.tensors, record)


def check_empty(out: Path) -> None:
    """Raises UserError where something stands at --out already."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out {out}: is not empty", "give a new or empty folder")


def from_file(path: Path, given: Preset | None) -> Imported:
    """A state dict: OpenAI's U-Nets, DiT and SiT, known by a name that only theirs has."""
    theirs = read_tensors(path)
    notes: tuple[str, ...] = ()
    if compvis.MARK in theirs:
        return from_latent_file(compvis.parts(theirs, str(path)), path, given)
    if first_stages.COMPVIS_MARK in theirs and given is None:
        return stage_alone(first_stages.from_compvis(theirs, str(path)), path)
    if published_dit.MARK in theirs and given is None:
        given = built({"name": slug(path), **published_dit.derived(theirs, str(path))}, path)
        notes = (f"{path.name} is taken for a DiT; a SiT, which has the same tensors, needs --as sit-xl-2",)
    if published_dit.MARK not in theirs and openai.MARK not in theirs:
        raise UserError(
            f"{path}: its tensors ({', '.join(list(theirs)[:3])}, ...) are not those of a model that diffcli knows",
            "give an improved- or guided-diffusion U-Net, a DiT or SiT, a file of latent-diffusion, Stable Diffusion or taming, "
            "or the folder of a diffusers model",
        )
    if given is None:
        raise UserError(
            f"{path}: a U-Net of improved- or guided-diffusion does not tell its flags (heads, schedule, ...)",
            "name the preset that does, such as --as imagenet64-adm, imagenet64-iddpm or cifar10-iddpm",
        )
    given, stage = pipelines.staged(given, None)
    task, beside = on_meta(given), pipelines.stage_tensors(stage)
    ours = {name: tensor for name, tensor in task.state_dict().items() if name not in beside}
    network = task.denoiser.network
    if published_dit.MARK in theirs and isinstance(network, DiT):
        rules = dit_rules(given, network, ours, theirs, path)
        return Imported(given, read(rules, theirs, ours, str(path), [published_dit.POSITIONS]) | beside, None, notes)
    if openai.MARK in theirs and isinstance(network, UNet):
        null = null_row(given, theirs, openai.LABELS, path)
        rules = openai.openai_rules(network, ours, class_rules(ours, openai.LABELS, null))
        return Imported(given, read(rules, theirs, ours, str(path)) | beside, None, notes)
    kind, name = ("dit", "DiT") if published_dit.MARK in theirs else ("unet", "U-Net")
    raise UserError(
        f"{path}: holds a {name}, but --as {given.name} has task.network.kind {network_of(given)['kind']!r}",
        f"name a preset of the kind {kind}",
    )


def from_latent_file(file: compvis.LatentFile, path: Path, given: Preset | None) -> Imported:
    """U-Net, first stage and conditions of a file of latent-diffusion or Stable Diffusion."""
    notes = file.notes if given is None else ()
    preset, stage = given or built({"name": slug(path), **compvis.derived(file, str(path))}, path), file.stage
    preset, _ = pipelines.staged(preset, stage)
    task, beside = on_meta(preset), pipelines.stage_tensors(stage)
    network, state = task.denoiser.network, task.state_dict()
    if not beside.keys() <= state.keys() or not isinstance(network, UNet):
        raise UserError(
            f"{path}: holds a U-Net with its first stage, but --as {preset.name} has task.network.kind "
            f"{network_of(preset)['kind']!r} and task.codec.kind {diffusion(preset).codec.kind!r}",
            "name the preset of a U-Net with task.codec.kind latent",
        )
    ours = {name: tensor for name, tensor in state.items() if name not in beside}
    theirs = dict(file.unet)
    if CLASSES in ours and file.classes is not None:
        theirs[compvis.CLASSES] = file.classes
    rules = openai.openai_rules(network, ours, compvis.class_rules(ours), file.linear)
    record = pipelines.encoder_record(preset) if given is not None else {}
    return Imported(preset, read(rules, theirs, ours, str(path)) | beside, None, notes, record)


def stage_alone(stage: ForeignStage, path: Path) -> Imported:
    """A first stage as the checkpoint of an autoencoder."""
    task = {"kind": "autoencoder", **stage.config.model_dump(mode="json", include={"network", "bottleneck"})}
    data = {"kind": "none", "size": STAGE_SIZE, "channels": stage.config.channels}
    preset = built({"name": slug(path), "data": data, "task": task}, path)
    return Imported(preset, {f"{pipelines.ALONE}.{name}": tensor for name, tensor in stage.tensors.items()}, None, ())


def dit_rules(preset: Preset, network: DiT, ours: ForeignTensors, theirs: ForeignTensors, path: Path) -> list[Rule]:
    """The rules for a DiT, or, where the preset is on the flow path, for a SiT."""
    flow = diffusion(preset).target == "flow"
    if flow and network.config.time_scale != published_dit.TIME_SCALE:
        raise UserError(
            f"{path}: SiT is told times from 0 to 1, but --as {preset.name} has task.network.time_scale "
            f"{network.config.time_scale:g}",
            f"set task.network.time_scale to {published_dit.TIME_SCALE:g} in that preset, as sit-xl-2 does",
        )
    if published_dit.POSITIONS in theirs:
        published_dit.check_positions(theirs[published_dit.POSITIONS], network.config, str(path))
    pixels, channels = network.config.patch**2, theirs[published_dit.MARK].shape[1]  # of what the network sees
    outputs = theirs[f"{published_dit.FINAL}.bias"].numel() if f"{published_dit.FINAL}.bias" in theirs else 0
    variance = outputs == 2 * pixels * channels
    return published_dit.dit_rules(
        network.config, ours, null_row(preset, theirs, published_dit.LABELS, path), flow, variance
    )


def from_folder(path: Path, given: Preset | None) -> Imported:
    """A diffusers pipeline, or its network alone."""
    index = read_json(path / PIPELINE) if (path / PIPELINE).is_file() else {}
    folder = next((path / name for name in NETWORKS if index and (path / name / CONFIG).is_file()), path)
    if folder == path and first_stages.is_folder(path):
        return stage_alone(first_stages.from_diffusers(path), path)
    if not (folder / CONFIG).is_file():
        raise UserError(
            f"{path}: holds no {CONFIG} of a network",
            "give the folder of a pipeline of diffusers, or of a U-Net or DiT alone",
        )
    values = read_json(folder / CONFIG)
    name = values.get("_class_name")
    if name not in FAMILIES:
        raise UserError(
            f"{folder / CONFIG}: _class_name is {name!r}", f"diffcli imports {', '.join(FAMILIES)} of diffusers"
        )
    config = Foreign(values, FAMILIES[name].DEFAULTS, str(folder / CONFIG))
    planned = path / SCHEDULER if index else path / "scheduler_config.json"
    stated = read_json(planned) if planned.is_file() else None
    notes: tuple[str, ...] = (
        () if stated is not None or given else (f"{path} has no scheduler: taken for eps on linear betas, 1000 steps",)
    )
    beside = pipelines.neighbours(path, index)
    pipelines.check(beside, config)
    if stated is not None and beside.encoder is not None:
        stated["steps_offset"] = 1  # whatever the file says, as StableDiffusionPipeline has it
    plan = Foreign(stated or {}, scheduler.DEFAULTS, str(planned))
    raw = folder_tree(config, plan, name)
    if stated is not None and given is None:
        notes += scheduler.notes(plan)
    if stated is None if beside.stage is not None else config.get("in_channels") not in (1, 3):
        raw["task"]["codec"]["clip"] = False  # latents
    pipelines.join(raw, beside, path)
    stage = beside.stage
    if given is not None:
        given, stage = pipelines.staged(given, stage)
        check_agreement(
            raw if stated is not None else {"task": {"network": raw["task"]["network"]}}, given, config.source
        )
    elif name == "UNet2DConditionModel" and beside.encoder is None:
        raise UserError(
            f"{config.source}: attends to the tokens of a condition, but nothing here says which",
            "give the folder of the whole pipeline, with text_encoder and tokenizer, or --as PRESET",
        )
    preset = given or built({"name": slug(path), **raw}, path)
    theirs = diffusers_unet.current(read_tensors(weights_in(folder)))
    tensors = folder_tensors(preset, config, theirs, stage)
    return Imported(preset, tensors, class_names(index), notes, pipelines.encoder_record(preset))


def folder_tree(config: Foreign, plan: Foreign, name: str) -> dict[str, Any]:
    """The raw preset, but for its name, that a diffusers configuration and scheduler describe. name: of the network's class."""
    network = FAMILIES[name].read_config(config)
    sampling = scheduler.read_scheduler(plan)
    task, channels = sampling["task"], config.get("in_channels")
    outputs = config.get("out_channels") or channels
    if outputs not in (channels, 2 * channels):
        raise config.refuse("out_channels", f"neither in_channels {channels} nor twice that, for a learned variance")
    transformer = name == "DiTTransformer2DModel"  # the pipeline itself knows what half of its outputs is for
    if not plan.values or (transformer and "variance_type" not in plan.values):
        task["learn_variance"], sampling["sampler"]["variance"] = outputs == 2 * channels, "auto"
    if sampling["sampler"]["kind"] != "ddpm":
        sampling["sampler"].pop("variance", None)
    if task["learn_variance"] != (outputs == 2 * channels):
        raise plan.refuse("variance_type", f"but the network has {outputs} outputs for {channels} channels")
    steps = plan.get("num_train_timesteps")
    network["time_scale"] = steps / 1000  # their index runs to steps - 1, ours to 1000
    classes = config.get("num_embeds_ada_norm" if transformer else "num_class_embeds")
    if classes is not None:
        width = network["width"] * (1 if transformer else 4)
        task["conditioners"] = [{"kind": "class", "num_classes": classes, "dim": width}]
        task["drop_condition"] = 0.1 if transformer else 0.0
    size = config.get("sample_size")
    data = {"kind": "none", "size": size, "channels": channels}
    return {"data": data, "task": {"kind": "diffusion", **task, "network": network}, "sampler": sampling["sampler"]}


def folder_tensors(
    preset: Preset, config: Foreign, theirs: ForeignTensors, stage: ForeignStage | None
) -> dict[str, Tensor]:
    """The tensors of a diffusers network, and of the first stage beside it, as those of the preset's task."""
    task = on_meta(preset)
    beside = pipelines.stage_tensors(stage)
    ours = {name: tensor for name, tensor in task.state_dict().items() if name not in beside}
    network = task.denoiser.network
    if isinstance(network, DiT):
        return read(published_dit.diffusers_rules(network.config, ours), theirs, ours, config.source) | beside
    assert isinstance(network, UNet)
    null = null_row(preset, theirs, diffusers_unet.LABELS, Path(config.source))
    rules = diffusers_unet.diffusers_rules(
        network,
        ours,
        null,
        diffusers_config.gone(config),
        sines_first=not config.get("flip_sin_to_cos"),
        linear=bool(config.get("use_linear_projection")),
    )
    return read(rules, theirs, ours, config.source) | beside


def check_agreement(raw: Mapping[str, Any], given: Preset, source: str, key: str = "") -> None:
    """Raises UserError at the first key of --as that says something else than their configuration."""
    node: Any = given.model_dump(mode="json")
    for part in filter(None, key.split(".")):
        node = node.get(part) if isinstance(node, dict) else None
    for name, value in raw.items():
        here = f"{key}.{name}".strip(".")
        if here in NOT_TOLD:
            continue
        if isinstance(value, Mapping):
            check_agreement(value, given, source, here)
        elif not isinstance(node, dict) or node.get(name) != value:
            found = node.get(name) if isinstance(node, dict) else None
            raise UserError(
                f"{source}: means {here} {value!r}, but --as {given.name} has {found!r}",
                "leave --as out, for the configuration says enough, or change that key of the preset",
            )


def null_row(preset: Preset, theirs: ForeignTensors, labels: str, path: Path) -> bool:
    """Whether their table of classes has a row for "no class" after those of the preset's classes."""
    count = next((c.num_classes for c in diffusion(preset).conditioners if c.kind == "class"), None)
    if count is None or labels not in theirs:
        return False
    null = len(theirs[labels]) == count + 1
    if not null and diffusion(preset).drop_condition > 0:
        raise UserError(
            f"{path}: {labels} has {len(theirs[labels])} rows, but --as {preset.name} has {count} classes and "
            f"task.drop_condition {diffusion(preset).drop_condition:g}, which needs one more for no class",
            "set task.drop_condition to 0 in that preset, or task.conditioners.0.num_classes to fit",
        )
    return null


def class_names(index: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes, where a pipeline has them."""
    found = index.get("id2label")
    if not isinstance(found, dict) or not found:
        return None
    names = {int(number): str(label).split(",")[0].strip() for number, label in found.items()}
    return tuple(names[n] for n in range(len(names))) if sorted(names) == list(range(len(names))) else None


def on_meta(preset: Preset) -> DiffusionTask:
    """The preset's task without memory for its weights. Raises UserError where it is no diffusion model."""
    diffusion(preset)
    with torch.device("meta"):
        task = preset.task.build(preset.specs)
    assert isinstance(task, DiffusionTask)
    return task


def diffusion(preset: Preset) -> DiffusionConfig:
    if not isinstance(preset.task, DiffusionConfig):
        raise UserError(
            f"--as {preset.name}: task.kind is '{preset.task.kind}'", "name the preset of a diffusion model"
        )
    return preset.task


def network_of(preset: Preset) -> dict[str, Any]:
    return diffusion(preset).network.model_dump()


def built(raw: Mapping[str, Any], source: Path) -> Preset:
    """The preset that was derived from a foreign configuration."""
    return presets.build({**raw, "train": {"steps": STEPS}}, str(source))


def slug(path: Path) -> str:
    """A preset's name out of a file's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.resolve().stem).lstrip("._-") or "imported"

"""Imports folders of diffusers: a pipeline or its network alone, described by their configuration."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from diffcli.config import UserError
from diffcli.interop import first_stages, pipelines, published_dit, scheduler
from diffcli.interop.first_stages import ForeignStage
from diffcli.interop.foreign import Foreign, read_json
from diffcli.interop.imported import Imported, built, null_row, on_meta, slug, stage_alone
from diffcli.interop.unets import diffusers_conditional, diffusers_config, diffusers_unet
from diffcli.interop.weight_files import ForeignTensors, half_note, read, read_tensors, weights_in
from diffcli.networks.dit import DiT
from diffcli.networks.unet import UNet
from diffcli.preset import Preset

CONFIG = "config.json"
PIPELINE = "model_index.json"
SCHEDULER = "scheduler/scheduler_config.json"
SCHEDULERS = (SCHEDULER, "scheduler_config.json")  # at the root of folders that are flat
NAMES = "id2label.json"  # beside a pipeline, since most pipelines cannot store class names
NETWORKS = ("unet", "transformer")  # folders of a pipeline
FAMILIES = {
    "UNet2DModel": diffusers_config,
    "UNet2DConditionModel": diffusers_conditional,
    "DiTTransformer2DModel": published_dit,
    "Transformer2DModel": published_dit,  # the name under which DiT was published
}
NOT_TOLD = (  # keys that --as may change: no part of the architecture, or checked with the tensors
    "data.kind",
    "sampler",
    "guidance",
    "task.network.dropout",
    "task.network.save_memory",
    "task.drop_condition",
    "task.conditioners",
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
    config = Foreign(values, defaults_of(name), str(folder / CONFIG))
    planned = next((path / name for name in SCHEDULERS if (path / name).is_file()), path / SCHEDULER)
    stated = read_json(planned) if planned.is_file() else None
    if stated is not None and pipelines.held(index, "scheduler"):
        stated.setdefault("_class_name", index["scheduler"][1])
    notes: tuple[str, ...] = (
        ()
        if stated is not None or given
        else (f"{path} has no scheduler: eps on linear betas with 1000 steps is assumed",)
    )
    classes = class_names(path, index)
    beside = pipelines.neighbours(path, index)
    pipelines.check(beside, config)
    if stated is not None and beside.encoder is not None:
        stated["steps_offset"] = 1  # regardless of the file, as in StableDiffusionPipeline
    plan = Foreign(stated or {}, scheduler.DEFAULTS, str(planned))
    raw = folder_tree(config, plan, name, classes)
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
            f"{config.source}: attends to the tokens of a condition that the folder does not name",
            "give the folder of the whole pipeline, with text_encoder and tokenizer, or --as PRESET",
        )
    notes += tuple(note for part in (folder, beside.stage_folder) if part is not None for note in half_note(part))
    preset = given or built({"name": slug(path), **raw}, path)
    theirs = diffusers_unet.current(read_tensors(weights_in(folder)))
    tensors = folder_tensors(preset, config, theirs, stage)
    return Imported(preset, tensors, classes, notes, pipelines.encoder_record(preset))


def defaults_of(name: str) -> Mapping[str, Any]:
    """The defaults of one of their classes, FAMILIES."""
    return published_dit.FORMER_DEFAULTS if name == published_dit.FORMER else FAMILIES[name].DEFAULTS


def folder_tree(config: Foreign, plan: Foreign, name: str, names: tuple[str, ...] | None) -> dict[str, Any]:
    """The raw preset, without its name, for a configuration and scheduler of diffusers.

    name: of the network's class. names: of the classes; a table of one row more ends in "no class".
    """
    network = FAMILIES[name].read_config(config)
    sampling = scheduler.read_scheduler(plan)
    task, channels = sampling["task"], config.get("in_channels")
    outputs = config.get("out_channels") or channels
    if outputs not in (channels, 2 * channels):
        raise config.refuse("out_channels", f"neither in_channels {channels} nor twice that, for a learned variance")
    transformer = FAMILIES[name] is published_dit
    if task.setdefault("learn_variance", outputs == 2 * channels) != (outputs == 2 * channels):
        raise plan.refuse("variance_type", f"but the network has {outputs} outputs for {channels} channels")
    steps = plan.get("num_train_timesteps")
    network["time_scale"] = steps / 1000  # their index runs to steps - 1, ours to 1000
    classes = config.get("num_embeds_ada_norm" if transformer else "num_class_embeds")
    if classes is not None:
        width = network["width"] * (1 if transformer else 4)
        null = not transformer and names is not None and len(names) == classes - 1
        task["conditioners"] = [{"kind": "class", "num_classes": classes - null, "dim": width}]
        task["drop_condition"] = 0.1 if transformer or null else 0.0
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
    """Raises UserError for the first key of --as that contradicts their configuration."""
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
                f"{source}: needs {here} {value!r}, but --as {given.name} has {found!r}",
                "leave --as out, since the configuration is complete, or change that key of the preset",
            )


def class_names(path: Path, index: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names of the classes: those that an export wrote beside a pipeline, or the first name of each class in its index."""
    whole = (path / NAMES).is_file()
    found = read_json(path / NAMES) if whole else index.get("id2label")
    if not isinstance(found, dict) or not found:
        return None
    if not all(str(number).isdecimal() for number in found):
        raise UserError(
            f"{path}: id2label has keys that are no numbers ({', '.join(list(found)[:3])})", "mend the file"
        )
    names = {int(number): str(name) if whole else str(name).split(",")[0].strip() for number, name in found.items()}
    return tuple(names[n] for n in range(len(names))) if sorted(names) == list(range(len(names))) else None

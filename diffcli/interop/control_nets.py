"""ControlNetModel of diffusers: a branch that leads a text-to-image model, in and out.

It is a copy of the first part of a UNet2DConditionModel and has the same names; what it adds has its own. Both tell it levels in
[0, 1]. Its model is no part of its folder: an import names it (`--base`), and both travel in the checkpoint that is made.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.config import ImageShape, UserError
from diffcli.fields import FieldSpec, to_record
from diffcli.interop.foreign import Foreign, read_json
from diffcli.interop.imported import Imported, on_meta, slug
from diffcli.interop.unets import diffusers_conditional, diffusers_unet
from diffcli.interop.unets.places import NETWORK
from diffcli.interop.weight_files import (
    ForeignTensors,
    Rule,
    half_note,
    layer,
    layers,
    read,
    read_tensors,
    weights_in,
    write,
)
from diffcli.networks.control import UNetBranch
from diffcli.networks.unet import UNet
from diffcli.preset import Preset
from diffcli.tasks.control.controlled_task import ControlledTask
from diffcli.tasks.control.filling import preset_of
from diffcli.tasks.control.led_weights import digest_of, in_control, own_tensors
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig

CLASS = "ControlNetModel"
CONFIG = "config.json"
FOLDER = "controlnet"  # of a pipeline
BRANCHES = "denoiser.network.branches."
HINT = "controlnet_cond_embedding"
ENDS = (f"{NETWORK}.norm.", f"{NETWORK}.head.")  # of a U-Net, which a branch has not
MIDDLE = ["res", "spatial_transformer", "res"]  # the only one that theirs has
DEFAULTS = {
    key: value for key, value in diffusers_conditional.DEFAULTS.items() if key not in ("sample_size", "out_channels")
} | {
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "controlnet_conditioning_channel_order": "rgb",
    "global_pool_conditions": False,
}
EXPRESSIBLE: dict[str, tuple[Any, ...]] = {
    "controlnet_conditioning_channel_order": ("rgb",),
    "global_pool_conditions": (False,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
}
TRAINED = ("dropout",)  # keys of a network that make no other branch
FEW = 3  # keys that an error names


class LedModel(NamedTuple):
    """The checkpoint of a model that a branch is imported for."""

    path: Path
    record: Mapping[str, Any]
    preset: Preset
    task: DiffusionTask  # without memory for its weights

    @property
    def config(self) -> DiffusionConfig:
        assert isinstance(self.preset.task, DiffusionConfig)
        return self.preset.task


def is_folder(path: Path) -> bool:
    """Whether a folder is that of a ControlNetModel."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("_class_name") == CLASS


def load(path: Path, base: Path, field: str) -> Imported:
    """A ControlNetModel as a branch of a model. base: its checkpoint. field: what the picture is called that leads it.

    Raises UserError where it is that of another model, naming the first keys in which the two differ.
    """
    led = model_at(base)
    values = read_json(path / CONFIG)
    if values.get("_class_name") != CLASS:
        found = f"{path / CONFIG}: _class_name is {values.get('_class_name')!r}"
        raise UserError(found, f"--base goes with a {CLASS} of diffusers")
    config = Foreign(
        {**mirrored(values), "sample_size": max(led.task.latent_shape(1)[2:])}, DEFAULTS, str(path / CONFIG)
    )
    check_same(config, led)
    control = {"from": str(led.path), "field": field, "widths": config.get("conditioning_embedding_out_channels")}
    task = {**led.config.model_dump(mode="json"), "control": [control]}
    made = presets.build({**led.preset.model_dump(mode="json"), "name": slug(path), "task": task}, str(path))
    channels = config.get("conditioning_channels")
    hint = {field: FieldSpec("image", (channels, None, None))}
    with torch.device("meta"):
        built = made.task.build({**made.specs, **hint})
    assert isinstance(built, ControlledTask)
    check_scale(config, built)
    branch = cast(UNetBranch, built.controlled.branches[0])
    linear, swapped = bool(config.get("use_linear_projection")), not config.get("flip_sin_to_cos")
    theirs = diffusers_unet.current(read_tensors(weights_in(path)))
    own = read(rules(branch, swapped, linear), theirs, named(branch.state_dict()), str(path))
    weights = own_tensors(checkpoint.read_part(checkpoint.locate(led.path), "ema", led.record))
    tensors = in_control(weights) | {f"{BRANCHES}0.{inner(name)}": tensor for name, tensor in own.items()}
    tensors |= {f"gain.{name}": torch.zeros((), dtype=torch.int64) for name, _ in built.gain.named_buffers()}
    kept = {key: led.record[key] for key in ("encoders", "first_stage") if key in led.record}
    note = {"from": str(led.path), "sha256": digest_of(weights), "step": led.record.get("step", 0)}
    record = {**kept, "control": note, "fields": to_record({**led.task.reads, **hint})}
    return Imported(made, tensors, led.record.get("classes"), half_note(path), record)


def model_at(base: Path) -> LedModel:
    """The model that a branch is imported for. Raises UserError where it is no text-to-image model with a U-Net."""
    flag = f"--base {base}"
    try:
        preset_of(base)
        found = checkpoint.locate(base.expanduser())
        record = checkpoint.read_record(found)
        made = presets.build(record.get("preset"), f"{found}/{checkpoint.RECORD}")
    except UserError as error:
        raise UserError(f"{flag}: {error.problem.removeprefix('task.control.from: ')}", error.hint) from None
    task = on_meta(made)
    network = task.denoiser.network
    if not isinstance(network, UNet) or not network.options.tokens:
        problem = f"{flag}: is no U-Net that reads texts, the only kind that a {CLASS} leads"
        raise UserError(problem, "name the import of such a model")
    return LedModel(base.expanduser().absolute(), record, made, task)


def mirrored(values: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of theirs with the way up that its model has: the way down, backwards."""
    down = values.get("down_block_types", DEFAULTS["down_block_types"])
    return {**values, "up_block_types": [str(name).replace("Down", "Up") for name in reversed(down)]}


def check_same(config: Foreign, led: LedModel) -> None:
    """Raises UserError naming the first keys in which a ControlNetModel is the branch of another network."""
    config.demand(EXPRESSIBLE)
    there = diffusers_conditional.read_config(config)
    own = led.config.network.model_dump(mode="json")
    network = cast(UNet, led.task.denoiser.network)
    alike = [key for key in there if key not in (*TRAINED, "heads", "head_dim")]
    pairs: dict[str, tuple[Any, Any]] = {f"task.network.{key}": (own.get(key), there[key]) for key in alike}
    pairs["heads"] = head_counts(own, network.config.widths), head_counts(there, network.config.widths)
    pairs["channels"] = led.task.latent_shape(1)[1], config.get("in_channels")
    pairs["tokens"] = network.options.tokens, config.get("cross_attention_dim")
    different = [f"{key} is {other!r}, of {led.path} {mine!r}" for key, (mine, other) in pairs.items() if mine != other]
    if different:
        more = f" and {len(different) - FEW} more" if len(different) > FEW else ""
        problem = f"{config.source}: leads another model: {'; '.join(different[:FEW])}{more}"
        raise UserError(problem, "name its own model with --base")


def head_counts(network: Mapping[str, Any], widths: list[int]) -> list[int]:
    """Heads of attention at each level of a raw `task.network`."""
    if network.get("heads"):
        return [network["heads"]] * len(widths)
    return [width // (network.get("head_dim") or width) for width in widths]


def check_scale(config: Foreign, task: ControlledTask) -> None:
    """Raises UserError where the picture of a ControlNetModel does not end up as large as what the model diffuses."""
    key, factor = "conditioning_embedding_out_channels", task.codec.downscale
    made = 2 ** (len(config.get(key)) - 1)
    if made != factor:
        why = f"which makes the picture {made} times smaller, but the latents of the model are so {factor} times"
        raise config.refuse(key, why, "name its own model with --base")


def named(own: ForeignTensors) -> dict[str, Tensor]:
    """The tensors of a branch, its copy named as a network in a task is."""
    there = f"{NETWORK}."
    return {there + n.removeprefix("copied.") if n.startswith("copied.") else n: value for n, value in own.items()}


def inner(name: str) -> str:
    """The name in the branch itself of one that `named` gave."""
    return f"copied.{name.removeprefix(f'{NETWORK}.')}" if name.startswith(NETWORK) else name


def rules(branch: UNetBranch, sines_first: bool = False, linear: bool = False) -> list[Rule]:
    """Between the `named` tensors of a branch and theirs; the options of `diffusers_rules`."""
    copied = diffusers_unet.diffusers_rules(branch.copied, named(branch.state_dict()), False, (), sines_first, linear)
    found = [rule for rule in copied if not any(name.startswith(ENDS) for name in rule.ours)]
    last = len(branch.zeros) - 1
    for i in range(last):
        found += layer(f"zeros.{i}", f"controlnet_down_blocks.{i}")
    found += layer(f"zeros.{last}", "controlnet_mid_block")
    table = {"enter": "conv_in", "leave": "conv_out"} | {
        f"inner.{i}": f"blocks.{i}" for i in range(len(branch.hint.inner))
    }
    return found + layers("hint", HINT, table)


def alone(preset: Preset) -> Preset:
    """The preset of the model that another preset leads; one that leads none as it is."""
    task = preset.task
    if not isinstance(task, DiffusionConfig) or not task.control:
        return preset
    return preset.model_copy(update={"task": task.model_copy(update={"control": ()})})


def exported(preset: Preset, tensors: ForeignTensors) -> list[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    """The branches of a preset as theirs: folder, configuration and tensors of each. tensors: of the task.

    Raises UserError where theirs cannot be it.
    """
    task = preset.task
    if not isinstance(task, DiffusionConfig) or not task.control:
        return []
    takes = f"{BRANCHES}{{}}.hint.enter.weight"
    channels = [tensors[takes.format(i)].shape[1] for i in range(len(task.control))]
    hints = {each.field: FieldSpec("image", (c, None, None)) for each, c in zip(task.control, channels, strict=True)}
    with torch.device("meta"):
        built = task.build({**preset.specs, **hints})
    assert isinstance(built, ControlledTask)
    return [(f"{FOLDER}_{i}" if i else FOLDER, *branch_of(built, i, tensors)) for i in range(len(channels))]


def branch_of(task: ControlledTask, number: int, tensors: ForeignTensors) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and tensors of a branch of a task on the meta device."""
    branch, network = task.controlled.branches[number], task.controlled.base
    refused = f"task.control.{number}: diffusers leads U-Nets that read texts alone"
    if not isinstance(branch, UNetBranch) or not isinstance(network, UNet) or not network.options.tokens:
        raise UserError(refused, "export the model that it leads: --ckpt with the run of task.control.from")
    if list(network.config.middle) != MIDDLE:
        raise UserError(f"{refused} with task.network.middle {MIDDLE}", "lead a model that has that middle")
    enter = branch.hint.enter
    halving = cast(list[torch.nn.Conv2d], list(branch.hint.inner)[1::2])
    if any(conv.stride != (2, 2) for conv in halving):
        raise UserError(f"{refused} of latents at a half, a quarter or an eighth of the pixels", "lead such a model")
    shape = ImageShape(*task.codec.latent_shape(task.shape))
    written = diffusers_conditional.write_config(network, shape)
    config = {
        key: value for key, value in written.items() if key in DEFAULTS and key not in ("up_block_types", "dropout")
    }
    config |= {"in_channels": shape.channels, "conditioning_channels": enter.in_channels}
    config["conditioning_embedding_out_channels"] = [enter.out_channels, *(conv.out_channels for conv in halving)]
    prefix = f"{BRANCHES}{number}."
    ours = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    return {"_class_name": CLASS, **config}, write(rules(branch), named(ours))

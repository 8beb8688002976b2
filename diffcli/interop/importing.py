"""Imports published weights: a file or folder becomes a preset and the tensors of its task.

A diffusers folder has a configuration; for a state dict, --as names a preset that describes it. Every name and shape is checked
before anything is written.
"""

from pathlib import Path

from diffcli import __version__, checkpoint
from diffcli.config import UserError, quoted
from diffcli.interop import compvis, control_nets, first_stages, pipelines, published_dit
from diffcli.interop.diffusers_folder import from_folder
from diffcli.interop.imported import Imported, built, diffusion, network_of, null_row, on_meta, slug, stage_alone
from diffcli.interop.unets import openai, openai_classifier
from diffcli.interop.unets.places import CLASSES, class_rules
from diffcli.interop.weight_files import ForeignTensors, Rule, read, read_with_arguments
from diffcli.lookup.checkpoint_files import weights_to_import
from diffcli.lookup.given_paths import check_empty
from diffcli.networks.dit import DiT
from diffcli.networks.unet import UNet
from diffcli.preset import Preset

HINT_FIELD = "hint"  # what a picture is called that leads an imported model, where nobody says


def load(path: Path, given: Preset | None, base: Path | None = None, field: str = HINT_FIELD) -> Imported:
    """Reads a file or folder. given: the preset of --as. base, field: see `control_nets.load`.

    Raises UserError if anything does not fit.
    """
    weights_to_import(path)
    if base is not None:
        if given is not None:
            raise UserError(f"--as {given.name} with --base {base}: the base describes the model", "leave --as out")
        return control_nets.load(path, base, field)
    if path.is_dir() and control_nets.is_folder(path):
        raise UserError(
            f"{path}: is a {control_nets.CLASS}, which leads a model that its folder does not hold",
            f"import that model first, then: diffcli import {quoted(path)} --base RUN --out DIR",
        )
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


def from_file(path: Path, given: Preset | None) -> Imported:
    """A state dict: OpenAI's U-Nets, DiT and SiT, recognised by a tensor name that only they have."""
    theirs, arguments = read_with_arguments(path)
    notes: tuple[str, ...] = ()
    if openai_classifier.MARK in theirs:
        return openai_classifier.classifier(theirs, path, given)
    if compvis.MARK in theirs:
        return from_latent_file(compvis.parts(theirs, str(path)), path, given)
    if first_stages.COMPVIS_MARK in theirs and given is None:
        return stage_alone(first_stages.from_compvis(theirs, str(path)), path)
    if published_dit.MARK in theirs and given is None:
        raw, notes = published_dit.derived(theirs, arguments, str(path))
        given = built({"name": slug(path), **raw}, path)
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


def dit_rules(preset: Preset, network: DiT, ours: ForeignTensors, theirs: ForeignTensors, path: Path) -> list[Rule]:
    """The rules for a DiT, or for a SiT if the preset is on the flow path."""
    flow = diffusion(preset).target == "flow"
    if flow and network.config.time_scale != published_dit.TIME_SCALE:
        raise UserError(
            f"{path}: SiT gets times from 0 to 1, but --as {preset.name} has task.network.time_scale "
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

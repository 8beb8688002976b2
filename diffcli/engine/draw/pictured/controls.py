"""Pictures that lead a model where images are drawn: how much each counts, and branches of other runs beside its own.

`--control RUN[:SCALE]` adds the branches of a run of `task.control` to any model of the weights that this run leads; their
residuals add up. `--control-scale` says how much each counts: 1 as trained, 0 not at all, for which no picture is wanted.
"""

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from diffcli import checkpoint
from diffcli.config import UserError, did_you_mean, quoted
from diffcli.diffusion.denoiser import Denoiser
from diffcli.engine import control_reading
from diffcli.engine.casting import call_in
from diffcli.engine.draw.sampling import SampleOptions
from diffcli.engine.model import Model, load_model
from diffcli.lookup.checkpoint_files import step_dir
from diffcli.lookup.dependents import beside, is_there
from diffcli.networks.control import Branch, Controlled
from diffcli.tasks.conditioners.hints import HintConditioner
from diffcli.tasks.control.controlled_task import ControlledTask
from diffcli.tasks.control.led_weights import digest_of, own_tensors
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.diffusion_config import DiffusionConfig

Scales = tuple[tuple[str | None, float], ...]  # of the branch of a field; None: of all


def led(model: Model, options: SampleOptions) -> tuple[Model, SampleOptions]:
    """The model with the branches and scales of the options, and the options without them. Raises UserError.

    Weights are shared with the model, which stays as it is.
    """
    for path, _ in options.controls:
        model = joined(model, path)
    scales = chosen_scales(model, options)
    if scales is not None:
        task = copy(cast(ControlledTask, model.task))  # modules and weights are those of the other
        task.scales = scales
        model = replace(model, task=task)
    return model, options.model_copy(update={"controls": (), "control_scale": ()})


def chosen_scales(model: Model, options: SampleOptions) -> tuple[float, ...] | None:
    """A scale for each branch of a model; None where nothing is asked for. Raises UserError where it has no such branch."""
    if not options.controls and not options.control_scale:
        return None
    fields = fields_of(model)
    if not fields:
        name, scale = options.control_scale[0]
        shown = f"{scale:g}" if name is None else f"{name}={scale:g}"
        raise UserError(
            f"--control-scale {shown}: {model.path} is led by no picture",
            "leave --control-scale out, or add the run of a preset with task.control: --control RUN",
        )
    assert isinstance(model.task, ControlledTask)
    own = model.task.scales[: len(fields) - len(options.controls)]
    scales = [*own, *(scale for _, scale in options.controls)]
    for name, scale in options.control_scale:
        if name is not None and name not in fields:
            raise UserError(
                f"--control-scale {name}={scale:g}: no picture '{name}' leads {model.path}", did_you_mean(name, fields)
            )
        scales = [scale if name in (None, field) else before for field, before in zip(fields, scales, strict=True)]
    return tuple(scales)


def fields_of(model: Model) -> list[str]:
    """The fields that lead a model, one for each branch."""
    task = model.preset.task
    return list(task.led_by) if isinstance(task, DiffusionConfig) else []


def joined(model: Model, path: Path) -> Model:
    """A model with the branches of another run beside its own. Raises UserError where that leads other weights."""
    flag = f"--control {path}"
    if not isinstance(model.task, DiffusionTask):
        raise UserError(
            f"{flag}: {model.path} was trained as {model.preset.task.noun}", "give a diffusion model with --ckpt"
        )
    if model.compiled:
        raise UserError(
            f"{flag} with --compile: branches are added to a network as it was loaded", "leave --compile out"
        )
    try:
        found = checkpoint.locate(path)
        record = checkpoint.read_record(found)
    except UserError as error:
        raise UserError(f"{flag}: {error.problem}", error.hint) from None
    note = record.get(control_reading.RECORD)
    if not isinstance(note, Mapping):
        raise UserError(f"{flag}: is no run of task.control", "give the run of a preset such as digits-control-edges")
    if not model.ema and not isinstance(model.task, ControlledTask):
        raise UserError(f"{flag} with --no-ema: branches lead averaged weights", "leave --no-ema out")
    digest = led_digest(model)
    if note.get("sha256") != digest:
        raise UserError(
            f"{flag}: leads the weights {str(note.get('sha256'))[:12]}... of {note.get('from')}, but those of {model.path} are "
            f"{digest[:12]}...",
            f"give --ckpt {quoted(lies)}, or train a control of this model: task.control.from"
            if (lies := led_place(note))
            else f"that model is gone, and the run holds it: give --ckpt {quoted(path)}, and leave {flag} out",
        )
    other = load_model(found, model.device, precision=model.precision)
    assert isinstance(other.task, ControlledTask)
    check_apart(model, other, flag)
    return with_branches(model, other)


def check_apart(model: Model, other: Model, flag: str) -> None:
    """Raises UserError where two branches would read one field."""
    both = sorted({*fields_of(model), *model.task.reads} & set(fields_of(other)))
    if both:
        raise UserError(
            f"{flag}: reads '{both[0]}', which {model.path} reads, too", "give branches that read different fields"
        )


def led_place(note: Mapping[str, Any]) -> Path | None:
    """Where the weights of a model that is led lie: in its run, which may have gone on since. None where they are gone."""
    named, step = Path(str(note.get("from"))).expanduser(), note.get("step") or 0
    kept = step_dir(named / "checkpoints", int(step))
    for place in filter(is_there, dict.fromkeys([kept, named, *beside(kept), *beside(named)])):
        try:
            record = checkpoint.read_record(place)
            if record.get("step") == step and weights_digest(place, record) == note.get("sha256"):
                return place
        except UserError:
            continue
    return None


def led_digest(model: Model) -> str:
    """The digest of the weights that a model is, led or not."""
    record = checkpoint.read_record(model.path)
    note = record.get(control_reading.RECORD)
    if isinstance(note, Mapping):
        return str(note.get("sha256"))
    return weights_digest(model.path, record)


def weights_digest(path: Path, record: Mapping[str, Any]) -> str:
    """The digest of the weights of a located checkpoint that is not led."""
    return digest_of(own_tensors(checkpoint.read_part(path, "ema", record)))


def with_branches(model: Model, other: Model) -> Model:
    """A model with the branches of another beside its own, both of the same weights."""
    config, added = cast(DiffusionConfig, model.preset.task), cast(DiffusionConfig, other.preset.task)
    own, new = cast(DiffusionTask, model.task), cast(ControlledTask, other.task)
    network = own.denoiser.network
    base: nn.Module = network.base if isinstance(network, Controlled) else network
    branches = cast(Sequence[Branch], [*_items(network, "branches"), *new.controlled.branches])
    joint = Controlled(base, branches)
    call_in(joint, model.device, model.precision)
    readers = [*_items(own, "readers"), *new.readers]
    scales = getattr(own, "scales", ())
    denoiser = Denoiser(joint, own.denoiser.schedule, own.denoiser.target, own.denoiser.learn_variance)
    conditioners = list(own.conditioners)
    task = ControlledTask(
        denoiser,
        own.codec,
        conditioners,
        own.objective,
        own.drop_condition,
        own.field,
        own.spec,
        own.stored,
        readers=cast(Sequence[HintConditioner], readers),
    )
    task.scales = (*scales, *new.scales)
    origin = {"checkpoint": str(other.path), "weights_sha256": other.digest}
    task.origins = *getattr(own, "origins", ()), *(origin for _ in new.readers)
    derived = [each for each in other.preset.data.derived if not _made(each, other) <= own.reads.keys()]
    data = model.preset.data.model_copy(update={"derived": (*model.preset.data.derived, *derived)})
    both = config.model_copy(update={"control": (*config.control, *added.control)})
    preset = model.preset.model_copy(update={"task": both, "data": data})
    fields = {**other.trained_on, **model.trained_on}
    return replace(model, task=task.eval().requires_grad_(False), preset=preset, fields=fields)


def describe(model: Model) -> dict[str, Any]:
    """For the sidecar: which pictures lead, and how much each counts."""
    if not isinstance(model.task, ControlledTask):
        return {}
    task = model.task
    branches = zip(fields_of(model), task.scales, task.origins, strict=True)
    return {"control": {field: {"scale": scale, **origin} for field, scale, origin in branches}}


def _items(module: nn.Module, name: str) -> list[nn.Module]:
    return list(cast(Sequence[nn.Module], getattr(module, name, ())))


def _made(derived: Any, model: Model) -> set[str]:
    """The fields that an entry of data.derived makes."""
    return set(derived.specs(model.trained_on["image"]))

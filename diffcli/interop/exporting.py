"""A diffcli checkpoint out: a folder that the pipelines of diffusers load, written without that library.

model_index.json  scheduler/scheduler_config.json  unet|transformer/{config.json, diffusion_pytorch_model.safetensors}
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from diffcli.config import UserError
from diffcli.interop import published_dit
from diffcli.interop.importing import CONFIG, PIPELINE, SCHEDULER, check_empty, diffusion, on_meta
from diffcli.interop.scheduler import write_scheduler
from diffcli.interop.unets import diffusers_config, diffusers_unet
from diffcli.interop.weight_files import WEIGHTS, ForeignTensors, write
from diffcli.networks.dit import DiT
from diffcli.networks.unet import UNet
from diffcli.preset import Preset

VERSION = "0.32.0"  # of diffusers: the oldest that the tests have read such folders with


def export_diffusers(preset: Preset, tensors: ForeignTensors, classes: tuple[str, ...] | None, out: Path) -> Path:
    """Writes the folder. tensors: those of the preset's task. Raises UserError, and writes nothing, where it cannot be done."""
    check_empty(out)
    config, weights = network(preset, tensors)
    planned = {**write_scheduler(preset), "_diffusers_version": VERSION}
    name, folder = config["_class_name"], "unet" if config["_class_name"] == "UNet2DModel" else "transformer"
    pipeline = "DDPMPipeline" if folder == "unet" else "DiTPipeline"
    index: dict[str, Any] = {"_class_name": pipeline, "_diffusers_version": VERSION}
    index |= {"scheduler": ["diffusers", planned["_class_name"]], folder: ["diffusers", name]}
    if folder == "transformer":
        index |= {"vae": [None, None], "id2label": dict(enumerate(classes or ())) or None}
    try:
        (out / folder).mkdir(parents=True, exist_ok=True)
        (out / SCHEDULER).parent.mkdir(exist_ok=True)
        plain = {name: weight.contiguous() for name, weight in weights.items()}  # whatever layout they are run in
        save_file(plain, out / folder / WEIGHTS[0], metadata={"format": "pt"})
        for path, content in ((folder + "/" + CONFIG, config), (SCHEDULER, planned), (PIPELINE, index)):
            (out / path).write_text(json.dumps(content, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror})", "free some space, or give another place"
        ) from error
    return out


def network(preset: Preset, tensors: ForeignTensors) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json of their network, and its tensors."""
    task = diffusion(preset)
    built = on_meta(preset).denoiser.network
    check_conditioners(preset)
    common = {"sample_size": size_of(preset), "in_channels": preset.data.shape.channels}
    common["out_channels"] = common["in_channels"] * (2 if task.learn_variance else 1)
    null = task.drop_condition > 0
    classes = next((c.num_classes for c in task.conditioners if c.kind == "class"), None)
    check_time(preset)
    if isinstance(built, DiT):
        if classes is None or not null:
            raise UserError(
                f"task.conditioners is {list(task.conditioners)} with task.drop_condition {task.drop_condition:g}, but "
                "DiTTransformer2DModel always has classes and a row for no class",
                "export a class-conditional DiT that was trained with task.drop_condition above 0",
            )
        config = published_dit.write_config(built.config)
        made = write(published_dit.diffusers_rules(built.config, tensors), tensors)
        return {"_class_name": "DiTTransformer2DModel", **common, **config, "num_embeds_ada_norm": classes}, made
    assert isinstance(built, UNet)
    config = diffusers_config.write_config(built, preset.data.shape)
    made = write(diffusers_unet.diffusers_rules(built, tensors, null), tensors)
    rows = None if classes is None else classes + null
    return {"_class_name": "UNet2DModel", **common, **config, "num_class_embeds": rows}, made


def check_conditioners(preset: Preset) -> None:
    """Raises UserError for conditions that no such network of theirs takes."""
    kinds = ["class in tokens" if c.kind == "class" and c.tokens else c.kind for c in diffusion(preset).conditioners]
    if kinds not in ([], ["class"]):
        raise UserError(
            f"task.conditioners are {', '.join(kinds)}, which the networks of diffusers for pixels do not take",
            "export an unconditional model, or one with classes alone",
        )


def check_time(preset: Preset) -> None:
    """Raises UserError where their network would not be told the times that ours was trained with."""
    schedule = diffusion(preset).schedule
    steps = getattr(schedule, "steps", 1000)
    scale = getattr(diffusion(preset).network, "time_scale", 1.0)
    if abs(scale * 1000 / steps - 1) > 1e-6:
        raise UserError(
            f"task.schedule.steps is {steps} with task.network.time_scale {scale:g}: the network was told times up to "
            f"{1000 * scale:g}, in diffusers it would be told the index of the step",
            f"train with task.schedule.steps 1000, or with task.network.time_scale {steps / 1000:g}, to export",
        )


def size_of(preset: Preset) -> int | list[int]:
    """sample_size: one number for squares."""
    _, height, width = preset.data.shape
    return height if height == width else [height, width]

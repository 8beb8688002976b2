"""What the tests of interop share: foreign models with random weights, and imported ones made ready to be compared."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from torch import Tensor, nn

from diffcli import preset as presets
from diffcli.interop.imported import Imported
from diffcli.networks.conditioning import Conditioning
from diffcli.noise import Noise
from diffcli.tasks.diffusion import DiffusionTask
from tests.networks.waking import normals

CPU = torch.device("cpu")
STAGE: dict[str, Any] = {  # a tiny first stage of diffusers
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
}
TRANSFORMING: dict[str, Any] = {  # a tiny UNet2DConditionModel, but for the width of its tokens
    "sample_size": 8,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "attention_head_dim": 4,
}
Model = TypeVar("Model", bound=nn.Module)


def noise(*shape: int, seed: int = 0) -> Tensor:
    """N(0, 1) of this shape, the same every time."""
    return Noise([seed], CPU)(torch.empty(1, *shape))[0]


def wake(model: Model, seed: int = 1, keep: str = "") -> Model:
    """Random numbers in every parameter but `keep`: no zero, no one hides a layer that was left out or swapped."""
    parameters = dict(model.named_parameters())
    drawings = normals([parameter.numel() for parameter in parameters.values()], first=1000 * seed)
    with torch.no_grad():
        for (name, parameter), values in zip(parameters.items(), drawings, strict=True):
            if name == keep:
                continue
            gain = name.endswith("weight") and parameter.ndim == 1
            fan_in = max(parameter[0].numel(), 1)
            drawn = values.view_as(parameter) * min(fan_in**-0.5, 0.3)
            parameter.copy_(1 + drawn if gain else drawn)
    return model.eval()


def loaded(imported: Imported) -> DiffusionTask:
    """The task of an imported model, with its weights."""
    task = imported.preset.task.build(imported.preset.specs)
    task.load_state_dict(imported.tensors)
    assert isinstance(task, DiffusionTask)
    return task.eval().requires_grad_(False)


def network(task: DiffusionTask) -> Callable[..., Tensor]:
    return task.denoiser.network


def condition(task: DiffusionTask, labels: Tensor | None, x: Tensor) -> Conditioning:
    """Classes; the number of classes itself is no class."""
    if labels is None:
        return Conditioning()
    count = task.conditioners[0].num_classes
    return task.condition({"label": labels.clamp(max=count - 1)}, labels < count, x)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Agreement relative to the size of the whole, which must not be trivial."""
    scale = float(expected.abs().max())
    assert scale > 0.1
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * max(scale, 1), (
        f"{(found - expected).abs().max()} of {scale}"
    )


def write_preset(
    folder: Path, data: dict[str, Any], sampler: dict[str, Any] | None = None, **task: Any
) -> presets.Preset:
    """A preset of this data and task, through a file, as --as gets it."""
    tree = {"name": "given", "data": data, "task": {"kind": "diffusion", **task}, "train": {"steps": 1}}
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump(tree | ({"sampler": sampler} if sampler else {})))
    return presets.load(str(path))

"""ControlNetModel of diffusers: in as a branch that leads an imported model, and out again, with the same residuals."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffcli import checkpoint
from diffcli.engine.draw.sample import load_model
from diffcli.interop import importing
from diffcli.networks.conditioning import Conditioning, Hint
from diffcli.tasks.control.controlled_task import ControlledTask
from tests.conftest import Cli
from tests.encoders.making import WIDTH
from tests.interop.making import CPU, close, noise
from tests.interop.pipes import control_net, stable

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # inside diffusers
    pytest.mark.xdist_group("control nets"),  # one model serves most of them
]

TIME = torch.tensor([3.0, 700.0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pipeline` and `net` of diffusers, and `run`, the import of the pipeline. Do not change it."""
    root = tmp_path_factory.mktemp("led")
    stable(root / "pipeline")
    control_net(root / "net")
    importing.save(importing.load(root / "pipeline", None), root / "run", root / "pipeline")
    return root


@pytest.fixture(scope="module")
def ours(folder: Path) -> Path:
    """The two together as a checkpoint of ours. Do not change it."""
    made = importing.load(folder / "net", None, folder / "run", "edges")
    return importing.save(made, folder / "ours", folder / "net")


def inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Latents, tokens, and a picture over the pixels."""
    return noise(2, 4, 8, 8), noise(2, 7, WIDTH, seed=1), noise(2, 3, 16, 16, seed=2).sigmoid()


@torch.no_grad()
def theirs(unet: Any, control: Any, scale: float = 1.0) -> Tensor:
    x, tokens, picture = inputs()
    down, middle = control(x, TIME, tokens, picture, conditioning_scale=scale, return_dict=False)
    return unet(x, TIME, tokens, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample


@torch.no_grad()
def mine(ckpt: Path, scale: float = 1.0) -> Tensor:
    task = load_model(ckpt, CPU, precision="fp32").task
    assert isinstance(task, ControlledTask)
    x, tokens, picture = inputs()
    return task.controlled(x, TIME, Conditioning(tokens=tokens, hints=(Hint(picture, scale),)))


def test_an_imported_branch_says_what_theirs_says(folder: Path, ours: Path) -> None:
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "pipeline" / "unet").eval()
    control = diffusers.ControlNetModel.from_pretrained(folder / "net").eval()
    close(mine(ours), theirs(unet, control))
    close(mine(ours, 0.3), theirs(unet, control, 0.3))
    assert (theirs(unet, control) - theirs(unet, control, 0.0)).abs().max() > 0.1


def test_an_exported_branch_says_what_ours_says(cli: Cli, folder: Path, ours: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = cli("export", "--ckpt", ours, "--to", "diffusers", "--out", out)
    assert done.code == 0, done.err
    unet = diffusers.UNet2DConditionModel.from_pretrained(out / "unet").eval()
    control = diffusers.ControlNetModel.from_pretrained(out / "controlnet").eval()
    close(theirs(unet, control), mine(ours))
    before = json.loads((folder / "net" / "config.json").read_text())
    kept = ["block_out_channels", "conditioning_embedding_out_channels", "attention_head_dim", "down_block_types"]
    assert {key: control.config[key] for key in kept} == {key: before[key] for key in kept}
    pipe = diffusers.StableDiffusionControlNetPipeline.from_pretrained(out)
    assert isinstance(pipe.controlnet, diffusers.ControlNetModel)


def test_the_import_draws_alone_and_beside_its_model(cli: Cli, folder: Path, ours: Path, tmp_path: Path) -> None:
    """The field's name, three channels of the picture, and the record of the model that both share."""
    file = tmp_path / "hint.png"
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(file)
    options = ("--prompt", "a cat", "--field", f"edges={file}", "--steps", 2, "--seed", 5)
    alone = cli("sample", ours, *options, "--control-scale", 0.5, "--out", tmp_path / "a.npz")
    assert alone.code == 0, alone.err
    beside = cli("sample", folder / "run", "--control", f"{ours}:0.5", *options, "--out", tmp_path / "b.npz")
    assert beside.code == 0, beside.err
    plain = cli("sample", folder / "run", "--prompt", "a cat", "--steps", 2, "--seed", 5, "--out", tmp_path / "c.npz")
    assert plain.code == 0, plain.err
    a, b, c = (np.load(tmp_path / f"{name}.npz")["arr_0"] for name in "abc")
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert checkpoint.read_record(ours)["control"]["from"] == str(folder / "run")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block_out_channels": (16, 64)}, ["task.network.mult", "[1, 4]", "[1, 2]"]),
        ({"attention_head_dim": 2, "layers_per_block": 2}, ["heads", "task.network.blocks"]),
        (
            {"conditioning_embedding_out_channels": (4, 4, 4)},
            ["conditioning_embedding_out_channels", "4 times smaller"],
        ),
        ({"in_channels": 3}, ["channels is 3"]),
    ],
)
def test_a_branch_of_another_model_is_refused_with_the_first_differences(
    options: dict[str, Any], words: list[str], cli: Cli, folder: Path, tmp_path: Path
) -> None:
    control_net(tmp_path / "net", **options)
    told = cli("import", tmp_path / "net", "--base", folder / "run", "--out", tmp_path / "out")
    told.refused("--base", *words)
    assert not (tmp_path / "out").exists()


def test_what_is_missing_or_no_model_is_one_error(cli: Cli, folder: Path, trained: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    cli("import", folder / "net", *out).refused("ControlNetModel", "--base RUN")
    cli("import", folder / "net", "--base", trained, *out).refused("--base", "reads texts")
    cli("import", folder / "net", "--base", tmp_path / "gone", *out).refused("--base", "gone")
    cli("import", folder / "pipeline", "--base", folder / "run", *out).refused("config.json")


def test_an_import_can_be_trained_on_as_any_model(folder: Path) -> None:
    """Led by a branch of our own: the import of a text-to-image model with its latents, which are measured already."""
    from diffcli import preset as presets
    from diffcli.engine.control_reading import begun, install

    raw = {
        "name": "led",
        "data": {"kind": "none", "size": 16, "channels": 3, "derived": [{"kind": "edges"}]},
        "task": {"kind": "diffusion", "control": [{"from": str(folder / "run"), "field": "edges"}]},
        "train": {"steps": 1},
    }
    preset = presets.build(raw, "led.yaml")
    led = begun(preset)
    assert led is not None
    task = preset.task.build(preset.specs)
    assert isinstance(task, ControlledTask)
    install(task, led)
    unet = diffusers.UNet2DConditionModel.from_pretrained(folder / "pipeline" / "unet").eval()
    x, tokens, picture = inputs()
    with torch.no_grad():
        found = task.controlled(x, TIME, Conditioning(tokens=tokens, hints=(Hint(picture[:, :1]),)))
        close(found, unet(x, TIME, tokens).sample)
    assert torch.equal(task.codec.state_dict()["scale"], led.tensors["codec.scale"])

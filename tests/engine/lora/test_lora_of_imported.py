"""A text-to-image pipeline of diffusers that learns low-rank changes here and draws with them there."""

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.engine.distributed import join
from diffcli.engine.model import load_model
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import train
from diffcli.engine.stage_reading import completed
from diffcli.networks.conditioning import Conditioning
from diffcli.networks.lora import of_change
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import Cli
from tests.encoders.making import WIDTH
from tests.interop.pipes import stable
from tests.networks.waking import normal

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pipe: a StableDiffusionPipeline; pictures: four with captions."""
    made, draw = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    (made / "pictures").mkdir()
    for i in range(4):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(made / "pictures" / f"{i}.png")
        (made / "pictures" / f"{i}.txt").write_text("a cat" if i % 2 else "two cats")
    stable(made / "pipe")
    return made


@pytest.mark.slow
@torch.no_grad()
def test_it_learns_here_and_computes_the_same_there(folder: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert cli("import", "pipe", "--out", "imported").code == 0
    assert cli("presets", "new", "mine", "--data", "pictures", "--from", "imported").code == 0
    keys = ["train.steps=3", "train.log=[]", "train.curve={kind: constant}", "train.optimizer.lr=0.05", "train.ema=0"]
    lora = "train.lora={rank: 2, alpha: 3, targets: [attention, '*.conv1']}"
    with join("cpu") as group, torch.enable_grad():
        for _ in train(completed(presets.load("mine.yaml", [*keys, lora])), RunDir(folder / "run"), group):
            pass
    kept = load_file(checkpoint.locate(folder / "run") / "ema.safetensors")
    assert all(of_change(name) for name in kept)
    task, base = (load_model(folder / name, CPU, precision="fp32").task for name in ("run", "imported"))
    assert isinstance(task, DiffusionTask)
    assert isinstance(base, DiffusionTask)
    x, t, tokens = normal(1, *task.latent_shape(1)[1:]), torch.tensor([300.0]), normal(1, 7, WIDTH, seed=2)
    ours, before = (each.denoiser.network(x, t, Conditioning(tokens=tokens)) for each in (task, base))
    assert (ours - before).abs().max() > 1e-3
    for name, tensor in base.codec.state_dict().items():
        assert tensor.equal(task.codec.state_dict()[name])  # not measured anew
    assert cli("export", "run", "--out", "back").code == 0
    whole = diffusers.UNet2DConditionModel.from_pretrained(folder / "back/unet")
    torch.testing.assert_close(whole(x, t, tokens).sample, ours, rtol=0, atol=1e-5)
    pytest.importorskip("peft", reason="diffusers loads a LoRA with peft: pip install peft")
    for form in ("peft", "kohya"):
        done = cli("export", "run", "--to", form, "--out", form)
        assert done.code == 0, done.err
        pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder / "pipe")
        pipe.load_lora_weights(form, weight_name=Path(done.out.strip()).name)
        torch.testing.assert_close(pipe.unet(x, t, tokens).sample, ours, rtol=0, atol=1e-5)

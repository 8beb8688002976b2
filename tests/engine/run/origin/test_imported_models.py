"""A text-to-image pipeline of diffusers that is imported, trained on with somebody's pictures, and given back."""

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
from diffcli.engine.run.train import begun
from diffcli.engine.stage_reading import completed
from diffcli.networks.conditioning import Conditioning
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import Cli
from tests.encoders.making import WIDTH
from tests.interop.pipes import stable
from tests.networks.waking import normal

CPU = torch.device("cpu")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Four pictures with captions."""
    folder, draw = tmp_path / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for i in range(4):
        Image.fromarray(draw.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("a cat" if i % 2 else "two cats")
    return folder


def test_an_imported_pipeline_is_trained_on_and_given_back(
    pictures: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first loss is that of the import; what is frozen stays; diffusers computes with the result what we do."""
    monkeypatch.chdir(tmp_path)
    assert cli("import", stable(tmp_path / "pipe"), "--out", "imported").code == 0
    made = cli("presets", "new", "mine", "--data", pictures, "--from", "imported")
    assert made.code == 0, made.err
    keys = ["train.steps=1", "train.log=[]", "train.curve={kind: constant}", "train.freeze=[network.down]"]
    chosen = completed(presets.load("mine.yaml", keys))
    source = load_model(Path("imported"), CPU).task.train()
    with join("cpu") as group, begun(chosen, RunDir(tmp_path / "run"), group) as beginning:
        loop = beginning.loop
        _, batch = next(loop.feed.batches(0))
        found, expected = (task.train()(batch, "main", 1)["loss"] for task in (loop.state.task, source))
        assert torch.equal(found, expected)
        assert set(beginning.taken) == {"taken"}
        list(loop.steps(0))
    before = load_file(checkpoint.locate(tmp_path / "imported") / "ema.safetensors")
    after = load_file(checkpoint.locate(tmp_path / "run") / "task.safetensors")
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert any(name.startswith("denoiser.network.up.") for name in moved)
    assert not any(name.startswith("denoiser.network.down.") for name in moved)
    assert cli("export", tmp_path / "run", "--out", tmp_path / "back").code == 0
    task = load_model(tmp_path / "run", CPU, precision="fp32").task
    assert isinstance(task, DiffusionTask)
    theirs = diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "back/unet")
    x, t, tokens = normal(1, *task.latent_shape(1)[1:]), torch.tensor([300.0]), normal(1, 7, WIDTH, seed=2)
    with torch.no_grad():
        ours = task.denoiser.network(x, t, Conditioning(tokens=tokens))
        assert torch.allclose(ours, theirs(x, t, tokens).sample, atol=1e-5)

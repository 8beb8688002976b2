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
from diffcli.encoders import encoder
from diffcli.engine.distributed import join
from diffcli.engine.model import load_model
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import begun
from diffcli.engine.stage_reading import completed
from diffcli.networks.conditioning import Conditioning
from diffcli.tasks.diffusion import DiffusionTask
from tests.conftest import Cli
from tests.encoders.making import WIDTH
from tests.engine.run.origin.layout import as_in_training
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
    source = as_in_training(load_model(Path("imported"), CPU).task).train()
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


@pytest.mark.slow
def test_an_imported_pipeline_is_trained_without_its_encoder_on_what_was_stored_of_captions(
    pictures: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its loss is that of the captions but for half precision; it resumes; and it still draws what a prompt says."""
    monkeypatch.chdir(tmp_path)
    assert cli("import", stable(tmp_path / "pipe"), "--out", "imported").code == 0
    embed = ("--embed", "clip-tokens", "--encoder", "imported", "--device", "cpu")
    done = cli("prep-data", "folder", pictures, "--out", "set", "--size", 16, "--workers", 1, *embed)
    assert done.code == 0, done.err
    assert cli("presets", "new", "mine", "--data", "set", "--from", "imported").code == 0
    keys = [
        "train.steps=2",
        "train.log=[]",
        "train.curve={kind: constant}",
        "train.every.save=1",
        "task.drop_condition=0.5",
    ]
    cached = "task.conditioners.0.cached=true"

    def loss(preset: Path | str, overrides: list[str], run: str) -> torch.Tensor:
        chosen = completed(presets.load(preset, overrides))
        with join("cpu") as group, begun(chosen, RunDir(tmp_path / run), group) as beginning:
            loop = beginning.loop
            _, batch = next(loop.feed.batches(0))
            assert ("text" in batch) == (cached not in overrides)
            found = loop.state.task.train()(batch, "main", 1)["loss"]
            if cached in overrides:
                list(loop.steps(0))
            return found

    live = loss("mine.yaml", keys, "live")
    with monkeypatch.context() as without:
        without.setattr(encoder, "_shared", lambda *_: pytest.fail("an encoder is loaded"))
        assert torch.allclose(loss("mine.yaml", [*keys, cached], "run"), live, rtol=1e-3)
        checkpoint.step_dir(tmp_path / "run/checkpoints", 2).rename(tmp_path / "whole")
        assert cli("resume", "run").code == 0
        one, other = (
            load_file(p / "task.safetensors") for p in (tmp_path / "whole", checkpoint.locate(tmp_path / "run"))
        )
        assert all(torch.equal(one[name], other[name]) for name in one)
        plan = cli("train", "--preset", "mine.yaml", "--set", cached, "--dry-run")
        assert plan.code == 0, plan.err
        assert "runs in every step" not in plan.out + plan.err
    drawn = cli("sample", "run", "--prompt", "a cat", "--guidance", 3, "--steps", 2, "--out", "x.npz")
    assert drawn.code == 0, drawn.err
    assert cli("export", "run", "--out", "back").code == 0
    latents = cli("prep-data", "latents", "set", "--first-stage", "pipe/vae", "--out", "latents", "--device", "cpu")
    assert latents.code == 0, latents.err
    with monkeypatch.context() as without:  # what was stored of captions is taken along
        without.setattr(encoder, "_shared", lambda *_: pytest.fail("an encoder is loaded"))
        sets = [f"--set={key}" for key in [*keys, cached]]
        done = cli("train", "--preset", "mine.yaml", "--data", "latents", *sets)
        assert done.code == 0, done.err


@pytest.mark.parametrize(
    ("embedded", "said"),
    [
        ((), ["clip_tokens", "prep-data shards", "--embed clip-tokens"]),
        (("--encoder", "pipe"), ["padding read", "padding masked", "--encoder RUN"]),
    ],
    ids=["nothing stored", "read otherwise"],
)
def test_captions_that_were_not_stored_as_the_model_reads_them_are_refused(
    pictures: Path, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, embedded: tuple, said: list
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("import", stable(tmp_path / "pipe"), "--out", "imported").code == 0
    flags = ("--embed", "clip-tokens", "--device", "cpu", *embedded) if embedded else ()
    assert cli("prep-data", "folder", pictures, "--out", "set", "--size", 16, "--workers", 1, *flags).code == 0
    assert cli("presets", "new", "mine", "--data", "set", "--from", "imported").code == 0
    cli("train", "--preset", "mine.yaml", "--set", "task.conditioners.0.cached=true").refused(*said)
    assert not (tmp_path / "runs").exists()


def test_a_model_without_such_an_encoder_is_refused(cli: Cli, tmp_path: Path) -> None:
    assert cli("import", stable(tmp_path / "pipe"), "--out", tmp_path / "imported").code == 0
    flags = ("--embed", "t5", "--encoder", tmp_path / "imported")
    cli("prep-data", "shards", "--out", tmp_path / "set", *flags).refused("no encoder of kind t5", "clip-tokens")

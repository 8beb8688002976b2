"""Runs that need a pretrained encoder, or what one made: it is named with its digest and kept out of checkpoints."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from diffcli import checkpoint
from tests.conftest import Cli
from tests.data import making
from tests.encoders.making import POOLED, WIDTH, tiny_clip

CAPTIONS = ["one cat", "two cats", "a dog", "cats\ndogs", "a cat", "six dogs", "a bird", "two birds"]
NETWORK = {
    "kind": "unet",
    "width": 8,
    "mult": [1, 2],
    "blocks": ["res", "cross_attention"],
    "attend_at": [4],
    "head_dim": 8,
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of models that are no folders are looked up in the local cache alone."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("encoders") / "clip")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small images with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, caption in enumerate(CAPTIONS):
        Image.fromarray(making.pixels(1, 3, 8, 8)[0].transpose(1, 2, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder


@pytest.fixture
def prepared(cli: Cli, pictures: Path, tmp_path: Path) -> Callable[..., Path]:
    def prepare(name: str, encoder: Path | None = None) -> Path:
        embed = ("--embed", "clip", "--encoder", encoder, "--device", "cpu") if encoder else ()
        told = cli("prep-data", "folder", pictures, "--out", tmp_path / name, "--workers", 1, *embed)
        assert told.code == 0, told.err
        return tmp_path / name

    return prepare


def told_by(*conditioners: dict[str, Any], data: Path, **more: Any) -> dict[str, Any]:
    return {
        "data": {"kind": "shards", "root": str(data), "size": 8},
        "task__network": NETWORK,
        "task__conditioners": list(conditioners),
    } | more


def stored(encoder: Path | None, **more: Any) -> dict[str, Any]:
    named = {"encoder": {"model": str(encoder)}} if encoder else {}
    return {"kind": "embedding", "field": "clip_text", "width": POOLED, "dim": 8, "gives": "both", **named, **more}


def live(encoder: Path | str, **more: Any) -> dict[str, Any]:
    widths = {"width": WIDTH, "pooled_width": POOLED, "gives": "both", "dim": 8}
    return {"kind": "pretrained", "encoder": {"model": str(encoder)}, **widths, **more}


def record(run: Path) -> dict[str, Any]:
    return checkpoint.read_record(checkpoint.locate(run))


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def ok(outcome: Any) -> Any:
    assert outcome.code == 0, outcome.err
    return outcome


def test_prompts_reach_a_model_of_stored_embeddings(cli: Cli, tiny, prepared, clip: Path, tmp_path: Path):
    """prep-data --embed, train, sample --prompt; what is trained is told apart by its prompts."""
    preset = tiny(**told_by(stored(clip), data=prepared("set", clip)))
    run = tmp_path / "run"
    ok(cli("train", "--preset", preset, "--run-dir", run, "--device", "cpu"))
    digest = json.loads((tmp_path / "set/dataset.json").read_text())["fields"]["clip_text"]["sha256"]
    assert record(run)["encoders"] == {
        "data.clip_text": {"model": str(clip), "sha256": digest},
        "task.conditioners.0": {"model": str(clip), "library": "transformers", "sha256": digest},
    }
    for name, prompt in (("a", "two cats"), ("b", "two cats"), ("c", "a bird")):
        ok(cli("sample", "--ckpt", run, "--n", 2, "--prompt", prompt, "--out", tmp_path / f"{name}.png"))
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "c.png"))


def test_training_on_stored_embeddings_needs_no_encoder(cli: Cli, tiny, prepared, clip: Path, tmp_path: Path):
    """Not even that it is still there: the set tells its digest."""
    gone = tmp_path / "gone"
    shutil.copytree(clip, gone)
    data = prepared("set", gone)
    shutil.rmtree(gone)
    ok(cli("train", "--preset", tiny(**told_by(stored(gone), data=data)), "--run-dir", tmp_path / "run"))
    told = cli("sample", "--ckpt", tmp_path / "run", "--prompt", "a", "--out", tmp_path / "x.png")
    told.refused("task.conditioners.0.encoder.model", str(gone), "no such folder")
    moved = f"task.conditioners.0.encoder.model={clip}"
    ok(cli("sample", "--ckpt", tmp_path / "run", "--prompt", "a", "--set", moved, "--out", tmp_path / "x.png"))


def test_a_frozen_encoder_stays_out_of_checkpoints_and_in_their_record(cli, tiny, prepared, clip: Path, tmp_path: Path):
    preset = tiny(**told_by(live(clip), data=prepared("set")))
    ok(cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--device", "cpu"))
    found = checkpoint.locate(tmp_path / "run")
    for part in ("ema", "task", "optimizer"):
        with safe_open(found / f"{part}.safetensors", framework="pt") as file:
            names = [name.split("conditioners.0.")[1] for name in file.keys() if "conditioners" in name]  # noqa: SIM118
            assert names
            assert all(re.match(r"(tokens|vector)\.(null|project\.(weight|bias))\b", name) for name in names)
            assert not any("text_model" in name for name in file.keys())  # noqa: SIM118
            if part == "ema":
                assert json.loads(file.metadata()["diffcli"])["encoders"] == record(found)["encoders"]
    assert record(found)["encoders"].keys() == {"task.conditioners.0"}
    assert record(found)["preset"]["task"]["conditioners"][0]["encoder"]["model"] == str(clip)


def test_a_run_with_an_encoder_resumes_exactly(cli: Cli, tiny, prepared, clip: Path, tmp_path: Path):
    preset = tiny(**told_by(live(clip), data=prepared("set")))
    ok(cli("train", "--preset", preset, "--run-dir", tmp_path / "whole", "--device", "cpu"))
    ok(cli("train", "--preset", preset, "--run-dir", tmp_path / "half", "--device", "cpu", "--steps", 2))
    ok(cli("resume", tmp_path / "half", "--steps", 4, "--device", "cpu"))
    names = [f"checkpoints/step-00000004/{part}.safetensors" for part in ("task", "optimizer")]
    for name in names:
        assert (tmp_path / "half" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_other_weights_under_a_name_are_refused(cli: Cli, tiny, prepared, clip: Path, tmp_path: Path):
    """By resume and by sample, whether they stand in the same folder or in another."""
    own, run = tmp_path / "own", tmp_path / "run"
    shutil.copytree(clip, own)
    ok(cli("train", "--preset", tiny(**told_by(live(own), data=prepared("set"))), "--run-dir", run, "--steps", 2))
    own.rename(tmp_path / "kept")
    sample = ("sample", "--ckpt", run, "--n", 1, "--prompt", "a", "--out", tmp_path / "x.png")
    resume = ("resume", run, "--steps", 4)
    tiny_clip(own, seed=1)
    for command in (sample, resume):
        cli(*command).refused("task.conditioners.0.encoder.model", "whose weights are", "used")
    shutil.rmtree(own)
    for command in (sample, resume):
        cli(*command).refused(str(own), "no such folder", "--set task.conditioners.0.encoder.model=")
        ok(cli(*command, "--set", f"task.conditioners.0.encoder.model={tmp_path / 'kept'}"))
    weaker = f"guide.weaker={run}/checkpoints/step-00000002"
    ok(cli(*sample, "--set", f"task.conditioners.0.encoder.model={tmp_path / 'kept'}", "--set", weaker))
    score = ("fid", "--ckpt", run, "--metrics", "bpd", "--n", 2, "--device", "cpu")
    ok(cli(*score, "--set", f"task.conditioners.0.encoder.model={tmp_path / 'kept'}"))
    cli(*score, "--set", "sampler.steps=3").refused("--set sampler.steps=3 with --metrics bpd")


def test_data_that_do_not_fit_a_conditioner_are_refused_before_training(
    cli, tiny, prepared, clip: Path, tmp_path: Path
):
    plain, embedded = prepared("plain"), prepared("embedded", clip)
    other = tiny_clip(tmp_path / "other", seed=1)
    train = ("--run-dir", tmp_path / "run", "--device", "cpu")

    def refused(conditioner: dict[str, Any], data: Path, *words: str) -> None:
        cli("train", "--preset", tiny(**told_by(conditioner, data=data)), *train).refused(*words)
        assert not list((tmp_path / "run").rglob("*.safetensors"))

    refused(stored(clip), plain, "'clip_text'", "image, text", "--embed clip")
    refused(
        stored(clip, width=99),
        embedded,
        "reads 'clip_text' 99 wide",
        "data's is 16 wide",
        "task.conditioners.0.width=16",
    )
    refused(stored(other), embedded, str(other), "but the data's 'clip_text' used")
    refused(live("nobody/no-such", gives="tokens"), embedded, "task.conditioners.0.encoder.model", "nobody/no-such")
    tiny_clip(tmp_path / "loaded", seed=2)
    other_set = prepared("other_set", tmp_path / "loaded")
    shutil.rmtree(tmp_path / "run", ignore_errors=True)
    ok(cli("train", "--preset", tiny(**told_by(stored(clip), data=embedded)), *train))
    cli("resume", tmp_path / "run", "--steps", 8, "--set", f"data.root={other_set}").refused(
        "'clip_text' was made by weights"
    )


def test_a_dry_run_loads_no_encoder(cli: Cli, tiny, prepared):
    preset = tiny(**told_by(live("nobody/no-such", gives="both"), data=prepared("set")))
    told = ok(cli("train", "--preset", preset, "--dry-run"))
    assert "nobody/no-such" in told.out

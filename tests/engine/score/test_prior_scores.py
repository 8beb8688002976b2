"""A prior end to end: trained on stored embeddings without a look at an image, resumed exactly, scored beside the identity."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from diffcli.engine.draw.sample import SampleOptions, load_model
from diffcli.engine.score.translated import Translation
from tests.conftest import Cli, changed, in_ranks
from tests.data.making import prepared

DIM, TRAIN, TEST = 8, 48, 20
DIFFUSION = {"kind": "diffusion", "width": 16, "depth": 1}
PRIOR: dict[str, Any] = {
    "name": "tiny-prior",
    "data": {"kind": "shards", "size": 8},
    "task": {"kind": "prior", "dim": DIM, "network": {"kind": "mlp", "width": 32, "depth": 1}},
    "train": {
        "steps": 60,
        "batch_size": 24,
        "precision": "fp32",
        "ema": 0.9,
        "optimizer": {"kind": "adamw", "lr": 5e-3},
        "every": {"log": 1, "preview": 1, "save": 30},
    },
    "sampler": {"kind": "ddim", "steps": 3},
}


def columns(count: int, seed: int) -> dict[str, Any]:
    """Texts, and the images' embeddings: those of the texts turned by one rotation."""
    random = np.random.default_rng(seed)
    text = random.standard_normal((count, DIM))
    turn, _ = np.linalg.qr(np.random.default_rng(99).standard_normal((DIM, DIM)))
    captions = [[f"picture {seed} {i}"] for i in range(count)]
    return {"text": captions, "clip_text": text, "clip_image": 5 * text @ turn}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    splits = {"train": columns(TRAIN, 0), "test": columns(TEST, 1)}
    return prepared(tmp_path_factory.mktemp("embedded") / "set", splits, encoder="tiny", digest="a" * 64)


def written(folder: Path, **keys: Any) -> Path:
    path = folder / "prior.yaml"
    path.write_text("# prior - for tests\n" + yaml.safe_dump(changed(PRIOR, **keys)))
    return path


def train(cli: Cli, folder: Path, data: Path, *more: object, **keys: Any) -> Path:
    run = folder / "run"
    done = cli("train", "--preset", written(folder, **keys), "--data", data, "--run-dir", run, "--device", "cpu", *more)
    assert done.code == 0, done.err
    return run


def scores(cli: Cli, run: Path, *more: object) -> dict[str, Any]:
    asked = ("--metrics", "cosine,mse,retrieval", "--device", "cpu", "--json")
    done = cli("fid", "--ckpt", run, *asked, *more)
    assert done.code == 0, done.err
    return json.loads(done.out)


def test_a_prior_trained_by_the_command_line_beats_the_identity_on_the_held_out_split(
    tmp_path: Path, data: Path, cli: Cli
) -> None:
    run = train(cli, tmp_path, data)
    told = scores(cli, run)
    assert told["reference"] == {"name": "tiny-prior:test", "n": TEST}
    assert set(told["scores"]) == {f"{i}{m}" for i in ("", "identity_") for m in ("cosine", "mse", "retrieval")}
    assert told["scores"]["cosine"] > told["scores"]["identity_cosine"] + 0.3
    assert told["scores"]["mse"] < told["scores"]["identity_mse"]
    test = columns(TEST, 1)
    a, b = (torch.tensor(test[name], dtype=torch.float16).float() for name in ("clip_text", "clip_image"))
    assert told["scores"]["identity_cosine"] == pytest.approx(float(F.cosine_similarity(a, b).mean()), abs=1e-5)
    first, *_ = (json.loads(line) for line in (run / "log.jsonl").read_text().splitlines())
    assert {"loss", "mse", "cosine", "identity_mse", "identity_cosine"} <= first.keys()
    assert not list((run / "previews").glob("*")), "a prior has nothing to show"
    lines = cli("fid", "--ckpt", run, "--metrics", "cosine", "--ref", f"{data}:train", "--device", "cpu").out
    assert lines.splitlines()[0].startswith("cosine ")
    assert "(identity " in lines.splitlines()[0]
    assert f"{data}:train, {TRAIN} pairs" in lines


def test_a_resumed_prior_is_the_uninterrupted_one(tmp_path: Path, data: Path, cli: Cli) -> None:
    (tmp_path / "whole").mkdir()
    keys = {"task__network": DIFFUSION, "train__steps": 6, "train__every__save": 3}
    whole = train(cli, tmp_path / "whole", data, **keys)
    run = train(cli, tmp_path, data, "--steps", 3, **keys)
    done = cli("resume", run, "--steps", 6, "--device", "cpu")
    assert done.code == 0, done.err
    one, other = (load_model(path, torch.device("cpu"), use_ema=False).task.state_dict() for path in (whole, run))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_images_are_not_even_decoded(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    from diffcli.data.images import FileImages

    def look(*_: object) -> None:
        raise AssertionError("somebody looked at an image")

    monkeypatch.setattr(FileImages, "pixels", look)
    run = train(cli, tmp_path, data, "--steps", 2, "--set", "train.workers=0")
    assert scores(cli, run)["reference"]["n"] == TEST


@pytest.mark.slow
def test_scores_of_a_diffusion_prior_follow_from_the_seed_whatever_the_batch_size(
    tmp_path: Path, data: Path, cli: Cli
) -> None:
    run = train(cli, tmp_path, data, "--steps", 4, task__network=DIFFUSION, guidance=1.5)
    told = scores(cli, run)
    assert (told["network"], told["steps"], told["guidance"], told["seed"]) == ("diffusion", 3, 1.5, 0)
    assert scores(cli, run, "--batch-size", 3)["scores"] == pytest.approx(told["scores"], rel=1e-4)
    assert scores(cli, run, "--seed", 5)["scores"] != told["scores"]
    assert scores(cli, run, "--steps", 5, "--guidance", 1)["steps"] == 5
    done = in_ranks(
        "fid", "--ckpt", run, "--metrics", "cosine,mse,retrieval", "--json", "--nproc", 2, "--device", "cpu"
    )
    assert done.code == 0, done.err
    assert json.loads(done.out)["scores"] == pytest.approx(told["scores"], rel=1e-4)


def test_each_row_is_translated_by_a_seed_of_its_own(tmp_path: Path, data: Path, cli: Cli) -> None:
    run = train(cli, tmp_path, data, "--steps", 2, task__network=DIFFUSION)
    translation = Translation(load_model(run, torch.device("cpu")), SampleOptions(n=4, seed=3), "cosine")
    fields = {name: torch.ones(4, DIM) for name in translation.reads}
    predicted = translation(fields, range(4))["predicted"]
    assert len(predicted.unique(dim=0)) == 4
    part = {name: value[2:] for name, value in fields.items()}
    torch.testing.assert_close(translation(part, range(2, 4))["predicted"], predicted[2:])


def test_the_dry_run_counts_a_task_without_images(tmp_path: Path, data: Path, cli: Cli) -> None:
    done = cli("train", "--preset", written(tmp_path, task__network=DIFFUSION), "--data", data, "--dry-run")
    assert done.code == 0, done.err
    assert f"# images: {TRAIN}" in done.out


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--metrics", "fid,cosine"), ("fid compares images", "cosine, mse, retrieval")),
        (("--metrics", "cosine", "--class", "3"), ("--class 3", "leave --class out")),
        (("--metrics", "cosine", "--features", "clip"), ("--features clip",)),
        (("--metrics", "cosine", "--sampler", "ddim"), ("--sampler ddim", "regression")),
        (("--metrics", "mse", "--guidance", "2"), ("--guidance 2", "regression")),
        (("--metrics", "mse", "--ref", "digits:test"), ("clip_text", "--embed clip")),
        ((), ("was trained as a prior", "--metrics cosine")),
    ],
)
def test_what_a_prior_cannot_be_asked(
    flags: tuple[str, ...], words: tuple[str, ...], regression: Path, cli: Cli
) -> None:
    cli("fid", "--ckpt", regression, "--device", "cpu", *flags).refused(*words)


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    from diffcli import preset as presets
    from diffcli.engine.distributed import join
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.train import train

    run = RunDir(tmp_path_factory.mktemp("regression") / "run")
    run.claim()
    with join("cpu") as group:
        for _ in train(presets.build(changed(PRIOR, data__root=str(data), train__steps=2), "prior"), run, group):
            pass
    return run.path


def test_an_image_model_is_no_prior(trained: Path, cli: Cli) -> None:
    cli("fid", "--ckpt", trained, "--metrics", "cosine", "--device", "cpu").refused("not a prior", "clip-prior")


def test_data_without_embeddings_cannot_train_a_prior(tmp_path: Path, cli: Cli) -> None:
    preset = written(tmp_path, data={"kind": "digits", "size": 8})
    done = cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--device", "cpu")
    done.refused("clip_text", "--embed clip")


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"guidance": 2}, ("guidance is 2",)),
        ({"guidance": 2, "task__network": {**DIFFUSION, "drop_condition": 0}}, ("guidance is 2",)),
        ({"task__network": DIFFUSION, "sampler": {"kind": "ddim", "steps": 5000}}, ("5000",)),
        ({"task__network": {"kind": "mpl"}}, ("'mpl'", "mlp")),
    ],
)
def test_presets_of_priors_that_contradict_themselves(
    tmp_path: Path, keys: dict[str, Any], words: tuple[str, ...], cli: Cli
) -> None:
    cli("train", "--preset", written(tmp_path, **keys), "--dry-run").refused(*words)

"""What format 1 left behind still works: a run, its checkpoints, prepared sets, and the numbers drawn and scored from them.

tests/fixtures/format1 was written before roles, phases and field specs existed, on one thread in float32.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcli.data.prepared import Shards
from diffcli.engine.run.runlog import read_log
from tests.conftest import Cli

KEPT = Path(__file__).parent / "fixtures" / "format1"
LEVELS = 1  # of 255, by which another processor's rounding may move a pixel


@pytest.fixture(autouse=True)
def no_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))


def same_images(path: Path, expected: str) -> None:
    with np.load(path) as now, np.load(KEPT / expected) as then:
        assert now["arr_0"].shape == then["arr_0"].shape
        assert np.abs(now["arr_0"].astype(int) - then["arr_0"].astype(int)).max() <= LEVELS
        assert (now["arr_1"] == then["arr_1"]).all()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--n", 12, "--seed", 5), "expected-samples.npz"),
        (("--n", 4, "--class", 3, "--sampler", "ddpm", "--steps", 10, "--guidance", 1), "expected-ddpm.npz"),
    ],
    ids=["guided", "ddpm"],
)
def test_a_checkpoint_draws_the_images_that_it_drew(cli: Cli, tmp_path: Path, options: tuple, expected: str) -> None:
    out = tmp_path / "now.npz"
    assert cli("sample", "--ckpt", KEPT / "diffusion", *options, "--out", out).code == 0
    same_images(out, expected)


def test_the_averaged_file_alone_draws_the_same(cli: Cli, tmp_path: Path) -> None:
    file, out = KEPT / "diffusion/checkpoints/step-00000006/ema.safetensors", tmp_path / "now.npz"
    assert cli("sample", "--ckpt", file, "--n", 12, "--seed", 5, "--out", out).code == 0
    same_images(out, "expected-samples.npz")


def test_a_run_goes_on_as_it_would_have(cli: Cli, tmp_path: Path) -> None:
    run = Path(shutil.copytree(KEPT / "diffusion", tmp_path / "run"))
    assert cli("resume", run, "--steps", 9).code == 0
    then = {line["step"]: line for line in read_log(KEPT / "expected-log.jsonl")}
    now = {line["step"]: line for line in read_log(run / "log.jsonl")}
    assert list(now) == list(then) == list(range(1, 10))
    for step in (7, 8, 9):
        for name in ("loss", "mse", "grad_norm", "lr", "epoch"):
            assert now[step][name] == pytest.approx(then[step][name], rel=1e-4), (step, name)


def test_samples_score_as_they_did(cli: Cli) -> None:
    options = ("--n", 40, "--features", KEPT / "classifier", "--ref", "digits:test")
    names = "fid,kid,precision,recall,accuracy"
    outcome = cli("fid", "--ckpt", KEPT / "diffusion", *options, "--metrics", names, "--json")
    assert outcome.code == 0, outcome.err
    now, then = json.loads(outcome.out), json.loads((KEPT / "expected-report.json").read_text())
    assert now["scores"] == pytest.approx(then["scores"], rel=1e-3)
    moved = {"scores", "checkpoint", "images", "warnings"}  # numbers that were compared, and names of folders
    assert {name: now[name] for name in then if name not in moved} == {n: then[n] for n in then if n not in moved}
    assert now["images"]["n"] == then["images"]["n"]


def test_the_bound_of_reference_images_is_what_it_was(cli: Cli) -> None:
    options = ("--n", 20, "--ref", KEPT / "reference.npz", "--metrics", "bpd", "--json")
    outcome = cli("fid", "--ckpt", KEPT / "diffusion", *options)
    assert outcome.code == 0, outcome.err
    now, then = json.loads(outcome.out), json.loads((KEPT / "expected-bpd.json").read_text())
    assert now["scores"] == pytest.approx(then["scores"], rel=1e-4)
    assert now["terms"] == pytest.approx(then["terms"], rel=1e-3, abs=1e-6)


def test_a_prepared_set_gives_its_images_classes_and_captions() -> None:
    config = Shards(root=KEPT / "pets-prepared", size=8, verify=True)
    train, test = config.build("train"), config.build("test")
    assert (len(train), len(test)) == (10, 2)
    assert train.classes == ("cat", "dog")
    fields = train.read(torch.arange(10))
    assert fields["label"].tolist() == [0] * 5 + [1] * 5  # type: ignore[union-attr]
    assert fields["text"][0] == "a cat number 0"
    assert fields["image"].shape == (10, 3, 8, 8)  # type: ignore[union-attr]


def test_a_prepared_set_of_pairs_gives_the_numbers_of_its_masks() -> None:
    data = Shards(root=KEPT / "pairs-prepared", size=8).build("train")
    mask = data.read(torch.arange(6))["mask"]
    assert isinstance(mask, torch.Tensor)
    assert mask.shape == (6, 1, 8, 8)
    assert mask.unique().tolist() == [0, 1, 2]

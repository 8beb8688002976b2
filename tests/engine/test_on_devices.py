"""What a device must give, whichever it is: the same tests run on the CPU in the quick suite and on CUDA under the mark `gpu`.

References are numbers of the CPU in float32; half precision and other kernels may move them by as much as is stated here.
"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from diffcli.engine.distributed import Group
from diffcli.engine.draw.sample import SampleOptions, draw, request
from diffcli.engine.model import load_model
from diffcli.engine.run.runlog import read_log
from diffcli.engine.tuning import memory_format
from tests.conftest import ROOT, Cli, in_subprocess

FIXTURES = ROOT / "tests/fixtures/format1"
RUN, CLASSIFIER = FIXTURES / "diffusion", FIXTURES / "classifier"
PRECISIONS = ["fp32", "bf16", "fp16"]
LEVELS = {"fp32": 0.05, "bf16": 0.2, "fp16": 0.1}  # of 255, in the mean
LOSSES = {"fp32": 1e-3, "bf16": 3e-2, "fp16": 1e-2}  # relative


def devices(*cpu_marks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Runs a test on the CPU, with these marks there, and on a CUDA device where there is one (conftest.py)."""
    names = [pytest.param("cpu", marks=cpu_marks), pytest.param("cuda", marks=pytest.mark.gpu)]
    return pytest.mark.parametrize("device", names)


def images(device: str, precision: str, compile: bool = False, n: int = 6, batch_size: int = 6) -> torch.Tensor:
    model = load_model(RUN, torch.device(device), precision=precision, compile=compile)
    req = request(model, SampleOptions(n=n, seed=3, batch_size=batch_size))
    return torch.cat([drawn.images for drawn in draw(req, Group(0, 1, model.device))]).float().cpu()


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_log(run / "log.jsonl")]


@pytest.fixture
def expected(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> list[float]:
    """The losses of four steps on the CPU in float32."""
    run = tmp_path / "expected"
    assert cli("train", "--preset", tiny(), "--run-dir", run, "--device", "cpu").code == 0
    return losses(run)


@devices()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_learns_as_on_the_cpu_in_float32(
    device: str, precision: str, tiny: Callable[..., Path], cli: Cli, tmp_path: Path, expected: list[float]
) -> None:
    run = tmp_path / "run"
    preset = tiny("here", train__precision=precision, train__every={"log": 1, "preview": 4, "save": 2})
    outcome = cli("train", "--preset", preset, "--run-dir", run, "--device", device)
    assert outcome.code == 0, outcome.err
    updates = 1 if precision == "fp16" else 4  # there the first updates are skipped until the scale of the loss fits
    assert losses(run)[:updates] == pytest.approx(expected[:updates], rel=LOSSES[precision])
    assert losses(run) == pytest.approx(expected, rel=0.1)
    assert (run / "previews/step-00000004.png").is_file()


@devices()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(
    device: str, precision: str, tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    preset, whole, parts = tiny("here", train__precision=precision), tmp_path / "whole", tmp_path / "parts"
    assert cli("train", "--preset", preset, "--run-dir", whole, "--device", device).code == 0
    assert cli("train", "--preset", preset, "--run-dir", parts, "--device", device, "--steps", 2).code == 0
    assert cli("resume", parts, "--steps", 4, "--device", device).code == 0
    exact = device == "cpu"  # CUDA adds gradients of table rows in any order
    assert losses(parts) == (losses(whole) if exact else pytest.approx(losses(whole), rel=1e-3))


@devices()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_images_are_those_of_the_cpu_in_float32(device: str, precision: str) -> None:
    assert (images(device, precision) - images("cpu", "fp32")).abs().mean() <= LEVELS[precision]


@devices()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_an_image_does_not_depend_on_its_batch(device: str, precision: str) -> None:
    alone = images(device, precision, batch_size=1)
    assert (images(device, precision, batch_size=4) - alone).abs().mean() <= LEVELS[precision]


@devices(pytest.mark.slow)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_draws_the_same(device: str, precision: str) -> None:
    compiled = images(device, precision, compile=True)
    assert (compiled - images(device, precision)).abs().mean() <= LEVELS[precision]


@devices(pytest.mark.slow)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_compiled_network_trains_the_same(
    device: str, precision: str, tiny: Callable[..., Path], cli: Cli, tmp_path: Path, expected: list[float]
) -> None:
    run, preset = tmp_path / "run", tiny("here", train__precision=precision, train__compile=True)
    outcome = cli("train", "--preset", preset, "--run-dir", run, "--device", device)
    assert outcome.code == 0, outcome.err
    assert losses(run) == pytest.approx(expected, rel=LOSSES[precision])


@devices()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_convolutions_lie_as_is_fastest(device: str, precision: str) -> None:
    model = load_model(RUN, torch.device(device), precision=precision)
    layout = memory_format(model.device, precision, training=False)
    found = [m.weight for m in model.task.modules() if isinstance(m, torch.nn.Conv2d)]
    assert found
    assert all(weight.is_contiguous(memory_format=layout) for weight in found)


@devices()
@pytest.mark.parametrize("precision", PRECISIONS)
def test_samples_score_as_on_the_cpu_in_float32(
    device: str, precision: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path))
    options = ("--n", 40, "--features", CLASSIFIER, "--ref", "digits:test", "--metrics", "fid,accuracy", "--json")
    outcome = cli("fid", "--ckpt", RUN, *options, "--device", device, "--precision", precision)
    assert outcome.code == 0, outcome.err
    report, then = json.loads(outcome.out), json.loads((FIXTURES / "expected-report.json").read_text())
    assert report["scores"]["fid"] == pytest.approx(then["scores"]["fid"], rel=1e-2)
    assert report["scores"]["accuracy"] == pytest.approx(then["scores"]["accuracy"], abs=0.05)
    assert report["precision"].startswith(precision)


@devices(pytest.mark.slow)
def test_two_processes_train_and_sample_as_one(
    device: str, tiny: Callable[..., Path], tmp_path: Path, expected: list[float]
) -> None:
    if device == "cuda" and torch.cuda.device_count() < 2:  # nccl refuses two processes on one device
        pytest.skip("needs two CUDA devices")
    run, out = tmp_path / "run", tmp_path / "s.npz"
    trained = in_subprocess("train", "--preset", tiny("two"), "--run-dir", run, "--device", device, "--nproc", 2)
    assert trained.code == 0, trained.err
    assert losses(run) == pytest.approx(expected, rel=1e-3)
    sampled = in_subprocess("sample", "--ckpt", run, "--n", 5, "--out", out, "--device", device, "--nproc", 2)
    assert sampled.code == 0, sampled.err
    assert out.is_file()

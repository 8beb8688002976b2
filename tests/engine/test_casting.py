"""Half precision: networks alone run in it, everything around stays float32, and images stay near those of float32."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffcli.engine.casting import PRODUCTS
from diffcli.engine.distributed import Group
from diffcli.engine.draw.sample import SampleOptions, draw, request
from diffcli.engine.model import load_model
from tests.conftest import ROOT, Cli

RUN, CLASSIFIER = (ROOT / "tests/fixtures/format1" / name for name in ("diffusion", "classifier"))
CPU = torch.device("cpu")
HALVES = ["bf16", "fp16"]
LEVELS = {"bf16": 0.2, "fp16": 0.02}  # of 255, by which the images of the fixture may differ in the mean


def images(precision: str, **options: object) -> Tensor:
    req = request(load_model(RUN, CPU, precision=precision), SampleOptions(seed=3, **options))
    return torch.cat([drawn.images for drawn in draw(req, Group(0, 1, CPU))]).float()


@pytest.mark.parametrize("precision", HALVES)
def test_images_stay_near_those_of_float32(precision: str) -> None:
    full, half = images("fp32", n=6), images(precision, n=6)
    apart = (full - half).abs().mean()
    assert 0 < apart < LEVELS[precision]


def test_an_image_in_bf16_does_not_depend_on_its_batch() -> None:
    assert (images("bf16", n=6, batch_size=4) - images("bf16", n=6)).abs().mean() < LEVELS["bf16"] / 4


@pytest.mark.parametrize("precision", HALVES)
def test_products_alone_are_cast_and_the_time_is_not(precision: str) -> None:
    model = load_model(RUN, CPU, precision=precision)
    network, dtype = model.task.denoiser.network, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    times = set(network.embedding.time.modules())
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        expected = dtype if type(module) in PRODUCTS and module not in times else torch.float32
        assert all(p.dtype == expected for p in own), module
    assert any(type(module) in PRODUCTS for module in times)
    assert all(p.dtype == torch.float32 for c in model.task.conditioners for p in c.parameters())


@pytest.mark.parametrize("precision", HALVES)
def test_a_weight_is_cast_once_and_not_at_every_evaluation(precision: str) -> None:
    model = load_model(RUN, CPU, precision=precision)
    network = model.task.denoiser.network
    times = set(network.embedding.time.modules())
    shapes = {m.weight.shape for m in network.modules() if type(m) in PRODUCTS and m not in times}
    cast: list[torch.Size] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten._to_copy.default and args[0].shape in shapes:
                cast.append(args[0].shape)
            return out

    x, t = torch.zeros(model.task.latent_shape(2)), torch.tensor(0.5)
    denoise = model.task.denoise({"label": torch.arange(2)}, 1.0, 2)
    with torch.no_grad(), Watch():
        denoise(x, t)
    assert cast == []


@pytest.mark.parametrize("precision", HALVES)
def test_predictions_are_float32(precision: str) -> None:
    model = load_model(RUN, CPU, precision=precision)
    denoise = model.task.denoise({"label": torch.arange(2)}, 2.0, 2)
    with torch.no_grad():
        found = denoise(torch.zeros(model.task.latent_shape(2)), torch.tensor(0.5))
    assert found.x0.dtype == found.eps.dtype == torch.float32


@pytest.mark.parametrize("precision", HALVES)
def test_a_classifier_gives_float32_and_its_head_is_exact(precision: str) -> None:
    x = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8)
    full, half = (load_model(CLASSIFIER, CPU, precision=p).task for p in ("fp32", precision))
    found = half.features(x)
    assert found.dtype == torch.float32
    assert torch.equal(half.logits(found), full.logits(found))
    torch.testing.assert_close(found, full.features(x), rtol=0.05, atol=0.05)


def test_in_float32_nothing_is_touched() -> None:
    task = load_model(RUN, CPU, precision="fp32").task
    assert {p.dtype for p in task.parameters()} == {torch.float32}
    assert all("forward" not in vars(module) for module in task.modules())
    assert all(isinstance(m, nn.Module) for m in task.modules())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_sidecar_and_report_say_the_precision(precision: str, cli: Cli, tmp_path: Path) -> None:
    out, how = tmp_path / "s.npz", ["--precision", precision]
    assert cli("sample", "--ckpt", RUN, "--n", 2, "--out", out, *how).code == 0
    sidecar = next(path for path in tmp_path.glob("s*.json"))
    assert json.loads(sidecar.read_text())["precision"] == precision
    options = ["--n", 12, "--features", CLASSIFIER, "--ref", "digits:test", "--metrics", "kid", "--json"]
    outcome = cli("fid", "--ckpt", RUN, *options, *how)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["precision"] == precision


def test_a_bound_is_told_in_float32_unless_asked_otherwise(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("diffcli.engine.tuning.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    options = ["--n", 2, "--ref", ROOT / "tests/fixtures/format1/reference.npz", "--metrics", "bpd", "--json"]
    assert json.loads(cli("fid", "--ckpt", RUN, *options).out)["precision"] == "fp32"
    assert json.loads(cli("fid", "--ckpt", RUN, *options, "--precision", "bf16").out)["precision"] == "bf16"


def test_auto_takes_what_is_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcli.engine.tuning.cpu_flags", lambda: frozenset({"amx_bf16"}))
    assert load_model(RUN, CPU).precision == "bf16"
    monkeypatch.setattr("diffcli.engine.tuning.cpu_flags", lambda: frozenset({"avx2"}))
    assert load_model(RUN, CPU).precision == "fp32"


@pytest.mark.parametrize("command", ["sample", "gif", "fid"])
def test_an_unknown_precision_is_refused(command: str, cli: Cli, tmp_path: Path) -> None:
    out = [] if command == "fid" else ["--out", tmp_path / ("s.gif" if command == "gif" else "s.png")]
    cli(command, "--ckpt", RUN, *out, "--precision", "fp8").refused("--precision", "fp8")


def test_the_features_of_a_score_stay_exact(monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    monkeypatch.setattr("diffcli.engine.tuning.cpu_flags", lambda: frozenset({"avx512_bf16"}))
    scores = []
    for flags in ({"avx512_bf16"}, {"avx2"}):
        monkeypatch.setattr("diffcli.engine.tuning.cpu_flags", lambda found=flags: frozenset(found))
        monkeypatch.setenv("DIFFCLI_CACHE", f"/nonexistent/{len(scores)}")
        options = ["--features", CLASSIFIER, "--metrics", "kid", "--json"]
        reference = ROOT / "tests/fixtures/format1/reference.npz"
        outcome = cli("fid", reference, reference, *options)
        assert outcome.code == 0, outcome.err
        scores.append(json.loads(outcome.out)["scores"])
    assert scores[0] == scores[1]
    assert np.isfinite(list(scores[0].values())).all()

"""Loading: one read of the weights and no random number; damage is one clear error."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from diffcli import tensor_file
from diffcli.config import UserError
from diffcli.digest import sha256
from diffcli.engine.loading import fill
from diffcli.engine.model import Model, load_model
from diffcli.engine.run.state import build_on_meta
from tests.conftest import ROOT, Cli

FIXTURES = ROOT / "tests/fixtures/format1"
RUNS = {name: FIXTURES / name for name in ("diffusion", "classifier")}
CPU = torch.device("cpu")


def load(path: Path, **how: object) -> Model:
    return load_model(path, CPU, precision="fp32", **how)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", RUNS)
def test_the_weights_are_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Path] = []
    read = tensor_file.read
    monkeypatch.setattr(tensor_file, "read", lambda path: opened.append(path) or read(path))
    monkeypatch.setattr("diffcli.digest.sha256", None)
    model = load(RUNS[name])
    assert opened == [model.path / "ema.safetensors"]
    assert model.digest == sha256(opened[0])


def test_loading_opens_the_weights_for_their_record_and_for_their_tensors_and_never_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    opened, open_path = [], Path.open
    monkeypatch.setattr(Path, "open", lambda self, *args, **kw: opened.append(self) or open_path(self, *args, **kw))
    model = load(RUNS["diffusion"])
    assert opened.count(model.path / "ema.safetensors") == 2
    assert not any(path.name in ("task.safetensors", "optimizer.safetensors") for path in opened)


@pytest.mark.parametrize("name", RUNS)
def test_no_random_weight_is_made(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Tensor] = []
    for init in [key for key in vars(nn.init) if key.endswith("_") and not key.startswith("_")]:
        real = getattr(nn.init, init)

        def spy(tensor: torch.Tensor, *args: object, real: Callable[..., object] = real, **kw: object) -> object:
            made.append(tensor)
            return real(tensor, *args, **kw)

        monkeypatch.setattr(nn.init, init, spy)
    before = torch.random.get_rng_state()
    model = load(RUNS[name])
    assert torch.equal(torch.random.get_rng_state(), before)
    assert made  # the spies see something
    assert all(tensor.is_meta for tensor in made)
    assert not any(tensor.is_meta for tensor in model.task.state_dict().values())


def test_tensors_are_those_of_the_file_each_with_memory_of_its_own() -> None:
    model = load(RUNS["diffusion"])
    weights = tensor_file.read(model.path / "ema.safetensors").tensors
    for name, tensor in model.task.state_dict().items():
        assert torch.equal(tensor, weights[name])
        assert tensor.untyped_storage().nbytes() == tensor.nbytes  # no piece of something larger that stays


def test_half_precision_weights_of_a_file_become_those_of_the_network(tmp_path: Path) -> None:
    model = load(RUNS["diffusion"])
    task = build_on_meta(model.preset)
    fill(task, {name: t.to(torch.float64) for name, t in model.task.state_dict().items()}, tmp_path)
    for name, tensor in task.state_dict().items():
        assert tensor.dtype == model.task.state_dict()[name].dtype
        assert torch.equal(tensor, model.task.state_dict()[name])


def test_what_the_code_makes_and_no_checkpoint_keeps_is_not_lost_in_silence(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = nn.Linear(2, 2)
        module.register_buffer("table", torch.arange(3), persistent=False)
    with pytest.raises(AssertionError, match="table"):
        fill(module, nn.Linear(2, 2).state_dict(), tmp_path)


def test_a_model_describes_itself() -> None:
    model = load(RUNS["diffusion"])
    assert model.describe() == {
        "checkpoint": str(RUNS["diffusion"] / "checkpoints/step-00000006"),
        "step": 6,
        "ema": True,
        "weights_sha256": model.digest,
        "precision": "fp32",
        "compiled": False,
    }
    assert dataclasses.replace(model, precision="bf16").describe()["precision"] == "bf16"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the run's checkpoint, to damage."""
    return Path(shutil.copytree(RUNS["diffusion"] / "checkpoints/step-00000006", tmp_path / "step-00000006"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def without(key: str) -> Callable[[Path], None]:
    def drop(path: Path) -> None:
        record = json.loads(path.read_text())
        del record[key]
        path.write_text(json.dumps(record))

    return drop


DAMAGE: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "truncated weights": ("ema.safetensors", cut, "does not match the digest"),
    "a changed byte": ("ema.safetensors", flip, "does not match the digest"),
    "empty weights": ("ema.safetensors", lambda path: path.write_bytes(b""), "does not match the digest"),
    "no weights": ("ema.safetensors", Path.unlink, "cannot be read"),
    "a truncated record": ("checkpoint.json", cut, "cannot be read as a checkpoint"),
    "no JSON": ("checkpoint.json", lambda path: path.write_text("weights"), "cannot be read as a checkpoint"),
    "no step": ("checkpoint.json", without("step"), "does not match the record in ema.safetensors"),
    "no preset": ("checkpoint.json", without("preset"), "does not match the record in ema.safetensors"),
    "no digests": ("checkpoint.json", without("sha256"), "does not match the digest"),
    "no format": ("checkpoint.json", without("format"), "checkpoint format is None"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_checkpoint_is_one_clear_error(name: str, copy: Path, cli: Cli, tmp_path: Path) -> None:
    file, damage, told = DAMAGE[name]
    damage(copy / file)
    cli("sample", "--ckpt", copy, "--out", tmp_path / "s.png", "--n", 1).refused(str(copy), told)
    assert not (tmp_path / "s.png").exists()


def test_an_exported_file_that_is_damaged_is_one_clear_error(copy: Path, cli: Cli, tmp_path: Path) -> None:
    file = copy / "ema.safetensors"
    cut(file)
    cli("sample", "--ckpt", file, "--out", tmp_path / "s.png", "--n", 1).refused(str(file), "cannot be read")


@pytest.mark.parametrize("change", ["drop", "widen"])
def test_weights_that_do_not_fit_the_preset_are_one_clear_error(change: str, tmp_path: Path) -> None:
    model = load(RUNS["diffusion"])
    state = dict(model.task.state_dict())
    name = next(iter(state))
    state = {k: v for k, v in state.items() if k != name} if change == "drop" else state | {name: torch.zeros(3, 3)}
    with pytest.raises(UserError, match="weights do not fit the network of its preset"):
        fill(build_on_meta(model.preset), state, tmp_path)

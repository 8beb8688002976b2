"""Checkpoints of pytorch-lightning: their tensors, and none of the code that they name."""

import os
import pickle
from pathlib import Path

import pytest
import torch

from diffcli.config import UserError
from diffcli.interop import inert_pickle
from diffcli.interop.weight_files import read_tensors


class Callback:
    """A class of the training code, with state, as a key and as a value."""

    def __init__(self) -> None:
        self.best = torch.ones(2)


class Touch:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_the_state_dict_is_read_and_no_code_runs(tmp_path: Path):
    base = torch.arange(12.0)
    state = {
        "whole": base.view(3, 4),
        "part of the same storage": base.view(3, 4)[1:, ::2].t(),
        "half": torch.ones(2).half(),
        "number": torch.tensor(7),
        "empty": torch.zeros(0),
        "parameter": torch.nn.Parameter(torch.full((2,), 3.0)),
    }
    extra = {"callbacks": {Callback: Callback(), "x": [Touch(tmp_path / "made")]}, "epoch": 3}
    torch.save({"state_dict": state, **extra}, tmp_path / "model.ckpt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "model.ckpt", weights_only=True)
    found = read_tensors(tmp_path / "model.ckpt")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor.detach().float()) for name, tensor in state.items())
    assert not (tmp_path / "made").exists()


def test_without_a_state_dict_of_tensors_it_stays_refused(tmp_path: Path):
    for number, content in enumerate(
        ({"model": Callback()}, {"state_dict": {"a": Callback()}}, [Touch(tmp_path / "made")])
    ):
        path = tmp_path / f"{number}.ckpt"
        torch.save(content, path)
        assert inert_pickle.state_dict(path) is None
        with pytest.raises(UserError, match="can run code and are never loaded"):
            read_tensors(path)
    assert not (tmp_path / "made").exists()


def test_a_tensor_that_reaches_past_its_storage_is_refused(tmp_path: Path):
    with pytest.raises(RuntimeError):
        inert_pickle.rebuilt(torch.zeros(4), 2, (3,), (1,))
    (tmp_path / "no.ckpt").write_bytes(b"PK\x03\x04 nothing")
    assert inert_pickle.state_dict(tmp_path / "no.ckpt") is None

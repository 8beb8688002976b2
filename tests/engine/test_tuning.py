"""Choices by device: sound on any machine, and harmless where they do not apply."""

import sys

import pytest
import torch

from diffcli.config import UserError
from diffcli.engine import tuning

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("flags", "precision"), [({"avx512_bf16"}, "bf16"), ({"amx_bf16"}, "bf16"), ({"avx2"}, "fp32")]
)
def test_bf16_is_chosen_where_the_cpu_multiplies_it(
    flags: set[str], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "cpu_flags", lambda: frozenset(flags))
    assert tuning.auto_precision(CPU) == precision


def test_a_device_that_is_neither_cpu_nor_cuda_trains_in_float32() -> None:
    assert tuning.auto_precision(torch.device("mps")) == "fp32"


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_convolutions_on_the_cpu_stay_contiguous_in_training(precision: str) -> None:
    assert tuning.memory_format(CPU, precision, training=True) is torch.contiguous_format
    assert tuning.memory_format(CPU, precision, training=False) is torch.channels_last
    assert tuning.memory_format(torch.device("cuda"), "bf16", training=True) is torch.channels_last
    assert tuning.memory_format(torch.device("cuda"), "fp32", training=False) is torch.contiguous_format


@pytest.mark.parametrize("wish", ["fp8", "float32", "", "FP32"])
def test_an_unknown_precision_is_refused_with_those_that_there_are(wish: str) -> None:
    with pytest.raises(UserError, match="no such precision") as raised:
        tuning.choose_precision(wish, CPU)
    assert "auto, fp32, bf16, fp16" in raised.value.hint


@pytest.mark.parametrize("wish", ["fp32", "bf16", "fp16"])
def test_a_precision_that_is_named_is_the_one_taken(wish: str) -> None:
    assert tuning.choose_precision(wish, CPU) == wish
    assert tuning.choose_precision("auto", CPU) == tuning.auto_precision(CPU)


def test_tf32_is_switched_on_where_tensor_cores_have_it_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch, "set_float32_matmul_precision", calls.append)
    for device, capability in ((CPU, (0, 0)), (torch.device("cuda"), (7, 5)), (torch.device("cuda"), (8, 0))):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, found=capability: found)
        tuning.tune(device)
    assert calls == ["high"]


def test_the_allocator_is_left_alone_where_it_is_not_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tuning.tune_allocator.__wrapped__() is False
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(tuning.ctypes, "CDLL", lambda name: object())  # musl: a C library without mallopt
    assert tuning.tune_allocator.__wrapped__() is False

"""Choices by device: sound on any machine, and harmless where they do not apply."""

import sys

import pytest
import torch

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


def test_convolutions_on_the_cpu_stay_contiguous() -> None:
    assert tuning.memory_format(CPU, "bf16") is torch.contiguous_format
    assert tuning.memory_format(torch.device("cuda"), "bf16") is torch.channels_last


def test_the_allocator_is_left_alone_where_it_is_not_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert tuning.tune_allocator.__wrapped__() is False
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(tuning.ctypes, "CDLL", lambda name: object())  # musl: a C library without mallopt
    assert tuning.tune_allocator.__wrapped__() is False

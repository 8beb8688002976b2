"""Files of tensors: read once, from first byte to last, as safetensors itself would read them."""

import io
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diffcli import tensor_file
from diffcli.digest import sha256

TENSORS = {
    "image": torch.arange(30, dtype=torch.float32).reshape(2, 3, 5),
    "half": torch.arange(6, dtype=torch.bfloat16),
    "small": torch.arange(3, dtype=torch.float16),
    "count": torch.tensor(7),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "flags": torch.tensor([True, False, True]),
    "exact": torch.tensor([1 / 3], dtype=torch.float64),
    "nothing": torch.empty(0, 4),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "some.safetensors", metadata={"diffcli": "{}", "more": "ä"})
    return tmp_path / "some.safetensors"


def crafted(path: Path, header: object, values: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)
    return path


def test_tensors_are_those_that_safetensors_reads(file: Path) -> None:
    found, expected = tensor_file.read(file), load_file(file)
    assert found.tensors.keys() == expected.keys() == TENSORS.keys()
    for name, tensor in found.tensors.items():
        assert tensor.dtype == expected[name].dtype
        assert torch.equal(tensor, expected[name])
        assert tensor.is_contiguous()
        assert not len(tensor.untyped_storage()) or tensor.data_ptr() % 64 == 0  # as fast as any other
    assert found.sha256 == sha256(file)


def test_the_metadata_are_those_that_were_written(file: Path) -> None:
    assert tensor_file.metadata(file) == {"diffcli": "{}", "more": "ä"}


def test_every_byte_is_read_once_and_the_metadata_need_the_header_alone(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    class Counting(io.FileIO):
        def readinto(self, buffer: memoryview) -> int:
            read.append(super().readinto(buffer))
            return read[-1]

    monkeypatch.setattr(Path, "open", lambda self, mode, buffering: Counting(self, mode))
    tensor_file.read(file)
    assert sum(read) == file.stat().st_size
    read.clear()
    tensor_file.metadata(file)
    assert sum(read) < file.stat().st_size - sum(t.nbytes for t in TENSORS.values()) + 1


def test_a_file_that_gives_few_bytes_at_a_time_is_read_whole(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Slow(io.FileIO):
        def readinto(self, buffer: memoryview) -> int:
            return super().readinto(buffer[:3])

    monkeypatch.setattr(Path, "open", lambda self, mode, buffering: Slow(self, mode))
    found = tensor_file.read(file)
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in TENSORS.items())


@given(length=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_truncated_file_is_refused(length: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    save_file(TENSORS, folder / "whole", metadata={"a": "b"})
    data = (folder / "whole").read_bytes()
    (folder / "cut").write_bytes(data[: length * (len(data) - 1) // 1000])
    with pytest.raises(ValueError, match=r"^it |^its |^the values "):
        tensor_file.read(folder / "cut")
    with pytest.raises(ValueError, match=r"^it |^its |^the values "):
        tensor_file.metadata(folder / "cut")


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (b"\x80\x04nonsense", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        ([], "no JSON object"),
        ({"w": 3}, "describes 'w'"),
        ({"w": ENTRY | {"dtype": "F99"}}, "F99"),
        ({"w": ENTRY | {"shape": [3]}}, "describes 'w'"),
        ({"w": ENTRY | {"shape": [-1, -2]}}, "describes 'w'"),
        ({"w": ENTRY | {"shape": [2.0]}}, "describes 'w'"),
        ({"w": ENTRY | {"shape": None}}, "describes 'w'"),
        ({"w": ENTRY | {"data_offsets": [8, 0]}}, "describes 'w'"),
        ({"w": ENTRY | {"data_offsets": [0, 8, 8]}}, "describes 'w'"),
        ({"w": ENTRY | {"data_offsets": [4, 12]}}, "begin at byte 4, not 0"),
        ({"w": ENTRY, "v": ENTRY}, "begin at byte 0, not 8"),
        ({"w": ENTRY, "v": ENTRY | {"data_offsets": [16, 24]}}, "begin at byte 16, not 8"),
        ({}, "0 bytes of values, but 8 follow"),
        ({"w": ENTRY, "v": {"dtype": "F32", "shape": [0, 2**70], "data_offsets": [8, 8]}}, "describes 'v'"),
        ({"w": ENTRY, "__metadata__": [1]}, "__metadata__"),
        ({"w": ENTRY, "__metadata__": {"a": 1}}, "__metadata__"),
    ],
)
def test_a_header_that_describes_something_else_is_refused(header: object, told: str, tmp_path: Path) -> None:
    path = crafted(tmp_path / "crafted", header, bytes(8))
    with pytest.raises(ValueError, match=told):
        tensor_file.metadata(path) if told == "__metadata__" else tensor_file.read(path)


def test_a_header_longer_than_the_file_is_refused_before_memory_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "long"
    path.write_bytes((2**60).to_bytes(8, "little") + bytes(100))
    with pytest.raises(ValueError, match="announces a header"):
        tensor_file.read(path)

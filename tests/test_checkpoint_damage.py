"""Damaged, foreign and hostile checkpoints: each is told with what to do, and nothing is ever unpickled."""

import ast
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcli import checkpoint
from diffcli.config import UserError
from tests.test_checkpoint import FILES, read, save


class Trap:
    """Unpickling it would create a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self):
        return (os.mkdir, (str(self.witness),))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "weights"])
def test_a_pickle_is_refused_and_never_loaded(tmp_path, protocol, name):
    path, witness = tmp_path / name, tmp_path / "witness"
    path.write_bytes(pickle.dumps(Trap(witness), protocol))
    with pytest.raises(UserError):
        checkpoint.read_record(checkpoint.locate(path))
    assert not witness.exists()
    pickle.loads(path.read_bytes())
    assert witness.exists()  # the trap works


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
def test_a_zip_with_a_pickle_inside_is_refused_and_says_why(tmp_path, name):
    path, witness = tmp_path / name, tmp_path / "witness"
    with zipfile.ZipFile(path, "w") as archive:  # how torch.save writes
        archive.writestr("archive/data.pkl", pickle.dumps(Trap(witness)))
    with pytest.raises(UserError, match=r"pickle or a zip.*never loaded"):
        checkpoint.locate(path)
    assert not witness.exists()


def test_a_pickle_in_the_place_of_a_part_is_refused(tmp_path):
    path, witness = save(tmp_path, 3), tmp_path / "witness"
    for part in checkpoint.PARTS:
        (path / f"{part}.safetensors").write_bytes(pickle.dumps(Trap(witness)))
        with pytest.raises(UserError, match="does not match the digest"):
            checkpoint.read_part(path, part, checkpoint.read_record(path))
    assert not witness.exists()


def test_nothing_in_the_project_unpickles():
    """torch.load reads weights of others only with weights_only=True, which builds tensors and runs nothing."""
    package = Path(checkpoint.__file__).parent
    texts = {path: path.read_text() for path in package.rglob("*.py")}
    for path, text in texts.items():
        if "pickle" not in text and "torch.load" not in text:  # which takes a second less than to parse them all
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert called not in ("pickle.load", "pickle.loads", "pickle.Unpickler"), path
                assert called != "torch.load" or keywords.get("weights_only") == "True", path
                assert keywords.get("allow_pickle", "False") == "False", path


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("position", [0.0, 0.3, 0.6, 0.99])
def test_a_changed_byte_anywhere_is_noticed(tmp_path, name, position):
    save(tmp_path, 10)
    path = save(tmp_path, 20)
    data = bytearray((path / name).read_bytes())
    at = int(position * len(data))
    data[at] = (data[at] ^ 0x01) if name != "checkpoint.json" else ord("7") if data[at] != ord("7") else ord("8")
    (path / name).write_bytes(data)
    assert not checkpoint.is_whole(path)
    with pytest.raises(UserError) as raised:
        read(path)
    assert "step-00000010" in raised.value.hint  # an older whole one is named
    assert "--from 10" in raised.value.hint


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_noticed(tmp_path, name, kept):
    path = save(tmp_path, 20)
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: int(kept * len(data))])
    assert not checkpoint.is_whole(path)
    with pytest.raises(UserError) as raised:
        read(path)
    assert "no other whole checkpoint" in raised.value.hint


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_noticed(tmp_path, name):
    path = save(tmp_path, 20)
    (path / name).unlink()
    assert not checkpoint.is_whole(path)
    with pytest.raises(UserError):
        read(path)


@pytest.mark.parametrize("part", checkpoint.PARTS)
def test_a_truncated_exported_file_is_noticed(tmp_path, part):
    data = (save(tmp_path, 20) / "ema.safetensors").read_bytes()
    path = tmp_path / "model.safetensors"
    path.write_bytes(data[:-8])
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.read_record(path)


def edit(path: Path, **changes: object) -> None:
    record = json.loads((path / "checkpoint.json").read_text())
    (path / "checkpoint.json").write_text(json.dumps(record | changes))


@pytest.mark.parametrize(
    "change",
    [{"step": 30}, {"preset": {"name": "other"}}, {"classes": None}, {"extra": 1}, {"sha256": {}}, {"sha256": [1]}],
    ids=str,
)
def test_a_record_changed_by_hand_is_noticed(tmp_path, change):
    path = save(tmp_path, 20)
    edit(path, **change)
    assert not checkpoint.is_whole(path)
    with pytest.raises(UserError):
        read(path)


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", '{"format": 2}', '{"format": "1", "version": "9.9"}'])
def test_a_record_of_another_format_is_refused(tmp_path, text):
    path = save(tmp_path, 20)
    (path / "checkpoint.json").write_text(text)
    assert not checkpoint.is_whole(path)
    with pytest.raises(UserError, match="this diffcli reads format 1"):
        checkpoint.read_record(path)


def test_a_checkpoint_of_another_version_says_which(tmp_path):
    path = save(tmp_path, 20)
    edit(path, format=2, version="9.9")
    with pytest.raises(UserError, match="checkpoint format is 2, this diffcli reads format 1") as raised:
        checkpoint.read_record(path)
    assert "9.9" in raised.value.hint


def test_two_damaged_checkpoints_are_told_without_asking_each_other_for_ever(tmp_path):
    for step in (10, 20, 30):
        (save(tmp_path, step) / "checkpoint.json").write_text("not json")
    with pytest.raises(UserError, match="cannot be read as a checkpoint") as raised:
        checkpoint.read_record(checkpoint.locate(tmp_path))
    assert "no other whole checkpoint" in raised.value.hint


def test_a_safetensors_file_of_others_is_refused(tmp_path):
    path = tmp_path / "others.safetensors"
    save_file({"w": torch.zeros(3)}, path, metadata={"format": "pt"})
    with pytest.raises(UserError, match="not one of diffcli's"):
        checkpoint.read_record(checkpoint.locate(path))

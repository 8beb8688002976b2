"""A folder that is trained on as it is: captions in files beside its images, and images that cannot be decoded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.config import UserError
from diffcli.data.class_captions import ClassCaptions
from diffcli.data.datasets import Folder
from diffcli.data.description import describe


def folder(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 40 * number, np.uint8)).save(path)
    return root


def test_captions_beside_images_are_their_text_and_one_is_drawn_of_several(tmp_path: Path):
    root = folder(tmp_path / "set", "a.png", "b.png", "c.png")
    (root / "a.txt").write_text("one\ntwo\n")
    (root / "b.png.txt").write_text("bee")
    data = Folder(root=root, size=8).build("train")
    rows = torch.arange(3)
    assert data.read(rows)["text"] == ["one", "bee", ""]
    drawn = {data.read(rows[:1], torch.tensor([draw]))["text"][0] for draw in range(8)}
    assert drawn == {"one", "two"}
    assert describe(data).captioned == 2


def test_captions_of_classes_take_the_place_of_those_beside_images(tmp_path: Path):
    root = folder(tmp_path / "set", "cat/a.png", "dog/b.png")
    (root / "cat/a.txt").write_text("beside")
    data = Folder(root=root, size=8, captions=ClassCaptions(templates=("a {name}",))).build("train")
    assert data.read(torch.arange(2))["text"] == ["a cat", "a dog"]


def test_captions_that_are_no_utf8_are_refused_by_name(tmp_path: Path):
    root = folder(tmp_path / "set", "a.png")
    (root / "a.txt").write_bytes("café".encode("latin-1") + b"\xff")
    with pytest.raises(UserError, match=r"a\.txt"):
        Folder(root=root, size=8).build("train").read(torch.arange(1))


def test_broken_images_are_refused_unless_they_may_be_left_out(tmp_path: Path):
    root = folder(tmp_path / "set", "cat/a.png", "cat/b.png", "dog/c.png")
    broken = root / "cat/a.png"
    broken.write_bytes(broken.read_bytes()[:40])
    (root / "dog/c.txt").write_text("a dog")
    with pytest.raises(UserError, match=r"a\.png"):
        Folder(root=root, size=8).build("train")
    for in_memory in (True, False):
        data = Folder(root=root, size=8, broken="leave_out", in_memory=in_memory).build("train")
        batch = data.read(torch.arange(2))
        assert batch["image"][:, 0, 0, 0].tolist() == [40, 80]
        assert batch["label"].tolist() == [0, 1]
        assert batch["text"] == ["", "a dog"]
        assert describe(data).class_counts == (1, 1)
        assert any("a.png" in note for note in describe(data).notes)


def test_a_folder_of_broken_images_alone_is_refused(tmp_path: Path):
    root = folder(tmp_path / "set", "a.png")
    (root / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    with pytest.raises(UserError, match=r"a\.png"):
        Folder(root=root, size=8, broken="leave_out").build("train")


def test_a_momentary_fault_leaves_no_image_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    root = folder(tmp_path / "set", "a.png", "b.png")

    def fail(*_: object) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("diffcli.data.dataset.read_location", fail)
    with pytest.raises(UserError, match="Input/output"):
        Folder(root=root, size=8, broken="leave_out").build("train")


def test_a_table_of_captions_is_said_not_to_be_read_and_what_reads_it(tmp_path: Path):
    root = folder(tmp_path / "my set", "a.png", "b.png")
    (root / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "a cat"}\n')
    (root / "sizes.csv").write_text("file,size\n")
    data = Folder(root=root, size=8).build("train")
    (note,) = describe(data).remarks
    assert note.startswith("metadata.jsonl may hold captions, and is not read: type ")
    assert f"`diffcli prep-data folder '{root}' --out DIR`" in note
    (root / "a.txt").write_text("a cat")
    assert describe(Folder(root=root, size=8).build("train")).remarks == []

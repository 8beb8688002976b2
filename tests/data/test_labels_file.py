"""Sets that StyleGAN's and EDM's tools wrote: their file tells the classes, and their folders none."""

import json
import zipfile
from pathlib import Path

import pytest
import torch

from diffcli.config import UserError
from diffcli.data.datasets import Folder
from diffcli.data.set_folder import is_prepared
from diffcli.data.shards import open_shards
from tests.data.making import pixels, png, read, run

NAMES = [f"{number // 2:05d}/img{number:08d}.png" for number in range(6)]


def edm(root: Path, labels: object, packed: bool = False) -> Path:
    """Six images in three folders, with these labels."""
    files = {name: png(image) for name, image in zip(NAMES, pixels(6, 3, 8, 8), strict=True)}
    files["dataset.json"] = json.dumps({"labels": labels}).encode()
    if packed:
        with zipfile.ZipFile(root.with_suffix(".zip"), "w") as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return root.with_suffix(".zip")
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("one_hot", [False, True])
def test_the_labels_are_those_of_the_file_and_the_folders_are_no_classes(tmp_path: Path, packed: bool, one_hot: bool):
    numbers = [2, 0, 1, 1, 0, 2]
    labels = [
        [name, [float(n == k) for k in range(3)] if one_hot else n] for name, n in zip(NAMES, numbers, strict=True)
    ]
    source = edm(tmp_path / "edm", labels[::-1], packed)
    run("folder", source, tmp_path / "out")
    assert open_shards(tmp_path / "out", "x").classes == ("0", "1", "2")
    assert read(tmp_path / "out", 8, 3)["label"].tolist() == numbers
    if not packed:
        data = Folder(root=source, size=8).build("train")
        assert data.classes == ("0", "1", "2")
        assert data.read(torch.arange(6))["label"].tolist() == numbers


def test_a_set_without_classes_has_none(tmp_path: Path):
    source = edm(tmp_path / "edm", None)
    assert Folder(root=source, size=8).build("train").classes is None
    report = run("folder", source, tmp_path / "out")
    assert report.written == 6
    assert open_shards(tmp_path / "out", "x").classes is None


def test_an_image_without_a_label_is_left_out_and_told(tmp_path: Path):
    report = run("folder", edm(tmp_path / "edm", [[name, 0] for name in NAMES[:5]]), tmp_path / "out")
    assert report.written == 5
    assert any(NAMES[5] in note for note in report.notes)


def test_the_folder_is_no_prepared_set_and_a_prepared_set_is_none_of_these(tmp_path: Path):
    source = edm(tmp_path / "edm", None)
    run("folder", source, tmp_path / "out")
    assert [is_prepared(source), is_prepared(tmp_path / "out")] == [False, True]


@pytest.mark.parametrize("labels", [3, [["a"]], [["a", 0, 1]]])
def test_garbled_labels_are_refused_with_the_file(tmp_path: Path, labels: object):
    with pytest.raises(UserError) as error:
        run("folder", edm(tmp_path / "edm", labels), tmp_path / "out")
    assert "dataset.json" in error.value.problem
    assert "delete" in error.value.hint

"""What is said of a data set is what it holds, the same whoever asks, and costs no pass over its images."""

from pathlib import Path

import pytest

from diffcli.data.dataset import TreeFiles
from diffcli.data.datasets import Digits, Folder
from diffcli.data.description import (
    LOOKED_AT,
    DataDescription,
    StoredSizes,
    describe,
    describe_set,
    differences,
)
from diffcli.data.prepared import Shards
from tests.data import making


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three images of a class and two of another, one test image, what is no image, and one that is broken."""
    root = tmp_path / "photos"
    making.class_folders(root / "train", ("cat",), 3)
    making.class_folders(root / "train", ("dog",), 2, size=12)
    making.class_folders(root / "test", ("dog",), 1)
    (root / "train/cat/x.tar").write_bytes(b"")
    (root / "train/.ipynb_checkpoints").mkdir()
    (root / "train/cat/a.txt").write_text("no image, and no news")
    return root


def test_a_folder_and_the_set_made_of_it_say_the_same(photos: Path, tmp_path: Path):
    making.run("folder", photos, tmp_path / "set")
    folder = describe(Folder(root=photos, size=8).build("train"))
    trained = describe(Shards(root=tmp_path / "set", size=8).build("train"))
    prepared = describe_set(tmp_path / "set")
    for found in (folder, trained, prepared):
        assert found.splits == {"train": 5, "test": 1}
        assert (found.classes, found.class_counts) == (("cat", "dog"), (3, 2))
        assert found.stored == StoredSizes(smallest=(8, 8), largest=(12, 12))
        assert found.left_out == {".tar": 1, ".ipynb_checkpoints": 1}
        assert "6 images (train 5, test 1)" in found.facts["data"]
        assert found.facts["classes"] == "2: cat (3), dog (2)"
        assert found.facts["left out"] == "1 .ipynb_checkpoints, 1 .tar"
    assert folder.facts["pixels"] == "8x8 (HxW) RGB, stored as 8x8 to 12x12"
    assert trained.digest == prepared.digest != folder.digest
    assert [line.partition(":")[0] for line in prepared.lines] == ["data", "pixels", "classes", "left out"]


def test_the_description_is_a_record(photos: Path):
    found = describe(Folder(root=photos, size=8).build("train"))
    assert DataDescription.model_validate_json(found.model_dump_json()) == found


def test_captions_and_broken_images_are_counted(tmp_path: Path):
    making.class_folders(tmp_path / "in/all", ("cat",), 3)
    (tmp_path / "in/all/cat/000.txt").write_text("a cat")
    (tmp_path / "in/all/cat/003.png").write_bytes(b"none")
    making.run("folder", tmp_path / "in", tmp_path / "set")
    found = describe_set(tmp_path / "set")
    assert (found.captioned, found.skipped, found.count) == (1, 1, 3)
    assert found.facts["captions"] == "of 1 of 3 images"
    assert "skipped.jsonl" in found.facts["left out"]
    assert describe(Shards(root=tmp_path / "set", size=8).build("train")).captioned == 1


def test_images_held_in_memory_are_described_as_those_in_files(photos: Path):
    one, other = (describe(Folder(root=photos, size=8, in_memory=held).build("train")) for held in (True, False))
    assert one == other


def test_arrays_are_described_by_what_they_are():
    found = describe(Digits().build("train"))
    assert (found.count, found.shape, len(found.classes), sum(found.class_counts)) == (9000, (1, 28, 28), 10, 9000)
    assert found.facts["data"] == "embedded: 9,000 images"
    assert found.facts["pixels"] == "28x28 (HxW) grey"


def test_of_many_files_a_few_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    making.class_folders(tmp_path, ("cat",), 3 * LOOKED_AT)
    opened = []
    look = TreeFiles.size_of
    monkeypatch.setattr(TreeFiles, "size_of", lambda files, index: opened.append(index) or look(files, index))
    data = Folder(root=tmp_path, size=8, in_memory=False).build("train")
    monkeypatch.setattr(TreeFiles, "read", lambda *_: pytest.fail("an image was read"))
    assert describe(data).stored.looked_at == len(opened) == LOOKED_AT


def test_a_class_without_images_is_named():
    shared = {"place": "x", "splits": {"train": 4}, "shape": (3, 8, 8)}
    found = DataDescription(**shared, classes=("0", "1", "2"), class_counts=(0, 2, 2))
    assert found.empty_classes == [0]
    assert "class 0" in found.remarks[0]
    assert not DataDescription(**shared, classes=("a", "b"), class_counts=(1, 3)).remarks


def test_differences_name_what_came_and_went(photos: Path):
    def seen() -> DataDescription:
        return describe(Folder(root=photos, size=8).build("train"))

    before = seen()
    assert differences(before, seen()) == []
    (photos / "train/cat/000.png").rename(photos / "train/cat/zzz.png")
    assert len(differences(before, seen())) == 1, "as many, but not the same"
    (photos / "train/dog/000.png").unlink()
    assert differences(before, seen()) == ["images of the split train: 4, were 5", "images of a class: dog 1 (was 2)"]

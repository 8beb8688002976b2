"""ImageNet 64x64 from its official archives: every row and label in place, and garbled batches named."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from diffcli.config import UserError
from diffcli.data.shards import open_shards
from tests.data import making
from tests.data.making import read, run


@pytest.mark.parametrize("packed", [True, False])
def test_imagenet64_end_to_end(tmp_path: Path, packed: bool):
    images, labels = making.imagenet64(tmp_path / "source")
    if not packed:
        for path in list((tmp_path / "source").glob("*.zip")):
            zipfile.ZipFile(path).extractall(tmp_path / "source")
            path.unlink()
    report = run("imagenet64", tmp_path / "source", tmp_path / "out", images_per_shard=4)
    assert (report.written, report.skipped, report.notes) == (33, 0, ())
    batch = read(tmp_path / "out", 64, 3)
    assert np.array_equal(batch["image"].numpy(), images)
    assert batch["label"].tolist() == (labels - 1).tolist()
    assert len(read(tmp_path / "out", 64, 3, "test")["label"]) == 3
    assert len(open_shards(tmp_path / "out", "x").classes) == 1000


def test_a_part_of_imagenet64_says_so(tmp_path: Path):
    making.imagenet64(tmp_path)
    report = run("imagenet64", tmp_path / "Imagenet64_train_part1.zip", tmp_path / "out")
    assert report.written == 15
    assert "6, 7, 8, 9, 10 are not there" in report.notes[0]


def test_a_lone_npz_batch_is_a_source(tmp_path: Path):
    (tmp_path / "val_data.npz").write_bytes(making.npz_batch(making.pixels(2, 3, 64, 64), np.array([1, 2])))
    run("imagenet64", tmp_path / "val_data.npz", tmp_path / "out")
    assert read(tmp_path / "out", 64, 3, "test")["label"].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (making.pixels(2, 3, 32, 32), np.array([1, 2]), "not uint8"),
        (making.pixels(2, 3, 64, 64).astype(np.float32), np.array([1, 2]), "float32"),
        (making.pixels(2, 3, 64, 64), np.array([1]), "2 images, but labels"),
        (making.pixels(2, 3, 64, 64), np.array([0, 1]), "labels from 0 to 1"),
        (making.pixels(2, 3, 64, 64), np.array([1, 1001]), "to 1001"),
        (making.pixels(2, 3, 64, 64), np.array([object(), 1], dtype=object), "Object arrays cannot be loaded"),
    ],
)
def test_a_garbled_npz_batch_is_named_and_never_unpickled(
    tmp_path: Path, images: np.ndarray, labels: np.ndarray, told: str
):
    (tmp_path / "train_data_batch_1.npz").write_bytes(making.npz_batch(images, labels))
    with pytest.raises(UserError, match=rf"train_data_batch_1\.npz is not a batch of ImageNet 64x64: .*{told}"):
        run("imagenet64", tmp_path / "train_data_batch_1.npz", tmp_path / "out")


def test_a_truncated_npz_batch_is_named(tmp_path: Path):
    making.imagenet64(tmp_path)
    with zipfile.ZipFile(tmp_path / "Imagenet64_train_part1.zip") as file:
        data = file.read("train_data_batch_2.npz")
    (tmp_path / "train_data_batch_2.npz").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match=r"train_data_batch_2\.npz is not a batch"):
        run("imagenet64", tmp_path / "train_data_batch_2.npz", tmp_path / "out")


def test_a_limit_in_imagenet64_skips_through_its_batches(tmp_path: Path):
    images, labels = making.imagenet64(tmp_path / "in", n=3)
    run("imagenet64", tmp_path / "in", tmp_path / "out", limit=7, images_per_shard=2)
    chosen = [number * 30 // 7 for number in range(7)]
    assert np.array_equal(read(tmp_path / "out", 64, 3)["image"].numpy(), images[chosen])
    assert read(tmp_path / "out", 64, 3)["label"].tolist() == (labels[chosen] - 1).tolist()

"""prep-data for the sets of small images, through the command: pixels, labels, names, licence, and damage."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from diffcli.cli.app import app
from diffcli.config import UserError
from diffcli.data import official
from diffcli.data.shards import open_shards
from diffcli.prep.kinds import KINDS
from diffcli.prep.prepare import prepare
from tests.data import making
from tests.data.making import contents, read, run
from tests.prep import making_sets

SETS: dict[str, tuple[str, Callable, int, int, str]] = {  # kind, how to make it, size, channels, the name of class 7
    "fashion-mnist": ("fashion-mnist", making.mnist, 28, 1, "Sneaker"),
    "kmnist": ("kmnist", making.mnist, 28, 1, "ya"),
    "cifar10 python": ("cifar10", making_sets.cifar10_python, 32, 3, "horse"),
    "cifar100 binary": ("cifar100", lambda folder: making_sets.cifar100(folder, "binary"), 32, 3, "beetle"),
    "cifar100 python": ("cifar100", lambda folder: making_sets.cifar100(folder, "python"), 32, 3, "beetle"),
}


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["prep-data", *map(str, arguments)])
    return result.exit_code, result.output + str(result.exception or "")


@pytest.mark.parametrize("case", SETS)
def test_a_set_comes_out_with_its_pixels_labels_and_names(tmp_path: Path, case: str):
    kind, make, size, channels, seventh = SETS[case]
    images, labels = make(tmp_path / "in")
    code, said = command(kind, tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    assert code == 0, said
    batch = read(tmp_path / "out", size, channels)
    assert np.array_equal(batch["image"].numpy(), images)
    assert batch["label"].tolist() == labels.tolist()
    prepared = open_shards(tmp_path / "out", "x")
    assert prepared.classes[7] == seventh
    assert prepared.licence == KINDS[kind].licence
    assert set(prepared.splits) == {"train", "test"}


@pytest.mark.parametrize("case", SETS)
def test_a_stopped_run_ends_in_the_same_bytes(tmp_path: Path, case: str):
    kind, make, *_ = SETS[case]
    make(tmp_path / "in")
    run(kind, tmp_path / "in", tmp_path / "whole", images_per_shard=3)
    stopped = prepare(kind, tmp_path / "in", tmp_path / "part", images_per_shard=3)
    next(stopped), next(stopped)
    stopped.close()
    assert not (tmp_path / "part/dataset.json").exists()
    run(kind, tmp_path / "in", tmp_path / "part", images_per_shard=3)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_a_damaged_download_is_refused_before_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    making.mnist(tmp_path / "in")
    path = tmp_path / "in/t10k-labels-idx1-ubyte.gz"
    known = {(path.name, path.stat().st_size): official.Published("KMNIST", "0" * 32)}
    monkeypatch.setattr(official, "PUBLISHED", known)
    code, said = command("kmnist", tmp_path / "in", "--out", tmp_path / "out")
    assert code != 0
    assert "t10k-labels-idx1-ubyte.gz is damaged: its MD5 is" in said
    assert not (tmp_path / "out/dataset.json").exists()


def test_a_prepared_set_of_another_kind_is_not_mixed_in(tmp_path: Path):
    making.mnist(tmp_path / "in")
    run("mnist", tmp_path / "in", tmp_path / "out")
    code, said = command("kmnist", tmp_path / "in", "--out", tmp_path / "out")
    assert code != 0
    assert "holds a set made with kind mnist, not kmnist" in said
    assert json.loads((tmp_path / "out/dataset.json").read_text())["kind"] == "mnist"


@pytest.mark.parametrize(
    ("kind", "files", "told"),
    [
        ("kmnist", {"a.png": b"", "b.txt": b""}, r"no file train-images-idx3-ubyte\.gz.*; it holds a\.png, b\.txt"),
        ("cifar10", {"x.txt": b""}, r"no batches of CIFAR-10, nor image folders; it holds x\.txt\nhint: take cifar-10"),
        (
            "cifar100",
            {"cat/a.png": b"", "dog/a.png": b""},
            r"has 2 class folders; CIFAR-100 has 100\nhint: .*kind folder",
        ),
        (
            "cifar10",
            {"train.bin": b"", "test.bin": b""},
            r"holds test\.bin: CIFAR-100, not CIFAR-10\nhint: use the kind",
        ),
    ],
)
def test_a_source_of_another_kind_is_told_by_what_it_holds(tmp_path: Path, kind: str, files: dict, told: str):
    making_sets.unpack(tmp_path / "in", files)
    with pytest.raises(UserError, match=told):
        run(kind, tmp_path / "in", tmp_path / "out")


def test_the_help_names_every_kind():
    code, said = command("--help")
    assert code == 0
    assert set(KINDS) - set(re.findall("[a-z0-9-]+", said)) == set()


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_alone_says_what_its_source_is_and_where_to_get_it(tmp_path: Path, kind: str):
    code, said = command(kind, "--out", tmp_path / "out")
    assert code != 0
    assert f"prep-data {kind} needs a SOURCE" in said
    assert KINDS[kind].where in said
    assert KINDS[kind].licence
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["mnist", "fashion-mnist", "cifar10"])
def test_a_published_set_may_lie_in_image_folders(kind: str, tmp_path: Path):
    classes = tuple(str(number) for number in range(10))
    for split in ("train", "test"):
        making.class_folders(tmp_path / "in" / split, classes, n=1)
    run(kind, tmp_path / "in", tmp_path / "out")
    assert open_shards(tmp_path / "out", "x").classes == classes
    assert {name: split.count for name, split in open_shards(tmp_path / "out", "x").splits.items()} == {
        "train": 10,
        "test": 10,
    }


def test_image_folders_of_other_classes_are_no_mnist(tmp_path: Path):
    making.class_folders(tmp_path / "in", ("cat", "dog"))
    with pytest.raises(UserError, match="has 2 class folders; MNIST has 10"):
        run("mnist", tmp_path / "in", tmp_path / "out")

"""CIFAR-10 and CIFAR-100 in both versions, as data of a preset: right pixels and labels, and damage named."""

import hashlib
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcli.config import UserError
from diffcli.data import official
from diffcli.data.cifar import SETS, read_batches
from diffcli.data.datasets import Cifar, Mnist
from diffcli.data.files import FileTree
from tests.data import making
from tests.prep import making_sets
from tests.prep.making_sets import python2_pickle

MAKERS: dict[tuple[str, str], Callable] = {
    ("cifar10", "binary"): making.cifar10_binary,
    ("cifar10", "python"): making_sets.cifar10_python,
    ("cifar10", "python 3"): lambda folder: making_sets.cifar10_python(folder, python=3),
    ("cifar100", "binary"): lambda folder: making_sets.cifar100(folder, "binary"),
    ("cifar100", "python"): lambda folder: making_sets.cifar100(folder, "python"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(("kind", "version"), MAKERS)
def test_every_version_gives_its_pixels_and_fine_labels(tmp_path: Path, kind: str, version: str, packed: bool):
    images, labels = MAKERS[kind, version](tmp_path / "batches")
    root = tmp_path / "batches"
    if packed:
        root = tmp_path / "set.tar.gz"
        with tarfile.open(root, "w:gz") as tar:
            tar.add(tmp_path / "batches", "batches")
    data = Cifar(kind=kind, root=root).build("train")
    assert np.array_equal(data.images.numpy(), images)
    assert data.labels.tolist() == labels.tolist()
    assert data.classes == SETS[kind].classes
    assert len(Cifar(kind=kind, root=root).build("test")) in (3, 4)


def test_cifar100_has_its_hundred_fine_classes_in_order():
    names = SETS["cifar100"].classes
    assert len(names) == len(set(names)) == 100
    assert list(names) == sorted(names)
    assert (names[0], names[47], names[99]) == ("apple", "maple_tree", "worm")


@pytest.mark.parametrize(("kind", "other"), [("cifar10", "cifar100"), ("cifar100", "cifar10")])
@pytest.mark.parametrize("version", ["binary", "python"])
def test_the_other_set_is_called_by_its_name(tmp_path: Path, kind: str, other: str, version: str):
    MAKERS[other, version](tmp_path)
    with pytest.raises(UserError, match=rf"{SETS[other].title}, not {SETS[kind].title}\nhint: use the kind {other}"):
        Cifar(kind=kind, root=tmp_path).build("train")


class Malicious:
    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.witness}",)


def test_a_malicious_batch_is_refused_by_name_and_nothing_runs(tmp_path: Path):
    making_sets.cifar10_python(tmp_path / "set")
    bad = pickle.dumps({"data": Malicious(tmp_path / "ran"), "labels": [1]}, 2)
    (tmp_path / "set/data_batch_2").write_bytes(bad)
    with pytest.raises(UserError, match=r"data_batch_2 is not a batch of CIFAR-10: it names .*\.system"):
        Cifar(root=tmp_path / "set").build("train")
    assert not (tmp_path / "ran").exists()


ROW = np.zeros((1, 3072), np.uint8)


@pytest.mark.parametrize(
    ("batch", "told"),
    [
        (b"", "garbled"),
        (python2_pickle({"data": ROW}), "no dict with 'data' and 'labels'"),
        (python2_pickle({"data": [1], "labels": [1]}), "no array of N x 3072"),
        (python2_pickle({"data": ROW[:, 1:], "labels": [1]}), "no array of N x 3072"),
        (python2_pickle({"data": ROW[:0], "labels": []}), "no array of N x 3072"),
        (python2_pickle({"data": ROW, "labels": [1, 2]}), "labels are not 1 small numbers"),
        (python2_pickle({"data": ROW, "labels": ["a"]}), "labels are not 1 small numbers"),
        (python2_pickle({"data": ROW, "labels": [1000]}), "labels are not 1 small numbers"),
        (python2_pickle({"data": ROW, "labels": [10]}), "holds the label 10; CIFAR-10 has 0 to 9"),
        (pickle.dumps({"data": ROW, "labels": [-1]}, 2), "holds the label -1"),
    ],
    ids=range(10),
)
def test_a_garbled_python_batch_is_named(tmp_path: Path, batch: bytes, told: str):
    making_sets.cifar10_python(tmp_path)
    (tmp_path / "data_batch_3").write_bytes(batch)
    with pytest.raises(UserError, match=rf"data_batch_3 .*{told}.*\nhint: take a fresh cifar-10-binary"):
        Cifar(root=tmp_path).build("train")


def publish(monkeypatch: pytest.MonkeyPatch, path: Path, title: str, digest: str) -> None:
    """Lets a file pass for one that was published with this digest."""
    known = {(path.name, path.stat().st_size): official.Published(title, digest)}
    monkeypatch.setattr(official, "PUBLISHED", known)


def test_an_archive_of_the_published_size_must_have_the_published_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    making.cifar10_binary(tmp_path / "batches")
    path = tmp_path / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "batches", "batches")
    assert len(Cifar(root=path).build("train")) == 20  # of another size than the published one: somebody's own
    publish(monkeypatch, path, "CIFAR-10", "0" * 32)
    told = rf"binary\.tar\.gz is damaged: its MD5 is [0-9a-f]{{32}}, but .* with {'0' * 32}\nhint: download"
    with pytest.raises(UserError, match=told):
        Cifar(root=path).build("train")


def test_a_published_file_of_another_set_is_told_apart_although_the_names_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    making.mnist(tmp_path)
    assert Mnist(kind="fashion_mnist", root=tmp_path).build("train").classes[9] == "Ankle boot"
    assert Mnist(kind="kmnist", root=tmp_path).build("test").classes[2] == "su"
    path = tmp_path / "train-labels-idx1-ubyte.gz"
    publish(monkeypatch, path, "KMNIST", hashlib.md5(path.read_bytes()).hexdigest())
    assert len(Mnist(kind="kmnist", root=tmp_path).build("train")) == 20
    with pytest.raises(UserError, match=r"is a file of KMNIST, not of Fashion-MNIST\nhint: use the kind kmnist"):
        Mnist(kind="fashion_mnist", root=tmp_path).build("train")


def test_the_published_names_and_digests_are_well_formed():
    assert len(official.PUBLISHED) == 17
    assert len({published.md5 for published in official.PUBLISHED.values()}) == 17
    assert all(len(bytes.fromhex(published.md5)) == 16 for published in official.PUBLISHED.values())


BATCH = python2_pickle({"fine_labels": [1, 2], "data": np.zeros((2, 3072), np.uint8)})
PLACES = st.one_of(st.integers(0, 120), st.integers(0, len(BATCH) - 1))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(PLACES, st.integers(0, 255)), max_size=3),
    st.one_of(st.just(len(BATCH)), st.integers(0, len(BATCH))),
)
def test_a_damaged_batch_is_two_images_or_the_users_error(changes: list[tuple[int, int]], length: int):
    data = bytearray(BATCH)
    for place, byte in changes:
        data[place] = byte
    tree = FileTree(Path("set"), {"train": bytes(data[:length])})
    try:
        images, labels = read_batches(tree, "cifar100", ["train"])
    except UserError:
        return
    assert images.shape == (2, 3, 32, 32)
    assert 0 <= labels.min() <= labels.max() < 100

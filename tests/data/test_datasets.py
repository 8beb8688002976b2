"""Every kind of data keeps one contract, and what is wrong with the files is said by name."""

import gzip
import inspect
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from diffcli.config import ImageShape, UserError
from diffcli.data.clips.clip_config import Clips
from diffcli.data.cluttered import DigitsSegmentation
from diffcli.data.dataset import DataConfig
from diffcli.data.datasets import AnyData, Cifar, Digits, Folder, Mix, Mnist, NoData, at_root
from diffcli.data.images import FileImages, ImageData, MemoryImages
from diffcli.data.moving_digits import MovingDigits
from diffcli.data.personal import Personal
from diffcli.data.prepared import Shards
from diffcli.data.stream.stream_data import Stream
from diffcli.prep.prepare import prepare
from tests.data import making
from tests.data.clips import filming

KINDS = {config.model_fields["kind"].default: config for config in get_args(get_args(AnyData)[0])}
CONFIGS = {kind: config for kind, config in KINDS.items() if config not in (NoData, Stream)}  # what is read by index


def prepared(root: Path) -> Path:
    making.class_folders(root / "source/train")
    making.class_folders(root / "source/test", n=1)
    list(prepare("folder", root / "source", root / "set", images_per_shard=2))
    return root / "set"


def write(kind: str, root: Path) -> DataConfig:
    """A tiny set of a kind on disk, and its config."""
    match kind:
        case "digits":
            return Digits()
        case "digits_segmentation":
            return DigitsSegmentation(size=8)  # the 9,000 scenes of 32x32 take seconds
        case "moving_digits":
            return MovingDigits(size=12, digit=6, frames=3)
        case "mnist":
            making.mnist(root)
            return Mnist(root=root)
        case "cifar10":
            making.cifar10_binary(root)
            return Cifar(root=root)
        case "folder":
            making.class_folders(root / "train")
            making.class_folders(root / "test", n=1)
            return Folder(root=root, size=8)
        case "personal":
            making.class_folders(root / "train")
            making.class_folders(root / "test")
            return Personal(root=root, size=8, token="sks", prompts=("sks",))
        case "clips":
            for name in ("train/cat/a.mp4", "train/dog/b.gif", "test/cat/c.mp4", "test/dog/d.gif"):
                filming.write(root / name, filming.ramp(6, 8, 8))
            return Clips(root=root, size=8, frames=3)
        case "mix":
            return Mix(size=8, channels=1, parts=[{"data": {"kind": "digits", "size": 8}}])
        case "shards":
            return Shards(root=prepared(root), size=8)
    raise AssertionError(f"no tiny set of kind {kind}: write one here")


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> DataConfig:
    return write(request.param, tmp_path)


def pictures(data: ImageData, index: torch.Tensor) -> torch.Tensor:
    """What is seen of these rows: images, or clips."""
    return data.read(index)["image" if "image" in data.specs else "clip"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_every_kind_yields_the_fields_of_the_contract(config: DataConfig, split: str):
    data = config.build(split)
    batch = data.read(torch.tensor([1, 0, 1]))
    seen = pictures(data, torch.tensor([1, 0, 1]))
    assert (len(seen), seen.shape[1], *seen.shape[-2:]) == (3, *config.shape)
    assert seen.dtype == torch.uint8
    assert data.shape == config.shape
    if data.labels is None:  # texts in their place
        assert len(batch["text"]) == 3
        return
    assert batch["label"].dtype == torch.int64
    assert data.labels.shape == (len(data),)
    assert 0 <= data.labels.min() <= data.labels.max() < len(data.classes)


def test_every_kind_is_deterministic_by_index(config: DataConfig):
    one, other = config.build("train"), config.build("train")
    index = torch.arange(min(len(one), 10))
    assert torch.equal(pictures(one, index), pictures(other, index))
    for i in index.tolist():
        single = one.read(torch.tensor([i]))
        assert torch.equal(pictures(one, torch.tensor([i]))[0], pictures(one, index)[i])
        assert one.labels is None or single["label"].item() == one.labels[i]


def test_every_kind_resizes_and_converts(config: DataConfig):
    other = config.model_copy(update={"size": (6, 10), "channels": 4 - config.channels})
    seen = pictures(other.build("test"), torch.tensor([0])).shape
    assert (seen[:2], seen[-2:]) == ((1, 4 - config.channels), (6, 10))


def test_every_kind_is_chosen_by_its_name(config: DataConfig):
    again = TypeAdapter(AnyData).validate_python(config.model_dump())
    assert again == config
    assert inspect.getdoc(type(config))


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_files_on_demand_are_the_images_held_in_memory(tmp_path: Path, kind: str):
    config = write(kind, tmp_path)
    held = config.model_copy(update={"in_memory": True}).build("train")
    files = config.model_copy(update={"in_memory": False}).build("train")
    assert isinstance(held, MemoryImages)
    assert isinstance(files, FileImages)
    assert torch.equal(files.read(torch.arange(6))["image"], held.images)


def test_the_embedded_digits_are_mnists_test_images_in_two_parts():
    train, test = Digits().build("train"), Digits().build("test")
    assert (len(train), len(test), train.shape) == (9000, 1000, ImageShape(1, 28, 28))
    assert train.classes == tuple("0123456789")
    assert train.labels[:9].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5]  # the first of t10k are 7 2 1 0 4 1 4 9 5 9
    assert test.labels[0] == 9
    counts = train.labels.bincount() + test.labels.bincount()
    assert counts.tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_digits_that_a_reader_changes_are_whole_for_the_next_one():
    """They are decoded once in a process."""
    first, again = Digits(size=8).build("train"), Digits(size=8).build("train")
    expected = again.images.clone(), again.labels.clone()
    first.images.zero_()
    first.labels.zero_()
    other = Digits(size=8).build("train")
    assert torch.equal(other.images, expected[0])
    assert torch.equal(other.labels, expected[1])


def test_digits_take_no_root(tmp_path: Path):
    with pytest.raises(ValidationError, match="comes with diffcli"):
        Digits(root=tmp_path)


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "MNIST/raw"])
def test_mnist_is_read_plain_or_gzipped_and_below_a_folder(tmp_path: Path, suffix: str, below: str):
    images, labels = making.mnist(tmp_path / below, suffix=suffix)
    data = Mnist(root=tmp_path).build("train")
    assert np.array_equal(data.images.numpy(), images)
    assert data.labels.tolist() == labels.tolist()
    assert len(Mnist(root=tmp_path).build("test")) == 10


def test_cifar10_is_read_from_the_binary_version_and_its_archive(tmp_path: Path):
    images, labels = making.cifar10_binary(tmp_path / "cifar-10-batches-bin")
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    for root in (tmp_path / "cifar-10-batches-bin", tmp_path, tmp_path / "cifar-10-binary.tar.gz"):
        data = Cifar(root=root).build("train")
        assert np.array_equal(data.images.numpy(), images)
        assert data.labels.tolist() == labels.tolist()
        assert data.classes == making.CIFAR
        assert len(Cifar(root=root).build("test")) == 4


def test_cifar10_is_read_from_image_folders_and_their_archive(tmp_path: Path):
    root = tmp_path / "cifar10"
    images = making.class_folders(root / "train", making.CIFAR, 2, 32)
    making.class_folders(root / "test", making.CIFAR, 1, 32)
    with lzma.open(tmp_path / "cifar10.tar.xz", "wb") as file, tarfile.open(fileobj=file, mode="w") as tar:
        tar.add(root, ".")
    for source in (root, tmp_path / "cifar10.tar.xz"):
        data = Cifar(root=source).build("train")
        assert data.classes == making.CIFAR
        assert torch.equal(data.read(torch.arange(20))["image"], torch.from_numpy(images))


def test_a_flat_folder_trains_without_labels(tmp_path: Path):
    making.class_folders(tmp_path / "x")
    data = Folder(root=tmp_path / "x/cat", size=8).build("train")
    assert data.classes is None
    assert data.read(torch.arange(3)).keys() == {"image"}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2 - 1])


@pytest.mark.parametrize(
    ("config", "spoil", "told"),
    [
        (Mnist(), lambda root: None, "data.root is not set"),
        (Mnist(root=Path("nowhere")), lambda root: None, "data.root is 'nowhere', which does not exist"),
        (Mnist(), lambda root: making.class_folders(root), "no file train-images-idx3-ubyte.gz"),
        (Mnist(), lambda root: (making.mnist(root), truncate(root / "train-images-idx3-ubyte.gz")), "whole gzip"),
        (Cifar(), lambda root: (making.cifar10_binary(root), truncate(root / "data_batch_3.bin")), "records of 3073"),
        (
            Cifar(),
            lambda root: (making.cifar10_binary(root), (root / "data_batch_3.bin").unlink()),
            "data_batch_3.bin",
        ),
        (Cifar(), lambda root: (root / "x").mkdir(parents=True), "which holds no images"),
        (Folder(size=8), lambda root: root.mkdir(), "which holds no images"),
        (Folder(size=8), lambda root: root.write_bytes(b""), "which is a file"),
        (Folder(size=8), lambda root: (making.class_folders(root), truncate(root / "dog/001.png")), "dog/001.png"),
        (Shards(size=8), lambda root: root.mkdir(), "has no dataset.json"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_wrong_is_said_by_name(tmp_path: Path, config: DataConfig, spoil: Callable, told: str):
    root = tmp_path / "set"
    spoil(root)
    if "not set" not in told and config.root is None:
        config = config.model_copy(update={"root": root})
    with pytest.raises(UserError) as caught:
        config.build("train")
    assert told in caught.value.problem
    assert caught.value.hint


def test_a_label_out_of_range_is_said(tmp_path: Path):
    making.cifar10_binary(tmp_path)
    data = bytearray((tmp_path / "test_batch.bin").read_bytes())
    data[3073] = 10
    (tmp_path / "test_batch.bin").write_bytes(data)
    with pytest.raises(UserError, match=r"test_batch\.bin holds the label 10"):
        Cifar(root=tmp_path).build("test")


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_a_split_that_is_not_there_is_said(tmp_path: Path, kind: str):
    making.class_folders(tmp_path / "source")
    list(prepare("folder", tmp_path / "source", tmp_path / "set"))
    config = Folder(root=tmp_path / "source", size=8) if kind == "folder" else Shards(root=tmp_path / "set", size=8)
    with pytest.raises(UserError, match="no split 'test'"):
        config.build("test")


def test_a_prepared_set_takes_the_place_of_any_kind(tmp_path: Path):
    root = prepared(tmp_path)
    found = at_root(Digits(size=16, flip=True), root)
    assert found == Shards(root=root, size=16, flip=True), "its channels are those of the set"
    assert at_root(Shards(size=8, verify=True), root) == Shards(root=root, size=8, verify=True)


def test_a_new_root_keeps_the_kind_and_is_validated(tmp_path: Path):
    assert at_root(Mnist(size=32), tmp_path) == Mnist(root=tmp_path, size=32)
    with pytest.raises(ValidationError, match="comes with diffcli"):
        at_root(Digits(), tmp_path)


@pytest.mark.parametrize("size", [0, -1, (8, 0), (8,), "big"])
def test_sizes_that_are_no_sizes_are_refused(size: object):
    with pytest.raises(ValidationError):
        Folder(size=size)


def test_an_idx_bomb_is_not_unpacked(tmp_path: Path):
    """A header of four bytes a pixel and gigabytes of zeros after it: only what was promised is read."""
    making.mnist(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(
        gzip.compress(making.idx(np.zeros((1, 2, 2))) + bytes(1 << 24))
    )
    with pytest.raises(UserError, match="more than the 4 bytes"):
        Mnist(root=tmp_path).build("train")


@pytest.mark.parametrize("config", [Mnist(), Cifar(), Folder(size=8), Shards(size=8)], ids=lambda config: config.kind)
def test_a_set_without_a_place_says_how_to_give_one(config: DataConfig):
    with pytest.raises(UserError, match=r"data\.root is not set") as caught:
        config.build("train")
    assert caught.value.hint == "type --data PATH (or --set data.root=PATH)"


def test_data_of_an_imported_model_have_a_shape_and_no_images():
    data = NoData(size=(8, 4), channels=5)
    assert data.shape == (5, 8, 4)
    with pytest.raises(UserError, match=r"data.kind is 'none'.*has no images"):
        data.build("train")

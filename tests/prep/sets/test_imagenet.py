"""ImageNet from its official archives and from folders: every image under its class, nested tars read in place."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from diffcli.config import UserError
from diffcli.data.shards import open_shards
from diffcli.prep.prepare import prepare
from tests.data.making import contents, read, run
from tests.prep import making_sets
from tests.prep.making_sets import SYNSETS, devkit, imagenet_images, tar, unpack

READABLE = ("tench", "crane (n02012849)", "crane (n03126707)")
TRUE = [0, 1, 2, 0]  # of the validation images, in the sorted order of the synset ids
MAPPING = "".join(f"{synset} {words}\n" for synset, words in SYNSETS.items()).encode()
SOLUTION = b"ImageId,PredictionString\n" + b"".join(
    f"ILSVRC2012_val_{i:08d},{sorted(SYNSETS)[label]} 1 2 3 4 \n".encode() for i, label in enumerate(TRUE, 1)
)


def official(folder: Path) -> None:
    making_sets.imagenet(folder)


def sorted_folders(folder: Path) -> None:
    train, val, _ = imagenet_images()
    unpack(folder, {f"train/{synset}/{name}": data for synset, files in train.items() for name, data in files.items()})
    named = zip(val.items(), TRUE, strict=True)
    unpack(folder, {f"val/{sorted(SYNSETS)[label]}/{name}": data for (name, data), label in named})
    unpack(folder, {"LOC_synset_mapping.txt": MAPPING})


def kaggle(folder: Path) -> None:
    train, val, _ = imagenet_images()
    data = folder / "ILSVRC/Data/CLS-LOC"
    unpack(data / "train", {f"{synset}/{name}": x for synset, files in train.items() for name, x in files.items()})
    unpack(data / "val", val)
    unpack(data / "test", {"ILSVRC2012_test_00000001.JPEG": next(iter(val.values()))})
    unpack(folder, {"LOC_synset_mapping.txt": MAPPING, "LOC_val_solution.csv": SOLUTION})


def class_tars_and_an_unpacked_devkit(folder: Path) -> None:
    train, val, _ = imagenet_images()
    unpack(folder, {f"{synset}.tar": tar(files) for synset, files in train.items()} | val | devkit())


def official_beside_unpacked(folder: Path) -> None:
    sorted_folders(folder)
    official(folder)


LAYOUTS = [official, sorted_folders, kaggle, class_tars_and_an_unpacked_devkit, official_beside_unpacked]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_every_layout_gives_the_same_images_under_readable_classes(tmp_path: Path, layout: Callable[[Path], None]):
    layout(tmp_path / "in")
    images = imagenet_images()[2]
    report = run("imagenet", tmp_path / "in", tmp_path / "out", images_per_shard=4)
    assert (report.written, report.skipped, report.notes) == (10, 0, ())
    train, test = (read(tmp_path / "out", 8, 3, split) for split in ("train", "test"))
    assert np.array_equal(train["image"].numpy(), images[:6])
    assert train["label"].tolist() == [0, 0, 1, 1, 2, 2]
    assert open_shards(tmp_path / "out", "x").classes == READABLE
    order = [0, 3, 1, 2] if layout in (sorted_folders, official_beside_unpacked) else [0, 1, 2, 3]  # by name
    assert np.array_equal(test["image"].numpy(), images[6:][order])
    assert test["label"].tolist() == [TRUE[i] for i in order]


def test_the_training_tar_alone_is_a_source_whose_classes_are_synset_ids(tmp_path: Path):
    official(tmp_path / "in")
    run("imagenet", tmp_path / "in/ILSVRC2012_img_train.tar", tmp_path / "out")
    assert open_shards(tmp_path / "out", "x").classes == tuple(sorted(SYNSETS))
    assert len(read(tmp_path / "out", 8, 3)["label"]) == 6
    assert not [path for path in (tmp_path / "out").rglob("*") if "nXXXX" in path.name]


def test_nothing_is_unpacked_beside_the_shards_but_the_devkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    official(tmp_path / "in")
    seen = []
    monkeypatch.setattr("diffcli.prep.prepare.write_shards", lambda *_: seen.extend(contents(tmp_path / "out")) or ())
    with pytest.raises(UserError, match="no usable image"):
        run("imagenet", tmp_path / "in", tmp_path / "out")
    assert [name for name in seen if name.endswith(".plain")] == [".work/ILSVRC2012_devkit_t12.tar.gz.plain"]


def test_a_broken_image_in_a_nested_tar_is_listed_by_its_place(tmp_path: Path):
    train, _, _ = imagenet_images()
    train["n01440764"]["n01440764_1.JPEG"] = b"<html>"
    nested = tar({f"{name}.tar": tar(files) for name, files in train.items()})
    (tmp_path / "ILSVRC2012_img_train.tar").write_bytes(nested)
    report = run("imagenet", tmp_path, tmp_path / "out")
    assert (report.written, report.skipped) == (5, 1)
    assert report.broken.path == "ILSVRC2012_img_train.tar/n01440764.tar/n01440764_1.JPEG"


def test_validation_images_of_a_class_without_training_images_are_left_out_and_counted(tmp_path: Path):
    sorted_folders(tmp_path / "in")
    for path in (tmp_path / "in/train/n03126707").iterdir():
        path.unlink()
    report = run("imagenet", tmp_path / "in", tmp_path / "out")
    assert report.notes == ("1 images of test are left out: no training image has their class",)
    assert open_shards(tmp_path / "out", "x").classes == ("tench", "crane")


def twice(folder: Path) -> None:
    sorted_folders(folder)
    unpack(folder / "copy/train", {"n01440764/n01440764_0.JPEG": b"x"})


def without_truth(folder: Path) -> None:
    official(folder)
    (folder / "ILSVRC2012_devkit_t12.tar.gz").unlink()


def short_truth(folder: Path) -> None:
    class_tars_and_an_unpacked_devkit(folder)
    (folder / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").write_bytes(b"3\n1\n2\n")


def garbled_meta(folder: Path) -> None:
    class_tars_and_an_unpacked_devkit(folder)
    (folder / "ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"MATLAB 5.0 MAT-file" * 20)


def truncated_tar(folder: Path) -> None:
    official(folder)
    path = folder / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:9000])


def cut_class_tar(folder: Path, length: int) -> None:
    train, _, _ = imagenet_images()
    folder.mkdir()
    cut = {f"{name}.tar": tar(files)[: length if name == "n02012849" else None] for name, files in train.items()}
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(cut))


def garbled_class_tar(folder: Path) -> None:
    train, _, _ = imagenet_images()
    folder.mkdir()
    packed = {f"{name}.tar": tar(files) for name, files in train.items()}
    second = packed["n02012849.tar"].index(b"n02012849_1.JPEG")
    data = packed["n02012849.tar"]
    packed["n02012849.tar"] = data[:second] + b"\xff" * 300 + data[second + 300 :]
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(packed))


def traversal(folder: Path) -> None:
    folder.mkdir()
    (folder / "ILSVRC2012_img_train.tar").write_bytes(tar({"n01440764.tar": tar({"../../etc/n01440764_1.JPEG": b"x"})}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (
            lambda folder: unpack(folder, {"cat/a.jpg": b""}),
            r"no images of ImageNet; it holds cat/a\.jpg\nhint: give the",
        ),
        (twice, r"holds one image twice: copy/train/n01440764/n01440764_0\.JPEG and train/"),
        (without_truth, r"the classes of ILSVRC2012_img_val\.tar/.*\nhint: .*devkit"),
        (short_truth, r"ground_truth\.txt has no class for ILSVRC2012_val_00000004\.JPEG"),
        (garbled_meta, r"meta\.mat is not the meta\.mat of ImageNet's devkit"),
        (truncated_tar, r"in which ILSVRC2012_img_train\.tar is not a whole archive"),
        (
            partial(cut_class_tar, length=600),
            r"in which ILSVRC2012_img_train\.tar/n02012849\.tar is not a whole archive \(it was cut",
        ),
        (
            partial(cut_class_tar, length=1024),
            r"in which ILSVRC2012_img_train\.tar/n02012849\.tar is not a whole archive \(it was cut",
        ),
        (garbled_class_tar, r"n02012849\.tar is not a whole archive \(its header at byte \d+ is garbled"),
        (traversal, r"n01440764\.tar holds the member '\.\./\.\./etc.*points outside"),
    ],
)
def test_what_is_wrong_with_the_source_is_said_by_name(tmp_path: Path, spoil: Callable[[Path], None], told: str):
    spoil(tmp_path / "in")
    with pytest.raises(UserError, match=told):
        run("imagenet", tmp_path / "in", tmp_path / "out")


def test_a_stopped_run_ends_in_the_same_bytes(tmp_path: Path):
    official(tmp_path / "in")
    run("imagenet", tmp_path / "in", tmp_path / "whole", images_per_shard=2)
    stopped = prepare("imagenet", tmp_path / "in", tmp_path / "part", images_per_shard=2)
    next(stopped), next(stopped)
    stopped.close()
    assert not (tmp_path / "part/dataset.json").exists()
    run("imagenet", tmp_path / "in", tmp_path / "part", images_per_shard=2)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")

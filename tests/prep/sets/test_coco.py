"""prep-data coco: the official layout, unpacked and in zips, with several captions an image."""

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffcli.config import UserError
from diffcli.data.shards import open_shards
from diffcli.prep.prepare import prepare
from tests.conftest import Cli
from tests.data.making import contents, pixels, png, read, run
from tests.prep.reading import skipped, texts


def captions(first: int, count: int, each: int = 5) -> dict[str, Any]:
    """A captions file; the annotations in reverse order, as they lie in no order in the official ones."""
    numbers = range(first, first + count)
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "coco_url": f"http://x/{i:012d}.jpg"} for i in numbers]
    notes = [{"id": i * each + k, "image_id": i, "caption": f"{k} of {i}\n"} for i in numbers for k in range(each)]
    return {"info": {}, "images": images[::-1], "annotations": notes[::-1]}


def coco(root: Path, train: int = 4, val: int = 2, year: int = 2017) -> Path:
    for name, first, count in (("train", 1, train), ("val", 100, val)):
        folder = root / f"{name}{year}"
        folder.mkdir(parents=True)
        for number, picture in enumerate(pixels(count, 3, 8, 8, seed=first), start=first):
            (folder / f"{number:012d}.jpg").write_bytes(png(picture))  # the suffix does not tell the format
        (root / "annotations").mkdir(exist_ok=True)
        (root / f"annotations/captions_{name}{year}.json").write_text(json.dumps(captions(first, count)))
        (root / f"annotations/instances_{name}{year}.json").write_text("{}")
    return root


def zipped(root: Path, target: Path) -> Path:
    target.mkdir()
    for folder, name in (
        ("train2017", "train2017"),
        ("val2017", "val2017"),
        ("annotations", "annotations_trainval2017"),
    ):
        with zipfile.ZipFile(target / f"{name}.zip", "w") as file:
            for path in sorted((root / folder).iterdir()):
                file.write(path, f"{folder}/{path.name}")
    return target


@pytest.mark.parametrize("packed", [False, True])
def test_coco_end_to_end(tmp_path: Path, cli: Cli, packed: bool):
    root = coco(tmp_path / "coco")
    source = zipped(root, tmp_path / "zips") if packed else root
    done = cli("prep-data", "coco", source, "--out", tmp_path / "out", "--workers", 1)
    assert done.code == 0, done.err
    assert {name: split.count for name, split in open_shards(tmp_path / "out", "x").splits.items()} == {
        "train": 4,
        "test": 2,
    }
    assert texts(tmp_path / "out") == [[f"{k} of {i}" for k in range(5)] for i in range(1, 5)]
    assert texts(tmp_path / "out", "test")[1] == [f"{k} of 101" for k in range(5)]
    assert (read(tmp_path / "out", 8, 3)["image"].numpy() == pixels(4, 3, 8, 8, seed=1)).all()


def test_missing_images_are_listed_and_a_split_without_any_is_left_out(tmp_path: Path):
    root = coco(tmp_path / "coco")
    (root / "val2017/000000000100.jpg").unlink()
    for path in (root / "train2017").iterdir():
        path.unlink()
    report = run("coco", root, tmp_path / "out")
    assert (report.written, report.skipped) == (1, 1)
    assert report.notes == ("annotations/captions_train2017.json: none of its 4 images is there",)
    assert skipped(tmp_path / "out") == {"000000000100.jpg": "it is not there"}


def test_the_year_whose_images_are_there_is_read(tmp_path: Path):
    root = coco(tmp_path / "coco")
    (root / "annotations/captions_train2014.json").write_text(json.dumps(captions(3, 9, each=1)))
    run("coco", root, tmp_path / "out")
    assert len(texts(tmp_path / "out")[0]) == 5


def own(root: Path, files: list[str], notes: list[dict[str, Any]], listed: list[dict[str, Any]] | None = None) -> Path:
    """A set whose training images have these paths below train2017 and values 10, 20, ... in this order."""
    for number, file in enumerate(files, start=1):
        path = root / "train2017" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(np.full((3, 8, 8), 10 * number, np.uint8)))
    found = listed or [{"id": number, "file_name": file} for number, file in enumerate(files, start=1)]
    (root / "annotations").mkdir()
    (root / "annotations/captions_train2017.json").write_text(json.dumps({"images": found, "annotations": notes}))
    return root


def note(image: object, caption: object, **more: object) -> dict[str, Any]:
    return {"image_id": image, "caption": caption, **more}


def test_images_of_one_name_in_two_folders_keep_their_captions(tmp_path: Path):
    root = own(tmp_path / "coco", ["cats/1.jpg", "dogs/1.jpg"], [note(2, "a dog", id=1), note(1, "a cat", id=2)])
    run("coco", root, tmp_path / "out")
    assert texts(tmp_path / "out") == [["a cat"], ["a dog"]]
    assert read(tmp_path / "out", 8, 3)["image"][:, 0, 0, 0].tolist() == [10, 20]


def test_an_image_of_both_splits_is_that_of_its_own(tmp_path: Path):
    root = coco(tmp_path / "coco", 2, 2)
    for name, value in (("train", 7), ("val", 9)):
        (root / f"{name}2017/000000000001.jpg").write_bytes(png(np.full((3, 8, 8), value, np.uint8)))
    run("coco", root, tmp_path / "out")
    assert read(tmp_path / "out", 8, 3)["image"][0].unique().tolist() == [7]


def test_a_file_that_could_be_several_is_listed_and_not_guessed(tmp_path: Path):
    listed = [{"id": 1, "file_name": "1.jpg"}, {"id": 2, "file_name": "2.jpg"}]
    root = own(tmp_path / "coco", ["a/1.jpg", "b/1.jpg", "a/2.jpg"], [note(1, "x"), note(2, "y")], listed)
    run("coco", root, tmp_path / "out")
    assert texts(tmp_path / "out") == [["y"]]
    assert "several files may be it" in skipped(tmp_path / "out")["1.jpg"]


def test_any_suffix_text_ids_and_paths_of_other_machines_are_understood(tmp_path: Path):
    files = ["a/1.jpeg", "a/2.webp"]
    listed = [{"id": "x1", "file_name": "/home/me/a/1.jpeg"}, {"id": "x2", "file_name": "a\\2.webp"}]
    root = own(tmp_path / "coco", files, [note("x2", "two"), note("x1", "one"), note("x1", "uno")], listed)
    run("coco", root, tmp_path / "out")
    assert texts(tmp_path / "out") == [["one", "uno"], ["two"]]


def test_captions_stand_in_the_order_of_their_ids_where_all_have_one(tmp_path: Path):
    notes = [note(1, "third", id="10"), note(1, "second", id=9), note(1, "first", id="1")]
    run("coco", own(tmp_path / "coco", ["1.jpg"], notes), tmp_path / "out")
    assert texts(tmp_path / "out") == [["first", "second", "third"]]


def test_captions_without_their_image_are_counted_and_nothing_is_no_caption(tmp_path: Path):
    notes = [note(1, "one", id=1), note(7, "of no image", id=2), note(1, None, id=3), note(2, float("nan"), id=4)]
    report = run("coco", own(tmp_path / "coco", ["1.jpg", "2.jpg"], notes), tmp_path / "out")
    assert texts(tmp_path / "out") == [["one"], [""]]
    assert any("1 captions" in note and "does not list" in note for note in report.notes)


@pytest.mark.parametrize(
    "data", [b"{}", b"[1]", b"no", b'{"images": [], "annotations": [{"image_id": 3}]}', b"[" * 9999]
)
def test_what_is_no_captions_file_is_an_error_that_names_it(tmp_path: Path, data: bytes):
    root = coco(tmp_path / "coco")
    (root / "annotations/captions_val2017.json").write_bytes(data)
    with pytest.raises(UserError, match=r"captions_val2017\.json is not a captions file of COCO"):
        run("coco", root, tmp_path / "out")


def test_a_folder_without_captions_says_where_to_get_them(tmp_path: Path, cli: Cli):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jpg").write_bytes(b"")
    done = cli("prep-data", "coco", tmp_path / "in", "--out", tmp_path / "out")
    assert done.code == 2
    assert "annotations_trainval2017.zip" in done.err


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path):
    root = coco(tmp_path / "coco")
    run("coco", root, tmp_path / "whole", images_per_shard=1)
    stopped = prepare("coco", root, tmp_path / "out", images_per_shard=1)
    next(stopped), next(stopped), next(stopped)
    stopped.close()
    run("coco", root, tmp_path / "out", images_per_shard=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")

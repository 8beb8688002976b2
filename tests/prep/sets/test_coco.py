"""prep-data coco: the official layout, unpacked and in zips, with several captions an image."""

import json
import zipfile
from pathlib import Path
from typing import Any

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

"""CelebA, AFHQ and FFHQ in their official layouts: splits, classes, and what else a source may hold."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from diffcli.config import UserError
from diffcli.data.shards import open_shards
from diffcli.prep.prepare import prepare
from tests.data.making import contents, pixels, png, read, run
from tests.prep.making_sets import afhq, celeba, ffhq, unpack, zipped


def put(folder: Path, files: Mapping[str, bytes], layout: str, archive: str) -> Path:
    """Files as a folder, a zip, a folder with the zip, or with both; returns what to give as SOURCE."""
    folder.mkdir()
    if layout != "folder":
        zipped(folder / archive, files)
    if layout in ("folder", "both"):
        unpack(folder, files)
    return folder / archive if layout == "zip" else folder


LAYOUTS = pytest.mark.parametrize("layout", ["folder", "zip", "folder with zip", "both"])


@LAYOUTS
def test_celeba_is_split_by_its_official_numbers(tmp_path: Path, layout: str):
    files, images = celeba()
    run("celeba", put(tmp_path / "in", files, layout, "img_align_celeba.zip"), tmp_path / "out")
    assert np.array_equal(read(tmp_path / "out", 8, 3)["image"].numpy(), images[:3])
    assert np.array_equal(read(tmp_path / "out", 8, 3, "test")["image"].numpy(), images[3:])
    assert open_shards(tmp_path / "out", "x").classes is None


@pytest.mark.parametrize(
    ("name", "row"), [("list_eval_partition.txt", "{}.jpg {}"), ("list_eval_partition.csv", "{}.jpg,{}")]
)
def test_celeba_is_split_by_its_list_where_there_is_one(tmp_path: Path, name: str, row: str):
    files, images = celeba()
    unpack(tmp_path / "in", files)
    numbers = [Path(file).stem for file in files]
    rows = [row.format(number, part) for number, part in zip(numbers, (0, 1, 2, 0, 0, 2), strict=True)]
    (tmp_path / "in" / name).write_text("image_id,partition\n" + "\n".join(rows))
    run("celeba", tmp_path / "in", tmp_path / "out")
    assert np.array_equal(read(tmp_path / "out", 8, 3)["image"].numpy(), images[[0, 3, 4]])
    (tmp_path / "in" / name).write_text("what?")
    with pytest.raises(UserError, match=r"list_eval_partition\.\w+ has no line as '000001\.jpg 0'"):
        run("celeba", tmp_path / "in", tmp_path / "other")


@LAYOUTS
@pytest.mark.parametrize("test", ["val", "test"])  # version 1 and 2
def test_afhq_has_three_classes_and_two_splits(tmp_path: Path, layout: str, test: str):
    files, images = afhq(test)
    run("afhq", put(tmp_path / "in", files, layout, "afhq_v2.zip"), tmp_path / "out")
    train, held_out = read(tmp_path / "out", 8, 3), read(tmp_path / "out", 8, 3, "test")
    assert np.array_equal(train["image"].numpy(), images[:6])
    assert train["label"].tolist() == [0, 0, 1, 1, 2, 2]
    assert np.array_equal(held_out["image"].numpy(), images[6:])
    assert held_out["label"].tolist() == [0, 1, 2]
    assert open_shards(tmp_path / "out", "x").classes == ("cat", "dog", "wild")


@LAYOUTS
@pytest.mark.parametrize("folder", ["images1024x1024", "thumbnails128x128"])
def test_the_last_ten_thousand_of_ffhq_are_its_test_split(tmp_path: Path, layout: str, folder: str):
    files, images = ffhq(folder)
    run("ffhq", put(tmp_path / "in", files, layout, f"{folder}.zip"), tmp_path / "out", size=4)
    run("ffhq", put(tmp_path / "again", files, layout, f"{folder}.zip"), tmp_path / "whole")
    assert np.array_equal(read(tmp_path / "whole", 8, 3)["image"].numpy(), images[:2])
    assert np.array_equal(read(tmp_path / "whole", 8, 3, "test")["image"].numpy(), images[2:])
    assert open_shards(tmp_path / "out", "x").size == (4, 4)


def test_a_part_of_ffhq_and_the_names_of_dataset_tool_are_read(tmp_path: Path):
    images = pixels(2, 3, 8, 8)
    zipped(tmp_path / "ffhq-8x8.zip", {f"00000/img{i:08d}.png": png(x) for i, x in enumerate(images)})
    run("ffhq", tmp_path / "ffhq-8x8.zip", tmp_path / "out")
    assert np.array_equal(read(tmp_path / "out", 8, 3)["image"].numpy(), images)
    assert list(open_shards(tmp_path / "out", "x").splits) == ["train"]


@pytest.mark.parametrize(
    ("kind", "files", "told"),
    [
        ("celeba", {"cat/a.png": b""}, r"no images numbered 000001\.jpg.*it holds cat/a\.png\nhint: give img_align"),
        ("afhq", {"cat/a.png": b""}, r"no folders train/cat.*it holds cat/a\.png\nhint: give afhq_v2"),
        ("ffhq", {}, r"no images numbered 00000\.png.*it holds nothing\nhint: give the folder images1024"),
        ("celeba", {"a/000001.jpg": b"", "b/000001.png": b""}, r"one image twice: a/000001\.jpg and b/000001\.png"),
        ("afhq", {"1/train/cat/x.jpg": b"", "2/train/cat/x.png": b""}, r"one image twice: 1/train/cat/x\.jpg"),
        ("ffhq", ffhq("images1024x1024")[0] | ffhq("thumbnails128x128")[0], r"one image twice: images1024x1024/00000/"),
    ],
)
def test_what_is_wrong_with_the_source_is_said_by_name(
    tmp_path: Path, kind: str, files: Mapping[str, bytes], told: str
):
    (tmp_path / "in").mkdir()
    unpack(tmp_path / "in", files)
    with pytest.raises(UserError, match=told):
        run(kind, tmp_path / "in", tmp_path / "out")


@pytest.mark.parametrize("kind", ["celeba", "ffhq"])
def test_a_broken_image_in_a_zip_is_listed_and_a_stopped_run_ends_in_the_same_bytes(tmp_path: Path, kind: str):
    files, _ = celeba() if kind == "celeba" else ffhq("images1024x1024")
    files[list(files)[1]] = b"<html>not found</html>"
    source = put(tmp_path / "in", files, "zip", "x.zip")
    report = run(kind, source, tmp_path / "whole", images_per_shard=1)
    assert (report.skipped, report.broken.path) == (1, list(files)[1])
    stopped = prepare(kind, source, tmp_path / "part", images_per_shard=1)
    for _ in range(3):
        next(stopped)
    stopped.close()
    assert not (tmp_path / "part/dataset.json").exists()
    run(kind, source, tmp_path / "part", images_per_shard=1)
    assert contents(tmp_path / "part") == contents(tmp_path / "whole")


def test_a_member_of_a_zip_that_unpacks_without_measure_is_listed_and_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    files, images = ffhq("images1024x1024")
    bomb = list(files)[1]
    zipped(tmp_path / "x.zip", files | {bomb: bytes(1 << 20)})
    monkeypatch.setattr("diffcli.data.files.MAX_MEMBER", 1 << 16)
    report = run("ffhq", tmp_path / "x.zip", tmp_path / "out")
    assert (report.skipped, report.broken.path) == (1, bomb)
    assert report.broken.reason == "it unpacks to 1048576 bytes, as no image does"
    assert np.array_equal(read(tmp_path / "out", 8, 3)["image"].numpy(), images[:1])

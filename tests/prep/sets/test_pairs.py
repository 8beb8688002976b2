"""prep-data pairs: images find their masks in every usual layout, and the values of a mask are never mixed."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from diffcli.config import UserError
from diffcli.data.files import FileTree
from diffcli.data.shards import open_shards
from diffcli.prep.encode import encode_over
from diffcli.prep.items import Item, SourceOptions
from diffcli.prep.prepare import prepare
from diffcli.prep.sets import pairs
from tests.conftest import Cli
from tests.data.making import contents, encoded, pixels, read, run
from tests.prep.reading import skipped

FORMAT = {".png": "PNG", ".jpg": "JPEG", ".tif": "TIFF", ".bmp": "BMP"}


def image(number: int, size: int = 12) -> Image.Image:
    return Image.fromarray(pixels(1, 3, size, size, seed=number)[0].transpose(1, 2, 0))


def mask(number: int, size: int = 12, low: int = 0, high: int = 255) -> Image.Image:
    values = np.random.default_rng(number + 99).choice([low, high], (size, size))
    return Image.fromarray(values.astype(np.uint8))


def write(root: Path, name: str, picture: Image.Image) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(picture, FORMAT[path.suffix.lower()]))


def masks(root: Path, size: int = 12, split: str = "train") -> list[np.ndarray]:
    return [found.numpy()[0] for found in read(root, size, 3, split)["mask"]]


LAYOUTS = {  # image and mask of number {n}
    "CVC-ClinicDB": ("Original/{n}.tif", "Ground Truth/{n}.tif"),
    "CVC-ClinicDB in PNG/": ("PNG/Original/{n}.png", "PNG/Ground Truth/{n}.png"),
    "ISIC": (
        "ISIC2018_Task1-2_Training_Input/ISIC_000{n}.jpg",
        "ISIC2018_Task1_Training_GroundTruth/ISIC_000{n}_segmentation.png",
    ),
    "images and masks": ("images/p/{n}.png", "masks/p/{n}.png"),
    "split inside": ("images/train/{n}.png", "labels/train/{n}.png"),
    "split outside": ("train/images/{n}.png", "train/labels/{n}.png"),
    "Carvana": ("train/{n}.bmp", "train_masks/{n}_mask.bmp"),
    "Penn-Fudan": ("PennFudanPed/PNGImages/Ped{n}.png", "PennFudanPed/PedMasks/Ped{n}_mask.png"),
    "one folder": ("all/{n}.png", "all/{n}_mask.png"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_images_find_their_masks(layout: str, tmp_path: Path):
    for number in range(3):
        for name, picture in zip(LAYOUTS[layout], (image(number), mask(number)), strict=True):
            write(tmp_path / "in", name.format(n=number), picture)
    report = run("pairs", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == (3, 0)
    for number, found in enumerate(masks(tmp_path / "out")):
        assert np.array_equal(found, np.asarray(mask(number, high=1)))
    note = open_shards(tmp_path / "out", "x").fields["mask"]
    assert (note.kind, note.classes) == ("mask", 2)


def test_the_zips_of_an_isic_challenge_have_their_splits(tmp_path: Path, cli: Cli):
    (tmp_path / "in").mkdir()
    for part, first in (("Training", 0), ("Validation", 3), ("Test", 5)):
        for what, end, made in (
            ("Task1-2_{}_Input", ".jpg", image),
            ("Task1_{}_GroundTruth", "_segmentation.png", mask),
        ):
            name = f"ISIC2018_{what.format(part)}"
            with zipfile.ZipFile(tmp_path / "in" / f"{name}.zip", "w") as file:
                file.writestr(f"{name}/LICENSE.txt", "CC-0")
                file.writestr(f"{name}/ISIC_{first}_superpixels.png", b"ignored")
                for number in range(first, first + 2):
                    data = encoded(made(number), "JPEG" if end == ".jpg" else "PNG")
                    file.writestr(f"{name}/ISIC_{number}{end}", data)
    done = cli("prep-data", "pairs", tmp_path / "in", "--out", tmp_path / "out", "--workers", 1)
    assert done.code == 0, done.err
    prepared = open_shards(tmp_path / "out", "x")
    assert {name: split.count for name, split in prepared.splits.items()} == {"train": 2, "test": 4}
    assert prepared.skipped == 0
    # Test/ comes before Validation/
    assert np.array_equal(masks(tmp_path / "out", split="test")[1], np.asarray(mask(6, high=1)))


def test_files_without_a_partner_and_of_other_sizes_are_listed(tmp_path: Path):
    root = tmp_path / "in"
    for number in (1, 2, 3, 5):
        write(root, f"Original/{number}.png", image(number))
    for number in (1, 2, 4):
        write(root, f"Ground Truth/{number}.png", mask(number, 12 if number != 2 else 10))
    write(root, "Ground Truth/1.bmp", mask(1))
    (root / "Ground Truth/5.png").write_bytes(b"<!DOCTYPE html><html>")
    report = run("pairs", root, tmp_path / "out")
    assert (report.written, report.skipped) == (1, 5)
    assert skipped(tmp_path / "out") == {
        "Original/2.png": "its mask has 10x10 pixels, the image 12x12",
        "Original/3.png": "there is no mask for it",
        "Ground Truth/4.png": "there is no image for it",
        "Original/5.png": "it is none of PNG, JPEG, WEBP, BMP, GIF, TIFF, PPM",
        "Ground Truth/1.png": "another mask goes with the same name: Ground Truth/1.bmp",
    }


def test_only_one_of_the_formats_that_repeat_a_set_is_read(tmp_path: Path):
    for kind in ("PNG", "TIF"):
        for number in range(2):
            write(tmp_path / "in", f"{kind}/Original/{number}.{kind.lower()}", image(number))
            write(tmp_path / "in", f"{kind}/Ground Truth/{number}.{kind.lower()}", mask(number))
    report = run("pairs", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == (2, 0)


def test_a_field_has_the_name_of_its_folder_or_that_of_the_option(tmp_path: Path):
    for number in range(2):
        for folder in ("images", "masks", "depth map"):
            write(tmp_path / "in", f"{folder}/{number}.png", mask(number) if folder != "images" else image(number))
        write(tmp_path / "sketches", f"photos/{number}.jpg", image(number))
        write(tmp_path / "sketches", f"drawings/{number}.png", image(number + 7))
    write(tmp_path / "in", "previews/all.png", image(9))
    report = run("pairs", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == (2, 1)
    fields = open_shards(tmp_path / "out", "x").fields
    assert {name: note.kind for name, note in fields.items()} == {"mask": "mask", "depth_map": "image"}
    run("pairs", tmp_path / "in", tmp_path / "depth", options=SourceOptions(field="depth_map"))
    assert open_shards(tmp_path / "depth", "x").fields.keys() == {"depth_map"}
    run("pairs", tmp_path / "sketches", tmp_path / "edges")
    assert open_shards(tmp_path / "edges", "x").fields.keys() == {"sketch"}
    run("pairs", tmp_path / "sketches", tmp_path / "other", options=SourceOptions(field="hint"))
    assert open_shards(tmp_path / "other", "x").fields.keys() == {"hint"}
    with pytest.raises(UserError, match="the fields of SOURCE are depth_map, mask"):
        run("pairs", tmp_path / "in", tmp_path / "no", options=SourceOptions(field="sketch"))
    with pytest.raises(UserError, match="cannot name a field"):
        run("pairs", tmp_path / "in", tmp_path / "no", options=SourceOptions(field="../x"))


def test_folders_that_nothing_tells_apart_are_an_error(tmp_path: Path):
    write(tmp_path / "in", "one/1.png", image(1))
    write(tmp_path / "in", "two/1.png", image(1))
    with pytest.raises(UserError, match="one, two"):
        run("pairs", tmp_path / "in", tmp_path / "out")


def test_resizing_mixes_no_classes_and_crops_masks_as_images(tmp_path: Path):
    """A picture that is its own mask: cropped and resized, the one stays where the other is."""
    classes = np.kron(np.array([[3, 200, 7], [90, 3, 255]], np.uint8), np.ones((8, 8), np.uint8))  # 16 high, 24 wide
    write(tmp_path / "in", "images/a.png", Image.fromarray(np.where(classes == 200, 255, 0).astype(np.uint8)))
    write(tmp_path / "in", "masks/a.png", Image.fromarray(classes))
    run("pairs", tmp_path / "in", tmp_path / "out", size=8)
    fields = read(tmp_path / "out", 8, 1)
    found, seen = fields["mask"][0, 0].numpy(), fields["image"][0, 0].numpy()
    assert set(np.unique(found)) == {3, 200, 7, 90, 255}
    assert np.array_equal(found, classes[1::2, 5:20:2])
    assert ((seen > 127) == (found == 200)).all()


def test_every_way_to_store_a_mask_gives_its_values():
    values = np.array([[0, 1], [2, 255]], np.uint8)
    grey = Image.fromarray(values)
    palette = Image.fromarray(values)
    palette.putpalette([number * 7 % 256 for number in range(768)])
    deep = Image.fromarray(np.array([[0, 65535], [65535, 0]], np.uint16))
    for picture in (grey, palette, grey.convert("RGB"), Image.fromarray(values.astype(np.uint16))):
        stored = encode_over("m", "mask", encoded(picture, "PNG"), None)
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored.data))), values), picture.mode
    for picture in (deep, Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8)).convert("1")):
        stored = encode_over("m", "mask", encoded(picture, "PNG"), None)
        assert np.asarray(Image.open(io.BytesIO(stored.data))).tolist() == [[0, 255], [255, 0]]


def test_a_mask_in_colour_or_beyond_bytes_is_listed(tmp_path: Path):
    for number in range(3):
        write(tmp_path / "in", f"images/{number}.png", image(number))
    write(tmp_path / "in", "masks/0.png", mask(0))
    write(tmp_path / "in", "masks/1.png", image(1))
    deep = Image.fromarray(np.full((12, 12), 300, np.uint16))
    write(tmp_path / "in", "masks/2.png", deep)
    run("pairs", tmp_path / "in", tmp_path / "out")
    assert "a mask in colour" in skipped(tmp_path / "out")["images/1.png"]
    assert "beyond 0 to 255" in skipped(tmp_path / "out")["images/2.png"]


WORDS = ["images", "masks", "Ground Truth", "train", "val", "PNG", "p1", "sketches", "data"]
NAMES = st.lists(st.sampled_from(WORDS), max_size=3).flatmap(
    lambda folders: st.sampled_from(["1.png", "2.jpg", "1_mask.png", "1-edges.png", "_.png"]).map(
        lambda name: "/".join([*folders, name])
    )
)


@given(st.sets(NAMES, min_size=1, max_size=12))
def test_every_file_is_in_one_pair_or_alone_or_one_clear_error(names: set[str]):
    tree = FileTree(Path("x.zip"), dict.fromkeys(names, b""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "open_tree", lambda *_: tree)
        try:
            source = pairs.open_pairs(Path("x.zip"), Path("work"), SourceOptions())
        except UserError:
            return
    used: list[str] = []
    for items in source.splits.values():
        for item in items.items(range(len(items))):
            used.append(item.name)
            if isinstance(item, Item):
                used += ["?"] * len(item.pictures)
    assert len(used) <= len(names)
    told = [name for name in used if name != "?"]
    assert len(set(told)) == len(told)


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path):
    for number in range(4):
        write(tmp_path / "in", f"images/{number}.png", image(number))
        write(tmp_path / "in", f"masks/{number if number != 2 else 9}.png", mask(number))
    run("pairs", tmp_path / "in", tmp_path / "whole", images_per_shard=1)
    stopped = prepare("pairs", tmp_path / "in", tmp_path / "out", images_per_shard=1)
    next(stopped), next(stopped), next(stopped)
    stopped.close()
    run("pairs", tmp_path / "in", tmp_path / "out", images_per_shard=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


@pytest.mark.parametrize(
    ("shards", "classes"),
    [([[0, 1], [0, 4]], 5), ([[0], [0]], 2), ([[0, 255], [0, 255]], 2), ([[0, 255], [0, 2]], None), ([[1], [1]], 2)],
)
def test_a_mask_has_as_many_classes_as_the_values_of_all_its_shards_say(shards, classes, tmp_path: Path):
    for number, values in enumerate(shards):
        write(tmp_path / "in", f"images/{number}.png", image(number))
        picture = np.resize(np.array(values, np.uint8), (12, 12))
        write(tmp_path / "in", f"masks/{number}.png", Image.fromarray(picture))
    for _ in prepare("pairs", tmp_path / "in", tmp_path / "out", images_per_shard=1):
        pass
    prepared = open_shards(tmp_path / "out", "x")
    assert len(prepared.splits["train"].shards) == 2
    assert prepared.fields["mask"].classes == classes

"""Tars of anybody: grouped by key, in the order of keys, as far as they are whole; pickles are never read."""

import io
import pickle
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from diffcli.config import UserError
from diffcli.data.files import read_location
from diffcli.data.shards import open_shards
from diffcli.prep.sets.webdataset_index import read_contents, split_of
from tests.data import making
from tests.data.making import read, run
from tests.prep.reading import skipped


def tar_of(members: dict[str, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file.getvalue()


def image(number: int) -> bytes:
    return making.encoded(Image.new("RGB", (8, 8), (number * 20, 0, 255)), "PNG")


def test_members_are_grouped_and_sorted_by_key_whatever_their_order(tmp_path: Path):
    names = ["b/10.jpg", "b/9.txt", "b/10.seg.png", "b/9.JPG", "b/10.txt", ".hidden", "README"]
    (tmp_path / "t.tar").write_bytes(tar_of({name: name.encode() for name in names}))
    contents = read_contents(tmp_path / "t.tar")
    assert [sample.key for sample in contents.samples] == ["b/9", "b/10"]
    nine, ten = contents.samples
    assert set(nine.members) == {"txt", "jpg"}
    assert set(ten.members) == {"jpg", "seg.png", "txt"}
    assert read_location(nine.image) == b"b/9.JPG"
    assert contents.fault == ""


def test_long_names_of_both_formats_are_read(tmp_path: Path):
    name = "folder/" * 30 + "a.png"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        (tmp_path / "t.tar").write_bytes(tar_of({name: b"x", "b.png": b"yy"}, form))
        samples = read_contents(tmp_path / "t.tar").samples
        assert {sample.key + ".png": read_location(sample.image) for sample in samples} == {name: b"x", "b.png": b"yy"}


@pytest.mark.parametrize("keep", [1, 512, 1000, 1024, 1500, 2048, 2500, 3071])
def test_a_tar_that_was_cut_gives_what_lies_before_the_cut_and_says_so(tmp_path: Path, keep: int):
    data = tar_of({f"{number}.png": bytes([number]) * 400 for number in range(3)})  # a header and a block each
    (tmp_path / "t.tar").write_bytes(data[:keep])
    contents = read_contents(tmp_path / "t.tar")
    assert "cut short" in contents.fault
    whole = [number for number in range(3) if number * 1024 + 512 + 400 <= keep]
    assert [read_location(sample.image) for sample in contents.samples] == [bytes([n]) * 400 for n in whole]


def test_a_tar_with_a_garbled_header_is_not_taken_for_whole(tmp_path: Path):
    data = bytearray(tar_of({f"{number}.png": b"x" for number in range(3)}))
    data[1024:1100] = b"\xff" * 76
    (tmp_path / "t.tar").write_bytes(data)
    contents = read_contents(tmp_path / "t.tar")
    assert len(contents.samples) == 1
    assert "after 0.png" in contents.fault


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("/tmp/diffcli-was-here"),)


def test_foreign_shards_become_a_set_with_splits_classes_and_captions(tmp_path: Path):
    (tmp_path / "in/val").mkdir(parents=True)
    train = {}
    for number in range(4):
        train |= {f"{number}.png": image(number), f"{number}.cls": str(number % 3).encode()}
    train |= {
        "0.txt": "你好\nsecond".encode(),
        "1.json": b'{"caption": "from json"}',
        "2.json": b"{",
        "3.pkl": pickle.dumps(Evil()),
    }
    (tmp_path / "in/train-0.tar").write_bytes(tar_of(train))
    (tmp_path / "in/val/00000.tar").write_bytes(tar_of({"a.png": image(9), "a.cls": b"1", "b.cls": b"0"}))
    report = run("webdataset", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == (5, 1)
    assert report.broken.reason == "it has no image, only cls"
    assert report.notes == ("1 members that hold pickles are left out",)
    assert not Path("/tmp/diffcli-was-here").exists()
    prepared = open_shards(tmp_path / "out", "x")
    assert prepared.classes == ("0", "1", "2")
    batch = read(tmp_path / "out", 8, 3)
    assert batch["label"].tolist() == [0, 1, 2, 0]
    assert batch["image"][:, 0, 0, 0].tolist() == [0, 20, 40, 60]
    assert batch["text"] == ["你好", "from json", "", ""]
    assert read(tmp_path / "out", 8, 3, "test")["label"].tolist() == [1]


def test_a_cut_shard_is_named_and_the_rest_of_the_set_is_whole(tmp_path: Path):
    (tmp_path / "in").mkdir()
    data = tar_of({f"{number}.png": image(number) for number in range(3)})
    (tmp_path / "in/a.tar").write_bytes(data[:1600])
    (tmp_path / "in/b.tar").write_bytes(data)
    report = run("webdataset", tmp_path / "in", tmp_path / "out")
    assert (report.written, report.skipped) == (4, 1)
    assert (report.broken.path, report.broken.reason) == ("a.tar", "it is cut short or garbled after 1.png")


def placed(folder: Path, data: bytes) -> Path:
    """The tar in a folder whose name tells of no split."""
    (folder / "in").mkdir()
    (folder / "in/a.tar").write_bytes(data)
    return folder / "in/a.tar"


def labelled(labels: list[bytes | None], extension: str = "cls") -> bytes:
    """A tar of images with these labels."""
    members = {}
    for number, label in enumerate(labels):
        members[f"{number}.png"] = image(number)
        members |= {} if label is None else {f"{number}.{extension}": label}
    return tar_of(members)


@pytest.mark.parametrize(
    ("labels", "extension", "classes", "kept", "reason"),
    [
        ([b"0", b"1", b"0", None, b"1"], "cls", ("0", "1"), [0, 1, 0, 1], "it has no label"),
        ([b"-1", b"0", b"1", b"1"], "cls", ("0", "1"), [0, 1, 1], "its label is -1"),
        ([b"0", b"2", b"cat"], "cls", ("0", "1", "2"), [0, 2], "its label is 'cat'"),
        ([b"dog", b"cat\n", b"dog"], "class", ("cat", "dog"), [1, 0, 1], ""),
        ([b"cat", b"7", b"dog", b"cat"], "cls", ("7", "cat", "dog"), [1, 0, 2, 1], ""),
        ([b'{"label": 1}', b'{"label": 0}', b'{"caption": "x"}'], "json", ("0", "1"), [1, 0], "it has no label"),
        ([b'{"class_name": "b"}', b'{"class_name": "a"}'], "json", ("a", "b"), [1, 0], ""),
    ],
)
def test_a_sample_without_a_label_that_fits_costs_itself_alone(
    tmp_path: Path, labels: list[bytes | None], extension: str, classes: tuple[str, ...], kept: list[int], reason: str
):
    placed(tmp_path, labelled(labels, extension))
    report = run("webdataset", tmp_path / "in/a.tar", tmp_path / "out")
    assert open_shards(tmp_path / "out", "x").classes == classes
    assert read(tmp_path / "out", 8, 3)["label"].tolist() == kept
    assert report.skipped == len(labels) - len(kept)
    assert all(told.startswith(reason) for told in skipped(tmp_path / "out").values())


def test_a_set_of_which_few_samples_have_a_label_has_no_classes_and_keeps_its_images(tmp_path: Path):
    placed(tmp_path, labelled([b"0", b"-1", b"-1", b"-1", b"-1"]))
    report = run("webdataset", tmp_path / "in/a.tar", tmp_path / "out")
    assert open_shards(tmp_path / "out", "x").classes is None
    assert report.written == 5
    assert "1 of 5 samples have a label" in report.notes[0]


def test_links_lead_to_what_lies_in_the_tar_and_nowhere_else(tmp_path: Path):
    with tarfile.open(placed(tmp_path, b""), "w") as tar:
        for name, target, kind in (
            ("a/0.png", None, tarfile.REGTYPE),
            ("a/1.png", "a/0.png", tarfile.LNKTYPE),
            ("a/2.png", "0.png", tarfile.SYMTYPE),
            ("b/3.png", "../a/2.png", tarfile.SYMTYPE),
            ("a/4.png", "/etc/passwd", tarfile.SYMTYPE),
            ("a/5.png", "../../x.png", tarfile.SYMTYPE),
            ("a/6.png", "6.png", tarfile.SYMTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, data = kind, image(5) if target is None else b""
            info.linkname, info.size = target or "", len(data)
            tar.addfile(info, io.BytesIO(data))
    report = run("webdataset", tmp_path / "in/a.tar", tmp_path / "out")
    assert report.written == 4
    assert read(tmp_path / "out", 8, 3)["image"][:, 0, 0, 0].tolist() == [100] * 4
    assert [note[0] for note in report.notes] == ["3"]


def test_keys_with_dots_and_members_that_lie_apart_are_put_together(tmp_path: Path):
    members = {"photo.v1.png": image(1), "photo.V2.png": image(2), "c.seg.png": image(9), "c.png": image(3)}
    members |= {"photo.V2.txt": b"two", "photo.v1.txt": b"one", "d.seg.png": image(9), "c.txt": b"three"}
    placed(tmp_path, tar_of(members))
    run("webdataset", tmp_path / "in/a.tar", tmp_path / "out")
    assert read(tmp_path / "out", 8, 3)["text"] == ["three", "two", "one"]
    assert read(tmp_path / "out", 8, 3)["image"][:, 0, 0, 0].tolist() == [60, 40, 20]
    assert skipped(tmp_path / "out") == {"d": "it has no image, only seg.png"}


def test_of_two_members_with_one_name_the_last_counts_as_where_a_tar_is_unpacked(tmp_path: Path):
    with tarfile.open(placed(tmp_path, b""), "w") as tar:
        for name, data in (
            ("a.png", image(1)),
            ("a.txt", b"first"),
            ("b.png", image(2)),
            ("a.png", image(5)),
            ("a.txt", b"x"),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    report = run("webdataset", tmp_path / "in/a.tar", tmp_path / "out")
    assert read(tmp_path / "out", 8, 3)["image"][:, 0, 0, 0].tolist() == [100, 40]
    assert read(tmp_path / "out", 8, 3)["text"] == ["x", ""]
    assert report.notes[0].startswith("2 members")


def test_members_with_other_names_are_images_by_their_first_bytes(tmp_path: Path):
    jpeg = making.encoded(Image.new("RGB", (8, 8), (200, 200, 200)), "JPEG")
    placed(tmp_path, tar_of({"0.jfif": jpeg, "1.jpg?size=l": jpeg, "2.raw": b"?", "2.txt": b"words"}))
    report = run("webdataset", tmp_path / "in/a.tar", tmp_path / "out")
    assert (report.written, report.skipped) == (2, 1)
    assert skipped(tmp_path / "out") == {"2": "it has no image, only raw, txt"}


def test_captions_that_are_not_utf8_are_listed_and_not_garbled(tmp_path: Path):
    members = {"0.png": image(0), "0.txt": "café".encode("latin-1"), "1.png": image(1), "1.txt": "\ufeffcafé".encode()}
    placed(tmp_path, tar_of(members))
    run("webdataset", tmp_path / "in/a.tar", tmp_path / "out")
    assert read(tmp_path / "out", 8, 3)["text"] == ["café"]
    assert "UTF-8" in skipped(tmp_path / "out")["a.tar/0"]


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("captions_val2017", "test"),
        ("Validation_GCC-1.1.0-Validation", "test"),
        ("Train_GCC-training", "train"),
        ("imagenet-train-0001", "train"),
        ("cc12m", "train"),
        ("valley", "train"),
    ],
)
def test_splits_are_told_by_whole_words_of_a_name(name: str, split: str):
    assert split_of(name) == split


def test_a_folder_without_tars_says_what_is_needed(tmp_path: Path):
    with pytest.raises(UserError, match=r"which holds no \.tar"):
        run("webdataset", tmp_path, tmp_path / "out")


def test_a_label_that_is_no_number_of_a_class_is_refused(tmp_path: Path):
    (tmp_path / "t.tar").write_bytes(tar_of({"a.png": image(1), "a.cls": b"9" * 19}))
    with pytest.raises(UserError, match=f"holds the label {'9' * 19}, no number of a class"):
        run("webdataset", tmp_path / "t.tar", tmp_path / "out")


def test_the_name_of_the_folder_that_holds_all_tars_says_nothing_of_splits(tmp_path: Path):
    (tmp_path / "test").mkdir()
    (tmp_path / "test/0.tar").write_bytes(tar_of({"a.png": image(1)}))
    run("webdataset", tmp_path / "test", tmp_path / "out")
    run("webdataset", tmp_path / "test/0.tar", tmp_path / "other")
    for out in ("out", "other"):
        assert list(open_shards(tmp_path / out, "x").splits) == ["train"]
    (tmp_path / "both/val").mkdir(parents=True)
    (tmp_path / "both/0.tar").write_bytes(tar_of({"a.png": image(1)}))
    (tmp_path / "both/val/0.tar").write_bytes(tar_of({"a.png": image(1)}))
    run("webdataset", tmp_path / "both", tmp_path / "third")
    assert set(open_shards(tmp_path / "third", "x").splits) == {"train", "test"}

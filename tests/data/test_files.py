"""Folders and archives look alike, nothing leaves them, and broken ones are the user's error."""

import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.data.files import LOST, TWICE, FileTree, open_tree
from diffcli.data.listing import list_images

NAMES = {"b/two.png": b"2", "a/one.png": b"1" * 600, ".hidden/x.png": b"h", "__MACOSX/a/._one.png": b"m"}
PACKED = ("tar", "tar.gz", "tar.xz", "tar.bz2", "zip")


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of the kind that the name ends with."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return path
    with tarfile.open(path, "w:" + path.suffix.removeprefix(".").replace("tar", "")) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def unpack(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tree(*names: str, source: Path = Path("archive.tar")) -> FileTree:
    return FileTree(source, dict.fromkeys(names, b""))


@pytest.mark.parametrize("kind", PACKED)
@pytest.mark.parametrize("in_memory", [True, False])
def test_an_archive_is_the_folder_that_was_packed(tmp_path: Path, kind: str, in_memory: bool):
    folder = open_tree(unpack(tmp_path / "folder", NAMES), "SOURCE")
    archive = open_tree(pack(tmp_path / f"x.{kind}", NAMES), "SOURCE", None if in_memory else tmp_path)
    assert archive.names == folder.names == ["a/one.png", "b/two.png"]
    for name in folder.names:
        assert archive.read(name) == folder.read(name) == NAMES[name]
        assert archive.size(name) == folder.size(name) == len(NAMES[name])


@pytest.mark.parametrize("name", ["../evil.png", "a/../../evil.png", "/evil.png", "..\\evil.png", "C:\\evil.png"])
@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_a_member_that_leaves_the_archive_is_refused(tmp_path: Path, kind: str, name: str):
    with pytest.raises(UserError, match=r"evil.*outside of the archive"):
        open_tree(pack(tmp_path / f"x.{kind}", {"fine.png": b"", name: b""}), "SOURCE", tmp_path)


LINKS = {  # name: (whether it is a hard link, where to), and the file that it is
    "a/hard.png": ((True, "a/one.png"), "a/one.png"),
    "b/soft.png": ((False, "../a/one.png"), "a/one.png"),
    "b/again.png": ((False, "soft.png"), "a/one.png"),
    "c/out.png": ((False, "/etc/passwd"), None),
    "c/up.png": ((False, "../../a/one.png"), None),
    "c/loop.png": ((False, "loop.png"), None),
    "c/gone.png": ((True, "nowhere.png"), None),
    "folder": ((False, "a"), "a/"),
    "a/inside": ((False, "../a"), None),
}


def linked_tar(path: Path) -> Path:
    with tarfile.open(path, "w:" + path.suffix.removeprefix(".").replace("tar", "")) as archive:
        for name, data in NAMES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        for name, ((hard, target), _) in LINKS.items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = (tarfile.LNKTYPE if hard else tarfile.SYMTYPE), target
            archive.addfile(member)
    return path


def linked_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in NAMES.items():
            archive.writestr(name, data)
        for name, ((hard, target), _) in LINKS.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            archive.writestr(info, f"{'../' * name.count('/')}{target}" if hard else target)
    return path


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_links_in_an_archive_are_the_files_that_they_lead_to_in_it(tmp_path: Path, kind: str):
    path = tmp_path / f"x.{kind}"
    found = open_tree(linked_zip(path) if kind == "zip" else linked_tar(path), "SOURCE")
    led = {name: of for name, (_, of) in LINKS.items() if of is not None}
    folder = led.pop("folder")
    assert folder == "a/"
    inside = {f"folder/{Path(name).name}" for name in found.names if name.startswith("a/")}
    assert set(found.names) == {"a/one.png", "b/two.png", *led, *inside}
    assert all(found.read(name) == NAMES[of] for name, of in led.items())
    assert found.read("folder/one.png") == NAMES["a/one.png"]
    assert found.passed[LOST] == sum(of is None for _, of in LINKS.values())


@pytest.mark.parametrize("kind", PACKED)
def test_a_truncated_archive_is_the_users_error(tmp_path: Path, kind: str):
    path = pack(tmp_path / f"x.{kind}", {"a.png": os.urandom(5000), "b.png": os.urandom(5000)})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="not a whole archive"):
        open_tree(path, "SOURCE", tmp_path)


def test_other_files_and_missing_ones_are_the_users_error(tmp_path: Path):
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    with pytest.raises(UserError, match=r"SOURCE is '.*notes\.txt', which is not a whole archive"):
        open_tree(text, "SOURCE")
    with pytest.raises(UserError, match=r"data\.root is '.*nowhere', which does not exist"):
        open_tree(tmp_path / "nowhere", "data.root")


def test_an_encrypted_zip_is_the_users_error(tmp_path: Path):
    path = pack(tmp_path / "x.zip", {"a.png": b"1"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the flag in the directory
    path.write_bytes(data)
    with pytest.raises(UserError, match="encrypted"):
        open_tree(path, "SOURCE")


def test_linked_folders_are_followed_once(tmp_path: Path):
    unpack(tmp_path / "elsewhere", {"1.png": b"1"})
    root = unpack(tmp_path / "root", {"a/0.png": b"0"})
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    assert open_tree(root, "SOURCE").names == ["a/0.png", "b/1.png"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read_is_not_left_out(tmp_path: Path):
    root = unpack(tmp_path / "root", {"a/0.png": b"0", "b/1.png": b"1"})
    (root / "b").chmod(0)
    with pytest.raises(UserError, match="cannot be read"):
        open_tree(root, "SOURCE")
    (root / "b").chmod(0o755)


def test_class_folders_become_labels_in_the_order_of_their_names():
    listing = list_images(tree("dog/1.png", "cat/2.JPG", "cat/deep/3.jpeg", "cat/notes.txt"), "x").splits["train"]
    assert listing.names == ["cat/2.JPG", "cat/deep/3.jpeg", "dog/1.png"]
    assert listing.labels == [0, 0, 1]
    assert listing.classes == ("cat", "dog")


def test_a_flat_folder_has_no_classes():
    assert list_images(tree("2.png", "1.png"), "x").splits == {"train": (["1.png", "2.png"], None, None)}


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN", "train_set", "train2017"])
@pytest.mark.parametrize("test", ["Testing", "dev", "eval", "test_images", "val2017"])
def test_splits_are_known_by_their_usual_spellings(train: str, test: str):
    splits = list_images(tree(f"{train}/cat/1.png", f"{train}/dog/2.png", f"{test}/dog/3.png"), "x").splits
    assert splits == {
        "train": ([f"{train}/cat/1.png", f"{train}/dog/2.png"], [0, 1], ("cat", "dog")),
        "test": ([f"{test}/dog/3.png"], [1], ("cat", "dog")),
    }


def test_splits_within_each_class_are_splits():
    splits = list_images(tree("cat/train/1.png", "cat/test/2.png", "dog/train/3.png", "dog/test/4.png"), "x").splits
    assert splits["train"] == (["cat/train/1.png", "dog/train/3.png"], [0, 1], ("cat", "dog"))
    assert splits["test"].labels == [0, 1]


@pytest.mark.parametrize(
    "names",
    [
        ("train/cat/1.png", "val/cat/2.png", "unlabeled/3.png"),
        ("train/cat/1.png", "train/dog/1.png", "extra/3.png"),
        ("train/1.png", "test/2.png", "3.png"),
    ],
)
def test_splits_beside_something_else_are_refused(names: tuple[str, ...]):
    with pytest.raises(UserError, match=r"train.*(unlabeled|extra|images)") as caught:
        list_images(tree(*names), "x")
    assert "archive.tar/train" in caught.value.hint


def test_the_folder_around_a_folder_does_not_count_and_is_named(tmp_path: Path):
    found = list_images(tree("pets/train/cat/1.png", "pets/test/cat/2.png", source=tmp_path), "x")
    assert found.splits["train"].classes == ("cat",)
    assert found.splits["test"].names == ["pets/test/cat/2.png"]
    assert "pets/" in found.notes[0]
    twice = list_images(tree("a/pets/cat/1.png", "a/pets/dog/2.png", source=tmp_path), "x")
    assert twice.splits["train"].classes == ("cat", "dog")


def test_what_is_no_image_is_counted_by_suffix_and_empty_classes_are_named(tmp_path: Path):
    unpack(tmp_path, {"train/cat/1.png": b"", "train/cat/2.heix": b"", "train/cat/a.TXT": b"", ".x/3.png": b""})
    (tmp_path / "train/dog").mkdir()
    found = list_images(open_tree(tmp_path, "x"), "x")
    assert found.left_out == {".heix": 1, ".x": 1}
    assert found.splits["train"].classes == ("cat",)
    assert "dog" in found.notes[0]


def test_what_file_names_begin_with_can_be_their_class():
    names = ("american_bulldog_12.jpg", "cat.7.jpg", "cat.8.jpg", "dog-a3f.png", "dog7.png", "wolf (2).png")
    listing = list_images(tree(*names), "x", "prefix").splits["train"]
    assert listing.classes == ("american_bulldog", "cat", "dog", "wolf")
    assert listing.labels == [0, 1, 1, 2, 2, 3]
    with pytest.raises(UserError, match=r"cat\.png"):
        list_images(tree("cat.png"), "x", "prefix")


def test_classes_of_two_splits_are_one_whichever_way_their_accents_are_stored():
    splits = list_images(tree("train/cafe\u0301/1.png", "test/caf\u00e9/2.png"), "x").splits
    assert (splits["train"].labels, splits["test"].labels) == ([0], [0])


def test_a_prepared_set_says_how_it_is_used():
    with pytest.raises(UserError) as caught:
        list_images(tree("dataset.json", "train-000000.tar"), "x")
    assert "--data archive.tar" in caught.value.hint


@pytest.mark.parametrize("name", ["test", "val", "valid", "validation"])
def test_folders_named_as_splits_are_splits(name: str):
    splits = list_images(tree("train/a/1.png", "train/b/2.png", f"{name}/b/3.png"), "x").splits
    assert {split: listing.labels for split, listing in splits.items()} == {"train": [0, 1], "test": [1]}
    assert splits["test"].classes == ("a", "b")
    flat = list_images(tree("train/1.png", f"{name}/2.png"), "x").splits
    assert flat["test"].names == [f"{name}/2.png"]
    assert flat["test"].classes is None


def test_a_misspelt_split_is_guessed_and_nothing_else():
    hints = {}
    for folder in ("trian", "tset", "cat", "images"):
        with pytest.raises(UserError, match=f"beside {folder}") as caught:
            list_images(tree(f"{folder}/a/1.png", f"{'train' if folder == 'tset' else 'test'}/a/2.png"), "x")
        hints[folder] = caught.value.hint
    assert hints["trian"].startswith("rename trian to train, or move trian out")
    assert hints["tset"].startswith("rename tset to test, or ")
    assert hints["cat"].startswith("move cat out")
    assert hints["images"].startswith("move images out")


def test_a_class_called_train_among_others_is_a_class():
    assert list_images(tree("train/1.png", "car/2.png"), "x").splits["train"].classes == ("car", "train")


def test_the_folder_around_an_archive_does_not_count(tmp_path: Path):
    wrapped = list_images(tree("cifar/train/a/1.png", "cifar/test/a/2.png"), "x").splits
    assert wrapped["test"].names == ["cifar/test/a/2.png"]
    assert wrapped["test"].classes == ("a",)
    assert list_images(tree("photos/1.png", "photos/2.png"), "x").splits["train"].classes is None
    (tmp_path / "cat").mkdir()
    assert list_images(tree("cat/1.png", source=tmp_path), "x").splits["train"].classes == ("cat",)


def test_a_lone_class_in_the_folder_around_an_archive_is_a_class_as_in_that_folder(tmp_path: Path):
    assert list_images(tree("photos/cat/1.png", "photos/cat/2.png"), "x").splits["train"].classes == ("cat",)
    (tmp_path / "photos").mkdir()
    found = list_images(tree("cat/1.png", "cat/2.png", source=tmp_path / "photos"), "x")
    assert found.splits["train"].classes == ("cat",)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_members_of_one_name_are_counted_and_the_last_one_is_read(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as packed:
        for content in (b"one", b"two", b"three"):
            packed.writestr("a.png", content)
    found = open_tree(tmp_path / "a.zip", "x")
    assert found.read("a.png") == b"three"
    assert found.passed == {TWICE: 2}


def test_what_makes_no_sense_is_the_users_error():
    with pytest.raises(UserError, match=r"x is 'archive\.tar', which holds no images"):
        list_images(tree("notes.txt"), "x")
    with pytest.raises(UserError, match=r"2 \.mp4") as films:
        list_images(tree("a/1.mp4", "a/2.mp4"), "x")
    assert "ucf101-64" in films.value.hint
    with pytest.raises(UserError, match=r"loose\.png lies beside the class folders cat"):
        list_images(tree("cat/1.png", "loose.png"), "x")
    with pytest.raises(UserError, match="class folder 'c', which the training images do not have"):
        list_images(tree("train/a/1.png", "test/c/2.png"), "x")
    with pytest.raises(UserError, match="has a class, but"):
        list_images(tree("train/1.png", "test/c/2.png"), "x")

"""Tars are read as webdataset reads them, from any sample on, and a tar that is not whole is told from one that is."""

import io
import tarfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image
from webdataset import tariterators

from diffcli.data.stream.opening import BrokenShard, ShardBytes
from diffcli.data.stream.tar import LARGEST_HEADER, TarSample, samples
from tests.data.making import encoded
from tests.data.stream.streaming import QUICK, shard, tar

LONG = "folder/" + "x" * 150
FILES = {
    "a.jpg": b"1" * 700,
    "a.json": b"{}",
    "b.x/c.JPG": b"2" * 512,
    "b.x/c.txt": "ä".encode(),
    f"{LONG}.jpg": b"3",
    f"{LONG}.seg.png": b"4" * 1025,
    f"{LONG}ü.jpg": b"",
}


def read(
    data: bytes,
    folder: Path,
    offset: int = 0,
    wanted: Callable[[str], bool] = lambda extension: True,
    dotted: bool = False,
) -> tuple[list[TarSample], str]:
    """The samples, and why there were no more."""
    (folder / "a.tar").write_bytes(data)
    found = []
    try:
        for sample in samples(ShardBytes(str(folder / "a.tar"), QUICK, offset), wanted, dotted):
            found.append(sample)
    except BrokenShard as error:
        return found, str(error)
    return found, ""


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_samples_are_those_of_webdataset_and_can_be_begun_at(tmp_path: Path, form: int) -> None:
    found, fault = read(tar(FILES, format=form), tmp_path)
    assert not fault
    with open(tmp_path / "a.tar", "rb") as file:
        files = [{**item, "__url__": "a"} for item in tariterators.tar_file_iterator(file)]
    theirs = list(tariterators.group_by_keys(files))
    assert [sample.key for sample in found] == [item["__key__"] for item in theirs]
    for sample, item in zip(found, theirs, strict=True):
        assert sample.members == {name: value for name, value in item.items() if not name.startswith("__")}
    for number, sample in enumerate(found):
        assert read(tar(FILES, format=form), tmp_path, sample.offset) == (found[number:], "")


def test_a_tar_cut_anywhere_gives_the_samples_before_the_cut_and_is_told_to_be_broken(tmp_path: Path) -> None:
    whole = shard(0, 6)
    found, fault = read(whole, tmp_path)
    assert (len(found), fault) == (6, "")
    end = len(whole.rstrip(b"\0"))
    for cut in range(512, end, 256):
        some, fault = read(whole[:cut], tmp_path)
        assert "it breaks off" in fault, cut
        assert some == [sample for sample, after in pairwise(found) if after.offset + 512 <= cut]


def test_what_is_no_tar_or_becomes_garbage_is_broken(tmp_path: Path) -> None:
    assert read(b"", tmp_path) == ([], "it is empty at byte 0")
    assert read(b"<html>not found</html>" * 100, tmp_path) == ([], "it is no tar at byte 0")
    whole = shard(0, 4)
    found, _ = read(whole, tmp_path)
    third = found[2].offset
    some, fault = read(whole[:third] + b"garbage!" * 1000, tmp_path)
    assert some == found[:1]  # what follows the second may have been part of it
    assert fault == f"it is no tar at byte {third}"
    bomb = tarfile.TarInfo("././@LongLink")
    bomb.type, bomb.size = tarfile.GNUTYPE_LONGNAME, LARGEST_HEADER + 1
    assert read(bomb.tobuf(tarfile.GNU_FORMAT) + whole, tmp_path) == ([], "it is no tar at byte 0")


def raw(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header that claims `size` bytes, whatever that is, and 512 that follow it."""
    header = bytearray(tarfile.TarInfo("b.jpg").tobuf(tarfile.GNU_FORMAT))
    header[124:136], header[156:157] = tarfile.itn(size, 12, tarfile.GNU_FORMAT), kind
    header[148:156] = b"%06o\0 " % tarfile.calc_chksums(bytes(header))[0]
    return bytes(header) + b"x" * 512


@pytest.mark.parametrize("size", [-1024, -1536, 1 << 80])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_size_that_no_file_has_ends_a_shard_instead_of_leading_back(tmp_path: Path, size: int, kind: bytes) -> None:
    good = shard(0, 2)[: len(shard(0, 2).rstrip(b"\0")) // 512 * 512 + 512]
    _, fault = read(good + raw(size, kind) + bytes(1024), tmp_path)
    assert fault.startswith(f"it is no tar at byte {len(good)}")


@pytest.mark.parametrize("told", ["-512", "z", "9" * 30])
def test_a_garbled_pax_size_ends_a_shard(tmp_path: Path, told: str) -> None:
    info = tarfile.TarInfo("a.jpg")
    info.pax_headers = {"size": told}
    data = info.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    assert read(data, tmp_path)[1].startswith("it is no tar at byte 0")


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.DIRTYPE])
def test_nothing_follows_a_link_or_a_folder_whatever_size_it_claims(tmp_path: Path, kind: bytes) -> None:
    data = raw(700, kind)[:512] + tar(FILES)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert archive.getnames()[1] == "a.jpg"
    found, fault = read(data, tmp_path)
    assert (next(sample.key for sample in found if sample.members), fault) == ("a", "")


def test_pickles_links_folders_and_what_nobody_wants_are_passed_over(tmp_path: Path) -> None:
    data = tar(
        {"a.pyd": b"cos\nsystem\n", "a.jpg": b"1", "b.emb.pth": b"2", "b.txt": b"3", "README": b"4", ".x.jpg": b"5"}
    )
    found, fault = read(data, tmp_path, wanted=lambda extension: extension not in ("txt", "jpg"))
    assert not fault
    assert [(sample.key, sample.members, sample.others, sample.remarks) for sample in found] == [
        ("a", {}, ("pyd", "jpg"), {"pickles"}),
        ("b", {}, ("emb.pth", "txt"), {"pickles"}),
    ]
    found, _ = read(data, tmp_path)
    assert [sample.members for sample in found] == [{"jpg": b"1"}, {"txt": b"3"}]
    with tarfile.open(tmp_path / "b.tar", "w") as archive:
        for name, kind in (("c", tarfile.DIRTYPE), ("c/a.jpg", tarfile.SYMTYPE), ("c/b.jpg", tarfile.LNKTYPE)):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    found, fault = read((tmp_path / "b.tar").read_bytes(), tmp_path)
    assert fault == ""
    assert [(sample.key, sample.members, sample.others, sample.remarks) for sample in found] == [
        ("c/a", {}, ("jpg",), {"links"}),
        ("c/b", {}, ("jpg",), {"links"}),
    ]


def test_a_member_that_claims_to_be_enormous_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffcli.data.stream.tar.LARGEST_MEMBER", 1000)
    found, fault = read(tar({"a.jpg": b"1" * 1001, "a.txt": b"2", "b.jpg": b"3" * 1000}), tmp_path)
    assert not fault
    assert [sample.members for sample in found] == [{"txt": b"2"}, {"jpg": b"3" * 1000}]


def test_a_member_with_an_unknown_name_is_an_image_where_it_begins_as_one(tmp_path: Path) -> None:
    picture = encoded(Image.new("RGB", (9, 9)), "JPEG")
    files = {"a.jpg?size=l": picture, "b.raw": b"no image", "c": picture, "d.png": b"x", "e.bin": picture}
    found, fault = read(tar(files), tmp_path, wanted=lambda extension: extension in ("jpeg", "jpg", "png"))
    assert fault == ""
    assert [(sample.key, sample.members, sample.others) for sample in found] == [
        ("a", {"jpeg": picture}, ()),
        ("b", {}, ("raw",)),
        ("d", {"png": b"x"}, ()),
        ("e", {}, ("bin",)),
    ]
    assert [sample.has_more for sample in found] == [False, True, False, False]
    assert read(tar(files), tmp_path, wanted=lambda extension: extension == "txt")[0][0].members == {}


def test_keys_may_go_on_to_the_last_dot(tmp_path: Path) -> None:
    files = {"x/Photo.V1.jpg": b"1", "x/Photo.V1.txt": b"2", "x/Photo.v2.JPG": b"3", "x/b.png": b"4"}
    found, _ = read(tar(files), tmp_path, dotted=True)
    assert [(sample.key, sample.members) for sample in found] == [
        ("x/Photo.V1", {"jpg": b"1", "txt": b"2"}),
        ("x/Photo.v2", {"jpg": b"3"}),
        ("x/b", {"png": b"4"}),
    ]


def test_what_lies_apart_or_twice_is_told_and_of_two_neighbours_the_last_counts(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "twice.tar", "w") as archive:
        for name, data in (("a.jpg", b"1"), ("a.jpg", b"2"), ("b.jpg", b"3"), ("a.txt", b"4")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    found, _ = read((tmp_path / "twice.tar").read_bytes(), tmp_path)
    assert [(sample.key, sample.members, sample.remarks) for sample in found] == [
        ("a", {"jpg": b"2"}, set()),
        ("b", {"jpg": b"3"}, set()),
        ("a", {"txt": b"4"}, {"apart"}),
    ]

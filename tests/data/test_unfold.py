"""Archives inside a tree: their members take their place, tars in tars are read in place, and damage is named."""

import io
import re
import tarfile
from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.data import files
from diffcli.data.files import Span, open_tree, read_location, unfold
from tests.data.test_files import pack
from tests.prep.making_sets import tar, zipped

INNER = {"one.jpg": b"1" * 700, "two.jpg": b"22", "empty.jpg": b""}
ARCHIVE = re.compile(r"\.(tar|zip|tar\.gz)$")


@pytest.mark.parametrize("kind", ["tar", "tar.gz", "zip"])
def test_an_archive_in_a_folder_gives_its_members_below_its_name(tmp_path: Path, kind: str):
    (tmp_path / "in").mkdir()
    pack(tmp_path / f"in/set.{kind}", INNER)
    (tmp_path / "in/list.txt").write_bytes(b"x")
    (tmp_path / "work").mkdir()
    tree = unfold(open_tree(tmp_path / "in", "SOURCE"), ARCHIVE, "SOURCE", tmp_path / "work")
    assert {name: tree.read(name) for name in tree.names} == {f"set.{kind}/{k}": v for k, v in INNER.items()} | {
        "list.txt": b"x"
    }
    assert tree.size(f"set.{kind}/one.jpg") == 700


def test_a_tar_in_a_tar_is_spans_of_the_outer_file(tmp_path: Path):
    outer = tmp_path / "outer.tar"
    outer.write_bytes(tar({"a.tar": tar(INNER), "b.tar": tar({}), "c.tar": tar({"x/one.jpg": b"c"})}))
    tree = unfold(open_tree(outer, "SOURCE"), ARCHIVE, "SOURCE")
    assert {name: tree.read(name) for name in tree.names} == {f"a.tar/{k}": v for k, v in INNER.items()} | {
        "c.tar/x/one.jpg": b"c"
    }
    assert all(isinstance(at, Span) and at.path == outer for at in tree.locations.values())


def test_links_in_a_tar_are_not_followed(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            info = tarfile.TarInfo(f"link{kind.decode()}.jpg")
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        info = tarfile.TarInfo("real.jpg")
        info.size = 1
        archive.addfile(info, io.BytesIO(b"r"))
    assert open_tree(tmp_path / "x.tar", "SOURCE").names == ["real.jpg"]
    (tmp_path / "outer.tar").write_bytes(tar({"x.tar": (tmp_path / "x.tar").read_bytes()}))
    assert unfold(open_tree(tmp_path / "outer.tar", "SOURCE"), ARCHIVE, "SOURCE").names == ["x.tar/real.jpg"]


@pytest.mark.parametrize("length", [100, 512, 900, 1536, 2048])
def test_a_cut_tar_is_named_wherever_it_was_cut(tmp_path: Path, length: int):
    whole = tar({"one.jpg": b"1" * 700, "two.jpg": b"22"})
    assert len(whole.rstrip(b"\0")) > 2048
    (tmp_path / "set.tar").write_bytes(whole[:length])
    with pytest.raises(UserError, match=r"SOURCE is '.*set\.tar', which is not a whole archive"):
        open_tree(tmp_path / "set.tar", "SOURCE")
    (tmp_path / "outer.tar").write_bytes(tar({"in.tar": whole[:length], "next.tar": whole}))
    with pytest.raises(UserError, match=r"in which in\.tar is not a whole archive"):
        unfold(open_tree(tmp_path / "outer.tar", "SOURCE"), ARCHIVE, "SOURCE")


def test_a_garbled_header_does_not_end_a_tar_in_silence(tmp_path: Path):
    data = bytearray(tar({"one.jpg": b"1", "two.jpg": b"2"}))
    data[1024 + 148] ^= 0xFF  # within the checksum of the second header
    (tmp_path / "set.tar").write_bytes(data)
    with pytest.raises(UserError, match=r"its header at byte 1024 is garbled"):
        open_tree(tmp_path / "set.tar", "SOURCE")


def test_an_archive_in_a_packed_archive_is_to_be_unpacked_first(tmp_path: Path):
    zipped(tmp_path / "outer.zip", {"in.tar": tar(INNER)})
    with pytest.raises(UserError, match=r"in\.tar is an archive in a packed archive\nhint: unpack the outer one"):
        unfold(open_tree(tmp_path / "outer.zip", "SOURCE"), ARCHIVE, "SOURCE")


def test_a_span_past_the_end_of_its_file_is_an_error_of_that_image(tmp_path: Path):
    (tmp_path / "x").write_bytes(b"12")
    with pytest.raises(EOFError, match="ends before byte 3"):
        read_location(Span(tmp_path / "x", 1, 2))


def test_a_packed_tar_that_unpacks_without_measure_is_refused_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(files, "MAX_IN_MEMORY", 1 << 20)
    monkeypatch.setattr(files, "COPY_CHUNK", 1 << 16)
    (tmp_path / "work").mkdir()
    pack(tmp_path / "bomb.tar.xz", {"a.png": bytes(16 << 20)})
    with pytest.raises(
        UserError, match=r"bomb\.tar\.xz', which is not a whole archive \(it unpacks to more than 1048576"
    ):
        open_tree(tmp_path / "bomb.tar.xz", "SOURCE", tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())
    pack(tmp_path / "fine.tar.xz", {"a.png": bytes(1 << 19)})
    assert open_tree(tmp_path / "fine.tar.xz", "SOURCE", tmp_path / "work").names == ["a.png"]

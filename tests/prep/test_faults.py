"""Whose fault it is: what cannot be read names SOURCE, what cannot be written names --out."""

import errno
import io
import os
import tarfile
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

from diffcli.config import RunFailed, UserError
from diffcli.data.files import FileTree, WriteError, ZipEntry, copy, open_tree, read_location
from diffcli.data.shards import open_shards
from diffcli.prep import encode
from diffcli.prep.prepare import prepare
from diffcli.prep.sets import folders
from tests.data import making
from tests.data.making import contents, run

FULL = Path("/dev/full")  # takes nothing: every write is 'No space left on device'
has_full = pytest.mark.skipif(not FULL.exists(), reason="no /dev/full")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Class folders with six images."""
    making.class_folders(tmp_path / "source")
    return tmp_path / "source"


def fail_to_stat(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    whole = Path.stat

    def stat(self: Path, **more: bool) -> os.stat_result:
        if self == path:
            raise OSError(errno.EIO, "Input/output error", str(self))
        return whole(self, **more)

    monkeypatch.setattr(Path, "stat", stat)


def test_a_stat_that_fails_in_the_source_names_the_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    fail_to_stat(monkeypatch, source / "dog/001.png")
    with pytest.raises(UserError, match=r"SOURCE is '.*source', which cannot be read: .*dog/001\.png") as caught:
        run("folder", source, tmp_path / "out")
    assert "--out" not in str(caught.value)


@pytest.mark.parametrize("key", ["SOURCE", "data.root"])
def test_a_source_that_may_not_be_looked_at_names_itself(source: Path, monkeypatch: pytest.MonkeyPatch, key: str):
    fail_to_stat(monkeypatch, source)
    with pytest.raises(UserError, match=rf"{key} is '.*source', which cannot be read: .*Input/output error"):
        open_tree(source, key)


def test_a_file_that_vanishes_while_the_source_is_opened_names_the_source(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def vanish(tree: FileTree, key: str, classes_from: str):
        listings = list_images(tree, key, classes_from)
        (source / "cat/002.png").unlink()
        monkeypatch.setattr(Path, "exists", lambda self: True)  # it vanishes between the question and the look
        return listings

    list_images = folders.list_images
    monkeypatch.setattr(folders, "list_images", vanish)
    with pytest.raises(UserError, match=r"SOURCE is '.*source', which cannot be read: .*cat/002\.png"):
        run("folder", source, tmp_path / "out")


def test_a_file_that_vanishes_before_its_turn_is_skipped_by_name(source: Path, tmp_path: Path):
    work = prepare("folder", source, tmp_path / "out", images_per_shard=3)
    next(work)
    (source / "dog/000.png").unlink()
    *_, report = work
    assert (report.written, report.skipped) == (5, 1)
    assert (report.broken.path, report.broken.reason) == ("dog/000.png", "No such file or directory")
    assert open_shards(tmp_path / "out", "x").count == 5


@pytest.mark.parametrize("fault", [errno.EIO, errno.EMFILE, errno.ENOMEM, None])
def test_what_may_pass_leaves_no_image_out_for_good(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int | None
):
    read = encode.read_location

    def failing(location: Path) -> bytes:
        if location == source / "dog/001.png":
            raise MemoryError if fault is None else OSError(fault, os.strerror(fault), str(location))
        return read(location)

    monkeypatch.setattr(encode, "read_location", failing)
    with pytest.raises(RunFailed) as told:
        run("folder", source, tmp_path / "out", images_per_shard=3)
    assert "same command again" in told.value.hint
    assert fault is None or "dog/001.png" in told.value.problem
    monkeypatch.setattr(encode, "read_location", read)
    assert run("folder", source, tmp_path / "out", images_per_shard=3).written == 6
    run("folder", source, tmp_path / "other", images_per_shard=3)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


@pytest.mark.parametrize("fault", [errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG])
def test_what_the_system_says_of_a_file_itself_skips_it(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: int
):
    read = encode.read_location

    def failing(location: Path) -> bytes:
        if location == source / "dog/001.png":
            raise OSError(fault, os.strerror(fault), str(location))
        return read(location)

    monkeypatch.setattr(encode, "read_location", failing)
    report = run("folder", source, tmp_path / "out")
    assert (report.written, report.skipped, report.broken.path) == (5, 1, "dog/001.png")


@pytest.mark.parametrize(("module", "place"), [(encode, "read_location"), (encode, "flatten")])
def test_a_mistake_of_ours_is_no_broken_image(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, place: str
):
    def mistaken(*given: object, **named: object) -> bytes:
        raise KeyError("ours")

    monkeypatch.setattr(module, place, mistaken)
    with pytest.raises(KeyError, match="ours"):
        run("folder", source, tmp_path / "out")


def test_a_member_of_a_zip_under_a_password_or_gone_is_the_fault_of_the_zip(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as zipped:
        zipped.writestr("a.png", b"x")
    with pytest.raises(zipfile.BadZipFile, match="gone"):
        read_location(ZipEntry(tmp_path / "a.zip", "gone.png", 1))
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1  # encrypted, says the directory
    (tmp_path / "b.zip").write_bytes(data)
    with pytest.raises(zipfile.BadZipFile, match="password"):
        read_location(ZipEntry(tmp_path / "b.zip", "a.png", 1))


def test_a_second_preparation_of_one_folder_is_told_who_is_at_it(source: Path, tmp_path: Path):
    work = prepare("folder", source, tmp_path / "out", images_per_shard=3)
    next(work)
    with pytest.raises(UserError, match=rf"{tmp_path}/out: process {os.getpid()}") as told:
        run("folder", source, tmp_path / "out", images_per_shard=3)
    assert f"kill {os.getpid()}" in told.value.hint
    *_, report = work
    assert report.written == 6
    assert not (tmp_path / "out/.lock").exists()
    assert run("folder", source, tmp_path / "out", images_per_shard=3).written == 6


def test_a_work_folder_among_other_files_is_a_strangers(source: Path, tmp_path: Path):
    (tmp_path / "out/.work").mkdir(parents=True)
    (tmp_path / "out/.work/thesis.txt").write_text("kept")
    (tmp_path / "out/notes.txt").write_text("kept")
    with pytest.raises(UserError, match=r"notes\.txt"):
        run("folder", source, tmp_path / "out")
    assert (tmp_path / "out/.work/thesis.txt").read_text() == "kept"


def test_items_that_cannot_be_read_name_the_source(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def items(self, positions):
        raise OSError(errno.ESTALE, "Stale file handle")
        yield

    monkeypatch.setattr(folders.FileItems, "items", items)
    with pytest.raises(UserError, match=r"SOURCE is '.*source', which cannot be read: .*Stale file handle"):
        run("folder", source, tmp_path / "out")


@pytest.fixture
def packed(source: Path, tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as tar:
        tar.add(source, ".")
    return tmp_path / "set.tar.gz"


def test_an_archive_that_cannot_be_unpacked_beside_the_shards_names_out(packed: Path, tmp_path: Path):
    (tmp_path / "out/.work/set.tar.gz.plain").mkdir(parents=True)  # in the place of the plain tar
    with pytest.raises(UserError, match=r"--out '.*out' cannot be written: .*Is a directory"):
        run("folder", packed, tmp_path / "out")


@has_full
def test_a_disk_that_fills_up_while_an_archive_is_unpacked_names_out(packed: Path, tmp_path: Path):
    (tmp_path / "out/.work").mkdir(parents=True)
    (tmp_path / "out/.work/set.tar.gz.plain").symlink_to(FULL)
    with pytest.raises(UserError, match=r"--out '.*out' cannot be written: .*No space left on device"):
        run("folder", packed, tmp_path / "out")
    assert run("folder", packed, tmp_path / "out").written == 6
    run("folder", packed, tmp_path / "other")
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


@has_full
def test_a_disk_that_fills_up_while_a_batch_of_imagenet_is_unpacked_names_out(tmp_path: Path):
    making.imagenet64(tmp_path / "source")
    (tmp_path / "out/.work").mkdir(parents=True)
    (tmp_path / "out/.work/batch.npz").symlink_to(FULL)
    with pytest.raises(UserError, match=r"--out '.*out' cannot be written: .*No space left on device"):
        run("imagenet64", tmp_path / "source", tmp_path / "out")


def test_a_truncated_archive_names_the_source_although_it_was_being_written(packed: Path, tmp_path: Path):
    packed.write_bytes(packed.read_bytes()[:-200])
    with pytest.raises(UserError, match=r"SOURCE is '.*set\.tar\.gz', which is not a whole archive"):
        run("folder", packed, tmp_path / "out")


@has_full
def test_copying_tells_reading_from_writing_and_leaves_no_half(tmp_path: Path, packed: Path):
    with packed.open("rb") as stream:
        copy(stream, tmp_path / "whole")
    assert (tmp_path / "whole").read_bytes() == packed.read_bytes()
    (tmp_path / "full").symlink_to(FULL)
    with packed.open("rb") as stream, pytest.raises(WriteError, match="No space left on device"):
        copy(stream, tmp_path / "full")
    with (tmp_path / "whole").open("wb") as stream, pytest.raises(io.UnsupportedOperation) as caught:
        copy(stream, tmp_path / "half")
    assert not isinstance(caught.value, WriteError)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "set.tar.gz", "whole"}

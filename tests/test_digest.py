"""The digest is SHA-256 of the bytes alone; files that are not there though their names are say what to type."""

from pathlib import Path

import pytest

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.data.files import open_tree
from diffcli.digest import sha256, stand_in
from diffcli.interop.weight_files import read_tensors


def test_the_digest_of_abc_is_that_of_the_standard(tmp_path: Path):
    """FIPS 180-2, appendix B.1."""
    (tmp_path / "x").write_bytes(b"abc")
    assert sha256(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_digest_follows_from_the_bytes_and_not_from_the_name(tmp_path: Path):
    contents = {"empty": b"", "a": b"1" * 3_000_000, "same as a": b"1" * 3_000_000, "b": b"1" * 2_999_999 + b"2"}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    digests = {name: sha256(tmp_path / name) for name in contents}
    assert digests["empty"] == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert digests["a"] == digests["same as a"] != digests["b"]


def test_a_file_that_is_not_there_has_no_digest(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        sha256(tmp_path / "nowhere")


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def test_pointers_and_empty_files_are_known_by_their_first_bytes():
    assert "git lfs pull" in stand_in(LFS)
    assert "git annex get" in stand_in(b"/annex/objects/SHA256E-s1--0.png\n")
    assert "0 bytes" in stand_in(b"")
    assert stand_in(b"\x89PNG\r\n\x1a\n") is None


@pytest.mark.parametrize("read", [lambda path: open_tree(path, "SOURCE"), read_tensors, checkpoint.read_record])
@pytest.mark.parametrize("suffix", [".safetensors", ".tar", ".pt"])
def test_every_reader_says_how_to_get_the_file(tmp_path: Path, read, suffix: str):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(LFS)
    with pytest.raises(UserError) as caught:
        read(path)
    assert "git lfs pull" in str(caught.value)
    assert path.name in caught.value.problem

"""The digest is SHA-256 of the bytes alone."""

from pathlib import Path

import pytest

from diffcli.digest import sha256


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

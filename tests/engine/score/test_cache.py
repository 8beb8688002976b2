"""The cache of references: what it keeps, what it never mistakes, and what a damaged file costs."""

from pathlib import Path

import numpy as np
import pytest

from diffcli.engine.score.cache import cache_folder, write_whole
from diffcli.engine.score.sides import resolve
from tests.engine.score.making import ALL, Toy, pixels, score, write_npz


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DIFFCLI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_reference_is_cached_and_scores_the_same(tmp_path, cache):
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    extractor = Toy()
    first = score(real, fake, ALL, extractor)
    second = score(real, fake, ALL, extractor)
    assert extractor.seen == 150
    assert first.scores == second.scores
    assert (first.reference.cached, second.reference.cached) == (False, True)
    assert [p.name.split("-")[0] for p in cache.iterdir()] == ["toy"]
    score(real, fake, ["fid"], extractor)  # needs less than is there
    assert extractor.seen == 200


def test_a_cached_reference_that_lacks_a_part_is_gathered_again(tmp_path):
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    score(real, fake, ["fid"], Toy())
    assert not score(real, fake, ["fid", "recall"], Toy()).reference.cached
    assert score(real, fake, ["fid", "recall"], Toy()).reference.cached


@pytest.mark.parametrize("damage", ["truncated", "garbled", "empty", "foreign"])
def test_a_damaged_cache_is_ignored_and_rebuilt(tmp_path, cache, damage):
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    once = score(real, fake, ["fid"], Toy())
    (file,) = cache.iterdir()
    whole = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(whole[: len(whole) // 2])
    elif damage == "garbled":
        whole[150:180] = bytes(30)
        file.write_bytes(whole)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        np.savez(file, n=np.array(50), mu=np.zeros(3), sigma=np.eye(3))
    again = score(real, fake, ["fid"], Toy())
    assert again.scores == once.scores
    assert not again.reference.cached
    assert score(real, fake, ["fid"], Toy()).reference.cached


def test_changed_images_and_another_extractor_are_not_taken_from_the_cache(tmp_path):
    path, fake = tmp_path / "real.npz", resolve(str(write_npz(tmp_path / "fake.npz", pixels(2, 50))))
    score(resolve(str(write_npz(path, pixels(1, 50)))), fake, ["fid"], Toy())
    assert not score(resolve(str(write_npz(path, pixels(3, 50)))), fake, ["fid"], Toy()).reference.cached
    other = Toy()
    other.name = "another"
    assert not score(resolve(str(path)), fake, ["fid"], other).reference.cached


def test_a_cache_of_another_format_is_not_read(tmp_path, monkeypatch):
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    score(real, fake, ["fid"], Toy())
    assert score(real, fake, ["fid"], Toy()).reference.cached
    monkeypatch.setattr("diffcli.engine.score.cache.CACHE_FORMAT", 99)
    assert not score(real, fake, ["fid"], Toy()).reference.cached


def test_a_cache_that_cannot_be_written_costs_a_warning_only(tmp_path):
    (tmp_path / "file").write_text("in the way")
    real, fake = (resolve(str(write_npz(tmp_path / f"{i}.npz", pixels(i, 50)))) for i in (1, 2))
    report = score(real, fake, ["fid"], Toy(), cache=tmp_path / "file" / "cache")
    assert any("could not be cached" in w for w in report.warnings)


def test_a_file_that_cannot_be_finished_leaves_nothing(tmp_path):
    def fail(file):
        file.write(b"some of it")
        raise OSError("the disk is full")

    (warning,) = write_whole(tmp_path / "a.json", fail, "the floor")
    assert warning.startswith("the floor could not be cached")
    assert list(tmp_path.iterdir()) == []


def test_the_cache_lies_where_the_environment_says(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DIFFCLI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/diffcli")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "diffcli"

"""What cannot be written whole is not there afterwards, and one error names it; the limit on files stands for a full disk."""

import gc
import json
import resource
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import pytest
import torch

from diffcli.config import UserError
from diffcli.engine.draw import output
from diffcli.engine.draw.out_files import all_or_none, whole
from diffcli.engine.draw.sample import Finished
from diffcli.engine.records.output_records import write_record
from diffcli.engine.records.record_files import sidecar

TOLD = {"checkpoint": "c", "version": "1", "n": 4}
IMAGES = torch.randint(0, 256, (4, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
ROOM = 2000  # bytes; no output of IMAGES fits


@contextmanager
def room_for(size: int) -> Iterator[None]:
    """No file grows beyond this size."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def write(path: Path) -> None:
    if path.suffix in (".gif", ".webp", ".mp4"):
        output.write_animation(path, [IMAGES, IMAGES.flip(0)], 10, TOLD)
    else:
        output.write(path, [Finished(IMAGES, None)], TOLD)


@pytest.mark.parametrize("name", ["a.png", "a.npz", "a.gif", "a.webp", "a.mp4", "folder"])
def test_an_output_that_does_not_fit_leaves_nothing_and_one_error_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    late: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", late.append)
    with pytest.raises(UserError) as caught, room_for(ROOM):
        write(tmp_path / name)
    gc.collect()  # encoders that try once more when they are forgotten
    assert str(tmp_path / name) in caught.value.problem
    assert "free some space" in caught.value.hint
    assert "\n" not in caught.value.problem  # an encoder's command line
    assert list(tmp_path.iterdir()) == []
    assert late == []
    assert capfd.readouterr() == ("", "")


def test_an_earlier_output_survives_and_loses_no_record(tmp_path: Path) -> None:
    write(tmp_path / "a.gif")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError), room_for(ROOM):
        write(tmp_path / "a.gif")
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_film_whose_encoder_keeps_silent_about_its_end_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = imageio_ffmpeg.write_frames

    def cut(path: str, size: tuple[int, int], **how: Any) -> Generator[None, Any, None]:
        writer = encoder(path, size, **how)
        writer.send(None)
        try:
            while True:
                writer.send((yield))
        finally:
            writer.close()
            Path(path).write_bytes(Path(path).read_bytes()[:-20])

    monkeypatch.setattr(imageio_ffmpeg, "write_frames", cut)
    with pytest.raises(UserError, match=r"a\.mp4.*bytes are free"):
        write(tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_record_that_does_not_fit_takes_the_old_one_away_and_says_that_the_output_is_there(tmp_path: Path) -> None:
    place = tmp_path / "a.png"
    write_record(place, TOLD)
    with pytest.raises(UserError, match=r"a\.png is written.*a\.png\.json") as caught, room_for(ROOM):
        write_record(place, TOLD | {"seeds": list(range(ROOM))})
    assert "free some space" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
    write_record(place, TOLD)
    assert json.loads(sidecar(place).read_text())["n"] == 4


def test_files_of_others_in_a_folder_stay(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")

    def half() -> None:
        with all_or_none(folder) as begun:
            begun.append(folder / "0.png")
            begun[0].write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="out"):
        half()
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_what_is_written_under_a_temporary_name_appears_at_once(tmp_path: Path) -> None:
    with whole(tmp_path / "a.npz") as partial:
        partial.write_bytes(b"new")
        assert not (tmp_path / "a.npz").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]

"""The frames that the index of an MP4 counts, whatever else the file holds."""

from pathlib import Path

import numpy as np
import pytest

from diffcli.data.clips.mp4_index import counted_frames
from tests.data.clips import filming


@pytest.mark.parametrize("frames", [1, 7])
def test_the_frames_of_a_film_are_counted(tmp_path: Path, frames: int):
    assert counted_frames(filming.write(tmp_path / "a.mp4", filming.ramp(frames)).read_bytes()) == frames


def test_sound_and_what_is_no_film_have_none(tmp_path: Path):
    assert counted_frames(filming.sound(tmp_path / "a.mp4").read_bytes()) is None
    whole = filming.write(tmp_path / "b.mp4", filming.ramp(7)).read_bytes()
    for data in (b"", b"<html>", whole[:40], np.random.default_rng(0).bytes(999)):
        assert counted_frames(data) is None

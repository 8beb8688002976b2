"""What is written as a film is what is read back from it, in every format."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli.config import ImageShape, UserError
from diffcli.data.clips.clip_data import ClipData
from diffcli.data.clips.clip_files import TreeClips, clips_among
from diffcli.data.clips.film import Timing
from diffcli.data.clips.film_writing import FASTEST, check_rate, film_ends, starts, write_frames
from diffcli.data.files import open_tree

KINDS = ("a.mp4", "a.webp", "a.gif", "a")


def read(path: Path, timing: Timing, shape: tuple[int, int, int]) -> tuple[np.ndarray, float]:
    """The first clip of a film (T, H, W, C), and its rate."""
    tree = open_tree(path.parent, "data.root")
    found = clips_among(tree, "data.root")
    data = ClipData(TreeClips(tree, list(found.clips), found.clips, 25), ImageShape(*shape), [timing])
    clip, fps = data.take(0, 0.0)
    return clip.transpose(1, 2, 3, 0), fps


def grey_ramp(channels: int, frames: int = 8, height: int = 32, width: int = 32) -> np.ndarray:
    """Every level from 0 to 255, frame after frame, in columns of one pixel."""
    levels = np.linspace(0, 255, frames * width).round().reshape(frames, 1, width, 1)
    return np.broadcast_to(levels, (frames, height, width, channels)).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", KINDS)
def test_a_ramp_of_all_levels_is_read_back_within_two(tmp_path: Path, name: str, channels: int):
    ramp = grey_ramp(channels)
    write_frames(tmp_path / name, ramp, fps=10, exact=True)
    again, fps = read(tmp_path / name, Timing(8), (channels, 32, 32))
    worst = int(np.abs(again.astype(int) - ramp).max())
    assert worst <= (2 if name == "a.mp4" else 0)
    assert fps == pytest.approx(10)


@pytest.mark.parametrize("name", KINDS)
def test_colours_keep_their_hue(tmp_path: Path, name: str):
    """The matrix is written and read alike: a wrong one, or a wrong range, turns these by 10 levels and more."""
    patches = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [230, 180, 20], [20, 160, 200], [128, 128, 128]])
    frame = np.kron(patches[None].astype(np.uint8), np.ones((32, 16, 1), dtype=np.uint8))
    write_frames(tmp_path / name, [frame, frame // 2, frame // 2, frame], fps=10)
    again, _ = read(tmp_path / name, Timing(4, 10), (3, 32, 96))
    inside = np.s_[:, :, [8 + 16 * i for i in range(6)]]
    assert np.abs(again[[0, 3]][inside].astype(int) - frame[None][inside]).max() <= 4


@pytest.mark.parametrize("fps", [8, 12, 24, 30, 24000 / 1001])
@pytest.mark.parametrize("name", KINDS)
def test_each_frame_is_shown_at_its_time(tmp_path: Path, name: str, fps: float):
    frames = np.stack([np.full((16, 16, 3), 10 * i, dtype=np.uint8) for i in range(12)])
    write_frames(tmp_path / name, frames, fps, exact=True)
    again, _ = read(tmp_path / name, Timing(12, fps), (3, 16, 16))
    assert np.abs(again.astype(int) - frames).max() <= 2


def test_times_in_units_keep_the_rate_and_come_not_after_their_frames():
    found = starts(240, 24, 100)
    assert found[-1] == 1000
    assert all(time / 100 <= i / 24 + 1e-9 < (time + 1) / 100 for i, time in enumerate(found))
    assert {after - before for before, after in pairwise(found)} == {4, 5}


@pytest.mark.parametrize("name", KINDS)
def test_odd_sizes_are_read_back_but_for_one_row_and_column_of_an_mp4(tmp_path: Path, name: str):
    ramp = grey_ramp(3, 4, 31, 33)
    write_frames(tmp_path / name, ramp, 10, exact=True)
    size = (32, 34) if name == "a.mp4" else (31, 33)
    again, _ = read(tmp_path / name, Timing(4), (3, *size))
    assert np.abs(again[:, :31, :33].astype(int) - ramp).max() <= 2
    if name == "a.mp4":
        assert np.abs(again[:, 31:, 33:].astype(int) - ramp[:, 30:, 32:]).max() <= 2


@pytest.mark.parametrize("name", KINDS[:3])
def test_the_last_frame_is_held(tmp_path: Path, name: str):
    frames = grey_ramp(3, 4)
    write_frames(tmp_path / name, frames, 10, hold=1.0, exact=True)
    again, _ = read(tmp_path / name, Timing(13, 10), (3, 32, 32))
    assert np.abs(again[3:].astype(int) - frames[-1]).max() <= 2


def test_a_mp4_says_its_range_and_matrix_and_is_one_that_players_show(tmp_path: Path):
    import av

    write_frames(tmp_path / "a.mp4", grey_ramp(3), 24000 / 1001)
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        assert (frame.format.name, frame.color_range, frame.colorspace) == ("yuv420p", 1, 1)
        assert (stream.codec_context.color_trc, stream.codec_context.color_primaries) == (1, 1)
        assert (stream.frames, stream.average_rate) == (8, pytest.approx(24000 / 1001))
    assert film_ends(tmp_path / "a.mp4")


def test_a_frame_of_more_colours_than_a_gif_has_gets_the_nearest(tmp_path: Path):
    red, green = np.meshgrid(np.arange(0, 256, 8), np.arange(0, 256, 8))
    frame = np.stack([red, green, np.zeros_like(red)], axis=-1).astype(np.uint8)
    write_frames(tmp_path / "a.gif", [frame, frame[::-1]], 10)
    again, _ = read(tmp_path / "a.gif", Timing(2), (3, 32, 32))
    assert np.abs(again.astype(int) - np.stack([frame, frame[::-1]])).mean() < 8


def test_a_folder_of_frames_says_its_rate(tmp_path: Path):
    write_frames(tmp_path / "a", grey_ramp(3, 12), 12.5)
    assert sorted(path.name for path in (tmp_path / "a").iterdir())[::11] == ["000.png", "011.png"]
    assert read(tmp_path / "a", Timing(12), (3, 32, 32))[1] == 12.5
    assert Image.open(tmp_path / "a/000.png").mode == "RGB"


def test_a_rate_that_a_gif_cannot_have_is_refused(tmp_path: Path):
    with pytest.raises(UserError) as error:
        write_frames(tmp_path / "a.gif", grey_ramp(3), 60)
    assert "--fps 60" in error.value.problem
    assert "--fps 50" in error.value.hint
    assert ".webp" in error.value.hint


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".mp4"])
def test_a_rate_whose_frames_last_less_than_a_millisecond_is_refused_with_one_that_goes(suffix: str):
    with pytest.raises(UserError) as error:
        check_rate(Path("a" + suffix), 1001)
    assert "1001" in error.value.problem
    assert error.value.hint == f"use --fps {FASTEST[suffix]}"
    check_rate(Path("a" + suffix), FASTEST[suffix])

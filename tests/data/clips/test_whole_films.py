"""A folder of films is read whole: as many frames and as large as the first."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.data.clips.film import BrokenClip
from diffcli.data.clips.film_writing import write_frames
from diffcli.data.clips.whole_films import whole_films


def frames(seed: int, count: int = 5) -> np.ndarray:
    """Grey levels that rise from frame to frame, brighter in the lower half."""
    level = 20 + 10 * seed + 30 * np.arange(count)
    return np.broadcast_to(level[:, None, None, None], (count, 16, 24, 3)).astype(np.uint8).copy()


@pytest.mark.parametrize("suffix", [".mp4", ".webp", ".gif", ""])
def test_films_come_back_with_all_their_frames(tmp_path: Path, suffix: str):
    for seed in range(3):
        write_frames(tmp_path / f"{seed:06d}{suffix}", frames(seed), fps=10, exact=True)
    config = whole_films(tmp_path)
    assert config is not None
    assert (config.size, config.frames) == ((16, 24), 5)
    clips = config.build("train").read(torch.arange(3))["clip"]
    wanted = torch.from_numpy(np.stack([frames(seed) for seed in range(3)])).permute(0, 4, 1, 2, 3)
    assert (clips.int() - wanted.int()).abs().max() <= 2


def test_a_film_that_is_shorter_than_the_first_is_refused_with_what_films_of_a_score_are(tmp_path: Path):
    for name, count in (("a.webp", 5), ("b.webp", 3)):
        write_frames(tmp_path / name, frames(1, count), fps=10, exact=True)
    config = whole_films(tmp_path)
    assert config is not None
    with pytest.raises(BrokenClip, match=r"b\.webp.*3 frames") as error:
        config.build("train").read(torch.arange(2))
    assert "length" in error.value.hint
    assert "data.frames" not in error.value.hint, "a key that no score has"


def test_a_folder_of_pictures_holds_no_films(tmp_path: Path):
    for number in range(3):
        Image.fromarray(frames(number)[0]).save(tmp_path / f"{number}.png")
        Image.fromarray(frames(number)[0]).save(tmp_path / f"{number}.gif")
    assert whole_films(tmp_path) is None

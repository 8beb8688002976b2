"""Folders of clips as data: their classes, captions, splits, lengths, and what is left out."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from diffcli.config import UserError
from diffcli.data.clips.clip_config import Clips
from diffcli.data.clips.film import BrokenClip
from diffcli.data.description import describe
from diffcli.data.loader import batches
from tests.data.clips import filming

CPU = torch.device("cpu")


def actions(root: Path) -> Path:
    """Two classes of two clips each."""
    for number, name in enumerate(("run/a.mp4", "run/b", "walk/a.gif", "walk/b.mp4")):
        filming.write(root / name, filming.ramp(12, first=10 + 30 * number, step=2))
    return root


def test_class_folders_hold_videos_animations_and_folders_of_frames(tmp_path: Path):
    data = Clips(root=actions(tmp_path), size=8, frames=4).build("train")
    assert data.classes == ("run", "walk")
    assert data.labels.tolist() == [0, 0, 1, 1]
    assert data.specs["clip"].shape == (3, 4, 8, 8)
    assert data.specs == {**Clips(size=8, frames=4).specs, "label": data.specs["label"]}
    assert [filming.numbers(each, 10, 30)[0] for each in data.read(torch.arange(4))["clip"]] == [0, 1, 2, 3]


def test_splits_and_captions_are_found_as_with_images(tmp_path: Path):
    filming.write(tmp_path / "train/a.gif", filming.ramp(4))
    filming.write(tmp_path / "val/b", filming.ramp(4))
    (tmp_path / "train/a.txt").write_text("a ramp of grey\n")
    data = Clips(root=tmp_path, size=8, frames=4).build("train")
    assert data.read(torch.tensor([0]))["text"] == ["a ramp of grey"]
    assert (data.classes, data.origin.splits) == (None, {"train": 1, "test": 1})


def test_a_folder_of_frames_alone_is_one_clip(tmp_path: Path):
    filming.write(tmp_path / "a", filming.ramp(4))
    assert len(Clips(root=tmp_path / "a", size=8, frames=4).build("train")) == 1


def test_starts_differ_between_epochs_and_follow_from_seed_epoch_and_index(tmp_path: Path):
    data = Clips(root=actions(tmp_path), size=8, frames=4).build("train")

    def firsts(**how: int) -> list[list[int]]:
        steps = batches(data, batch_size=4, seed=3, flip=False, device=CPU, first=0, last=4, **how)
        return [
            [int(i) * 1000 + round(float(c[0, 0, 0, 0] * 100)) for i, c in zip(b["index"], b["clip"], strict=True)]
            for _, b in steps
        ]

    whole = firsts()
    assert len({tuple(sorted(step)) for step in whole}) == 4
    assert firsts(workers=2) == whole
    halves = [firsts(rank=rank, world=2) for rank in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_a_clip_is_mirrored_whole(tmp_path: Path):
    frames = filming.ramp(4).copy()
    frames[:, :, :4] = 250
    filming.write(tmp_path / "a.gif", frames)
    data = Clips(root=tmp_path, size=8, frames=4).build("train")
    steps = batches(data, batch_size=16, seed=0, flip=True, device=CPU, first=0, last=1)
    (_, batch) = next(steps)
    left = batch["clip"][:, 0, :, 0, 0] > batch["clip"][:, 0, :, 0, 7]
    assert (left == left[:, :1]).all()
    assert 0 < int(left[:, 0].sum()) < 16


def test_each_batch_has_one_of_the_lengths_by_its_step_alone(tmp_path: Path):
    data = Clips(root=actions(tmp_path), size=8, frames=(8, 1, 4)).build("train")

    def lengths(first: int, **how: int) -> list[int]:
        steps = batches(data, batch_size=4, seed=1, flip=False, device=CPU, first=first, last=24, **how)
        return [batch["clip"].shape[2] for _, batch in steps]

    whole = lengths(0)
    assert set(whole) == {1, 4, 8}
    assert lengths(10) == whole[10:]
    assert lengths(0, workers=1) == lengths(0, rank=1, world=2) == whole
    assert data.specs["clip"].shape == (3, 8, 8, 8)
    assert data.read(torch.tensor([0]))["clip"].shape[2] == 8


def test_broken_and_short_clips_are_left_out_counted_and_named(tmp_path: Path):
    actions(tmp_path)
    filming.write(tmp_path / "run/c.mp4", filming.ramp(2))
    filming.sound(tmp_path / "walk/c.mp4")
    data = Clips(root=tmp_path, size=8, frames=4, broken="leave_out").build("train")
    (note,) = [note for note in data.origin.notes if note.startswith("left out")]
    assert "2 of 6 clips" in note
    assert "too short" in note
    assert "sound alone" in note
    assert data.labels.tolist() == [0, 0, 1, 1]
    with pytest.raises(UserError, match="no clip can be read"):
        Clips(root=tmp_path, size=8, frames=400, broken="leave_out").build("train")


def test_missing_frames_are_refused_before_anything_is_read(tmp_path: Path):
    (filming.write(tmp_path / "a", filming.ramp(6)) / "003.png").unlink()
    with pytest.raises(BrokenClip, match=r"002\.png and 004\.png") as error:
        Clips(root=tmp_path, size=8, frames=2).build("train")
    assert "data.broken=leave_out" in error.value.hint
    filming.write(tmp_path / "b.gif", filming.ramp(3))
    assert len(Clips(root=tmp_path, size=8, frames=2, broken="leave_out").build("train")) == 1


def test_a_description_counts_clips_and_their_frames(tmp_path: Path):
    found = describe(Clips(root=actions(tmp_path), size=8, frames=4).build("train"))
    assert found.frames == 4
    assert "4 clips" in found.facts["data"]
    assert "4 frames of 8x8" in found.facts["pixels"]
    assert found.stored.smallest == (8, 8)
    assert found.digest != describe(Clips(root=tmp_path / "run", size=8, frames=4).build("train")).digest


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"frames": ()}, "frames"),
        ({"in_memory": True}, "in_memory"),
        ({"buckets": ((8, 8),)}, "buckets"),
        ({"derived": ({"kind": "low_res", "size": 4},)}, "derived"),
    ],
)
def test_keys_that_clips_do_not_have_are_refused_with_a_remedy(keys: dict, named: str):
    with pytest.raises(ValidationError) as error:
        Clips(size=8, **keys)
    assert named in str(error.value)


def test_a_single_film_in_place_of_a_folder_is_refused_with_its_folder(tmp_path: Path):
    path = filming.write(tmp_path / "a.mp4", filming.ramp(8))
    with pytest.raises(UserError, match=rf"data\.root is '{path}'") as error:
        Clips(root=path, size=8, frames=4).build("train")
    assert "folder as --data" in error.value.hint

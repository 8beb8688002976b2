"""The videos of a prepared set are read as clips, with the keys of a folder of clips."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from diffcli.config import UserError
from diffcli.data.clips.clip_config import Clips
from diffcli.data.clips.film import BrokenClip
from diffcli.data.datasets import at_root
from diffcli.data.description import describe
from diffcli.data.loader import batches
from diffcli.data.prepared import Shards
from diffcli.data.shards import Index
from tests.data import making
from tests.data.clips import filming

LENGTHS = (12, 12, 3, 9)  # frames of each film


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("webvid")
    rows = ["videoid,contentUrl,duration,page_dir,name"]
    for number, count in enumerate(LENGTHS):
        filming.write(root / f"{number}.mp4", filming.ramp(count, 16, 16))
        rows.append(f"{number},u,PT1S,p,film {number}")
    (root / "results_train.csv").write_text("\n".join(rows))
    return root


@pytest.fixture(scope="module")
def prepared(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("set") / "webvid"
    making.run("webvid", source, out, images_per_shard=2)
    return out


def test_videos_are_the_clips_of_the_folder_they_came_from(source: Path, prepared: Path):
    keys = {"size": 16, "frames": 4, "fps": 4}
    whole = Clips(root=source, **keys, broken="leave_out").build("train")
    data = Shards(root=prepared, **keys).build("train")
    assert data.specs == {**Shards(**keys).specs, "text": data.specs["text"]}
    rows = torch.arange(2)
    read = data.read(rows)
    assert read["clip"].equal(whole.read(rows)["clip"])
    assert read["fps"].tolist() == [4, 4]
    assert read["text"] == ["film 0", "film 1"]
    assert Shards(root=prepared, size=16).build("train").read(rows)["image"].shape == (2, 3, 16, 16)


def test_an_index_notes_frames_and_rate_and_short_videos_are_left_out_and_counted(prepared: Path):
    indexes = [Index.model_validate_json(path.read_bytes()) for path in sorted(prepared.glob("train-*.json"))]
    assert [film for index in indexes for film in index.films] == [(count, 8.0) for count in LENGTHS]
    data = Shards(root=prepared, size=16, frames=9).build("train")
    assert data.read(torch.arange(len(data)))["text"] == ["film 0", "film 1", "film 3"]
    (note,) = describe(data).notes
    assert "1 of 4 clips" in note
    with pytest.raises(UserError) as error:
        Shards(root=prepared, size=16, frames=13).build("train")
    assert "data.frames" in error.value.hint


def test_batches_of_a_prepared_set_have_lengths_and_are_read_by_workers(prepared: Path):
    data = Shards(root=prepared, size=16, frames=(1, 4)).build("train")

    def read(workers: int) -> list[torch.Tensor]:
        found = batches(
            data, batch_size=2, seed=0, first=0, last=8, flip=False, device=torch.device("cpu"), workers=workers
        )
        return [batch["clip"] for _, batch in found]

    plain = read(0)
    assert {clip.shape[2] for clip in plain} == {1, 4}
    assert all(a.equal(b) for a, b in zip(plain, read(1), strict=True))


def without_lengths(prepared: Path, out: Path) -> Path:
    """The same set as an earlier version wrote it."""
    import hashlib
    import json
    import shutil

    shutil.copytree(prepared, out)
    record = json.loads((out / "dataset.json").read_text())
    for shard in record["splits"]["train"]["shards"]:
        index = json.loads((out / shard["index"]).read_text())
        del index["films"]
        (out / shard["index"]).write_text(json.dumps(index))
        shard["index_sha256"] = hashlib.sha256((out / shard["index"]).read_bytes()).hexdigest()
    (out / "dataset.json").write_text(json.dumps(record))
    return out


def test_a_set_of_an_earlier_version_is_read_and_a_short_video_is_one_error(prepared: Path, tmp_path: Path):
    data = Shards(root=without_lengths(prepared, tmp_path / "old"), size=16, frames=9).build("train")
    assert data.read(torch.tensor([0, 3]))["clip"].shape == (2, 3, 9, 16, 16)
    with pytest.raises(BrokenClip, match="too short: 3 frames"):
        data.read(torch.tensor([2]))


def test_the_place_of_a_prepared_set_keeps_the_keys_of_clips(prepared: Path):
    config = at_root(Clips(size=16, frames=4, fps=4, stride=2), prepared)
    assert config == Shards(root=prepared, size=16, frames=4, fps=4, stride=2)
    with pytest.raises(UserError, match="random access"):
        at_root(Clips(size=16), "https://host/train-{000..003}.tar")


def test_a_set_without_videos_is_refused(tmp_path: Path):
    making.class_folders(tmp_path / "in")
    making.run("folder", tmp_path / "in", tmp_path / "out")
    with pytest.raises(UserError) as error:
        Shards(root=tmp_path / "out", size=8, frames=4).build("train")
    assert "no videos" in error.value.problem
    assert "data.frames=null" in error.value.hint


@pytest.mark.parametrize("keys", [{"fps": 8.0}, {"stride": 2}, {"frames": 4, "in_memory": True}])
def test_keys_that_do_not_fit_are_refused(keys: dict):
    with pytest.raises(ValidationError):
        Shards(size=8, **keys)

"""What a preset leaves out of its data's size, channels and classes is that of the data; what it says, it keeps."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffcli import preset
from diffcli.config import Note, UserError
from diffcli.digest import sha256
from diffcli.engine.data_records import fitted_to_data
from diffcli.engine.draw.labels import choose_labels
from diffcli.engine.model import without_weights
from tests.conftest import Cli
from tests.data import making

CLASS = [{"kind": "class", "dim": 8}]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three classes of 12x12 pictures in colour."""
    making.class_folders(tmp_path / "photos", ("a", "b", "c"), 2, size=12)
    return tmp_path / "photos"


def test_size_channels_and_classes_come_from_a_folder(tiny: Callable[..., Path], photos: Path):
    loaded = preset.load(str(tiny(data={"kind": "folder"}, task__conditioners=CLASS)), data=str(photos))
    found = fitted_to_data(loaded)
    assert tuple(found.data.shape) == (3, 12, 12)
    assert found.task.conditioners[0].num_classes == 3
    assert fitted_to_data(found) is found, "nothing is left out any more, so nothing is read"


def test_they_come_from_a_prepared_set_whatever_the_kind_of_the_preset(
    tiny: Callable[..., Path], photos: Path, tmp_path: Path
):
    making.run("folder", photos, tmp_path / "set")
    for kind in ("digits", "folder"):
        file = str(tiny(data={"kind": kind}, task__conditioners=CLASS))
        found = fitted_to_data(preset.load(file, data=str(tmp_path / "set")))
        assert tuple(found.data.shape) == (3, 12, 12)
        assert found.task.conditioners[0].num_classes == 3


def test_what_the_preset_says_stays(tiny: Callable[..., Path], photos: Path):
    conditioners = [{"kind": "class", "num_classes": 7, "dim": 8}]
    file = tiny(data={"kind": "folder", "size": 8, "channels": 1}, task__conditioners=conditioners)
    found = fitted_to_data(preset.load(str(file), data=str(photos)))
    assert tuple(found.data.shape) == (1, 8, 8)
    assert found.task.conditioners[0].num_classes == 7


def test_grey_files_are_read_as_grey(tiny: Callable[..., Path], tmp_path: Path):
    for i in range(3):
        Image.fromarray(np.full((8, 8), i, np.uint8)).save(tmp_path / f"{i}.png")
    file = str(tiny(data={"kind": "folder"}, task__conditioners=[], task__drop_condition=0, guidance=1))
    assert tuple(fitted_to_data(preset.load(file, data=str(tmp_path))).data.shape) == (1, 8, 8)
    Image.new("RGB", (8, 8), "red").save(tmp_path / "z.png")
    assert fitted_to_data(preset.load(file, data=str(tmp_path))).data.channels == 3


def test_images_of_several_sizes_need_one(tiny: Callable[..., Path], photos: Path, tmp_path: Path):
    making.class_folders(photos, ("c",), 2, size=16)
    making.run("folder", photos, tmp_path / "set")
    file = str(tiny(data={"kind": "folder"}, task__conditioners=CLASS))
    for place in (photos, tmp_path / "set"):
        with pytest.raises(UserError, match="12x12 to 16x16") as caught:
            fitted_to_data(preset.load(file, data=str(place)))
        assert "--set data.size=" in caught.value.hint


def test_data_that_are_not_there_are_told_by_who_opens_them(tiny: Callable[..., Path], tmp_path: Path):
    file = str(tiny(data={"kind": "folder", "size": 8}, task__conditioners=[], task__drop_condition=0, guidance=1))
    loaded = preset.load(file, data=str(tmp_path / "nowhere"))
    assert fitted_to_data(loaded) is loaded
    left = preset.load(
        str(tiny(data={"kind": "folder"}, task__conditioners=[], task__drop_condition=0, guidance=1)),
        data=str(tmp_path / "nowhere"),
    )
    with pytest.raises(UserError, match="nowhere"):
        fitted_to_data(left)


def test_a_classifier_of_own_photos_knows_their_classes(
    cli: Cli, tiny: Callable[..., Path], photos: Path, tmp_path: Path
):
    file = tiny(
        data={"kind": "folder"}, task={"kind": "classifier", "network": {"width": 4}}, train__steps=1, guidance=1
    )
    out = cli("train", "--preset", file, "--data", photos, "--run-dir", tmp_path / "run", "--device", "cpu")
    assert "3: a (2), b (2), c (2)" in out.err
    kept = preset.load(str(tmp_path / "run/preset.yaml"))
    assert (kept.task.num_classes, tuple(kept.data.shape)) == (3, (3, 12, 12))


def test_classes_that_nothing_tells_are_asked_for(cli: Cli, tiny: Callable[..., Path], photos: Path, tmp_path: Path):
    file = tiny(data={"kind": "folder"}, task__conditioners=CLASS)
    cli("train", "--preset", file, "--data", photos / "a", "--run-dir", tmp_path / "run").refused(
        "num_classes", "--set"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("prepared", [False, True])
def test_colours_are_not_lost_in_silence(
    cli: Cli, tiny: Callable[..., Path], photos: Path, tmp_path: Path, prepared: bool
):
    if prepared:
        making.run("folder", photos, tmp_path / "set")
    data = tmp_path / "set" if prepared else photos
    file = tiny(data={"kind": "folder", "size": 8, "channels": 1}, task__conditioners=CLASS, train__steps=1)
    train = ("train", "--preset", file, "--data", data, "--run-dir", tmp_path / "run", "--device", "cpu")
    cli(*train).refused("data.channels is 1", "--set data.channels=3", "--set data.grey=true")
    cli(*train, "--dry-run").refused("data.channels is 1")
    assert not (tmp_path / "run").exists()
    assert cli(*train, "--set", "data.grey=true").code == 0


def test_grey_pictures_stored_in_colour_are_grey(cli: Cli, tiny: Callable[..., Path], tmp_path: Path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        grey = Image.fromarray(making.pixels(1, 1, 8, 8, i)[0, 0])
        grey.convert("RGB").save(tmp_path / f"in/{i}.jpg", quality=50)
    keys = {"data": {"kind": "folder", "size": 8, "channels": 1}, "task__conditioners": [], "task__drop_condition": 0}
    file = tiny(**keys, guidance=1, train__steps=1)
    assert cli("train", "--preset", file, "--data", tmp_path / "in", "--run-dir", tmp_path / "run").code == 0


def test_a_class_without_images_is_drawn_only_where_it_is_named(cli: Cli, tiny: Callable[..., Path], tmp_path: Path):
    """Labels that begin at 1: of class 0 there is no image."""
    making.class_folders(tmp_path / "in", ("0", "1", "2"), 2)
    making.run("folder", tmp_path / "in", tmp_path / "set")
    index = json.loads((tmp_path / "set/train-000000.json").read_text())
    index["labels"] = [1, 1, 1, 2, 2, 2]
    (tmp_path / "set/train-000000.json").write_text(json.dumps(index))
    record = json.loads((tmp_path / "set/dataset.json").read_text())
    record["splits"]["train"]["shards"][0]["index_sha256"] = sha256(tmp_path / "set/train-000000.json")
    (tmp_path / "set/dataset.json").write_text(json.dumps(record))
    file = tiny(data={"kind": "shards"}, task__conditioners=CLASS, train__steps=1)
    run = tmp_path / "run"
    told = cli("train", "--preset", file, "--data", tmp_path / "set", "--run-dir", run, "--device", "cpu").err
    assert "3: 0 (0), 1 (3), 2 (3)" in told
    assert "class 0 (labels count from 0)" in told
    model = without_weights(run)
    assert choose_labels(model, "all", None, {}).which == (1, 2)
    drawn = choose_labels(model, "random", None, {}).labels(range(40), range(40)).tolist()
    assert set(drawn) == {1, 2}
    with pytest.warns(Note, match="class 0"):
        assert choose_labels(model, "0", None, {}).which == (0,)

"""`presets new` writes a preset that fits the pictures, whatever these are."""

import math
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.run.new_preset import NewTask, fitting, folding, write_new
from diffcli.engine.run.state import build_on_meta
from diffcli.prep.prepare import prepare


def picture(path: Path, size: tuple[int, int] = (90, 90), grey: bool = False) -> None:
    """size: (width, height) in pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    level = np.random.default_rng(len(path.name)).integers(0, 256, (*size[::-1], 1 if grey else 3), dtype=np.uint8)
    Image.fromarray(np.broadcast_to(level, (*size[::-1], 3)).copy()).save(path)


def new(folder: Path, name: str = "mine", task: NewTask = "diffusion") -> presets.Preset:
    """The preset as written for a folder, which must build and need no advice."""
    path, _ = write_new(name, folder, task)
    preset = presets.load(str(path))
    assert preset.name == name
    assert build_on_meta(preset).check(preset.data.build("train").specs) is None
    assert preset.advice() == []
    return preset


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_class_folders_of_photos_become_a_model_of_their_classes():
    for name in ("cat/a.png", "cat/b.png", "dog/c.png"):
        picture(Path("photos", name))
    preset = new(Path("photos"))
    assert preset.data.shape == (3, 32, 32)
    assert preset.data.root == Path("photos")
    assert [each.num_classes for each in preset.task.conditioners] == [2]
    assert (preset.task.target, preset.task.weight.kind, preset.task.drop_condition) == ("x0", "none", 0.1)
    assert preset.train.optimizer.lr == 2e-3
    assert preset.guidance > 1
    assert set(preset.task.network.attend_at) <= {16, 8}
    assert not preset.data.flip  # few pictures and few steps: each is seen as it is


def test_a_first_run_ends_at_a_rate_and_an_average_that_leave_no_noise():
    """The rate falls to a fiftieth, and the average is as long as the last sixth of the run."""
    picture(Path("photos", "a.png"))
    train = new(Path("photos")).train
    assert train.curve.factor(train.steps, train.steps) == pytest.approx(0.02)
    assert 1 / (1 - train.ema) <= train.steps / 6


@pytest.mark.parametrize(
    ("sides", "fold"),
    [
        ((64, 64), 4),
        ((48, 64), 4),
        ((64, 40), 4),
        ((32, 32), 2),
        ((20, 28), 2),
        ((16, 16), 1),
        ((31, 33), 1),
        ((34, 50), 2),
    ],
)
def test_squares_of_pixels_are_the_smallest_that_leave_few_positions(sides: tuple[int, int], fold: int):
    assert folding(sides) == fold


def test_small_grey_pictures_keep_their_size_and_are_not_mirrored():
    for name in "ab":
        picture(Path("letters", f"{name}.png"), (28, 20), grey=True)
    preset = new(Path("letters"))
    assert preset.data.shape == (1, 20, 28)
    assert not preset.data.flip
    assert preset.task.conditioners == ()
    assert preset.guidance == 1


def test_captions_beside_pictures_become_a_model_of_text():
    for name in "abc":
        picture(Path("words", f"{name}.png"))
        Path("words", f"{name}.txt").write_text("a red bicycle that leans against a very long wall of stone\n")
    preset = new(Path("words"))
    (text,) = preset.task.conditioners
    assert text.kind == "text"
    assert text.length >= 61
    assert "cross_attention" in preset.task.network.middle


def test_boxes_beside_pictures_are_no_captions():
    picture(Path("boxes", "a.png"))
    Path("boxes", "a.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    assert new(Path("boxes")).task.conditioners == ()


def test_a_prepared_set_is_read_as_shards():
    for name in ("cat/a.png", "dog/c.png"):
        picture(Path("photos", name), (30, 24))
    list(prepare("folder", Path("photos"), Path("set")))
    preset = new(Path("set"))
    assert preset.data.kind == "shards"
    assert preset.data.shape == (3, 24, 30)
    assert [each.num_classes for each in preset.task.conditioners] == [2]


def test_a_classifier_knows_the_classes_and_wants_two():
    for name in ("cat/a.png", "dog/c.png"):
        picture(Path("photos", name))
    assert new(Path("photos"), "judge", "classifier").task.num_classes == 2
    picture(Path("one", "cat/a.png"))
    with pytest.raises(UserError, match="--task classifier: one has one class"):
        write_new("other", Path("one"), "classifier")
    assert not Path("other.yaml").exists()


def test_a_broken_picture_is_left_out_and_named():
    for name in ("a.png", "b.png"):
        picture(Path("photos", name))
    whole = Path("photos", "a.png").read_bytes()
    Path("photos", "c.png").write_bytes(whole[: len(whole) // 2])
    path, found = write_new("mine", Path("photos"), "diffusion")
    assert found.number == 2
    assert any("c.png" in note for note in found.notes)
    assert len(presets.load(str(path)).data.build("train")) == 2


def test_a_file_that_is_there_stays_and_a_name_that_is_none_is_refused():
    picture(Path("photos", "a.png"))
    Path("mine.yaml").write_text("mine")
    with pytest.raises(UserError, match=r"mine\.yaml"):
        write_new("mine", Path("photos"), "diffusion")
    assert Path("mine.yaml").read_text() == "mine"
    with pytest.raises(UserError, match=r"NAME is '\.\./x'"):
        write_new("../x", Path("photos"), "diffusion")
    with pytest.raises(UserError, match="nowhere"):
        write_new("other", Path("nowhere"), "diffusion")
    with pytest.raises(UserError, match="NAME is 'digits'"):  # whose run would lie in the same folder
        write_new("digits", Path("photos"), "diffusion")
    assert not Path("digits.yaml").exists()


def test_every_name_of_a_folder_and_of_a_class_gives_yaml():
    for name in ("a\nname: b/x.png", "c # d: {/y.png"):
        picture(Path("my: #photos", name))
    assert new(Path("my: #photos")).data.root == Path("my: #photos")


@pytest.mark.parametrize("name", ["123", "null", "on", "1.5", "2024-01-01"])
def test_a_name_that_yaml_reads_as_something_else_stays_a_text(name: str):
    picture(Path("photos", "a.png"))
    assert new(Path("photos"), name).name == name


@pytest.mark.parametrize("size", [(28, 20), (300, 200)])
def test_what_is_printed_is_the_size_of_the_images_in_the_preset(size: tuple[int, int]):
    picture(Path("photos", "a.png"), size, grey=True)
    path, found = write_new("mine", Path("photos"), "diffusion")
    height, width = presets.load(str(path)).data.shape[1:]
    assert any(f"{height}x{width} (HxW) grey" in line for line in found.lines), found.lines


@pytest.mark.parametrize(
    ("sides", "fits"),
    [
        ([(28, 28)] * 3, (28, 28)),
        ([(600, 800)] * 3, (48, 64)),
        ([(3000, 2000)] * 3, (64, 40)),
        ([(600, 800), (800, 600)], (64, 64)),
        ([(50, 52), (51, 50)], (48, 48)),
        ([(5, 5), (6, 6)], (6, 6)),
    ],
)
def test_sides_fit_the_pictures(sides: list[tuple[int, int]], fits: tuple[int, int]):
    assert fitting(sides, longest=64) == fits
    assert max(fitting(sides, longest=32)) <= 32


def test_every_key_of_what_is_written_has_a_reason_or_is_plain():
    """Each line of a new preset is a key that the preset has, and most say what they do."""
    picture(Path("photos", "cat/a.png"))
    picture(Path("photos", "dog/b.png"))
    path, _ = write_new("mine", Path("photos"), "diffusion")
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    assert sum("  # " in line for line in lines) > len(lines) / 2
    assert yaml.safe_load(path.read_text())["train"]["steps"] == 600
    assert math.isclose(presets.load(str(path)).train.curve.floor, 0.02)

"""`sample` and `gif` with a model of clips, as they are typed: films, sheets, folders, arrays, and their records."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import diffcli
from tests.conftest import TINY, Cli, changed
from tests.engine.draw.pictured.small import picture, saved
from tests.engine.run.test_clip_runs import UNET

FRAMES, SIZE = 4, 8


def tree(**keys: Any) -> dict[str, Any]:
    """A U-Net over time for grey clips of 4 frames of 8x8, given its first frame or none."""
    conditioners = [
        {"kind": "fps", "dim": 4},
        {"kind": "frames", "channels": 1, "given": {"none": 1, "first:1": 1, "first:2": 1}},
    ]
    alone = {"task__drop_condition": 0, "guidance": 1, "sampler__steps": 2, "task__field": "clip"}
    found = changed(TINY, **(alone | {"task__conditioners": conditioners} | keys))
    data = {"kind": "moving_digits", "size": SIZE, "frames": FRAMES, "digit": 6, "fps": 10.0}
    return found | {"data": data, "task": found["task"] | {"network": UNET | {"temporal": {}}}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("clips") / "run", tree())


def levels(path: Path) -> list[np.ndarray]:
    """The frames of an animation, grey."""
    image, found = Image.open(path), []
    for number in range(image.n_frames):
        image.seek(number)
        found.append(np.asarray(image.convert("RGB"))[..., 0])
    return found


def test_clips_are_written_as_films_sheets_folders_and_arrays_with_their_record(
    run: Path, cli: Cli, tmp_path: Path
) -> None:
    typed = ("sample", "--ckpt", run, "--n", 3, "--frames", 3, "--fps", 5, "--device", "cpu")
    for name in ("a.npz", "a.png", "a.webp", "clips"):
        done = cli(*typed, "--out", tmp_path / name)
        assert done.code == 0, done.err
        record = json.loads((tmp_path / f"{name}.json").read_text())
        assert record["clip"] == {"frames": 3, "fps": 5.0}
        assert record["seeds"] == [0, 1, 2]
    arrays = np.load(tmp_path / "a.npz")["arr_0"]
    assert arrays.shape == (3, 3, SIZE, SIZE, 1)
    assert sorted(path.name for path in (tmp_path / "clips").iterdir()) == [f"00000{i}.webp" for i in range(3)]
    for number in range(3):
        assert np.array_equal(levels(tmp_path / "clips" / f"00000{number}.webp"), arrays[number, ..., 0])
    sheet = np.asarray(Image.open(tmp_path / "a.png"))
    film = levels(tmp_path / "a.webp")
    side = SIZE + 2
    assert sheet.shape == (3 * side + 2, 3 * side + 2), "a row a clip, a column a frame"
    for clip in range(3):
        for frame in range(3):
            down, across = clip * side + 2, frame * side + 2
            assert np.array_equal(sheet[down : down + SIZE, across : across + SIZE], arrays[clip, frame, ..., 0])
    assert len(film) == 3
    assert np.array_equal(film[1][2 : 2 + SIZE, 2 : 2 + SIZE], arrays[0, 1, ..., 0])


def test_a_film_of_clips_has_their_length_and_speed(run: Path, cli: Cli, tmp_path: Path) -> None:
    typed = ("sample", "--ckpt", run, "--n", 1, "--frames", 11, "--device", "cpu", "--out")
    for name in ("a.mp4", "a.gif"):
        done = cli(*typed, tmp_path / name)
        assert done.code == 0, done.err
    image = Image.open(tmp_path / "a.gif")
    image.seek(3)
    assert image.info["duration"] == 100, "milliseconds: as fast as the clips of training"
    record = json.loads((tmp_path / "a.mp4.json").read_text())
    assert record["clip"]["windows"] == {"size": FRAMES, "overlap": 2, "count": 5}


def test_a_picture_begins_a_clip_and_the_python_interface_draws_the_same(run: Path, cli: Cli, tmp_path: Path) -> None:
    first = picture(tmp_path / "first.png", SIZE)
    done = cli("sample", "--ckpt", run, "--image", first, "--device", "cpu", "--out", tmp_path / "a.npz")
    assert done.code == 0, done.err
    arrays = np.load(tmp_path / "a.npz")["arr_0"]
    assert np.array_equal(arrays[0, 0, ..., 0], np.asarray(Image.open(first)))
    model = diffcli.load(run, device="cpu")
    assert np.array_equal(model.sample(image=first).numpy(), arrays)
    more = model.sample(image=model.sample(image=first).tensor, given_frames="first:2")
    assert np.array_equal(more.numpy()[:, :2], arrays[:, :2]), "samples give the frames of the next"


def test_a_run_on_given_frames_is_shown_in_motion_and_does_not_depend_on_micro_batches(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    own = tree()
    keys = {
        "data": own["data"],
        "task__network": own["task"]["network"],
        "task__conditioners": own["task"]["conditioners"],
    }
    keys |= {"task__field": "clip", "task__drop_condition": 0, "guidance": 1, "train__steps": 2}
    preset = tiny(**keys, train__every={"log": 1, "preview": 2, "save": 2}, train__optimizer={"kind": "sgd", "lr": 0.1})
    for name, parts in (("whole", 1), ("parts", 3)):
        words = ("--run-dir", tmp_path / name, "--set", f"train.accumulate={parts}", "--device", "cpu")
        done = cli("train", "--preset", preset, *words)
        assert done.code == 0, done.err
        assert f"{tmp_path / name}/preview.webp" in done.err, "what there is to look at"
        assert "clips/s" in done.err
        assert "images/s" not in done.err
    one, other = (
        load_file(tmp_path / name / "checkpoints/step-00000002/task.safetensors") for name in ("whole", "parts")
    )
    for name, weight in one.items():
        assert torch.allclose(weight, other[name], atol=1e-6), name
    image = Image.open(tmp_path / "whole" / "preview.webp")
    assert image.n_frames == FRAMES
    image.seek(1)
    image.load()
    assert image.info["duration"] == 100, "milliseconds: as the clips are in the data"


def test_gif_shows_all_frames_of_a_clip_at_each_step_of_denoising(run: Path, cli: Cli, tmp_path: Path) -> None:
    done = cli("gif", "--ckpt", run, "--n", 2, "--device", "cpu", "--out", tmp_path / "a.webp")
    assert done.code == 0, done.err
    film = levels(tmp_path / "a.webp")
    assert len(film) == 3, "the noise, then a frame a step"
    assert film[0].shape == (2 * (SIZE + 2) + 2, FRAMES * (SIZE + 2) + 2)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--frames", "0"], ["--frames"]),
        (["--given-frames", "first:3"], ["first:3", "--given-frames first:1 or first:2"]),
        (["--window-overlap", "4"], ["--window-overlap 4", "--window"]),
        (["--tile", "4"], ["--tile 4"]),
        (["--fps", "60"], ["--fps 60", "--fps 50"]),
    ],
)
def test_options_that_a_model_of_clips_cannot_follow_are_refused(
    run: Path, cli: Cli, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    cli("sample", "--ckpt", run, "--device", "cpu", "--out", tmp_path / "a.gif", *arguments).refused(*words)
    assert not (tmp_path / "a.gif").exists()


def test_a_model_of_images_writes_no_film(cli: Cli, tmp_path: Path) -> None:
    still = saved(tmp_path / "still", changed(TINY))
    out = tmp_path / "a.mp4"
    cli("sample", "--ckpt", still, "--device", "cpu", "--out", out).refused("a.mp4", "still images", "diffcli gif")
    cli("sample", "--ckpt", still, "--device", "cpu", "--frames", 8).refused("--frames 8", "leave --frames out")
    assert not out.exists()

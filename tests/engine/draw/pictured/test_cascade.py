"""Cascades: what stages hand on, what is kept of them, and stages that do not follow."""

import json
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffcli.engine import model as models
from diffcli.engine.model import Model, load_model
from tests.conftest import Cli, changed, in_ranks
from tests.engine.draw.making import FREE
from tests.engine.draw.masks import mask_runs
from tests.engine.draw.pictured.small import CLASSES, LOW, from_edges, picture, saved, upscaler
from tests.engine.one_level import SMALL


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """8x8 of classes, 16x16 of these and their classes, 32x32."""
    root = tmp_path_factory.mktemp("stages")
    middle = upscaler(task__conditioners=[LOW, CLASSES], task__drop_condition=0.1, guidance=2, sampler__steps=3)
    return [
        saved(root / "base", SMALL),
        saved(root / "middle", middle),
        saved(root / "last", upscaler(data__size=32, sampler__steps=1)),
    ]


def run(cli: Cli, stages: list[Path], out: Path, *options: object) -> dict[str, Any]:
    then = [each for path in stages[1:] for each in ("--then", path)]
    done = cli("sample", "--ckpt", stages[0], *then, "--out", out, *options)
    assert done.code == 0, done.err
    return json.loads(Path(f"{out}.json").read_text())


def files(folder: Path) -> list[np.ndarray]:
    return [np.asarray(Image.open(file)) for file in sorted(folder.glob("*.png"))]


def test_each_stage_draws_of_the_images_of_the_one_before_as_of_its_saved_files(
    cli: Cli, stages: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    record = run(cli, stages, out, "--n", 3, "--class", 4, "--seed", 7)
    assert [each.shape for each in files(out)] == [(32, 32)] * 3
    assert [each.shape for each in files(out / "stage-1")] == [(8, 8)] * 3
    options = ["--image", out / "stage-1", "--class", 4, "--seed", 7, "--out", tmp_path / "second"]
    assert cli("sample", "--ckpt", stages[1], *options).code == 0
    assert all(map(np.array_equal, files(tmp_path / "second"), files(out / "stage-2")))
    options = ["--image", out / "stage-2", "--seed", 7, "--out", tmp_path / "third"]
    assert cli("sample", "--ckpt", stages[2], *options).code == 0
    assert all(map(np.array_equal, files(tmp_path / "third"), files(out)))
    second = record["given"]["low_res"]["stage"]
    first = second["given"]["low_res"]["stage"]
    assert [each["seeds"] for each in (record, second, first)] == [[7, 8, 9]] * 3
    assert [each["steps"] for each in (record, second, first)] == [1, 3, 3]
    assert [each["guidance"] for each in (record, second, first)] == [1, 2, 2]
    assert (second["labels"], first["labels"]) == ([4] * 3, [4] * 3)
    assert Path(first["checkpoint"]) == stages[0]


def test_the_classes_of_the_first_stage_stand_beside_the_images_of_a_last_one_that_is_told_none(
    cli: Cli, stages: list[Path], tmp_path: Path
) -> None:
    run(cli, stages, tmp_path / "out.npz", "--n", 5, "--class", "all", "--batch-size", 2)
    assert np.load(tmp_path / "out.npz")["arr_1"].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.slow
def test_two_processes_draw_the_same_cascade(cli: Cli, stages: list[Path], tmp_path: Path) -> None:
    options = ["--n", 3, "--class", "random", "--batch-size", 2, "--device", "cpu"]
    run(cli, stages[:2], tmp_path / "one.npz", *options)
    then = ["--ckpt", stages[0], "--then", stages[1], "--out", tmp_path / "two.npz", "--nproc", 2]
    done = in_ranks("sample", *then, *options)
    assert done.code == 0, done.err
    for name in ("{}.npz", "{}.stage-1.npz"):
        one, two = (np.load(tmp_path / name.format(which)) for which in ("one", "two"))
        assert np.abs(one["arr_0"].astype(int) - two["arr_0"]).max() <= 1
        assert np.array_equal(one["arr_1"], two["arr_1"]) if "arr_1" in one else "arr_1" not in two


def test_one_model_is_loaded_at_a_time(
    cli: Cli, stages: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[Any] = []
    most: list[int] = []

    def counted(*args: Any, **how: Any) -> Model:
        most.append(sum(each() is not None for each in alive))
        model = load_model(*args, **how)
        alive.append(weakref.ref(model.task))
        return model

    monkeypatch.setattr(models, "load_model", counted)
    run(cli, stages, tmp_path / "a.png", "--n", 1, "--class", 0)
    assert most == [0, 0, 0]
    assert {path.name for path in tmp_path.glob("a*.png")} == {"a.png", "a.stage-1.png", "a.stage-2.png"}


def test_a_cascade_begins_from_a_picture_and_ends_in_an_animation(cli: Cli, stages: list[Path], tmp_path: Path) -> None:
    small = picture(tmp_path / "a.png", 8)
    upscale = saved(tmp_path / "up", upscaler())
    record = run(cli, [upscale, stages[2]], tmp_path / "x.png", "--image", small)
    assert record["given"]["low_res"]["stage"]["given"]["low_res"][0]["file"] == str(small)
    out = tmp_path / "x.gif"
    assert cli("gif", "--ckpt", upscale, "--then", stages[2], "--image", small, "--out", out).code == 0
    with Image.open(out) as animation:
        assert animation.size == (32, 32)
        assert getattr(animation, "n_frames", 0) == 2


def test_stages_of_another_size_are_tiled_where_that_is_asked_for(cli: Cli, stages: list[Path], tmp_path: Path) -> None:
    up, small = saved(tmp_path / "up", upscaler()), picture(tmp_path / "a.png", 8)
    options = ["--ckpt", up, "--then", up, "--image", small, "--out", tmp_path / "x.npz"]
    done = cli("sample", *options)
    done.refused("--then", "'low_res' of 8x8", "are 16x16", "--tile 16")
    assert not list(tmp_path.glob("x*")), "something was drawn before"
    assert cli("sample", *options, "--tile", 16).code == 0
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (1, 32, 32, 1)


def test_augmentation_is_that_of_the_stages_that_know_of_it(cli: Cli, stages: list[Path], tmp_path: Path) -> None:
    noisy = saved(tmp_path / "noisy", upscaler(task__conditioners=[{**LOW, "augment": 0.5, "dim": 8}]))
    record = run(cli, [stages[0], noisy], tmp_path / "x.png", "--n", 1, "--augment", 0.3)
    assert record["augment"] == 0.3
    assert "augment" not in record["given"]["low_res"]["stage"]
    out = ["--n", 1, "--out", tmp_path / "y.png"]
    cli("sample", "--ckpt", stages[0], "--then", noisy, "--augment", 0.6, *out).refused("--augment 0.6", "level of 0.5")
    done = cli("sample", "--ckpt", stages[0], "--then", stages[1], "--augment", 0.3, *out)
    done.refused("--augment 0.3", "no condition")


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (SMALL, ["conditioned on no picture", "upscaler"]),
        (upscaler(data__channels=3, task__conditioners=[{**LOW, "channels": 3}]), ["3 channels", "have 1"]),
        (upscaler(data__size=32), ["of 16x16", "are 8x8", "--size 16x16"]),
        (from_edges(data__size=16), ["'edges' of 16x16", "are 8x8"]),
        (
            changed(upscaler(), task={"kind": "classifier", "num_classes": 10}, guidance=None, sampler=None),
            ["was trained as"],
        ),
        (
            upscaler(task__conditioners=[LOW, {**CLASSES, "num_classes": 5}], guidance=1),
            ["knows 5 classes", "class 9"],
        ),
    ],
    ids=["no picture", "channels", "size", "edges", "classifier", "classes"],
)
def test_a_stage_that_does_not_follow_is_one_error_before_anything_is_drawn(
    cli: Cli, stages: list[Path], tmp_path: Path, tree: dict[str, Any], words: list[str]
) -> None:
    stage = saved(tmp_path / "stage", tree)
    out = tmp_path / "x.png"
    done = cli("sample", "--ckpt", stages[0], "--then", stage, "--class", 9, "--n", 1, "--out", out)
    done.refused("--then", *words)
    assert not list(tmp_path.glob("x*"))


def test_a_last_folder_that_would_keep_other_images_is_refused_before_the_first_stage_draws(
    cli: Cli, stages: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    old = picture(out / "old.png")
    done = cli("sample", "--ckpt", stages[0], "--then", stages[1], "--class", 1, "--n", 2, "--out", out)
    done.refused(f"--out {out}", "old.png", "empty folder")
    assert list(out.iterdir()) == [old]
    assert not list(tmp_path.glob("*.json"))


def test_captions_of_a_cascade_are_those_of_its_first_stage(cli: Cli, stages: list[Path], tmp_path: Path) -> None:
    run(cli, stages, tmp_path / "x.png", "--n", 2, "--class", 3, "--captions")
    with Image.open(tmp_path / "x.png") as made:
        assert made.height > 2 + 96 + 2, "nothing stands under the images"
    free = saved(tmp_path / "free", changed(SMALL, **FREE))
    last = saved(tmp_path / "last", upscaler())
    done = cli("sample", "--ckpt", free, "--then", last, "--n", 1, "--captions", "--out", tmp_path / "y.png")
    done.refused("--captions", "no prompt or class")
    assert not list(tmp_path.glob("y*"))


def test_a_network_of_one_step_may_begin_a_cascade_that_is_tiled_but_is_no_later_stage(
    cli: Cli, tmp_path: Path
) -> None:
    task = {"kind": "super_resolution", "network": {"width": 8, "depth": 1}}
    once = saved(tmp_path / "once", changed(upscaler(), task=task, sampler=None, guidance=None))
    up, small = saved(tmp_path / "up", upscaler()), picture(tmp_path / "a.png", 8)
    options = ["--image", small, "--out", tmp_path / "x.npz"]
    done = cli("sample", "--ckpt", once, "--then", up, *options, "--tile", 16)
    assert done.code == 0, done.err
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (1, 32, 32, 1)
    cli("sample", "--ckpt", up, "--then", once, *options).refused(f"--then {once}", f"--ckpt {once} --image")
    cli("sample", "--ckpt", once, "--image", small, *options, "--compare").refused("--compare", "in one step")
    cli("gif", "--ckpt", once, "--image", small, "--out", tmp_path / "x.gif").refused("diffcli sample --ckpt")


def test_projection_is_that_of_the_stages_that_enlarge(cli: Cli, tmp_path: Path) -> None:
    drawn, up = saved(tmp_path / "drawn", from_edges()), saved(tmp_path / "up", upscaler())
    record = run(cli, [drawn, up], tmp_path / "x.png", "--image", picture(tmp_path / "a.png"), "--project")
    assert record["project"]["factor"] == 2
    assert "project" not in record["given"]["low_res"]["stage"]
    done = cli("sample", "--ckpt", drawn, "--image", tmp_path / "a.png", "--project", "--out", tmp_path / "y.png")
    done.refused("--project", "no low_res")


def test_a_stage_of_classes_wants_images_that_have_one(cli: Cli, stages: list[Path], tmp_path: Path) -> None:
    free = saved(tmp_path / "free", changed(SMALL, **FREE))
    done = cli("sample", "--ckpt", free, "--then", stages[1], "--n", 1, "--out", tmp_path / "x.png")
    done.refused("draws classes", "have none")
    done = cli("sample", "--ckpt", free, "--then", tmp_path / "none", "--n", 1, "--out", tmp_path / "x.png")
    done.refused("--then", "none")


def test_models_of_masks_are_no_stages(cli: Cli, stages: list[Path], tmp_path: Path) -> None:
    tells = mask_runs.trained(tmp_path, "diffusion")
    options = ["--out", tmp_path / "x.png"]
    done = cli("sample", "--ckpt", stages[0], "--then", tells, "--n", 1, *options)
    done.refused("--then", "the field 'mask' of kind mask")
    done = cli("sample", "--ckpt", tells, "--then", stages[1], "--image", picture(tmp_path / "a.png"), *options)
    done.refused("--then", "no images for a next stage")


def test_a_way_between_two_images_ends_with_its_stage(cli: Cli, stages: list[Path], tmp_path: Path) -> None:
    options = ["--ckpt", stages[0], "--then", stages[1], "--class", 1, "--interpolate", 3, "--out", tmp_path / "x.png"]
    cli("sample", *options).refused("--interpolate 3 with --then")

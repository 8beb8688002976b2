"""Drawing from images, masks and between seeds, and guiding by other checkpoints, through the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
from PIL import Image

from diffcli import checkpoint
from diffcli.digest import sha256
from diffcli.engine.draw.sample import SampleOptions, load_model, request
from tests.conftest import Cli, changed, in_ranks
from tests.engine.draw.test_sample import LAST, off_by_at_most_one_level
from tests.engine.one_level import SMALL

Draw = Callable[..., tuple[np.ndarray, dict[str, Any]]]


@pytest.fixture
def draw(cli: Cli, trained: Path, tmp_path: Path) -> Draw:
    """Samples of the trained run as (N, 8, 8) uint8, and their sidecar."""

    def run(*options: object, ckpt: Path = trained) -> tuple[np.ndarray, dict[str, Any]]:
        out = tmp_path / "drawn.npz"
        done = cli("sample", "--ckpt", ckpt, "--out", out, *options)
        assert done.code == 0, done.err
        return np.load(out)["arr_0"][..., 0], json.loads(Path(f"{out}.json").read_text())

    return run


@pytest.fixture
def picture(tmp_path: Path) -> Callable[..., Path]:
    """Writes a grey picture of this size with a bright square."""

    def write(name: str = "a.png", size: tuple[int, int] = (8, 8), level: int = 200) -> Path:
        pixels = np.full(size[::-1], 20, np.uint8)
        pixels[2:6, 2:6] = level
        Image.fromarray(pixels).save(tmp_path / name)
        return tmp_path / name

    return write


@pytest.fixture
def half(tmp_path: Path) -> Path:
    """A mask whose right half is white."""
    pixels = np.zeros((8, 8), np.uint8)
    pixels[:, 4:] = 255
    Image.fromarray(pixels).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


def pixels(path: Path) -> np.ndarray:
    return np.asarray(imageio.imread(path))


# Images


def test_full_strength_is_the_plain_sample_and_the_smallest_the_image(draw: Draw, picture: Callable[..., Path]) -> None:
    image, options = picture(), ["--class", 3, "--n", 2, "--steps", 5]
    plain, _ = draw(*options)
    full, told = draw(*options, "--image", image, "--strength", 1)
    assert np.array_equal(full, plain)
    assert (told["steps"], told["strength"]) == (5, 1)
    least, told = draw(*options, "--image", image, "--strength", 0.0001)
    assert np.abs(least.astype(int) - pixels(image)).max() <= 8
    assert (told["steps"], told["nfe"]) == (1, 1)


def test_an_image_is_changed_more_by_more_strength(draw: Draw, picture: Callable[..., Path]) -> None:
    image = picture()
    distance = [
        np.abs(draw("--class", 3, "--n", 3, "--image", image, "--strength", s)[0].astype(int) - pixels(image)).mean()
        for s in (0.05, 0.3, 0.8)
    ]
    assert distance == sorted(distance)


def test_images_are_taken_in_turn_and_one_is_drawn_of_each(draw: Draw, picture: Callable[..., Path]) -> None:
    images = [picture("a.png"), picture("b.png", level=90)]
    both = ["--image", images[0], "--image", images[1], "--strength", 0.001, "--class", 1]
    two, told = draw(*both)
    assert len(two) == 2
    assert told["images"] == [{"file": str(i), "sha256": sha256(i)} for i in images]
    five, _ = draw(*both, "--n", 5, "--batch-size", 2)
    for i, image in enumerate(five):
        assert np.abs(image.astype(int) - pixels(images[i % 2])).mean() < 4
        assert np.abs(image.astype(int) - pixels(images[1 - i % 2])).mean() > 10


def test_a_varied_image_depends_on_its_seed_alone(draw: Draw, picture: Callable[..., Path], half: Path) -> None:
    options = ["--image", picture(), "--mask", half, "--strength", 0.7, "--sampler", "ddpm", "--class", 2]
    five, _ = draw(*options, "--n", 5)
    assert len({image.tobytes() for image in five}) == 5
    off_by_at_most_one_level(draw(*options, "--n", 5, "--batch-size", 2)[0], five)
    off_by_at_most_one_level(draw(*options, "--n", 2, "--seed", 3)[0], five[3:])


@pytest.mark.slow
def test_editing_does_not_depend_on_the_number_of_processes(
    draw: Draw, picture: Callable[..., Path], trained: Path, tmp_path: Path
) -> None:
    options = ["--image", picture("a.png"), "--image", picture("b.png", level=90), "--n", 3, "--batch-size", 1]
    out = tmp_path / "two.npz"
    done = in_ranks("sample", "--ckpt", trained, "--out", out, "--nproc", 2, *options)
    assert done.code == 0, done.err
    assert np.array_equal(np.load(out)["arr_0"][..., 0], draw(*options)[0])


def test_an_image_of_another_size_is_read_as_training_images_are(draw: Draw, picture: Callable[..., Path]) -> None:
    large = picture("large.png", size=(64, 32))
    drawn, _ = draw("--image", large, "--strength", 0.0001, "--class", 0)
    image = Image.open(large).crop((16, 0, 48, 32)).resize((8, 8), Image.Resampling.BICUBIC)
    assert np.abs(drawn[0].astype(int) - np.asarray(image)).max() <= 8


def test_a_gif_begins_at_the_noised_image(
    cli: Cli, trained: Path, tmp_path: Path, picture: Callable[..., Path]
) -> None:
    out = tmp_path / "a.gif"
    options = "--image", picture(), "--strength", 0.0001, "--class", 3, "--steps", 6
    assert cli("gif", "--ckpt", trained, "--out", out, *options).code == 0
    told = json.loads(Path(f"{out}.json").read_text())
    assert (told["frames"], told["steps"], told["strength"]) == (2, 1, 0.0001)
    first = imageio.imread(out, index=0, mode="L")
    assert np.abs(first.astype(int) - pixels(picture())).max() <= 12


# Masks


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "heun", "dpmpp_2m", "unipc", "edm_heun"])
def test_what_is_black_in_the_mask_stays_to_the_byte(
    draw: Draw, picture: Callable[..., Path], half: Path, sampler: str
) -> None:
    image = picture()
    drawn, told = draw("--image", image, "--mask", half, "--n", 3, "--sampler", sampler, "--steps", 6, "--class", 4)
    assert all(np.array_equal(each[:, :4], pixels(image)[:, :4]) for each in drawn)
    assert len({each.tobytes() for each in drawn}) == 3
    assert told["mask"] == {"file": str(half), "sha256": sha256(half)}
    assert told["strength"] == 1  # unless told


def test_a_mask_is_cropped_and_resized_as_its_image_is(
    draw: Draw, picture: Callable[..., Path], tmp_path: Path
) -> None:
    wide = np.zeros((32, 64), np.uint8)
    wide[:, 32:] = 255
    Image.fromarray(wide).save(tmp_path / "wide.png")
    image = picture("large.png", size=(64, 32))
    drawn, _ = draw("--image", image, "--mask", tmp_path / "wide.png", "--class", 4)
    kept, _ = draw("--image", image, "--strength", 0.0001, "--class", 4)
    assert np.abs(drawn[0, :, :4].astype(int) - kept[0, :, :4]).max() <= 8
    assert np.abs(drawn[0, :, 4:].astype(int) - kept[0, :, 4:]).max() > 20


# Interpolation


def test_an_interpolation_begins_and_ends_at_the_samples_of_its_seeds(draw: Draw) -> None:
    options = ["--class", 3, "--seed", 5, "--sampler", "ddim", "--steps", 4]
    arc, told = draw(*options, "--interpolate", 5)
    ends, _ = draw(*options, "--n", 2)
    off_by_at_most_one_level(arc[[0, -1]], ends)
    assert (told["n"], told["interpolate"], told["seeds"]) == (5, 5, [5, 6])
    gaps = np.abs(np.diff(arc.astype(int), axis=0)).mean(axis=(1, 2))
    assert gaps.max() < np.abs(arc[0].astype(int) - arc[-1]).mean()  # each move is a part of the way
    off_by_at_most_one_level(draw(*options, "--interpolate", 5, "--batch-size", 2)[0], arc)


def test_the_ends_of_an_interpolation_are_exact(trained: Path) -> None:
    model = load_model(trained, torch.device("cpu"))
    req = request(model, SampleOptions(labels="3", seed=5, interpolate=4))
    plain = request(model, SampleOptions(labels="3", seed=5, n=2))
    start, ends = req.walk(range(4))[0], plain.walk(range(2))[0]
    assert torch.equal(start[[0, -1]], ends)


def test_an_interpolation_of_images_begins_and_ends_near_them(draw: Draw, picture: Callable[..., Path]) -> None:
    images = [picture("a.png"), picture("b.png", level=90)]
    options = ["--image", images[0], "--image", images[1], "--interpolate", 3, "--class", 1, "--guidance", 1]
    arc, told = draw(*options, "--sampler", "ddim", "--steps", 40)
    for drawn, image in ((arc[0], images[0]), (arc[-1], images[1])):
        assert np.abs(drawn.astype(int) - pixels(image)).mean() < 3
    assert told["images"][1]["file"] == str(images[1])


# Guidance by other checkpoints


@pytest.fixture(scope="session")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A noise-aware classifier of the tiny data, barely trained."""
    return _train(
        tmp_path_factory.mktemp("judge") / "run",
        name="judge",
        task={"kind": "classifier", "num_classes": 10, "network": {"width": 4}, "schedule": {"kind": "linear"}},
        guidance=1,
        sampler=None,
    )


def _train(path: Path, **keys: Any) -> Path:
    from diffcli import preset as presets
    from diffcli.engine.distributed import join
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.train import train

    run = RunDir(path)
    run.claim()
    with join("cpu") as group:
        for _ in train(presets.build(changed(SMALL, **keys), "tiny.yaml"), run, group):
            pass
    return run.path


def test_the_log_of_a_noise_aware_classifier_tells_its_accuracy(judge: Path) -> None:
    lines = [json.loads(line) for line in (judge / "log.jsonl").read_text().splitlines()]
    assert all(0 <= line["accuracy"] <= 1 for line in lines)


def test_a_weaker_checkpoint_of_the_same_run_leads_away_from_itself(draw: Draw, trained: Path) -> None:
    weaker, options = trained / "checkpoints/step-00000002", ["--n", 3]
    led, told = draw(*options, "--set", f"guide.weaker={weaker}", "--guidance", 3)
    expected = {"checkpoint": str(weaker), "step": 2, "weights_sha256": sha256(weaker / "ema.safetensors")}
    assert expected.items() <= told["guide"]["weaker"].items()
    alone, _ = draw(*options, "--set", f"guide.weaker={weaker}", "--guidance", 0)
    off_by_at_most_one_level(alone, draw(*options, "--guidance", 1, ckpt=weaker)[0])
    same, _ = draw(*options, "--set", f"guide.weaker={trained / LAST}", "--guidance", 3)
    off_by_at_most_one_level(same, draw(*options, "--guidance", 1)[0])
    assert not np.array_equal(led, same)


def test_a_classifier_guides_and_is_told_in_the_sidecar(draw: Draw, judge: Path) -> None:
    found = checkpoint.locate(judge)
    options = ["--n", 3, "--set", f"guide.classifier={judge}", "--set"]
    pulled, told = draw(*options, "guide.classifier_scale=30")
    assert told["guide"]["classifier"]["weights_sha256"] == sha256(found / "ema.safetensors")
    assert told["guide"]["classifier_scale"] == 30
    off, plain = draw(*options, "guide.classifier_scale=0")[0], draw("--n", 3)[0]
    assert np.array_equal(off, plain)
    assert not np.array_equal(pulled, plain)


def test_a_classifier_gives_classes_to_a_model_that_has_none(draw: Draw, cli: Cli, judge: Path, tmp_path: Path) -> None:
    free = _train(tmp_path / "free", task__conditioners=[], task__drop_condition=0, guidance=1)
    options = ["--set", f"guide.classifier={judge}", "--set", "guide.classifier_scale=30"]
    three, told = draw("--class", 3, "--n", 2, *options, ckpt=free)
    assert told["labels"] == [3, 3]
    assert not np.array_equal(three, draw("--class", 5, "--n", 2, *options, ckpt=free)[0])
    cli("sample", "--ckpt", free, "--class", 3, "--out", tmp_path / "a.png").refused(
        "--class 3", "not class-conditional"
    )


def test_the_guide_of_a_run_is_used_and_guidance_one_switches_it_off(draw: Draw, tmp_path: Path) -> None:
    run = _train(tmp_path / "run", guide={"rescale": 0.7, "interval": [0.1, 5]})
    told = draw("--n", 1, ckpt=run)[1]
    assert told["guide"] == {"rescale": 0.7, "interval": [0.1, 5]}
    assert draw("--n", 1, "--guidance", 1, ckpt=run)[1]["guide"] == {"rescale": 0}


def test_a_score_names_what_guided_its_samples(cli: Cli, trained: Path, judge: Path) -> None:
    plain = _train(judge.parent / "plain", task={"kind": "classifier", "num_classes": 10}, guidance=1, sampler=None)
    options = "--n", 40, "--features", plain, "--ref", "digits:test", "--set", f"guide.classifier={judge}", "--json"
    done = cli("fid", "--ckpt", trained, *options)
    assert done.code == 0, done.err
    assert json.loads(done.out)["guide"]["classifier"]["step"] == 4


# Contradictions


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mask", "MASK"], ["--mask", "mask.png", "--image FILE"]),
        (["--strength", 0.5], ["--strength 0.5", "--image FILE"]),
        (["--image", "IMAGE", "--strength", 0], ["--strength", "0.0", "at most 1"]),
        (["--image", "IMAGE", "--strength", 1.5], ["--strength", "1.5"]),
        (["--image", "IMAGE", "--strength", "nan"], ["--strength", "nan"]),
        (["--image", "gone.png"], ["--image gone.png", "cannot be read"]),
        (["--image", "TEXT"], ["--image", "text.png", "none of PNG"]),
        (["--image", "IMAGE", "--mask", "gone.png"], ["--mask gone.png", "cannot be read"]),
        (["--image", "LARGE", "--mask", "MASK"], ["--mask", "8x8 and 12x16, HxW", "--image"]),
        (["--image", "IMAGE", "--mask", "BLACK"], ["--mask", "no white pixel"]),
        (["--interpolate", 1], ["--interpolate", "1"]),
        (["--interpolate", 4], ["--class all", "--class 0"]),
        (["--interpolate", 4, "--class", "random"], ["--class random", "--class 0"]),
        (["--interpolate", 4, "--class", 1, "--n", 5], ["--n 5", "--interpolate 4"]),
        (["--interpolate", 4, "--class", 1, "--sampler", "ddpm"], ["--interpolate", "ddpm", "--ddim-eta 0"]),
        (["--interpolate", 4, "--class", 1, "--ddim-eta", 0.5], ["--interpolate", "ddim", "--ddim-eta 0"]),
        (["--interpolate", 4, "--class", 1, "--image", "IMAGE"], ["--interpolate 4", "1 --image", "twice"]),
        (["--interpolate", 4, "--strength", 0.5], ["--strength 0.5", "--interpolate 4"]),
        (["--interpolate", 4, "--mask", "MASK"], ["--mask", "--interpolate 4"]),
        (["--set", "guide.classifier_scale=2"], ["classifier_scale is 2", "no classifier"]),
        (["--set", "guide.rescale=0.7", "--guidance", 1], ["guide.rescale is 0.7", "guidance is 1"]),
        (["--set", "guide.interval=[3, 1]"], ["guide", "[3.0, 1.0]"]),
        (["--set", "guide.interval=3"], ["guide.interval"]),
        (["--set", "guide.rescael=0.7"], ["rescael", "did you mean 'rescale'"]),
        (["--set", "guide.weaker=gone"], ["gone"]),
        (["--set", "guide.weaker=JUDGE"], ["guide.weaker", "trained as a classifier"]),
        (["--set", "guide.classifier=TRAINED"], ["guide.classifier", "trained as a diffusion"]),
    ],
)
def test_flags_that_contradict_each_other_are_refused(
    cli: Cli, trained: Path, judge: Path, tmp_path: Path, picture: Callable[..., Path], half: Path,
    options: list[Any], words: list[str],
) -> None:  # fmt: skip
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "black.png")
    names = {
        "IMAGE": picture(), "LARGE": picture("large.png", size=(16, 12)), "MASK": half, "BLACK": tmp_path / "black.png",
        "TEXT": tmp_path / "text.png", "JUDGE": judge, "TRAINED": trained,
    }  # fmt: skip
    given = []
    for option in map(str, options):
        key, equals, value = option.rpartition("=")
        given.append(f"{key}{equals}{names.get(value, value)}")
    cli("sample", "--ckpt", trained, "--out", tmp_path / "out.png", *given).refused(*words)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"data__size": 16}, ["images of 1x16x16", "1x8x8"]),
        ({"task__schedule": {"kind": "linear"}}, ["schedule linear", "cosine"]),
        ({"task__schedule": {"kind": "cosine", "steps": 100}}, ["schedule keys", "steps=100"]),
        ({"task__codec": {"kind": "pixels", "scale": 2.0}}, ["codec", "2.0"]),
        ({"task__conditioners": [], "task__drop_condition": 0, "guidance": 1}, ["classes None", "10"]),
    ],
)
def test_a_weaker_model_of_other_things_is_refused(
    cli: Cli, trained: Path, tmp_path: Path, keys: dict[str, Any], words: list[str]
) -> None:
    other = _train(tmp_path / "other", train__steps=1, **keys)
    outcome = cli("sample", "--ckpt", trained, "--out", tmp_path / "a.png", "--set", f"guide.weaker={other}")
    outcome.refused("guide.weaker", str(other), *words)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"task__schedule": None}, ["clean images", "digits-noisy-classifier"]),
        ({"task__num_classes": 12}, ["12 classes", "10"]),
        ({"data__size": 16}, ["1x16x16", "1x8x8"]),
    ],
)
def test_a_classifier_of_other_things_is_refused(
    cli: Cli, trained: Path, tmp_path: Path, keys: dict[str, Any], words: list[str]
) -> None:
    task = {"kind": "classifier", "num_classes": 10, "network": {"width": 4}, "schedule": {"kind": "linear"}}
    other = _train(tmp_path / "other", train__steps=1, **({"task": task, "guidance": 1, "sampler": None} | keys))
    outcome = cli("sample", "--ckpt", trained, "--out", tmp_path / "a.png", "--set", f"guide.classifier={other}")
    outcome.refused("guide.classifier", str(other), *words)


def test_training_refuses_a_guide_that_does_not_fit(cli: Cli, tiny: Callable[..., Path], tmp_path: Path) -> None:
    unconditional = {"task__conditioners": [], "task__drop_condition": 0, "guidance": 1}
    for keys, words in (
        ({**unconditional, "guide": {"interval": [0.1, 2]}}, ["guide.interval"]),
        ({**unconditional, "guidance": 2}, ["unconditional"]),
        ({"guide": {"threshold": 0.9}, "task__codec": {"kind": "pixels", "clip": False}}, ["guide.threshold", "clip"]),
        ({"task": {"kind": "classifier", "num_classes": 10}, "guidance": 1, "guide": {"threshold": 0.9}}, ["leave guide out"]),
    ):  # fmt: skip
        cli("train", "--preset", tiny(**keys), "--run-dir", tmp_path / "run").refused(*words)


@pytest.mark.parametrize("dry", [True, False])
def test_training_refuses_a_guide_that_is_not_there(
    dry: bool, cli: Cli, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    """Before any file is made: the error would else come when the trained model is first sampled from."""
    (tmp_path / "empty").mkdir()
    for key in ("weaker", "classifier"):
        for name, words in (("nowhere", "no such checkpoint"), ("empty", "no whole checkpoint")):
            preset = tiny(guidance=2, guide={key: str(tmp_path / name)})
            asked = ["train", "--preset", preset, "--run-dir", tmp_path / "new", "--device", "cpu"]
            outcome = cli(*asked, *(["--dry-run"] if dry else []))
            outcome.refused(f"guide.{key}: {tmp_path / name}: ", words, f"leave guide.{key} out")
            assert not outcome.out
    assert not (tmp_path / "new").exists()


def test_a_run_remembers_where_its_guides_are_and_previews_without_them(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.parent)
    run = _train(
        tmp_path / "run",
        task__drop_condition=0,
        guide={"weaker": "run"},
        train__every={"log": 1, "preview": 4, "save": 0},
    )
    model = load_model(run, torch.device("cpu"))
    assert model.preset.guide.weaker == trained.parent / "run"
    assert model.preset.drawing.preview_guidance == 1
    assert list((run / "previews").glob("*.png"))

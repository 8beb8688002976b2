"""Text to image from the command line: trained on captions, resumed, drawn from prompts, with captions under the images."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.distributed import join
from diffcli.engine.draw.prompts import choose_prompts
from diffcli.engine.draw.sample import SampleOptions, load_model, request
from diffcli.engine.draw.sheets.arrangement import READABLE, captioned, columns_for, grid
from diffcli.engine.draw.sheets.lettering import MOST_LINES, lines
from diffcli.engine.options.prompt_files import read_prompts
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.train import train
from diffcli.noise import Noise
from diffcli.tasks.guide import Guide
from tests.conftest import Cli, changed
from tests.engine.one_level import SMALL

TEXT = {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 40}
CLASS = {"kind": "class", "num_classes": 10, "dim": 8}
CAPTIONS = {
    "templates": ["a handwritten {name}", "the digit {name}"],
    "names": [[f"word{i}", str(i)] for i in range(10)],
}
SPEAKING = {
    "data__captions": CAPTIONS,
    "task__conditioners": [TEXT],
    "task__network__middle": ["res", "cross_attention"],
}


def run_of(folder: Path, **keys: Any) -> Path:
    """A run of the tiny preset on digits with captions, four steps."""
    run = RunDir(folder / "run")
    run.claim()
    with join("cpu") as group:
        for _ in train(presets.build(changed(SMALL, **SPEAKING | keys), "tiny.yaml"), run, group):
            pass
    return run.path


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts. Do not change it."""
    return run_of(tmp_path_factory.mktemp("spoken"))


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts and classes. Do not change it."""
    return run_of(tmp_path_factory.mktemp("both"), task__conditioners=[CLASS, TEXT])


@pytest.fixture
def draw(cli: Cli, spoken: Path, tmp_path: Path) -> Callable[..., np.ndarray]:
    """Samples of the model of texts as uint8 (N, 8, 8)."""

    def run(*options: object, ckpt: Path = spoken) -> np.ndarray:
        done = cli("sample", "--ckpt", ckpt, "--out", tmp_path / "s.npz", *options)
        assert done.code == 0, done.err
        return np.load(tmp_path / "s.npz")["arr_0"][..., 0]

    return run


def sidecar(tmp_path: Path, name: str = "s.npz") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / f"{name}.json").read_text())
    return found


def test_a_run_on_captions_resumes_exactly_and_previews_those_of_the_data(
    cli: Cli, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    preset = tiny(**SPEAKING, train__every={"log": 1, "preview": 2, "save": 2})
    for name, steps in (("whole", 4), ("parts", 2)):
        done = cli("train", "--preset", preset, "--run-dir", tmp_path / name, "--steps", steps)
        assert done.code == 0, done.err
    resumed = cli("resume", tmp_path / "parts", "--steps", 4)
    assert resumed.code == 0, resumed.err
    for file in ("ema.safetensors", "task.safetensors", "optimizer.safetensors"):
        one, other = ((tmp_path / name / "checkpoints/step-00000004" / file) for name in ("whole", "parts"))
        assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "parts/previews/step-00000004.png").is_file()
    assert "FLOP" in cli("train", "--preset", preset, "--dry-run").out


def test_prompts_are_drawn_the_same_each_time_and_told_in_the_sidecar(
    draw: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    prompts = ["--prompt", "a handwritten word7", "--prompt", "七"]
    first = draw(*prompts)
    assert sidecar(tmp_path)["prompts"] == ["a handwritten word7", "七"]
    assert np.array_equal(first, draw(*prompts))
    assert first.shape == (2, 8, 8)


def test_another_prompt_is_another_image_and_prompts_cycle(draw: Callable[..., np.ndarray], tmp_path: Path) -> None:
    three = draw("--prompt", "the digit 1", "--prompt", "2", "--n", 3, "--guidance", 30)
    assert sidecar(tmp_path)["prompts"] == ["the digit 1", "2", "the digit 1"]
    assert not np.array_equal(three[1], draw("--prompt", "the digit 1", "--n", 2, "--guidance", 30)[1])


def test_an_image_depends_on_its_own_prompt_alone(draw: Callable[..., np.ndarray]) -> None:
    texts = ["a", "the digit 4, and so on", "", "五", "zzz"]
    whole = draw(*(part for text in texts for part in ("--prompt", text)), "--steps", 4).astype(int)
    for i, text in enumerate(texts):
        alone = draw("--prompt", text, "--seed", i, "--steps", 4).astype(int)
        assert np.abs(alone[0] - whole[i]).max() <= 1  # another batch size rounds otherwise
    split = draw(*(part for text in texts for part in ("--prompt", text)), "--steps", 4, "--batch-size", 2)
    assert np.abs(split - whole).max() <= 1


def test_prompts_are_read_from_a_file_after_those_of_the_flag(draw: Callable[..., np.ndarray], tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfthe digit 3\r\n\r\n  \n a\tseven \n\xe4\xb8\x83")
    assert len(draw("--prompt", "first", "--prompts", file)) == 4
    assert sidecar(tmp_path)["prompts"] == ["first", "the digit 3", "a seven", "七"]


def test_without_guidance_and_prompt_the_null_branch_draws(draw: Callable[..., np.ndarray], tmp_path: Path) -> None:
    null = draw("--guidance", 0, "--n", 2)
    assert sidecar(tmp_path)["prompts"] is None
    assert np.array_equal(null, draw("--guidance", 0, "--prompt", "whatever it says", "--n", 2))


def test_class_and_prompt_go_together_where_a_model_reads_both(
    draw: Callable[..., np.ndarray], both: Path, tmp_path: Path
) -> None:
    assert len(draw("--class", 3, "--prompt", "the digit 3", "--n", 2, ckpt=both)) == 2
    assert np.load(tmp_path / "s.npz")["arr_1"].tolist() == [3, 3]
    assert (sidecar(tmp_path)["labels"], sidecar(tmp_path)["prompts"]) == ([3, 3], ["the digit 3"] * 2)
    assert len(draw("--class", "all", "--prompt", "x", ckpt=both)) == 10
    many = [argument for i in range(12) for argument in ("--prompt", f"x {i}")]
    assert len(draw("--class", "all", *many, ckpt=both)) == 12  # no prompt is left out


def test_a_caption_says_both_prompt_and_class(both: Path) -> None:
    options = SampleOptions(n=2, labels="3", prompts=("one", "two"))
    assert request(load_model(both, torch.device("cpu")), options).captions() == ["one / 3", "two / 3"]


def test_one_prompt_holds_all_the_way_between_two_seeds(draw: Callable[..., np.ndarray]) -> None:
    way = draw("--prompt", "the digit 3", "--interpolate", 4).astype(int)
    ends = [draw("--prompt", "the digit 3", "--seed", seed).astype(int)[0] for seed in (0, 1)]
    assert np.abs(way[0] - ends[0]).max() <= 1
    assert np.abs(way[-1] - ends[1]).max() <= 1


def test_an_animation_shows_the_prompts(cli: Cli, spoken: Path, tmp_path: Path) -> None:
    done = cli("gif", "--ckpt", spoken, "--out", tmp_path / "s.gif", "--prompt", "one", "--prompt", "two")
    assert done.code == 0, done.err
    assert sidecar(tmp_path, "s.gif")["prompts"] == ["one", "two"]


def test_a_grid_with_captions_is_larger_and_shows_the_same_images(cli: Cli, both: Path, tmp_path: Path) -> None:
    sheets = []
    for flags in ([], ["--captions"], ["--no-captions"]):
        done = cli("sample", "--ckpt", both, "--out", tmp_path / "s.png", "--prompt", "a seven", "--n", 2, *flags)
        assert done.code == 0, done.err
        sheets.append(np.asarray(Image.open(tmp_path / "s.png")))
    plain, told, again = sheets
    assert np.array_equal(plain, again)
    assert told.shape[1] >= 2 * READABLE
    factor = READABLE // 8
    assert np.array_equal(told[2 : 2 + READABLE : factor, 2 : 2 + READABLE : factor], plain[2:10, 2:10])
    assert told[2 + READABLE :].max() == 255


def test_a_prompt_that_is_cut_is_told(cli: Cli, spoken: Path, tmp_path: Path) -> None:
    done = cli("sample", "--ckpt", spoken, "--out", tmp_path / "s.png", "--prompt", "digit " * 9)
    assert done.code == 0
    (note,) = [line for line in done.err.splitlines() if line.startswith("note:")]
    assert "55 tokens" in note
    assert "40" in note


def test_what_contradicts_the_prompts_is_refused(cli: Cli, spoken: Path, trained: Path, tmp_path: Path) -> None:
    out, text = ["--out", tmp_path / "s.png"], ["sample", "--ckpt", spoken]
    cli(*text, *out).refused("there is none", '--prompt "..."', "--guidance 0")
    cli(*text, *out, "--guidance", 0, "--captions").refused("--captions", "no prompt or class")
    cli(*text, *out, "--interpolate", 3, "--prompt", "a", "--prompt", "b").refused("--interpolate 3", "2 prompts")
    cli(*text, *out, "--prompt", "a", "--class", 3).refused("--class 3", "not class-conditional")
    cli("sample", "--ckpt", trained, *out, "--prompt", "a").refused("--prompt 'a'", "not trained on texts")
    cli(*text, "--out", tmp_path / "s.npz", "--prompt", "a", "--captions").refused("--captions", ".png")
    cli(*text, *out, "--prompts", tmp_path / "none.txt").refused("none.txt", "No such file")
    cli(*text, *out, "--prompts", tmp_path).refused("--prompts")
    for content, word in ((b"\n \n", "holds no prompt"), (b"\xff\xfea\x00", "not UTF-8")):
        (tmp_path / "p.txt").write_bytes(content)
        cli(*text, *out, "--prompts", tmp_path / "p.txt").refused("p.txt", word)
    assert not (tmp_path / "s.png").exists()


def test_a_weaker_model_reads_the_prompts_too_or_is_refused(
    cli: Cli, draw: Callable[..., np.ndarray], spoken: Path, tmp_path: Path
) -> None:
    prompt, early = ["--prompt", "the digit 3", "--guidance", 3], spoken / "checkpoints/step-00000002"
    assert not np.array_equal(draw(*prompt), draw(*prompt, "--set", f"guide.weaker={early}"))
    silent = {"task__conditioners": [], "task__drop_condition": 0.0, "guidance": 1, "task__network__middle": ["res"]}
    mute = run_of(tmp_path, **silent)
    refused = cli("sample", "--ckpt", spoken, *prompt, "--set", f"guide.weaker={mute}", "--out", tmp_path / "s.png")
    refused.refused("guide.weaker", "the conditions none", "text")


def test_a_negative_prompt_is_what_the_unconditional_branch_is_told(
    draw: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    """The null is a third point on the line through both branches only where nothing is said against it."""
    prompt = ["--prompt", "the digit 3", "--n", 2]
    against = draw(*prompt, "--guidance", 3, "--negative-prompt", "the digit 8")
    assert sidecar(tmp_path)["negative_prompt"] == "the digit 8"
    assert not np.array_equal(against, draw(*prompt, "--guidance", 3))
    assert sidecar(tmp_path)["negative_prompt"] is None
    alone = draw(*prompt, "--guidance", 0, "--negative-prompt", "the digit 8")
    assert np.array_equal(alone, draw("--prompt", "the digit 8", "--n", 2, "--guidance", 1))
    same = draw(*prompt, "--guidance", 3, "--negative-prompt", "the digit 3")
    assert np.array_equal(same, draw(*prompt, "--guidance", 1))  # led away from itself


def test_a_negative_prompt_that_nobody_hears_is_refused(cli: Cli, spoken: Path, trained: Path, tmp_path: Path) -> None:
    out, no = ["--out", tmp_path / "s.png"], ["--negative-prompt", "8"]
    cli("sample", "--ckpt", trained, *out, *no).refused("--negative-prompt '8'", "not trained on texts")
    text = ["sample", "--ckpt", spoken, *out, "--prompt", "3"]
    cli(*text, *no, "--guidance", 1).refused("--negative-prompt '8'", "--guidance above 1")
    weaker = f"guide.weaker={spoken / 'checkpoints/step-00000002'}"
    cli(*text, *no, "--guidance", 3, "--set", weaker).refused("--negative-prompt '8'", "guide.weaker")
    assert not (tmp_path / "s.png").exists()


def test_a_model_of_texts_is_not_exported_to_networks_that_read_none(cli: Cli, spoken: Path, tmp_path: Path) -> None:
    done = cli("export", "--ckpt", spoken, "--to", "diffusers", "--out", tmp_path / "out")
    done.refused("task.conditioners are text", "models without conditions")


def test_training_on_captions_needs_data_that_have_them(cli: Cli, tiny: Callable[..., Path], tmp_path: Path) -> None:
    preset = tiny(**SPEAKING | {"data__captions": None})
    cli("train", "--preset", preset, "--run-dir", tmp_path / "r").refused("text", "image, label", "data.captions")


@pytest.mark.parametrize(
    "guide",
    [Guide(interval=(0.1, 1)), Guide(rescale=0.5), Guide(weaker=Path("w"))],
    ids=["interval", "rescale", "weaker"],
)
def test_a_guide_that_looks_at_the_condition_needs_a_prompt_at_any_scale(spoken: Path, guide: Guide) -> None:
    model = load_model(spoken, torch.device("cpu"))
    assert choose_prompts(model, SampleOptions(), 0.0, Guide()) is None
    with pytest.raises(UserError, match="there is none"):
        choose_prompts(model, SampleOptions(), 0.0, guide)


def test_control_characters_in_a_prompt_are_spaces() -> None:
    assert read_prompts(["a\x00b\n c\x02", ""], None) == ("a b c", "")


def test_prompts_that_cycle_have_a_column_each() -> None:
    assert columns_for({"prompts": ["a", "b", "c"] * 2}) == 3
    assert columns_for({"prompts": ["a", "b", "c"]}) is None
    assert columns_for({"prompts": ["a"] * 4}) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_captions_stand_under_enlarged_images_in_lines_that_fit(channels: int) -> None:
    levels = (
        Noise([1, 2, 3], torch.device("cpu"))(torch.empty(3, channels, 28, 20)).mul(50).add(128).clamp(0, 254).byte()
    )
    told = captioned(levels, ["short", "word " * 60, "unbroken" * 30])
    factor = -(-READABLE // 20)
    assert torch.equal(told[:, :, : 28 * factor : factor, ::factor][:, :, :28], levels)
    strips = told[:, 0, 28 * factor :]
    assert told.shape == (3, channels, 28 * factor + 15 * MOST_LINES, 20 * factor)
    rows = [strip.amax(dim=1).view(MOST_LINES, 15).amax(dim=1) > 128 for strip in strips]
    assert [row.tolist() for row in rows] == [[True, False, False, False]] + [[True] * 4] * 2
    assert not strips[:, :, [0, -1]].any()  # nothing runs over the edge
    assert grid(told).shape[2] == channels


def test_a_word_of_ten_thousand_letters_is_broken_as_soon_as_no_more_shows() -> None:
    font = CountingFont()
    told = lines("a" * 10_000, READABLE, font)
    assert len(told) == MOST_LINES
    assert all(font.getlength(line) <= READABLE for line in told)
    assert font.measured < 1000 * READABLE  # letters; breaking all of it measures ten thousand times as many


class CountingFont(ImageFont.ImageFont):
    """A font of letters 6 pixels wide that counts those it has measured."""

    measured = 0

    def getlength(self, text: str | bytes, *args: object, **kwargs: object) -> float:
        self.measured += len(text)
        return 6.0 * len(text)

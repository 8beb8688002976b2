"""The Python face: light to import, the images of the command line, mistakes in its own words; its page runs as it stands."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffcli
from diffcli.config import UserError
from diffcli.facade import LoadedModel, Samples
from tests.conftest import ROOT, Cli, environment
from tests.engine.draw.making import encoding
from tests.engine.draw.pictured.small import picture, saved, upscaler
from tests.engine.score.making import FIRST_STAGE, save_run
from tests.test_layers import HEAVY

PAGE = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def drawn_as(path: Path) -> dict[str, Any]:
    """A record without what was typed, which from Python is nothing."""
    return {name: value for name, value in json.loads(path.read_text()).items() if name not in ("command", "folder")}


@pytest.fixture(scope="module")
def model(trained: Path) -> LoadedModel:
    return diffcli.load(trained, device="cpu")


def test_importing_it_imports_nothing_heavy() -> None:
    code = f"import sys, diffcli; print(*sorted(set(sys.modules) & {HEAVY!r})); print(*diffcli.__all__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.splitlines() == ["", "UserError __version__ load"]


def test_what_there_is_not_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'lood'"):
        diffcli.lood  # noqa: B018
    assert diffcli.UserError is UserError


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({"n": 5, "label": 7}, ["--n", 5, "--class", 7]),
        ({"n": 3, "label": "random", "seed": 9}, ["--n", 3, "--class", "random", "--seed", 9]),
        ({"label": "all", "sampler": "ddpm", "steps": 2}, ["--class", "all", "--sampler", "ddpm", "--steps", 2]),
        ({"n": 2, "eta": 0.5, "guidance": 1.0}, ["--n", 2, "--ddim-eta", 0.5, "--guidance", 1]),
        ({"interpolate": 3, "label": "4"}, ["--interpolate", 3, "--class", 4]),
        ({"n": 5, "batch_size": 2, "settings": ["sampler.steps=2"]},
         ["--n", 5, "--batch-size", 2, "--set", "sampler.steps=2"]),
    ],
    ids=["class", "random", "all", "eta", "interpolate", "settings"],
)  # fmt: skip
def test_images_and_record_are_those_of_the_command_line(
    model: LoadedModel, trained: Path, tmp_path: Path, cli: Cli, options: dict, flags: list
) -> None:
    done = cli("sample", "--ckpt", trained, "--device", "cpu", "--out", tmp_path / "s.npz", *flags)
    assert done.code == 0, done.err
    theirs = np.load(tmp_path / "s.npz")
    images = model.sample(**options)
    assert np.array_equal(images.numpy(), theirs["arr_0"])
    assert images.labels is not None
    assert images.labels.tolist() == theirs["arr_1"].tolist()
    assert images.record == drawn_as(next(tmp_path.glob("s*.json")))


def test_an_edit_is_that_of_the_command_line(model: LoadedModel, trained: Path, tmp_path: Path, cli: Cli) -> None:
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(tmp_path / "a.png")
    flags = ("--image", tmp_path / "a.png", "--strength", 0.5, "--class", 2, "--n", 2)
    assert cli("sample", "--ckpt", trained, "--device", "cpu", "--out", tmp_path / "s.npz", *flags).code == 0
    images = model.sample(n=2, label=2, image=str(tmp_path / "a.png"), strength=0.5)
    assert np.array_equal(images.numpy(), np.load(tmp_path / "s.npz")["arr_0"])


def test_classes_go_by_number_or_name_and_several_in_turn(model: LoadedModel) -> None:
    names = model.classes
    assert names is not None
    assert model.sample(labels=[names[3], 5]).labels.tolist() == [3, 5]
    assert model.sample(n=3, labels=[1, names[2]]).labels.tolist() == [1, 2, 1]
    one, other = model.sample(n=2, label=6), model.sample(n=2, label=names[6].upper())
    assert torch.equal(one.tensor, other.tensor)


def test_samples_come_in_every_form(model: LoadedModel, trained: Path, tmp_path: Path, cli: Cli) -> None:
    images = model.sample(n=20, steps=1)
    assert (len(images), images.tensor.dtype, tuple(images.tensor.shape)) == (20, torch.uint8, (20, 1, 8, 8))
    assert (images.numpy().shape, len(images.pil())) == ((20, 8, 8, 1), 20)
    assert np.array_equal(np.asarray(images[-1]), images.numpy()[19, ..., 0])
    flags = ("--n", 20, "--steps", 1, "--device", "cpu", "--out", tmp_path / "theirs.png")
    assert cli("sample", "--ckpt", trained, *flags).code == 0
    theirs = np.asarray(Image.open(tmp_path / "theirs.png"))
    assert np.array_equal(np.asarray(images.grid()), theirs)
    shown = Image.open(BytesIO(images._repr_png_()))
    assert (shown.format, np.array_equal(np.asarray(shown), theirs)) == ("PNG", True)
    assert images.grid(columns=2).size == (2 * 10 + 2, 10 * 10 + 2)
    saved = images.save(tmp_path / "ours.png")
    assert np.array_equal(np.asarray(Image.open(saved)), theirs)
    assert drawn_as(next(tmp_path.glob("ours*.json"))) == images.record
    assert np.array_equal(np.load(images.save(tmp_path / "ours.npz"))["arr_0"], images.numpy())
    assert len(list(images.save(tmp_path / "folder").glob("*.png"))) == 20
    assert "20 images of 1x8x8" in repr(images)
    assert "1x8x8" in repr(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": 99}, ["label 99", "0 to 9"]),
        ({"label": "elephant"}, ["label elephant", "no such class"]),
        ({"label": 1, "labels": [1]}, ["label and labels", "one of them"]),
        ({"n": 0}, ["n is 0"]),
        ({"steps": 2000}, ["steps 2000"]),
        ({"n": 2, "interpolate": 3, "label": 1}, ["n 2 with interpolate 3", "leave n out"]),
        ({"prompt": "a dog"}, ["prompt 'a dog'", "not trained on texts"]),
        ({"given": {"sketch": "a.png"}}, ["'sketch'", "does not read it"]),
        ({"mask": "m.png"}, ["mask m.png", "image"]),
        ({"image": "nowhere.png"}, ["image nowhere.png", "cannot be read"]),
        ({"settings": ["task.target=eps"]}, ["settings task.target=eps", "sampler.*"]),
    ],
)
def test_a_mistake_is_told_in_terms_of_parameters(model: LoadedModel, options: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        model.sample(**options)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "--" not in text
    assert caught.value.hint


def test_a_checkpoint_that_is_not_there_is_a_mistake_of_the_user(tmp_path: Path) -> None:
    for options in ({"path": tmp_path / "nowhere"}, {"path": tmp_path, "device": "cuda"}):
        with pytest.raises(UserError):
            diffcli.load(**options)


def test_clips_are_shown_as_rows_of_frames_and_saved_as_films(tmp_path: Path) -> None:
    record = {"checkpoint": "runs/clips", "version": "0", "n": 2, "clip": {"frames": 5, "fps": 8.0}}
    clips = Samples(torch.randint(0, 256, (2, 3, 5, 8, 6), dtype=torch.uint8), None, record)
    assert clips.numpy().shape == (2, 5, 8, 6, 3)
    for number, frame in enumerate(clips.frames(1)):
        assert np.array_equal(np.asarray(frame), clips.numpy()[1, number])
    assert clips[0].width > 5 * 6
    assert torch.equal(clips.pictures(), clips.tensor)
    clips.save(tmp_path / "clips")
    film = Image.open(tmp_path / "clips" / "000001.webp")
    assert film.n_frames == 5
    film.seek(3)
    assert np.array_equal(np.asarray(film.convert("RGB")), clips.numpy()[1, 3])
    still = Samples(clips.tensor[:, :, 0], None, {"checkpoint": "runs/images", "version": "0", "n": 2})
    with pytest.raises(UserError, match="runs/images draws still images"):
        still.save(tmp_path / "a.gif")


def test_threads_get_what_one_after_the_other_gets(model: LoadedModel) -> None:
    def images(seed: int) -> Samples:
        return model.sample(n=3, seed=seed, sampler="ddpm", steps=3)

    expected = [images(seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(expected, pool.map(images, range(8)), strict=True):
            assert torch.equal(one.tensor, other.tensor)


def test_a_cascade_from_python_is_that_of_the_command_line(
    model: LoadedModel, trained: Path, tmp_path: Path, cli: Cli
) -> None:
    up, out = saved(tmp_path / "up", upscaler()), tmp_path / "x.npz"
    assert cli("sample", "--ckpt", trained, "--then", up, "--n", 2, "--class", 1, "--out", out).code == 0
    for then in (up, [diffcli.load(up, device="cpu")]):
        drawn = model.sample(n=2, label=1, then=then)
        assert np.array_equal(drawn.numpy(), np.load(out)["arr_0"])
        assert drawn.labels is not None
        assert drawn.labels.tolist() == np.load(out)["arr_1"].tolist() == [1, 1]
        assert np.array_equal(drawn.stages[0].numpy(), np.load(tmp_path / "x.stage-1.npz")["arr_0"])
    assert drawn.record == drawn_as(Path(f"{out}.json"))
    with pytest.raises(UserError, match="conditioned on no picture"):
        model.sample(n=1, label=1, then=trained)


def test_pictures_are_given_by_the_name_of_their_field_or_as_image(tmp_path: Path) -> None:
    up = diffcli.load(saved(tmp_path / "up", upscaler(task__network__mult=[1, 2])), device="cpu")
    files = [picture(tmp_path / "in" / f"{i}.png", seed=i) for i in range(2)]
    levels = torch.from_numpy(np.stack([np.asarray(Image.open(file)) for file in files]))[:, None]
    expected = up.sample(low_res=levels).tensor
    assert expected.shape == (2, 1, 16, 16)
    for options in (
        {"image": tmp_path / "in"},
        {"image": files},
        {"low_res": tmp_path / "in"},
        {"given": {"low_res": files}},
    ):
        assert torch.equal(up.sample(**options).tensor, expected)
    picture(tmp_path / "in" / "2.png", 6)
    for options, words in (
        ({"low_ras": levels}, "low_ras is no parameter.*low_res"),
        ({"low_res": levels, "given": {"low_res": levels}}, "'low_res' is given twice"),
        ({"low_res": levels, "tile": 7}, "tile 7"),
        ({"image": tmp_path / "in"}, "several sizes"),
    ):
        with pytest.raises(UserError, match=f"(?s){words}") as caught:
            up.sample(**options)
        assert "--" not in str(caught.value)


def test_the_page_has_examples() -> None:
    assert len(BLOCKS) >= 8
    assert all(word in PAGE for word in ("label", "prompts", "given", "UserError", "save"))


def test_every_example_of_the_page_runs_as_it_stands(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(trained)
    save_run(tmp_path / "runs" / "mnist-vae", FIRST_STAGE)
    (tmp_path / "runs" / "digits-upscale").symlink_to(saved(tmp_path / "upscale", upscaler()))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for number, block in enumerate(BLOCKS):
        exec(compile(block, f"docs/python.md, block {number + 1}", "exec"), names)
    assert "no such class" in capsys.readouterr().out
    assert {"digits.png", "digits.npz", "digits"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize("kind", ["kl", "vq"])
def test_a_first_stage_encodes_and_decodes_what_it_reconstructs(kind: str) -> None:
    stage = LoadedModel(encoding(kind))
    images = torch.randint(0, 256, (5, 1, 8, 12), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    made, latents = stage.reconstruct(images, batch_size=2), stage.encode(images, batch_size=3)
    assert latents.shape == (5, 2, 2, 3)
    assert (stage.decode(latents).tensor.int() - made.tensor.int()).abs().max() <= 1
    assert made.record["latent"] == [2, 2, 3]
    both = stage.reconstruct(images, compare=True).tensor
    assert both[..., :12].equal(images)
    assert both[..., 12:].equal(made.tensor)
    assert stage.reconstruct(made).tensor.equal(stage.reconstruct(made.tensor).tensor)


def test_what_a_first_stage_cannot_take_is_refused(model: LoadedModel) -> None:
    stage, bytes_ = LoadedModel(encoding()), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="takes bytes"):
        stage.reconstruct(bytes_.float())
    with pytest.raises(UserError, match=r"2x3x8x8, but encoding takes bytes of \(K, 1, H, W\)"):
        stage.encode(bytes_.expand(2, 3, 8, 8))
    with pytest.raises(UserError, match="which its downscale 4 does not divide"):
        stage.encode(bytes_[:, :, :6])
    with pytest.raises(UserError, match="size is 16: images in a tensor"):
        stage.encode(bytes_, size=16)
    with pytest.raises(UserError, match=r"size is \(8,\)"):
        stage.reconstruct("a.png", size=(8,))  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"use size=\(8, 8\)"):
        stage.reconstruct("a.png", size=(6, 8))
    with pytest.raises(UserError, match="compare is 1: must be True or False"):
        stage.reconstruct(bytes_, compare=1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="the latents are"):
        stage.decode(torch.zeros(2, 3, 2, 2))
    with pytest.raises(UserError, match="not finite"):
        stage.decode(torch.full((1, 2, 2, 2), torch.nan))
    with pytest.raises(UserError, match="not as an autoencoder"):
        model.encode(bytes_)
    with pytest.raises(UserError, match="is a first stage"):
        stage.sample(given={"mask": bytes_})

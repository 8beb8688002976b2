"""Arguments from Python: what is taken in which form, and that every other is one error in the words of Python."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import diffcli
from diffcli.config import UserError
from diffcli.engine.arguments import SAMPLE, in_python, pictures, settings_of
from diffcli.facade import LoadedModel, Samples

FOREIGN = re.compile(r"--[a-z]|Input should|pydantic|valid (integer|number|tuple|string)")
GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


@pytest.fixture(scope="module")
def model(trained: Path) -> LoadedModel:
    return diffcli.load(trained, device="cpu")


def refused(call: Any, *words: str) -> UserError:
    with pytest.raises(UserError) as caught:
        call()
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert caught.value.hint
    assert not FOREIGN.search(text), text
    return caught.value


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 0, "image": GREY}, ["strength is 0: must be above 0"]),
        ({"strength": 2, "image": GREY}, ["strength is 2: must be at most 1"]),
        ({"interpolate": 1, "label": 1}, ["interpolate is 1: must be at least 2"]),
        ({"n": 0}, ["n is 0: must be at least 1"]),
        ({"n": True}, ["n is True: must be a whole number"]),
        ({"n": 2.5}, ["n is 2.5: must be a whole number"]),
        ({"n": "many"}, ["n is 'many': must be a whole number"]),
        ({"seed": -1}, ["seed is -1: must be at least 0"]),
        ({"guidance": float("nan")}, ["guidance is nan: must be a finite number"]),
        ({"eta": 2}, ["eta is 2: must be at most 1"]),
        ({"label": True}, ["label is True: must be the number or the name"]),
        ({"label": 1.5}, ["label is 1.5: must be the number or the name"]),
        ({"labels": [1, False]}, ["label is (1, False): must be the number"]),
        ({"labels": []}, ["labels is empty"]),
        ({"labels": "cat"}, ["labels is 'cat': must be a list", "labels=['cat']"]),
        ({"label": ["all"]}, ["label all among several", "give all alone"]),
        ({"prompts": "a dog"}, ["prompts is 'a dog': must be a list"]),
        ({"prompt": 3}, ["prompt is 3: must be a text"]),
        ({"sampler": 3}, ["sampler is 3: must be a text"]),
        ({"image": []}, ["image is empty"]),
        ({"image": 3}, ["image is 3: is no picture", "a Pillow image"]),
        ({"image": GREY.astype(np.float32)}, ["an array of float32 and shape (8, 8)", "uint8"]),
        ({"image": torch.zeros(5, 8, 8, dtype=torch.uint8)}, ["a tensor of torch.uint8 and shape (5, 8, 8)"]),
        ({"image": GREY, "mask": [GREY, GREY]}, ["mask holds 2 pictures"]),
        ({"given": 3}, ["given is 3: must be a dict"]),
        ({"given": {"label": [1, 2]}}, ["'label' is given, which is of kind classes", "say it with label"]),
        ({"given": {"label": torch.ones(1)}}, ["'label' is given", "say it with label"]),
        ({"settings": "sampler.steps=2"}, ["settings is 'sampler.steps=2'", 'settings={"sampler.steps": 20}']),
        ({"settings": [3]}, ["settings holds 3"]),
        ({"settings": 3}, ["settings is 3"]),
        ({"settings": {"sampler.steps": 0}}, ["sampler.steps is 0: must be at least 1", 'settings=["sampler.steps=']),
        ({"settings": {"sampler.steps": object()}}, ["which no preset can hold"]),
    ],
)
def test_what_does_not_fit_is_one_error_in_the_words_of_python(
    model: LoadedModel, options: dict[str, Any], words: list[str]
) -> None:
    refused(lambda: model.sample(**options), *words)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"path": 3}, ["path is 3: must be a path"]),
        ({"path": None}, ["path is None: must be a path"]),
        ({"device": "tpu"}, ["device tpu: no such device", "auto, cpu, cuda, mps"]),
        ({"device": "cuda:7"}, ["device cuda:7: no such device", "CUDA_VISIBLE_DEVICES"]),
        ({"ema": "no"}, ["ema is 'no': must be True or False"]),
        ({"precision": 3}, ["precision 3: no such precision"]),
        ({"settings": "a=1"}, ["settings is 'a=1'"]),
    ],
)
def test_what_cannot_be_loaded_is_one_error(trained: Path, options: dict[str, Any], words: list[str]) -> None:
    refused(lambda: diffcli.load(**{"path": trained, "device": "cpu"} | options), *words)


def test_a_grid_has_a_column_and_a_file_has_a_path() -> None:
    samples = Samples(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None, {"checkpoint": "runs/a"})
    for columns in (0, True, 1.5):
        refused(lambda columns=columns: samples.grid(columns=columns), f"columns is {columns!r}")
    refused(lambda: samples.save(None), "path is None: must be a path")  # type: ignore[arg-type]


def test_a_picture_in_memory_is_the_picture_of_a_file(model: LoadedModel, tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "a.png")
    forms = [Image.fromarray(GREY), GREY, GREY[..., None], GREY[None, ..., None], torch.from_numpy(GREY)[None]]
    expected = model.sample(n=1, label=2, image=tmp_path / "a.png", steps=2).tensor
    for form in forms:
        images = model.sample(n=1, label=2, image=form, steps=2)
        assert torch.equal(images.tensor, expected)
    assert set(images.record["images"][0]) == {"picture", "sha256"}
    assert len({model.sample(n=1, image=f, steps=1).record["images"][0]["sha256"] for f in (GREY, GREY + 1)}) == 2


def test_a_batch_of_pictures_is_as_many_pictures() -> None:
    assert len(pictures("image", np.stack([GREY, GREY])[..., None])) == 2
    assert len(pictures("image", torch.from_numpy(GREY).expand(3, 1, 8, 8))) == 3
    assert [str(each) for each in pictures("image", ["a.png", GREY])] == ["a.png", "(a picture of 8x8)"]


def test_settings_may_be_a_dict(model: LoadedModel) -> None:
    listed = model.sample(n=2, sampler="ddpm", steps=2, settings=["sampler.variance=large"])
    given = model.sample(n=2, sampler="ddpm", steps=2, settings={"sampler.variance": "large"})
    assert torch.equal(listed.tensor, given.tensor)
    assert given.record["sampler"]["variance"] == "large"
    assert settings_of({"a": None, "b": 1e-5, "c": Path("x")}) == ("a=null", "b=1e-05", 'c="x"')


def test_labels_may_be_numbers_of_an_array(model: LoadedModel) -> None:
    for labels in (np.array([3, 5]), torch.tensor([3, 5])):
        assert model.sample(labels=labels, steps=1).labels.tolist() == [3, 5]  # type: ignore[union-attr, arg-type]


def test_only_flags_of_the_call_become_parameters() -> None:
    text = "use `diffcli fid --features RUN --n 3`, --preset clip-prior or --guidance 1"
    assert in_python(text, SAMPLE, hint=True) == text.replace("--guidance 1", "guidance=1")
    assert in_python("leave --ddim-eta out", SAMPLE, hint=True) == "leave eta out"
    assert in_python("--class 99: no", SAMPLE) == "label 99: no"
    assert in_python("use --sampler ddim --ddim-eta 0", SAMPLE, hint=True) == 'use sampler="ddim" eta=0'
    assert in_python("type --set sampler.steps=4", SAMPLE, hint=True) == 'type settings=["sampler.steps=4"]'

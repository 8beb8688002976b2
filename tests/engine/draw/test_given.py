"""Conditions that are given as they are: picture files in the model's shape, arrays, and the images of an earlier stage."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffcli.config import Note, UserError
from diffcli.data.pixels import fit
from diffcli.digest import sha256
from diffcli.engine.distributed import Group
from diffcli.engine.draw.conditions import blanks
from diffcli.engine.draw.given import Given, Value, from_files, from_stage
from diffcli.engine.draw.pictured.unfolding import unfolded
from diffcli.engine.draw.sample import Model, SampleOptions, draw, request
from diffcli.facade import LoadedModel
from diffcli.fields import FieldSpec, to_float
from tests.engine.draw.making import FREE, made, pictured

ALONE = Group(0, 1, torch.device("cpu"))
LOW_RES = FieldSpec("image", (1, 4, 4))
MASK = FieldSpec("mask", (1, None, None), 3)


def picture(path: Path, size: tuple[int, int] = (4, 4), seed: int = 0, highest: int = 255, channels: int = 1) -> Path:
    shape = (size[1], size[0]) if channels == 1 else (size[1], size[0], channels)
    Image.fromarray(np.random.default_rng(seed).integers(0, highest + 1, shape, dtype=np.uint8)).save(path)
    return path


def images(model: Model, values: dict[str, Value], **options: Any) -> Tensor:
    req = request(model, SampleOptions(**{"steps": 2, **options}), given=values)
    return torch.cat([part.images for part in draw(req, ALONE)])


def test_files_arrive_as_levels_in_the_models_shape_one_image_of_each(tmp_path: Path) -> None:
    model, conditioner = pictured("low_res", LOW_RES)
    files = [picture(tmp_path / "a.png"), picture(tmp_path / "b.png", size=(12, 8), seed=1, channels=3)]
    value = from_files(model, "low_res", files)
    drawn = images(model, {"low_res": value})
    assert len(drawn) == 2
    shape = model.preset.data.shape._replace(height=4, width=4)
    expected = torch.from_numpy(np.stack([fit(Image.open(file), shape) for file in files]))
    assert torch.equal(conditioner.seen[0], to_float(expected))
    assert not torch.equal(drawn, images(model, {"low_res": Value(expected.flip(0), "")})), "the condition says nothing"
    described = request(model, SampleOptions(), given={"low_res": value}).describe()
    origins = [{"file": str(file), "sha256": sha256(file)} for file in files]
    assert json.loads(json.dumps(described["given"])) == {"low_res": origins}


@pytest.mark.parametrize(("derived", "noted"), [("edges", True), ("sketch", False)])
def test_dark_lines_on_white_are_noted_where_edges_were_learned_and_taken_as_they_are(
    derived: str, noted: bool, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model, _ = pictured("lines", FieldSpec("image", (1, 8, 8)), data__derived=[{"kind": derived, "field": "lines"}])
    drawing = np.full((8, 8), 255, np.uint8)
    drawing[3] = 0
    for levels, name in [(drawing, "dark.png"), (255 - drawing, "light.png")]:
        Image.fromarray(levels).save(tmp_path / name)
        assert torch.equal(from_files(model, "lines", [tmp_path / name]).rows[0], torch.from_numpy(levels)[None])
    said = [str(each.message) for each in recwarn if issubclass(each.category, Note)]
    assert len(said) == noted
    assert all("dark.png" in each and "ImageOps.invert" in each for each in said), said


def test_an_image_depends_on_its_own_row_and_seed_alone(tmp_path: Path) -> None:
    model, _ = pictured("low_res", LOW_RES)
    rows = torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    seven = images(model, {"low_res": Value(rows, "")}, n=7, sampler="ddpm")
    split = images(model, {"low_res": Value(rows, "")}, n=7, sampler="ddpm", batch_size=2)
    assert (seven.int() - split.int()).abs().max() <= 1
    alone = images(model, {"low_res": Value(rows[4 % 3 : 4 % 3 + 1], "")}, n=1, sampler="ddpm", seed=4)
    assert (alone.int() - seven[4:5].int()).abs().max() <= 1


def test_masks_arrive_as_class_numbers_and_take_the_size_of_the_images(tmp_path: Path) -> None:
    model, conditioner = pictured("mask", MASK)
    file = picture(tmp_path / "mask.png", size=(8, 8), highest=2)
    images(model, {"mask": from_files(model, "mask", [file])}, n=2)
    seen = conditioner.seen[0]
    assert (seen.dtype, tuple(seen.shape)) == (torch.int64, (2, 1, 8, 8))
    assert torch.equal(seen[1, 0], torch.from_numpy(np.asarray(Image.open(file)).astype(np.int64)))
    large = picture(tmp_path / "large.png", size=(24, 24), highest=2)
    images(model, {"mask": from_files(model, "mask", [large])}, n=1)
    nearest = np.asarray(Image.open(large).resize((8, 8), Image.Resampling.NEAREST))
    assert torch.equal(conditioner.seen[-1][0, 0], torch.from_numpy(nearest.astype(np.int64)))
    too_many = picture(tmp_path / "many.png", size=(8, 8), highest=255)
    with pytest.raises(UserError, match=r"holds the class 2\d\d, but the classes that the model knows are 0 to 2"):
        images(model, {"mask": from_files(model, "mask", [too_many])})


def test_a_mask_of_two_classes_may_be_black_and_white(tmp_path: Path) -> None:
    model, conditioner = pictured("mask", MASK._replace(classes=2))
    levels = np.zeros((8, 8), np.uint8)
    levels[:, 5:] = 255
    Image.fromarray(levels).save(tmp_path / "mask.png")
    images(model, {"mask": from_files(model, "mask", [tmp_path / "mask.png"])}, n=1)
    assert torch.equal(conditioner.seen[0][0, 0], torch.from_numpy(levels // 255).long())


def test_a_mask_in_a_palette_holds_the_numbers_of_its_entries_and_one_in_colours_is_refused(tmp_path: Path) -> None:
    """As where a set is prepared: the brightness of an entry is no class."""
    model, conditioner = pictured("mask", MASK)
    numbers = np.arange(64, dtype=np.uint8).reshape(8, 8) % 3
    drawn = Image.fromarray(numbers)
    drawn.putpalette([200, 0, 0, 0, 90, 0, 0, 0, 250])
    (tmp_path / "in").mkdir()
    drawn.save(tmp_path / "in" / "mask.png")
    (folder,) = unfolded(SampleOptions(fields=(("mask", (tmp_path / "in",)),))).fields
    for paths in ([tmp_path / "in" / "mask.png"], folder[1]):
        images(model, {"mask": from_files(model, "mask", paths)}, n=1)
        assert torch.equal(conditioner.seen[-1][0, 0], torch.from_numpy(numbers.astype(np.int64)))
    drawn.convert("RGB").save(tmp_path / "colours.png")
    with pytest.raises(UserError, match=r"--field mask .*colours.png: a mask in colour") as caught:
        from_files(model, "mask", [tmp_path / "colours.png"], flag="--field mask")
    assert caught.value.hint


@pytest.mark.parametrize(
    ("kind", "rows", "problem"),
    [
        ("image", torch.full((1, 1, 4, 4), 200), "numbers of torch.int64"),
        ("image", torch.full((1, 1, 4, 4), 1.5), r"outside of \[-1, 1\]"),
        ("image", torch.full((1, 1, 4, 4), torch.nan), r"outside of \[-1, 1\]"),
        ("image", torch.zeros(1, 1, 0, 4), "in the shape 1x0x4"),
        ("mask", torch.full((1, 1, 4, 4), -1), "the class -1"),
        ("mask", torch.full((1, 1, 4, 4), 0.5), "a mask of torch.float32"),
    ],
)
def test_arrays_that_are_no_picture_and_no_mask_are_refused(kind: str, rows: Tensor, problem: str) -> None:
    spec = MASK if kind == "mask" else FieldSpec("image", (1, None, None))
    model, _ = pictured("told", spec)
    with pytest.raises(UserError, match=problem) as caught:
        images(model, {"told": Value(rows, "")})
    assert caught.value.hint.startswith("give ")


def test_the_images_of_one_stage_are_the_condition_of_the_next() -> None:
    first = LoadedModel(made(**FREE))
    second, conditioner = pictured("low_res", FieldSpec("image", (1, 8, 8)))
    low = first.sample(n=3, steps=2, seed=5)
    large = LoadedModel(second).sample(steps=2, given={"low_res": low})
    assert len(large) == 3
    assert torch.equal(conditioner.seen[0], to_float(low.tensor))
    assert torch.equal(large.tensor, images(second, {"low_res": Value(low.tensor, "")}))
    assert large.record["given"] == {"low_res": {"stage": low.record}}
    assert from_stage(second, low.tensor, low.record).keys() == {"low_res"}


def test_python_takes_files_and_tensors(tmp_path: Path) -> None:
    model, _ = pictured("low_res", LOW_RES)
    file = picture(tmp_path / "a.png")
    face = LoadedModel(model)
    from_file = face.sample(n=2, steps=2, given={"low_res": str(file)})
    levels = torch.from_numpy(np.asarray(Image.open(file)).copy())[None, None]
    assert torch.equal(from_file.tensor, face.sample(n=2, steps=2, given={"low_res": levels}).tensor)
    assert from_file.record["given"]["low_res"][0]["file"] == str(file)
    assert len(face.sample(steps=2, given={"low_res": [file, file, file]})) == 3


def test_without_its_condition_a_model_draws_its_unconditional_branch_or_nothing() -> None:
    model, _ = pictured("low_res", LOW_RES)
    with pytest.raises(UserError, match="'low_res'") as caught:
        images(model, {})
    assert "--guidance 0" in caught.value.hint
    blank = blanks(model, [], null_alone=True)
    assert [each.specs for each in blank] == [{"low_res": LOW_RES}]
    assert blanks(model, [Given({"low_res": LOW_RES}, {})], null_alone=False) == []


@pytest.mark.parametrize(
    ("field", "rows", "words"),
    [
        ("low_res", torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "shape 1x8x8, but made reads 1x4x4"),
        ("low_res", torch.zeros(2, 3, 4, 4, dtype=torch.uint8), "shape 3x4x4, but made reads 1x4x4"),
        ("low_ras", torch.zeros(2, 1, 4, 4, dtype=torch.uint8), "'low_ras' is given, but made does not read it"),
    ],
)
def test_what_does_not_fit_is_refused(field: str, rows: Tensor, words: str) -> None:
    model, _ = pictured("low_res", LOW_RES)
    with pytest.raises(UserError, match=words):
        images(model, {field: Value(rows, "")})


def test_files_that_are_no_pictures_and_fields_of_other_kinds_are_refused(tmp_path: Path) -> None:
    model, _ = pictured("low_res", LOW_RES)
    (tmp_path / "a.png").write_text("no picture")
    for path, words in ((tmp_path / "a.png", "'low_res'.*a.png"), (tmp_path / "b.png", "cannot be read")):
        with pytest.raises(UserError, match=words):
            from_files(model, "low_res", [path])
    vector, _ = pictured("clip_image", FieldSpec("vector", (4,)))
    with pytest.raises(UserError, match="of kind vector, which is not read from files"):
        from_files(vector, "clip_image", [picture(tmp_path / "c.png")])
    text, _ = pictured("text", FieldSpec("text", (1,)))
    with pytest.raises(UserError, match="of kind text") as caught:
        from_files(text, "text", [tmp_path / "c.png"])
    assert "--prompt" in caught.value.hint


def test_a_stage_that_fits_nowhere_or_in_two_places_is_refused() -> None:
    levels = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="no condition that is an image"):
        from_stage(made(**FREE), levels, {})
    model, _ = pictured("low_res", LOW_RES)
    model.task.conditioners.append(pictured("sketch", LOW_RES)[1])  # type: ignore[union-attr, operator]
    with pytest.raises(UserError, match="several conditions that are images: low_res, sketch"):
        from_stage(model, levels, {})
    assert from_stage(model, levels, {}, "sketch").keys() == {"sketch"}


def test_a_condition_must_not_change_on_the_way_between_two_seeds() -> None:
    model, _ = pictured("low_res", LOW_RES)
    rows = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    with pytest.raises(UserError, match="--interpolate 3 with 2 of 'low_res'"):
        images(model, {"low_res": Value(rows, "")}, interpolate=3)
    assert len(images(model, {"low_res": Value(rows[:1], "")}, interpolate=3)) == 3


def test_what_is_random_about_a_condition_stays_on_the_way_between_two_seeds() -> None:
    model = made(**FREE)
    assert request(model, SampleOptions(n=3, seed=8)).batch(range(1, 3))["stream"].tolist() == [9, 10]
    assert request(model, SampleOptions(interpolate=3, seed=8)).batch(range(1, 3))["stream"].tolist() == [8, 8]

"""Fields: what follows from a kind alone, and the one error where what is read is not what there is."""

import json
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffcli.config import UserError
from diffcli.fields import (
    FieldKind,
    FieldSpec,
    Remedies,
    check_classes,
    check_fields,
    converted,
    from_record,
    mirrored,
    misfit,
    stub,
    to_float,
    to_levels,
    to_record,
    whole,
)

SPECS: dict[FieldKind, FieldSpec] = {
    "image": FieldSpec("image", (3, 4, 5)),
    "clip": FieldSpec("clip", (1, 2, 4, 5)),
    "mask": FieldSpec("mask", (1, 4, 5), 3),
    "classes": FieldSpec("classes", (), ("cat", "dog")),
    "vector": FieldSpec("vector", (7,)),
    "tokens": FieldSpec("tokens", (None, 7)),
    "text": FieldSpec("text"),
    "number": FieldSpec("number"),
    "latent": FieldSpec("latent", (8, 2, 3)),
}
LEVELS = torch.arange(256, dtype=torch.uint8)
every_kind = pytest.mark.parametrize("kind", get_args(FieldKind))


def numbers(*shape: int) -> torch.Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).view(shape)


def test_every_level_comes_back_from_the_interval():
    values = to_float(LEVELS)
    assert (values.min(), values.max(), values.dtype) == (-1, 1, torch.float32)
    assert torch.equal(to_levels(values), LEVELS)


@given(st.floats(-3, 3), st.integers(0, 255))
def test_a_value_becomes_the_nearest_level(value: float, other: int):
    level = int(to_levels(torch.tensor(value)))
    assert abs((value + 1) * 127.5 - level) <= abs((value + 1) * 127.5 - other) + 1e-4


@pytest.mark.parametrize("kind", ["image", "clip"])
def test_bytes_of_pictures_become_the_interval_and_other_numbers_stay(kind: FieldKind):
    assert torch.equal(converted(LEVELS, SPECS[kind]), to_float(LEVELS))
    floats = numbers(2, 3)
    assert converted(floats, SPECS[kind]) is floats


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9))
def test_a_size_fits_if_the_factor_divides_it_and_else_the_nearest_that_does_is_named(h: int, w: int, factor: int):
    found = misfit((h, w), factor, "the downscale")
    assert (found is None) == (h % factor == w % factor == 0)
    if found is not None:
        assert misfit(found[1], factor, "the downscale") is None
        assert all(2 * abs(a - b) <= factor or b == factor for a, b in zip((h, w), found[1], strict=True))


def test_a_mask_keeps_its_class_numbers():
    found = converted(torch.tensor([[[[0, 1, 2, 255]]]], dtype=torch.uint8), SPECS["mask"])
    assert found.dtype == torch.int64
    assert found.flatten().tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize("kind", ["vector", "tokens", "number"])
def test_bytes_of_anything_else_are_no_levels(kind: FieldKind):
    assert converted(LEVELS, SPECS[kind]) is LEVELS


def test_texts_pass_as_they_are():
    texts = ["a", "b"]
    assert converted(texts, SPECS["text"]) is texts
    assert mirrored(texts, SPECS["text"], torch.tensor([True, False])) is texts


@every_kind
def test_what_has_sides_is_mirrored_along_its_last_axis_whatever_its_other_axes(kind: FieldKind):
    sided = kind in ("image", "clip", "mask")
    for ndim in (2, 3, 4, 5):  # four axes alone make no picture
        value = numbers(2, *[3] * (ndim - 1))
        found = mirrored(value, SPECS[kind], torch.tensor([True, False]))
        assert torch.equal(found[0], value[0].flip(-1) if sided else value[0])
        assert torch.equal(found[1], value[1])


@every_kind
def test_a_stub_has_the_shape_of_its_spec_and_needs_no_conversion(kind: FieldKind):
    spec, value = SPECS[kind], stub(SPECS[kind], 3, "cpu")
    assert len(value) == 3
    if isinstance(value, list):
        assert value == ["", "", ""]
        return
    assert value.shape[1:] == tuple(side or 1 for side in spec.shape)
    assert converted(value, spec).dtype == value.dtype
    assert value.dtype == (torch.int64 if kind in ("mask", "classes") else torch.float32)
    assert not value.any()


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (FieldSpec("mask", (1, None, None)), (1, 4, 6)),
        (FieldSpec("image", (None, None, 9)), (1, 4, 9)),
        (FieldSpec("clip", (3, None, None, None)), (3, 1, 4, 6)),
        (FieldSpec("tokens", (None, 7)), (77, 7)),
        (FieldSpec("vector", (None,)), (1,)),
        (FieldSpec("text"), ()),
    ],
)
def test_unknown_axes_take_the_size_of_images_where_the_field_lies_over_them(spec: FieldSpec, shape: tuple[int, ...]):
    assert whole(spec, (4, 6)) == spec._replace(shape=shape)


@every_kind
def test_a_stub_on_the_meta_device_has_no_values(kind: FieldKind):
    value = stub(SPECS[kind], 2, "meta")
    assert isinstance(value, list) or value.is_meta


@every_kind
def test_a_spec_is_the_same_after_a_record_of_json(kind: FieldKind):
    specs = {"a": SPECS[kind], "b": FieldSpec("mask", (1, None, None))}
    assert from_record(json.loads(json.dumps(to_record(specs)))) == specs


@every_kind
def test_data_that_have_what_is_read_pass(kind: FieldKind):
    check_fields({"x": SPECS[kind]}, {"x": SPECS[kind], "more": SPECS["text"]}, "task")


def test_what_is_not_known_fits():
    check_fields({"x": FieldSpec("tokens", (None, 7))}, {"x": FieldSpec("tokens", (77, 7))}, "task")
    check_fields({"x": FieldSpec("vector", (7,))}, {"x": FieldSpec("vector", (None,))}, "task")
    check_fields({"x": FieldSpec("vector", (7,))}, {"x": FieldSpec("vector")}, "task")
    check_fields({"x": FieldSpec("classes", (), 2)}, {"x": FieldSpec("classes")}, "task")
    check_fields({"x": FieldSpec("classes", (), 12)}, {"x": FieldSpec("classes", (), ("a", "b"))}, "task")


@pytest.mark.parametrize(
    ("wanted", "found", "words", "hint"),
    [
        (SPECS["text"], None, ["only: image, label"], "lacking"),
        (SPECS["text"], SPECS["classes"], ["as text", "of kind classes"], "kind classes"),
        (SPECS["mask"], SPECS["image"], ["as mask", "of kind image"], "kind image"),
        (SPECS["image"], FieldSpec("image", (1, 4, 5)), ["3x4x5", "1x4x5"], "shape 1x4x5"),
        (SPECS["image"], FieldSpec("image", (3, None, 6)), ["3x4x5", "3x?x6"], "shape 3x?x6"),
        (SPECS["clip"], FieldSpec("clip", (2, 4, 5)), ["1x2x4x5", "2x4x5"], "shape 2x4x5"),
        (SPECS["vector"], FieldSpec("vector", (9,)), ["7 wide", "9 wide"], "shape 9"),
        (SPECS["tokens"], FieldSpec("tokens", (77, 9)), ["7 wide", "9 wide"], "shape 9"),
        (SPECS["vector"], SPECS["tokens"], ["as vector", "of kind tokens"], "kind tokens"),
        (SPECS["classes"], FieldSpec("classes", (), 3), ["knows 2 classes", "has 3"], "classes 3"),
        (SPECS["mask"], FieldSpec("mask", (1, 4, 5), ("a", "b", "c", "d")), ["knows 3 classes", "has 4"], "classes 4"),
    ],
)
def test_what_does_not_fit_is_one_error_that_names_reader_field_finding_and_remedy(wanted, found, words, hint):
    has = {"image": SPECS["image"], "label": SPECS["classes"]} | ({} if found is None else {"x": found})
    remedies = Remedies("lacking", "kind {found}", "shape {found}", "classes {found}")
    with pytest.raises(UserError) as caught:
        check_fields({"x": wanted}, has, "task.conditioners.0 (text)", {"x": remedies})
    for word in ["task.conditioners.0 (text)", "'x'", *words]:
        assert word in caught.value.problem
    assert caught.value.hint == hint


def test_without_remedies_there_still_is_a_hint():
    with pytest.raises(UserError, match="hint: choose data that have it"):
        check_fields({"x": SPECS["text"]}, {}, "task")


@pytest.mark.parametrize("number", [-1, 3, 4711])
def test_a_number_that_is_none_of_the_classes_is_named_with_its_range(number: int):
    with pytest.raises(
        UserError, match=rf"--class holds the class {number}, outside of 0 to 2\nhint: use classes from 0 to 2"
    ):
        check_classes(torch.tensor([0, number, 2]), SPECS["mask"], "--class")


def test_numbers_of_unknown_classes_and_none_at_all_pass():
    check_classes(torch.tensor([0, 4711]), FieldSpec("classes"), "--class")
    check_classes(torch.tensor([], dtype=torch.int64), SPECS["classes"], "--class")


@pytest.mark.parametrize(
    "record", [{"x": {"kind": "picture"}}, {"x": 3}, [], {"x": {"kind": "image", "shape": "3x8x8"}}]
)
def test_a_garbled_record_is_a_value_error(record):
    with pytest.raises(ValueError, match="validation error"):
        from_record(record)

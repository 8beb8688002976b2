"""A mixture reads one part a batch, chosen by seed and step alone, and images of it are clips of one frame."""

from pathlib import Path

import pytest
import torch
from pydantic import TypeAdapter, ValidationError

from diffcli.config import UserError
from diffcli.data.datasets import AnyData, Mix, at_root
from diffcli.data.description import describe
from diffcli.data.loader import batches
from diffcli.data.order import BLOCK, IndexOrder, MixOrder, epoch_size
from tests.data import making
from tests.data.clips import filming

CPU = torch.device("cpu")
DIGITS = {"kind": "digits"}
MOVING = {"kind": "moving_digits", "frames": 3}


def mix(*parts: dict, **keys: object) -> Mix:
    return Mix.model_validate({"kind": "mix", "size": 28, "channels": 1, "parts": parts, **keys})


PHASES = mix({"data": DIGITS, "last": 4}, {"data": DIGITS, "first": 5}, {"data": MOVING, "first": 5, "weight": 2})


def steps(config: Mix, first: int = 0, last: int = 12, **how: int) -> list[dict]:
    found = batches(
        config.build("train"), batch_size=6, seed=1, first=first, last=last, flip=config.flip, device=CPU, **how
    )
    return [batch for _, batch in found]


def order(config: Mix, seed: int = 1, batch_size: int = 6) -> MixOrder:
    return MixOrder(seed, config.build("train").parts, batch_size)


def test_images_come_as_clips_of_one_frame_whose_rate_is_0():
    found = steps(PHASES)
    assert [batch["clip"].shape[2] for batch in found[:4]] == [1] * 4
    assert {batch["clip"].shape[2] for batch in found[4:]} == {1, 3}
    assert {name: value.shape for name, value in found[0].items() if name in ("clip", "fps", "label")} == {
        "clip": (6, 1, 1, 28, 28),
        "fps": (6,),
        "label": (6,),
    }
    assert all((batch["fps"] == (0 if batch["clip"].shape[2] == 1 else 10)).all() for batch in found)


def test_a_batch_is_the_next_one_of_its_part_in_the_order_of_that_part():
    mixed = order(PHASES)
    seen = [0, 0, 0]
    for step in range(40):
        part, before = mixed.place(step)
        assert before == seen[part]
        rows = mixed.rows(6 * step, 6 * step + 6)
        own = mixed.orders[part].rows(6 * before, 6 * before + 6)
        assert rows.indices.equal(own.indices)
        assert rows.draws.equal(own.draws)
        assert rows.positions.equal(torch.arange(6 * step, 6 * step + 6))
        seen[part] += 1
    assert seen[0] == 4


def test_a_resumed_run_several_processes_and_workers_read_the_same_batches():
    whole = steps(PHASES)
    assert all(a["clip"].equal(b["clip"]) for a, b in zip(steps(PHASES, first=7), whole[7:], strict=True))
    halves = [steps(PHASES, rank=rank, world=2) for rank in range(2)]
    for one, two, both in zip(*halves, whole, strict=True):
        assert torch.cat([one["clip"], two["clip"]]).equal(both["clip"])
        assert torch.cat([one["stream"], two["stream"]]).equal(both["stream"])
    assert all(a["clip"].equal(b["clip"]) for a, b in zip(steps(PHASES, workers=2), whole, strict=True))


def test_parts_are_read_by_weight_within_their_steps():
    count = 5 * BLOCK
    chosen = order(PHASES).chosen(torch.arange(count))
    assert (chosen[:4] == 0).all()
    assert (chosen[4:] > 0).all()
    assert float((chosen[4:] == 2).double().mean()) == pytest.approx(2 / 3, abs=0.015)
    assert not chosen.equal(order(PHASES, seed=2).chosen(torch.arange(count)))


def test_a_place_far_on_counts_every_batch_before_it():
    mixed, far = order(PHASES), 2 * BLOCK + 17
    chosen = mixed.chosen(torch.arange(far + 1))
    part, before = mixed.place(far)
    assert (part, before) == (int(chosen[far]), int((chosen[:far] == chosen[far]).sum()))
    assert mixed.place(3) == (0, 3), "an earlier step after a later one"


def test_two_parts_of_one_set_are_shuffled_apart():
    first, second, _ = order(PHASES).orders
    assert isinstance(first, IndexOrder)
    assert not first.order(0).equal(second.order(0))


def test_what_is_not_trained_on_is_the_last_part():
    data, held_out = PHASES.build("train"), PHASES.build("test")
    assert data.specs["clip"].shape == PHASES.specs["clip"].shape == (1, 3, 28, 28)
    assert data.read(torch.arange(2))["clip"].shape == (2, 1, 3, 28, 28)
    assert len(data) == 9000
    assert held_out.read(torch.arange(2))["clip"].shape == (2, 1, 3, 28, 28)
    assert epoch_size(data, 6) == 27_000
    notes = describe(data).notes
    assert len(notes) == 3
    assert "step 4" in notes[0]
    assert "image" in notes[2], "a field that not all parts have"


def test_lengths_of_a_part_are_lengths_of_the_mixture(tmp_path: Path):
    for number in range(6):
        filming.write(tmp_path / f"clips/{number}.gif", filming.ramp(8))
    making.class_folders(tmp_path / "images")
    clips = {"kind": "clips", "root": tmp_path / "clips", "frames": [2, 4], "fps": 4}
    images = {"kind": "folder", "root": tmp_path / "images"}
    config = mix({"data": images}, {"data": clips, "weight": 2}, size=8, channels=3, flip=True)
    found = steps(config, last=24)
    assert {batch["clip"].shape[2] for batch in found} == {1, 2, 4}
    assert all(set(batch) == {"clip", "fps", "index", "position", "stream"} for batch in found)
    assert all((batch["fps"] == (0 if batch["clip"].shape[2] == 1 else 4)).all() for batch in found)


def test_parts_take_size_channels_and_flip_from_the_mixture_and_may_not_have_others():
    config = mix({"data": DIGITS}, size=16, flip=True)
    assert (config.parts[0].data.size, config.parts[0].data.flip) == (16, True)
    again = TypeAdapter(AnyData).validate_python(config.model_dump())
    assert again == config
    with pytest.raises(ValidationError, match=r"parts\.0\.data\.size is 12"):
        mix({"data": {**DIGITS, "size": 12}})


@pytest.mark.parametrize(
    ("parts", "keys", "named"),
    [
        ([], {}, "parts"),
        ([{"data": DIGITS, "first": 2}], {}, "step 1 without data"),
        ([{"data": DIGITS, "last": 5}], {}, "step 6 without data"),
        ([{"data": DIGITS, "last": 5}, {"data": MOVING, "first": 7}], {}, "step 6 without data"),
        ([{"data": DIGITS, "first": 5, "last": 2}, {"data": DIGITS}], {}, "before its first step"),
        ([{"data": DIGITS}], {"root": "x"}, "parts.0.data.root"),
        ([{"data": DIGITS}], {"size": None}, "size is left out"),
        ([{"data": DIGITS}], {"crop": "random"}, "keys of parts"),
        ([{"data": {"kind": "stream", "shards": "a.tar"}}], {}, "stream"),
        ([{"data": DIGITS, "weight": 0}], {}, "weight"),
        ([{"data": MOVING}, {"data": DIGITS}], {}, "put a part of clips last, such as data.parts.0"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_refused_by_its_key(parts: list[dict], keys: dict, named: str):
    with pytest.raises(ValidationError) as error:
        mix(*parts, **keys)
    assert named in str(error.value)


def test_one_place_for_several_sets_is_refused():
    with pytest.raises(UserError) as error:
        at_root(PHASES, "elsewhere")
    assert "data.parts.0.data.root=elsewhere" in error.value.hint

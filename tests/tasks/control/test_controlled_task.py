"""A model that pictures lead: its roles, what it is told, its gain, and the mistakes that a preset can make."""

from typing import Any

import pytest
import torch

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.distributed import Group
from diffcli.engine.run.measuring import GroupRanks
from diffcli.fields import FieldSpec, Specs
from diffcli.noise import Domain, derive
from diffcli.tasks.control.controlled_task import GAIN, SINCE, ControlledTask
from diffcli.tasks.control.led_weights import in_control
from tests.conftest import TINY, changed
from tests.networks.waking import normal, wake

LED: dict[str, Any] = {"data__derived": [{"kind": "edges"}], "task__control": [{"field": "edges"}]}
MASK = FieldSpec("mask", (1, 8, 8), 3)


def build(specs: Specs | None = None, **keys: Any) -> ControlledTask:
    preset = presets.build(changed(TINY, **(LED | keys)), "led.yaml")
    torch.manual_seed(0)
    task = preset.task.build({**preset.specs, **(specs or {})})
    assert isinstance(task, ControlledTask)
    return task


def batch(n: int = 4, step: int = 1, **fields: Any) -> dict[str, Any]:
    given = {"image": normal(n, 1, 8, 8).clamp(-1, 1), "label": torch.arange(n), "edges": normal(n, 1, 8, 8, seed=1)}
    rows = torch.arange(n)
    return given | fields | {"position": rows, "stream": derive(step, Domain.TRAIN, rows)}


def test_the_model_is_frozen_and_sampled_and_its_control_trained_and_averaged() -> None:
    task = build()
    roles = {n.name: (n.frozen, n.averaged, n.samples) for n in task.networks}
    assert roles["base"] == (True, True, True)
    assert roles["control"] == (False, True, True)
    assert roles["conditioners"][0]
    assert roles["codec"][0]
    assert task.phases[0].networks == ("control",)


DIT = {"kind": "dit", "patch": 2, "width": 16, "depth": 2, "heads": 2}


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"task__learn_variance": True},
        {"task__network": DIT},
        {"task__conditioners": [], "task__drop_condition": 0, "guidance": 1},
    ],
    ids=["classes", "variance", "transformer", "unconditional"],
)
def test_the_loss_of_untrained_control_is_that_of_the_model(keys: dict[str, Any]) -> None:
    task = build(**keys)
    wake(task.controlled.base)
    task.controlled.begin_as_base()
    preset = presets.build(changed(TINY, **keys), "plain.yaml")
    plain = preset.task.build(preset.specs)
    state = in_control(plain.state_dict())
    plain.load_state_dict({name: task.state_dict()[led] for name, led in zip(plain.state_dict(), state, strict=True)})
    assert torch.equal(task(batch())["loss"], plain(batch(), "main", 1)["loss"])


def test_the_hint_stays_in_both_branches_of_guidance_and_is_never_dropped() -> None:
    task = build(task__drop_condition=0.5).eval()
    cond = task._conditions(batch(2), 2, (True, False))
    (hint,) = cond.hints or ()
    assert hint is not None
    assert torch.equal(hint.picture[:2], hint.picture[2:])
    assert cond.vector is not None
    assert not torch.equal(cond.vector[:2], cond.vector[2:])


def test_a_branch_at_scale_0_looks_at_no_picture() -> None:
    task = build()
    task.scales = (0.0,)
    assert task.idle == {"edges"}
    without = {name: value for name, value in batch().items() if name != "edges"}
    assert task.condition(without, torch.ones(4, dtype=torch.bool), torch.zeros(4, 1, 8, 8)).hints == (None,)


def test_masks_are_told_as_one_channel_a_class() -> None:
    task = build({"mask": MASK}, task__control=[{"field": "mask"}])
    numbers = torch.arange(4 * 64).view(4, 1, 8, 8) % 3
    told = task.condition(batch(mask=numbers), torch.ones(4, dtype=torch.bool), torch.zeros(4, 1, 8, 8))
    assert told.hints is not None
    assert told.hints[0] is not None
    assert torch.equal(told.hints[0].picture.argmax(1), numbers[:, 0])
    assert set(told.hints[0].picture.unique().tolist()) == {0, 1}


def test_the_gain_is_the_loss_without_the_hint_minus_that_with_it_at_equal_noise() -> None:
    task = build().train()
    task.log_every = 5
    wake(task.controlled)
    assert GAIN not in task(batch(), "main", 4)
    terms = task(batch(), "main", 5)
    task.scales = (0.0,)
    assert float(terms[GAIN]) == pytest.approx(
        float((task(batch(), "main", 4)["loss"] - terms["loss"]).detach()), rel=1e-4, abs=1e-7
    )
    assert float(terms[GAIN]) != 0
    assert terms[SINCE] == 0
    assert GAIN not in task.eval()(batch(), "main", 5)


def test_the_gain_does_not_depend_on_micro_batches_and_its_step_is_said_once_it_holds() -> None:
    found = []
    for cuts in ([slice(0, 4)], [slice(2, 4), slice(0, 2)]):
        task = build().train()
        task.log_every = 1
        whole = torch.tensor([0.1, 0.2, 0.3, 0.25])
        for step in (1, 2, 3):
            task.looked = [(torch.arange(4)[cut], whole[cut]) for cut in cuts]
            task.looked_at = step
            assert task.remarks(step, {SINCE: float(task.gain.since)}) == []
            task.after_update(GroupRanks(Group(0, 1, torch.device("cpu")), [4]))
        found.append(int(task.gain.since))
        assert len(task.remarks(4, {SINCE: float(task.gain.since)})) == 1
        assert len(task.remarks(5, {})) == 1
    assert found == [1, 1]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"task__control": [{"field": "image"}]}, ["control", "'image'"]),
        ({"task__control": [{"field": "edges"}, {"field": "edges"}]}, ["'edges' twice"]),
        ({"task__control": [{"from": "a", "field": "edges"}, {"from": "b", "field": "grey"}]}, ["a and b"]),
        ({"task__control": [{"field": "edges", "width": 3}]}, ["task.control.0.width", "widths"]),
    ],
)
def test_a_preset_that_contradicts_itself_is_refused(keys: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as told:
        build(**keys)
    assert all(word in str(told.value) for word in words)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ("label", ["task.control.0.field", "'label'", "classes"]),
        ("sketch", ["'sketch'", "data.derived=[{kind: sketch}]"]),
    ],
)
def test_a_field_that_the_data_lack_or_that_is_no_picture_is_refused(field: str, words: list[str]) -> None:
    preset = presets.build(changed(TINY, task__control=[{"field": field}]), "led.yaml")
    with pytest.raises(UserError) as told:
        preset.task.build(preset.data.build("train").specs)
    assert all(word in str(told.value) for word in words)


def test_hints_of_another_size_than_the_images_are_refused_before_any_step() -> None:
    task = build()
    with pytest.raises(UserError, match=r"4x4.*8x8") as told:
        task.check({**task.reads, "edges": FieldSpec("image", (1, 4, 4))})
    assert "task.control.0.field" in told.value.hint
    with pytest.raises(UserError, match="4x4"):
        task.denoise(batch(2, edges=normal(2, 1, 4, 4)), 1.0, 2)


def test_too_few_widths_for_the_size_of_a_position_are_refused() -> None:
    with pytest.raises(UserError, match=r"widths is \[4\].*2 widths"):
        build(task__control=[{"field": "edges", "widths": [4]}])

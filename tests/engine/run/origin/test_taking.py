"""What a task takes of another model's weights: all, what fits, rows by the names of classes, and zeros for what was added."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.diffusion.denoiser import Prediction
from diffcli.engine.model import Model
from diffcli.engine.run.origin.correspondence import Move, class_rows, columns, interpolated
from diffcli.engine.run.origin.taking import Taking, matched, take, told, warnings
from diffcli.networks.attention_blocks import CrossAttentionBlock
from diffcli.networks.dit import TokenReader
from diffcli.networks.lora import LoraConfig, attach
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.task import Task
from tests.conftest import changed
from tests.engine.one_level import SMALL
from tests.networks.waking import normal, wake

DIT = {"kind": "dit", "width": 16, "depth": 2, "heads": 2, "patch": 2}
CLASS = {"kind": "class", "num_classes": 10, "dim": 8}
WORDS = {"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 16}
TOKENS = WORDS | {"gives": "tokens"}
EDGES = {"kind": "spatial", "field": "edges", "channels": 2}
WIDE = CLASS | {"dim": 16}  # as wide as the transformer, which adds it as it is
CROSS = ["res", "cross_attention", "attention", "res"]


def preset_of(**keys: Any) -> presets.Preset:
    return presets.build(changed(SMALL, **({"guidance": 1, "task__drop_condition": 0} | keys)), "tiny.yaml")


def task_of(preset: presets.Preset, seed: int = 0) -> DiffusionTask:
    torch.random.default_generator.manual_seed(seed)
    specs = preset.specs | {
        name: spec
        for c in preset.task.build(preset.specs).named_conditioners.values()
        for name, spec in c.reads.items()
    }
    task = preset.task.build(specs)
    assert isinstance(task, DiffusionTask)
    return task.eval()


def model_of(classes: tuple[str, ...] | None = None, **keys: Any) -> Model:
    """A model with weights of which none is 0."""
    preset = preset_of(**keys)
    task = task_of(preset, seed=1)
    wake(task)
    return Model(Path("runs/source"), 4, preset, task, classes, True, "0" * 64)


def started(model: Model, names: tuple[str, ...] | None = None, **keys: Any) -> tuple[DiffusionTask, Taking]:
    """A fresh task that has taken what it can of a model."""
    task, tensors = task_of(preset_of(**keys), seed=2), model.task.state_dict()
    found = matched(task, model, names, tensors)
    take(task, found, tensors)
    return task, found


def predicted(task: Task, labels: list[int], asked: bool = True) -> Prediction:
    """What a task makes of one noisy batch under conditions of every kind that it knows, or with all of them left out."""
    assert isinstance(task, DiffusionTask)
    n = len(labels)
    batch = {"label": torch.tensor(labels), "edges": normal(n, 2, 8, 8, seed=3), "text": ["a cat", "two"][:n]}
    x, t = normal(n, 1, 8, 8, seed=4), torch.linspace(0.2, 0.7, n)
    cond = task.condition(batch, torch.full((n,), asked), x, seeds=torch.arange(n))
    with torch.no_grad():
        return task.denoiser(x, t, cond)  # type: ignore[no-any-return]


def same(one: Prediction, other: Prediction) -> bool:
    return torch.allclose(one.x0, other.x0, atol=1e-5) and torch.allclose(one.eps, other.eps, atol=1e-5)


@pytest.mark.parametrize(
    "network", [{}, {"task__network": DIT}, {"task__learn_variance": True}], ids=["unet", "dit", "variance"]
)
def test_the_same_network_takes_every_weight_and_computes_the_same_to_the_bit(network: dict[str, Any]) -> None:
    model = model_of(**network)
    task, found = started(model, **network)
    assert found.share == 1
    assert found[1:5] == ((), (), (), ())
    assert all(move == Move(key) for key, move in found.moves.items())
    for key, value in model.task.state_dict().items():
        assert torch.equal(task.state_dict()[key], value), key
    assert torch.equal(predicted(task, [1, 2]).eps, predicted(model.task, [1, 2]).eps)


@pytest.mark.parametrize(
    ("before", "after", "blocks"),
    [
        ({}, {"task__conditioners": [CLASS, EDGES]}, ()),
        ({"task__network__fold": 2}, {"task__network__fold": 2, "task__conditioners": [EDGES, CLASS]}, ()),
        ({"task__network": DIT}, {"task__network": DIT, "task__conditioners": [CLASS, EDGES]}, ()),
        ({}, {"task__learn_variance": True}, ()),
        ({"task__network__fold": 2}, {"task__network__fold": 2, "task__learn_variance": True}, ()),
        ({"task__network": DIT}, {"task__network": DIT, "task__learn_variance": True}, ()),
        ({"task__conditioners": []}, {}, ()),
        ({"task__network": DIT, "task__conditioners": []}, {"task__network": DIT}, ()),
        ({"task__network": DIT, "task__conditioners": []}, {"task__network": DIT, "task__conditioners": [WIDE]}, ()),
        ({}, {"task__conditioners": [WORDS, CLASS], "task__network__middle": CROSS}, (CrossAttentionBlock,)),
        ({"task__network": DIT}, {"task__network": DIT, "task__conditioners": [CLASS, TOKENS]}, (TokenReader,)),
        ({}, {"task__network__blocks": ["res", "channel_attention"]}, ()),
    ],
    ids=["unet sketch", "folded sketch", "dit sketch", "unet variance", "folded variance", "dit variance", "unet class",
         "dit class", "dit class as it is", "unet text", "dit text", "blocks between"],
)  # fmt: skip
def test_a_model_with_more_begins_as_its_source(
    before: dict[str, Any], after: dict[str, Any], blocks: tuple[type[nn.Module], ...]
) -> None:
    """A condition, a variance, attention to a text: each is new and changes nothing yet, and nothing else is lost."""
    model = model_of(**before)
    task, found = started(model, **after)
    assert same(predicted(task, [1, 2]), predicted(model.task, [1, 2]))
    assert not found.misfits
    assert not found.left_out
    assert blocks == () or any(isinstance(m, blocks) for m in task.modules())


def test_what_was_added_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """New inputs that are 0 get a gradient at once."""
    task, found = started(model_of(task__conditioners=[]), task__conditioners=[CLASS, EDGES])
    batch = {"label": torch.tensor([1]), "edges": normal(1, 2, 8, 8)}
    x = normal(1, 1, 8, 8)
    task.denoiser(
        x, torch.tensor([0.5]), task.condition(batch, torch.ones(1, dtype=torch.bool), x)
    ).eps.square().sum().backward()
    stem, vector = (task.get_parameter(f"denoiser.network.{name}.weight") for name in ("stem", "embedding.vector"))
    assert found.zeroed == ("denoiser.network.embedding.vector.weight", "denoiser.network.embedding.vector.bias")
    for gradient in (stem.grad[:, 1:], vector.grad):  # type: ignore[index]
        assert gradient.abs().max() > 0  # type: ignore[union-attr]


def test_conditions_that_are_gone_leave_the_others_in_their_place() -> None:
    model = model_of(task__conditioners=[CLASS, EDGES, WORDS], task__network__middle=CROSS)
    task, _ = started(model, task__conditioners=[EDGES, CLASS])
    mine, theirs = (t.state_dict() for t in (task, model.task))
    assert torch.equal(mine["denoiser.network.stem.weight"], theirs["denoiser.network.stem.weight"])
    assert torch.equal(mine["conditioners.1.embedding.weight"], theirs["conditioners.0.embedding.weight"])
    vectors = "denoiser.network.embedding.vector.weight"
    assert torch.equal(mine[vectors], theirs[vectors][:, :8])


@pytest.mark.parametrize(
    ("left", "drop"),
    [([], 0), ([EDGES], 0), ([WORDS | {"width": 4, "gives": "vector"}], 0.1)],
    ids=["nothing", "a sketch", "a text"],
)
@pytest.mark.parametrize("network", [{}, {"task__network": DIT}], ids=["unet", "dit"])
def test_without_its_classes_a_model_begins_as_the_source_that_is_asked_for_none(
    network: dict[str, Any], left: list[dict[str, Any]], drop: float
) -> None:
    before = {**network, "task__conditioners": [*left, CLASS], "task__drop_condition": 0.1}
    model = model_of(**before)
    task, found = started(model, **network, task__conditioners=left, task__drop_condition=drop)
    assert [each.condition for each in found.unasked] == [f"task.conditioners.{len(left)}"]
    assert same(predicted(task, [1, 2], asked=False), predicted(model.task, [1, 2], asked=False))
    assert "no classes" in told(task, model, found, None)
    assert not found.left_out


VECTOR = WORDS | {"width": 4, "gives": "vector"}


@pytest.mark.parametrize("after", [[], [VECTOR]], ids=["nothing", "a text"])
def test_classes_as_wide_as_a_transformer_leave_their_null_row(after: list[dict[str, Any]]) -> None:
    model = model_of(task__network=DIT, task__conditioners=[WIDE], task__drop_condition=0.1)
    task, _ = started(model, task__network=DIT, task__conditioners=after)
    assert same(predicted(task, [1, 2]), predicted(model.task, [1, 2], asked=False))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([CLASS, VECTOR], []),
        ([CLASS, VECTOR | {"width": 16}], [VECTOR | {"width": 16}]),
        ([CLASS | {"dim": 8}, VECTOR | {"width": 8}], [VECTOR | {"width": 8}]),
        ([CLASS], [VECTOR | {"width": 16}]),
    ],
    ids=["a text is gone", "a text is then added as it is", "both were parts of the width", "a text comes as it is"],
)
def test_nothing_is_promised_where_other_vectors_change(
    before: list[dict[str, Any]], after: list[dict[str, Any]]
) -> None:
    model = model_of(task__network=DIT, task__conditioners=before, task__drop_condition=0.1)
    task, found = started(model, task__network=DIT, task__conditioners=after)
    assert "no classes" not in told(task, model, found, None)
    assert any("embedding" in name for name in found.left_out), "the table of classes"


def test_low_rank_changes_of_a_model_of_classes_leave_its_biases() -> None:
    model = model_of(task__drop_condition=0.1)
    task = task_of(preset_of(task__conditioners=[]), seed=2)
    attach({"denoiser": task.denoiser}, LoraConfig(rank=1, targets=("conv1",)))
    assert matched(task, model, None, model.task.state_dict()).unasked == []


def test_a_model_that_always_had_a_class_has_nothing_to_begin_from() -> None:
    assert started(model_of(), task__conditioners=[])[1].unasked == []


def test_rows_of_classes_follow_their_names_and_the_null_row_stays() -> None:
    model = model_of(classes=("ant", "bee", "cat"), task__conditioners=[CLASS | {"num_classes": 3}])
    names = ("bee", "dog", "ant", "elk")
    task, found = started(model, names, task__conditioners=[CLASS | {"num_classes": 4}])
    key = "conditioners.0.embedding.weight"
    mine, theirs, fresh = (
        task.state_dict()[key],
        model.task.state_dict()[key],
        task_of(preset_of(task__conditioners=[CLASS | {"num_classes": 4}]), seed=2).state_dict()[key],
    )
    assert torch.equal(mine, torch.stack([theirs[1], fresh[1], theirs[0], fresh[3], theirs[3]]))
    rows = told(task, model, found, names)["taken rows"]
    assert rows == "taken for bee, ant; new for dog, elk; left out of cat"
    assert all(move.whole for other, move in found.moves.items() if other != key)


@pytest.mark.parametrize(
    ("names", "source", "rows"),
    [
        (("a", "b"), ("b", "a"), (1, 0)),
        (None, ("b", "a"), (0, 1)),
        (("a", "b"), None, (0, 1)),
        (("e\u0301",), ("\u00e9", "x"), (0, None)),  # one letter, stored in two ways
        (("x", "y"), ("a", "b"), (None, None)),
    ],
)
def test_classes_are_the_same_by_name_or_else_by_number(
    names: tuple[str, ...] | None, source: tuple[str, ...] | None, rows: tuple[int | None, ...]
) -> None:
    assert class_rows(2, 2, names, source) == rows


def test_columns_go_where_their_part_went() -> None:
    assert columns([2, 1, 3], [3, 2], [1, None, 0]) == (3, 4, None, 0, 1, 2)
    assert columns([2], [3], [0]) == (None, None)  # of another width


def test_another_size_takes_all_and_other_channels_all_but_both_ends() -> None:
    model = model_of()
    _, found = started(model, data__size=16)
    assert found.share == 1
    task, found = started(model, data__channels=3)
    misfits = {misfit.name: (misfit.shape, misfit.source) for misfit in found.misfits}
    assert misfits["denoiser.network.stem.weight"] == ((8, 3, 3, 3), (8, 1, 3, 3))
    assert set(misfits) == {f"denoiser.network.{name}" for name in ("stem.weight", "head.weight", "head.bias")}
    assert "8x3x3x3, there 8x1x3x3" in told(task, model, found, None)["fresh"]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"task__network__width": 16}, ["runs/source", "time.0.weight is 64x16, there 32x8", "presets new", "--from"]),
        ({"task__network": DIT}, ["runs/source", "is not there", "--from runs/source"]),
    ],
    ids=["wider", "transformer"],
)
def test_another_network_is_refused_and_its_first_tensors_are_named(keys: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        started(model_of(), **keys)
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_model_of_another_kind_is_refused() -> None:
    classifier = presets.build(changed(SMALL, guidance=1, task={"kind": "classifier", "num_classes": 10}), "tiny.yaml")
    task = classifier.task.build(classifier.specs)
    with pytest.raises(UserError, match="a diffusion model"):
        matched(task, model_of(), None, [])


def test_rows_of_a_classifier_follow_names_too() -> None:
    def made(count: int) -> Task:
        preset = presets.build(
            changed(SMALL, guidance=1, task={"kind": "classifier", "num_classes": count}), "tiny.yaml"
        )
        return preset.task.build(preset.specs)

    source, task = made(2), made(3)
    wake(source)
    preset = presets.build(changed(SMALL, guidance=1, task={"kind": "classifier", "num_classes": 2}), "tiny.yaml")
    model = Model(Path("runs/source"), 4, preset, source, ("a", "b"), True, "")
    fresh = task.state_dict()["network.head.weight"].clone()
    found = matched(task, model, ("b", "c", "a"), source.state_dict())
    take(task, found, source.state_dict())
    theirs = source.state_dict()["network.head.weight"]
    assert torch.equal(task.state_dict()["network.head.weight"], torch.stack([theirs[1], fresh[1], theirs[0]]))


def test_a_grid_of_positions_is_enlarged_and_a_linear_one_stays_linear() -> None:
    ramp = torch.linspace(-1, 1, 8).expand(8, 8)
    table = torch.cat([torch.tensor([[5.0]]), ramp.reshape(1, -1)], dim=1)
    larger: Tensor = interpolated(table, 1 + 16 * 16)
    assert larger[0, 0] == 5
    inner = larger[0, 1:].view(16, 16)[:, 4:12]
    expected = (torch.arange(4, 12) + 0.5) / 16 * 8 - 0.5
    assert torch.allclose(inner, (-1 + 2 * expected / 7).expand(16, 8), atol=0.02)


def test_weights_that_mean_something_else_are_warned_of() -> None:
    model = model_of()
    assert warnings(task_of(preset_of()), model.task) == []
    found = warnings(task_of(preset_of(task__target="x0", task__schedule={"kind": "flow"})), model.task)
    assert len(found) == 2
    assert "task.target=v" in found[0]
    assert "cosine" in found[1]

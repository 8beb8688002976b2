"""Conditioners: null rows, declared widths, labels refused at the door."""

import pytest
import torch

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.tasks.conditioners.classes import ClassConditionerConfig
from diffcli.tasks.conditioners.conditioner import Conditioner, cond_shape, condition

KEEP = torch.tensor([True, False, True])
LIKE = torch.empty(3, 1, 4, 4)


def test_rows_not_kept_are_the_null_row_whatever_their_label() -> None:
    conditioner = ClassConditionerConfig(num_classes=5, dim=7).build()
    told = conditioner({"label": torch.tensor([4, 2, 0])}, KEEP, LIKE).vector
    rows = conditioner.embedding.weight
    assert told is not None
    assert told.shape == (3, conditioner.shape.vector) == (3, 7)
    assert torch.equal(told, rows[[4, 5, 0]])


def test_classes_in_tokens_are_rows_of_as_many_vectors() -> None:
    conditioner = ClassConditionerConfig(num_classes=5, dim=7, tokens=3).build()
    cond = condition([conditioner], {"label": torch.tensor([4, 2, 0])}, KEEP, LIKE)
    assert cond_shape([conditioner]) == CondShape(tokens=7)
    assert cond.vector is None
    assert cond.tokens is not None
    assert torch.equal(cond.tokens, conditioner.embedding.weight[[4, 5, 0]].reshape(3, 3, 7))


def test_the_null_row_is_learned() -> None:
    conditioner = ClassConditionerConfig(num_classes=5, dim=7).build()
    told = conditioner({"label": torch.tensor([4, 2, 0])}, KEEP, LIKE).vector
    assert told is not None
    told.sum().backward()
    assert conditioner.embedding.weight.grad is not None
    assert conditioner.embedding.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist() == [0, 4, 5]


def test_conditioners_of_one_slot_are_joined_in_order() -> None:
    two = [ClassConditionerConfig(num_classes=5, dim=7).build(), ClassConditionerConfig(num_classes=9, dim=2).build()]
    batch = {"label": torch.tensor([4, 2, 0])}
    cond = condition(two, batch, KEEP, LIKE, seeds=torch.arange(3))
    assert cond_shape(two) == CondShape(vector=9)
    assert cond.vector is not None
    assert torch.equal(cond.vector, torch.cat([c(batch, KEEP, LIKE).vector for c in two], dim=1))
    assert (cond.tokens, cond.spatial) == (None, None)
    assert torch.equal(cond.seeds, torch.arange(3))


def test_tokens_of_several_conditioners_follow_each_other() -> None:
    two = [ClassConditionerConfig(num_classes=5, dim=7, tokens=n).build() for n in (3, 2)]
    batch = {"label": torch.tensor([4, 2, 0])}
    cond = condition(two, batch, KEEP, LIKE)
    assert cond_shape(two) == CondShape(tokens=7)
    assert cond.tokens is not None
    assert torch.equal(cond.tokens, torch.cat([c(batch, KEEP, LIKE).tokens for c in two], dim=1))
    assert cond.mask is None


def test_tokens_that_mask_none_of_theirs_are_read_whole_beside_those_that_do() -> None:
    class Masked(Conditioner):
        kind, shape, reads = "masked", CondShape(tokens=7), {}

        def forward(self, batch: object, keep: torch.Tensor, like: torch.Tensor, noise) -> Conditioning:
            return Conditioning(tokens=torch.zeros(3, 2, 7), mask=keep[:, None].expand(3, 2))

    two = [ClassConditionerConfig(num_classes=5, dim=7, tokens=1).build(), Masked()]
    mask = condition(two, {"label": torch.tensor([4, 2, 0])}, KEEP, LIKE).mask
    assert mask is not None
    assert mask.tolist() == [[True, True, True], [True, False, False], [True, True, True]]


def test_a_field_that_every_row_is_told_of_has_no_null_and_leaves_the_others_theirs() -> None:
    """As the unconditional branch with a negative prompt: the text is another, the class stays none."""

    class Reader(Conditioner):
        kind, shape, reads = "reader", CondShape(tokens=7), {"text": FieldSpec("text")}

        def forward(self, batch: object, keep: torch.Tensor, like: torch.Tensor, noise) -> Conditioning:
            return Conditioning(tokens=keep[:, None, None].float().expand(3, 1, 7))

    classes = ClassConditionerConfig(num_classes=5, dim=7).build()
    batch = {"label": torch.tensor([4, 2, 0]), "text": ["a", "b", "c"]}
    cond = condition([classes, Reader()], batch, KEEP, LIKE, always_given=["text"])
    assert torch.equal(cond.vector, classes.embedding.weight[[4, 5, 0]])
    assert cond.tokens[:, 0, 0].tolist() == [1, 1, 1]
    assert condition([Reader()], batch, KEEP, LIKE).tokens[:, 0, 0].tolist() == [1, 0, 1]


def test_tokens_of_two_widths_are_the_users_error() -> None:
    two = [ClassConditionerConfig(num_classes=5, dim=n, tokens=1).build() for n in (3, 2)]
    with pytest.raises(UserError, match="2 and 3 wide"):
        cond_shape(two)


def test_without_conditioners_every_slot_is_absent() -> None:
    assert condition([], {}, KEEP, LIKE) == Conditioning()
    assert cond_shape([]) == CondShape(0, 0, 0)


def test_data_with_more_classes_or_without_labels_are_the_users_error() -> None:
    conditioner, key = ClassConditionerConfig(num_classes=10).build(), "task.conditioners.1"
    with pytest.raises(UserError, match=r"\.1 \(class\) knows 10 classes of 'label', but the data has 12") as caught:
        conditioner.check({"label": FieldSpec("classes", (), 12)}, key)
    assert "--set task.conditioners.1.num_classes=12" in caught.value.hint
    with pytest.raises(UserError, match="'label', but the data has only: image") as caught:
        conditioner.check({"image": FieldSpec("image", (3, 8, 8))}, key)
    assert "data with class labels" in caught.value.hint

"""Frames per second as a vector: told in both branches, finely where it matters, and apart from still images."""

import pytest
import torch

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.tasks.conditioners.frame_rate import FpsConditionerConfig

KEEP = torch.tensor([True, True, True, True])
LIKE = torch.empty(4, 3, 2, 4, 4)


def test_both_branches_of_guidance_receive_the_rate() -> None:
    conditioner = FpsConditionerConfig(dim=8).build()
    batch = {"fps": torch.tensor([4.0, 8.0, 24.0, 25.0])}
    told = conditioner(batch, KEEP, LIKE).vector
    assert told is not None
    assert told.shape == (4, conditioner.shape.vector) == (4, 8)
    assert torch.equal(told, conditioner(batch, ~KEEP, LIKE).vector)
    assert not conditioner.droppable
    assert len(told.unique(dim=0)) == 4


def test_a_still_image_has_a_vector_of_its_own_that_is_learned() -> None:
    conditioner = FpsConditionerConfig(dim=8).build()
    told = conditioner({"fps": torch.tensor([0.0, 8.0, 0.0, 8.0])}, KEEP, LIKE).vector
    assert told is not None
    assert torch.equal(told[0], conditioner.still)
    assert torch.equal(told[::2], told[:1].expand(2, -1))
    told.sum().backward()
    for parameter in conditioner.parameters():
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


def test_whole_numbers_and_fractions_of_a_rate_are_read_alike() -> None:
    conditioner = FpsConditionerConfig().build()
    whole = conditioner({"fps": torch.tensor([8, 8, 8, 8])}, KEEP, LIKE).vector
    assert torch.equal(whole, conditioner({"fps": torch.full((4,), 8.0)}, KEEP, LIKE).vector)


def test_data_without_a_rate_are_refused() -> None:
    conditioner = FpsConditionerConfig().build()
    with pytest.raises(UserError, match="'fps'") as caught:
        conditioner.check({"image": FieldSpec("image", (3, 8, 8))}, "task.conditioners.0")
    assert "task.conditioners.0" in caught.value.hint

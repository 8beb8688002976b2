"""Pictures and masks beside x: how they are laid, what noise they get and what the null branch keeps."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.noise import Domain, Noise
from diffcli.tasks.conditioners.spatial import SpatialConditionerConfig

B = 3
LIKE = torch.empty(B, 3, 8, 8)
KEEP, NONE = torch.ones(B, dtype=torch.bool), torch.zeros(B, dtype=torch.bool)


def picture(size: int = 8) -> Tensor:
    return torch.rand(B, 3, size, size, generator=torch.Generator().manual_seed(0)) * 2 - 1


def streams() -> Noise:
    return Noise([5, 6, 7], torch.device("cpu"), Domain.CONDITION)


def test_a_picture_of_the_size_of_x_is_laid_beside_it_as_it_is() -> None:
    told = SpatialConditionerConfig().build()({"low_res": picture()}, KEEP, LIKE)
    assert torch.equal(told.spatial, picture())
    assert told.vector is None


def test_a_smaller_picture_is_enlarged_and_a_larger_one_folded() -> None:
    small = SpatialConditionerConfig().build()({"low_res": picture(4)}, KEEP, LIKE).spatial
    assert torch.equal(small, F.interpolate(picture(4), (8, 8), mode="bicubic"))
    folding = SpatialConditionerConfig(patch=2).build()
    large = folding({"low_res": picture(16)}, KEEP, LIKE).spatial
    assert large.shape == (B, folding.shape.spatial, 8, 8)
    assert torch.equal(F.pixel_shuffle(large, 2), picture(16)), "no pixel is lost"


def test_a_mask_is_a_channel_of_one_and_minus_one_for_each_class() -> None:
    mask = torch.randint(0, 3, (B, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    told = SpatialConditionerConfig(field="mask", of="mask", classes=3).build()({"mask": mask}, KEEP, LIKE).spatial
    assert torch.equal(told.argmax(1, keepdim=True), mask)
    assert told.sum(1).eq(1 - 2).all()


def test_what_is_not_dropped_is_told_in_the_null_branch() -> None:
    kept = SpatialConditionerConfig().build()
    assert torch.equal(kept({"low_res": picture()}, NONE, LIKE).spatial, picture())
    dropped = SpatialConditionerConfig(drop=True).build()
    assert not dropped({"low_res": picture()}, NONE, LIKE).spatial.any()
    assert (kept.droppable, dropped.droppable) == (False, True)


def test_noise_has_the_level_that_is_told_and_is_that_of_the_sample() -> None:
    conditioner = SpatialConditionerConfig(augment=0.6).build().train()
    told = conditioner({"low_res": picture()}, KEEP, LIKE, streams())
    level = streams().unit() * 0.6
    assert len(level.unique()) == B, "one for each sample"
    noise = streams()
    noise.unit()
    s = level[:, None, None, None]
    torch.testing.assert_close(told.spatial, (1 - s * s).sqrt() * picture() + s * noise(picture()))
    assert not torch.equal(told.vector[0], told.vector[1])


def test_nothing_is_added_when_images_are_drawn_unless_a_level_is_asked_for() -> None:
    conditioner = SpatialConditionerConfig(augment=0.6).build().eval()
    assert torch.equal(conditioner({"low_res": picture()}, KEEP, LIKE, streams()).spatial, picture())
    conditioner.level = 0.3
    assert not torch.equal(conditioner({"low_res": picture()}, KEEP, LIKE, streams()).spatial, picture())


def test_unit_draws_are_uniform() -> None:
    drawn = Noise(list(range(20_000)), torch.device("cpu"), Domain.CONDITION).unit().sort().values
    assert (drawn - (torch.arange(20_000) + 0.5) / 20_000).abs().max() < 0.015  # Kolmogorov's bound at 3e-4


@pytest.mark.parametrize("wrong", [{"of": "mask"}, {"classes": 2}, {"of": "mask", "classes": 2, "augment": 0.1}])
def test_contradictions_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError, match=r"classes is|augment is"):
        SpatialConditionerConfig(**wrong)


def test_what_the_data_lack_or_have_of_another_shape_is_answered_with_what_to_type() -> None:
    image = FieldSpec("image", (3, 32, 32))
    masked = SpatialConditionerConfig(field="masked").build()
    with pytest.raises(UserError) as lacking:
        masked.check({"image": image}, "task.conditioners.0")
    assert "--set 'data.derived=[{kind: hole}]'" in lacking.value.hint
    assert "--set task.conditioners.0.field=" in lacking.value.hint
    grey = SpatialConditionerConfig(field="image", channels=1).build()
    with pytest.raises(UserError) as shape:
        grey.check({"image": image}, "task.conditioners.0")
    assert "--set task.conditioners.0.channels=3" in shape.value.hint
    assert "--set data.channels=1" in shape.value.hint

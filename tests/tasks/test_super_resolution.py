"""Super-resolution by regression: its loss, what it refuses, and a run that learns."""

import pytest
import torch

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.networks.enlarger import EnlargerConfig
from diffcli.tasks.super_resolution import SuperResolutionConfig

IMAGE, LOW = FieldSpec("image", (1, 8, 8)), FieldSpec("image", (1, 4, 4))
TINY = SuperResolutionConfig(network=EnlargerConfig(width=4, depth=1))


def test_data_without_the_smaller_picture_are_told_how_to_make_it() -> None:
    with pytest.raises(UserError, match=r"task\.low is 'low_res'") as caught:
        TINY.build({"image": IMAGE})
    assert "--set 'data.derived=[{kind: low_res, factor: 2, field: low_res}]'" in caught.value.hint


def test_the_loss_is_the_distance_to_the_image() -> None:
    batch = {"image": torch.full((2, 1, 8, 8), 0.5), "low_res": torch.zeros(2, 1, 4, 4)}
    terms = TINY.build({"image": IMAGE, "low_res": LOW})(batch)
    assert terms["loss"].item() == pytest.approx(0.5)
    assert terms["psnr"].item() == pytest.approx(12.0412, abs=1e-4)  # 20 log10(2 / 0.5)
    squared = TINY.model_copy(update={"distance": "l2"}).build({"image": IMAGE, "low_res": LOW})(batch)
    assert squared["loss"].item() == pytest.approx(0.25)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 3, 3), (3, 4, 4), (1, 4, 8)])
def test_a_picture_that_is_no_whole_factor_smaller_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError, match="'low_res'"):
        TINY.build({"image": IMAGE, "low_res": FieldSpec("image", shape)})

"""The segmentation baseline as a task: cross-entropy and Dice in closed form, of two classes and of several."""

import pytest
import torch

from diffcli.config import UserError
from diffcli.diffusion.samplers import Ddim
from diffcli.fields import FieldSpec
from diffcli.networks.unet import UNetConfig
from diffcli.noise import Noise
from diffcli.tasks.segmentation import SegmentationConfig, SegmentationTask, soft_dice

NETWORK = UNetConfig(width=4, mult=(1, 2), blocks=("res",), middle=("res",), attend_at=())
IMAGE = FieldSpec("image", (1, 8, 8))


def specs(classes: int) -> dict[str, FieldSpec]:
    return {"image": IMAGE, "mask": FieldSpec("mask", (1, 8, 8), classes)}


def build(classes: int = 2, **keys) -> SegmentationTask:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        task = SegmentationConfig(classes=classes, network=NETWORK, **keys).build(specs(classes)).eval()
        torch.nn.init.normal_(task.network.head.weight, std=0.3)
    return task


def fields(classes: int = 2, n: int = 6) -> dict[str, torch.Tensor]:
    noise = Noise(range(n), torch.device("cpu"))
    image = noise(torch.empty(n, 1, 8, 8)).clamp(-1, 1)
    mask = (noise(torch.empty(n, 1, 8, 8)) * 2).clamp(0, classes - 1).long()
    return {"image": image, "mask": mask, "stream": torch.arange(n)}


@pytest.mark.parametrize("classes", [2, 3])
def test_the_loss_is_cross_entropy_and_what_the_dice_lacks(classes: int):
    task, batch = build(classes, dice=0.7), fields(classes)
    p = task.probabilities(task.logits(batch["image"]))
    assert p.shape == (6, classes, 8, 8)
    torch.testing.assert_close(p.sum(1), torch.ones(6, 8, 8))
    right = p.gather(1, batch["mask"])
    terms = task(batch)
    torch.testing.assert_close(terms["entropy"], -right.log().mean())
    dice = []
    for k in range(1, classes):
        y = (batch["mask"] == k)[:, 0].float()
        both, sizes = (p[:, k] * y).sum((1, 2)), p[:, k].sum((1, 2)) + y.sum((1, 2))
        dice.append((2 * both + 1) / (sizes + 1))
    torch.testing.assert_close(terms["dice"], torch.stack(dice).mean())
    torch.testing.assert_close(terms["loss"], terms["entropy"] + 0.7 * (1 - terms["dice"]))


def test_the_soft_dice_of_a_mask_and_itself_is_one_also_where_it_is_empty():
    marked = torch.stack([torch.eye(4), torch.zeros(4, 4)])[:, None]
    maps = torch.cat([1 - marked, marked], 1)
    assert soft_dice(maps, maps).item() == pytest.approx(1)


def test_micro_batches_are_one_batch():
    task, batch = build(), fields()
    whole = task(batch)
    parts = [task({name: value[rows] for name, value in batch.items()}) for rows in (slice(0, 2), slice(2, 6))]
    for name in whole:
        torch.testing.assert_close((parts[0][name] + 2 * parts[1][name]) / 3, whole[name])


def test_a_preview_is_white_where_there_is_no_background():
    task, batch = build(), fields()
    picture = task.preview(batch, Ddim(), 1.0)
    assert picture.shape == (6, 1, 8, 8)
    torch.testing.assert_close((picture + 1) / 2, task.probabilities(task.logits(batch["image"]))[:, 1:])


def test_data_that_do_not_fit_are_refused_by_key():
    with pytest.raises(UserError, match=r"task\.classes is 2, but the data's mask has 5") as error:
        SegmentationConfig(network=NETWORK).build(specs(5))
    assert "task.classes=5" in error.value.hint
    with pytest.raises(UserError, match=r"task\.source is 'sketch'") as error:
        SegmentationConfig(network=NETWORK, source="sketch").build(specs(2))
    assert "task.source" in error.value.hint
    with pytest.raises(UserError, match=r"task\.field is 'image', which is of kind image"):
        SegmentationConfig(network=NETWORK, field="image").build(specs(2))
    with pytest.raises(UserError, match=r"task\.field \(segmentation\) knows 2 classes of 'mask'"):
        build(2).check(specs(4))

"""Digits on clutter: annotators who disagree on the border alone, and fields that fit each other."""

import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError

from diffcli.config import ImageShape
from diffcli.data.cluttered import LEVELS, DigitsSegmentation, scene, scenes
from diffcli.data.datasets import Digits
from diffcli.data.loader import batches
from diffcli.fields import FieldSpec
from diffcli.noise import Noise, derive

CPU = torch.device("cpu")


def test_the_set_declares_image_digit_mask_and_the_masks_of_all_annotators():
    data = DigitsSegmentation(size=(20, 24), channels=3).build("test")
    assert len(data) == 1000
    assert data.shape == ImageShape(3, 20, 24)
    assert data.specs == {
        "image": FieldSpec("image", (3, 20, 24)),
        "label": FieldSpec("classes", (), tuple("0123456789")),
        "mask": FieldSpec("mask", (1, 20, 24), 2),
        "masks": FieldSpec("mask", (4, 20, 24), 2),
    }
    fields = data.read(torch.arange(3))
    for name, spec in data.specs.items():
        assert fields[name].shape[1:] == spec.shape
    assert DigitsSegmentation().specs["mask"] == FieldSpec("mask", (1, 32, 32), 2)


def test_digits_are_those_of_the_plain_set_in_its_order():
    assert torch.equal(DigitsSegmentation().build("test").labels, Digits().build("test").labels)


def test_an_image_follows_from_its_own_number_alone():
    ink = Noise(range(6), CPU).words(196)[:, :, :].reshape(6, 1, 28, 28).float() / 2**32
    seeds = derive(10, 4, torch.arange(6))
    whole = scene(ink, seeds, (16, 20))
    alone = [scene(ink[i : i + 1], seeds[i : i + 1], (16, 20)) for i in range(6)]
    for field, found in enumerate(whole):
        same = (found == torch.cat([one[field] for one in alone])).float().mean()
        assert same > 0.999, "the order of a sum may round a level"


def test_annotators_disagree_on_the_border_and_agree_inside_and_outside():
    masks = scenes("test", (32, 32))[1].float()
    assert (masks.mean((0, 2, 3)).diff() < 0).all(), "from generous to tight"
    differ = masks.amax(1) != masks.amin(1)
    union, common = masks.amax(1, keepdim=True), masks.amin(1, keepdim=True)
    assert differ.any(dim=(1, 2)).all()
    reach = F.max_pool2d(common, 7, 1, 3)
    assert (union * (1 - reach)).sum() / union.sum() < 0.01, "nobody marks what is far from what all mark"
    assert 0.04 < union.mean() < 0.3


def test_the_consensus_is_what_at_least_half_of_them_marked_and_an_epoch_draws_one():
    data = DigitsSegmentation().build("test")
    rows = torch.arange(40)
    fields = data.read(rows)
    votes = fields["masks"].sum(1, keepdim=True)
    assert torch.equal(fields["mask"], (votes >= 2).to(torch.uint8))
    for who in range(len(LEVELS)):
        drawn = data.read(rows, torch.full((40,), who << 1))["mask"]
        assert torch.equal(drawn, fields["masks"][:, who : who + 1])
    mixed = data.read(rows, rows * 2)["mask"]
    assert torch.equal(mixed[:, 0], fields["masks"][rows, rows % 4])


def test_an_image_and_its_masks_are_mirrored_together():
    data = DigitsSegmentation().build("test")
    batch = dict(batches(data, batch_size=32, seed=1, first=0, last=1, flip=True, device=CPU))[1]
    plain = data.read(batch["index"])
    turned = (batch["masks"] == plain["masks"].flip(-1)).flatten(1).all(1)
    assert 0 < turned.sum() < 32
    for name in ("image", "masks"):
        other = torch.where(turned[:, None, None, None], plain[name].flip(-1), plain[name])
        found = ((batch[name] + 1) * 127.5).round() if name == "image" else batch[name]
        assert torch.equal(found.long(), other.long())


def test_it_takes_no_root(tmp_path):
    with pytest.raises(ValidationError, match="comes with diffcli"):
        DigitsSegmentation(root=tmp_path)

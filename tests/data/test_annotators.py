"""Of the masks of several annotators an epoch draws one for each sample, and scores read all."""

import torch

from diffcli.data.annotators import HeldMasks, annotated, consensus, joined_annotators
from diffcli.fields import FieldSpec

MASKS = (torch.arange(5 * 3 * 4).view(5, 3, 2, 2) * 7 % 5 < 2).to(torch.uint8)  # five images, three annotators


def columns() -> tuple[list[HeldMasks], HeldMasks]:
    return [HeldMasks(MASKS[:, a : a + 1], 2) for a in range(3)], HeldMasks(consensus(MASKS), 2)


def test_each_sample_has_the_mask_of_the_annotator_that_its_draw_names():
    found = annotated(*columns())
    rows, draws = torch.tensor([4, 0, 3, 0, 1]), torch.tensor([5, 0, 3, 4, 1])
    who = (draws >> 1) % 3
    assert torch.equal(found["mask"].read(rows, draws)[:, 0], MASKS[rows, who])
    assert torch.equal(found["mask"].read(rows, None), consensus(MASKS)[rows])
    assert torch.equal(found["masks"].read(rows, draws), MASKS[rows])
    assert found["masks"].spec == FieldSpec("mask", (3, 2, 2), 2)


def test_the_consensus_is_at_least_half():
    votes = torch.tensor([0, 1, 2, 3, 4]).view(5, 1, 1, 1)
    masks = (torch.arange(4).view(1, 4, 1, 1) < votes).to(torch.uint8)
    assert consensus(masks).flatten().tolist() == [0, 0, 1, 1, 1]


def test_fields_of_single_annotators_are_joined_in_the_order_of_their_numbers():
    single, both = columns()
    names = ("annotator_2_mask", "annotator_10_mask", "annotator_1_mask")
    found = joined_annotators({**dict(zip(names, single, strict=True)), "mask": both, "sketch": both})
    assert list(found) == ["mask", "sketch", "masks"]
    assert torch.equal(found["masks"].read(torch.arange(5), None), MASKS[:, [2, 0, 1]])


def test_a_set_of_one_mask_an_image_stays_as_it_is():
    both = columns()[1]
    assert joined_annotators({"mask": both}) == {"mask": both}

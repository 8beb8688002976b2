"""Scores of masks equal brute force and torchmetrics, and have their closed forms."""

from itertools import permutations
from math import lcm

import numpy as np
import pytest
import torch
from torch import Tensor

import diffcli.torchvision_compat  # noqa: F401  before torchmetrics
from diffcli.metrics.metric import empty_summaries
from diffcli.metrics.overlap import BINS, CalibrationError, calibration, energy_distance, matched_iou, pairwise
from diffcli.noise import Noise


def masks(seed: int, n: int, many: int, classes: int = 2, size: int = 6) -> Tensor:
    """Class numbers (n, many, size, size), the background as likely as all others together."""
    noise = Noise(range(seed, seed + n), torch.device("cpu"))
    return (noise(torch.empty(n, many, size, size)) * classes).clamp(0, classes - 1).long()


def iou_of(a: Tensor, b: Tensor, classes: int) -> float:
    found = []
    for k in range(1, classes):
        mine, theirs = {*torch.nonzero(a.flatten() == k).flatten().tolist()}, set()
        theirs |= {*torch.nonzero(b.flatten() == k).flatten().tolist()}
        found += [len(mine & theirs) / len(mine | theirs)] if mine | theirs else []
    return sum(found) / len(found) if found else 1.0


@pytest.mark.parametrize("classes", [2, 4])
def test_overlaps_of_all_pairs_equal_those_counted_pixel_by_pixel(classes: int):
    samples, annotators = masks(1, 3, 5, classes), masks(9, 3, 4, classes)
    found = pairwise(samples, annotators, classes)[1]
    for b in range(3):
        for s in range(5):
            for a in range(4):
                assert found[b, s, a] == pytest.approx(iou_of(samples[b, s], annotators[b, a], classes))


@pytest.mark.parametrize("classes", [2, 3])
def test_dice_and_iou_agree_with_torchmetrics(classes: int):
    from torchmetrics.functional.segmentation import dice_score, mean_iou

    one, other = masks(1, 6, 1, classes), masks(9, 6, 1, classes)
    dice, iou = (found[:, 0, 0] for found in pairwise(one, other, classes))
    how = {"num_classes": classes, "include_background": False, "input_format": "index"}
    assert dice.tolist() == pytest.approx(dice_score(one[:, 0], other[:, 0], average="macro", **how).tolist())
    assert iou.tolist() == pytest.approx(mean_iou(one[:, 0], other[:, 0], **how).tolist())


def test_two_empty_masks_agree_and_an_empty_one_has_nothing_in_common_with_another():
    empty, full = torch.zeros(1, 1, 4, 4, dtype=torch.int64), torch.ones(1, 1, 4, 4, dtype=torch.int64)
    assert [found.item() for found in pairwise(empty, empty, 2)] == [1, 1]
    assert [found.item() for found in pairwise(empty, full, 2)] == [0, 0]


def test_a_class_that_neither_mask_has_counts_for_nothing():
    """Halves of class 1 and nothing else: as of two classes, however many there may be. One pixel of class 3 is then missed."""
    whole = torch.ones(1, 1, 4, 4, dtype=torch.int64)
    half = whole.clone()
    half[..., 2:] = 0
    for classes in (2, 3, 9):
        assert [found.item() for found in pairwise(half, whole, classes)] == pytest.approx([2 / 3, 1 / 2])
    half[..., 3, 3] = 3
    assert [found.item() for found in pairwise(half, whole, 9)] == pytest.approx([1 / 3, 1 / 4])


def test_half_of_a_mask_has_a_dice_of_two_thirds_and_an_iou_of_a_half():
    whole = torch.ones(1, 1, 4, 4, dtype=torch.int64)
    half = whole.clone()
    half[..., 2:] = 0
    assert [found.item() for found in pairwise(half, whole, 2)] == pytest.approx([2 / 3, 1 / 2])


def test_the_energy_distance_is_its_sum_over_all_pairs():
    samples, annotators = masks(3, 2, 3), masks(5, 2, 4)
    for b, found in enumerate(energy_distance(samples, annotators, 2).tolist()):
        s, y = samples[b], annotators[b]

        def mean(one: Tensor, other: Tensor) -> float:
            return float(np.mean([1 - iou_of(a, c, 2) for a in one for c in other]))

        assert found == pytest.approx(2 * mean(s, y) - mean(s, s) - mean(y, y))


def test_one_sample_against_two_annotators_that_share_nothing():
    """d(S, Y) is 0 and 1, d(Y, Y') is 1 for half of the four pairs: 2 x 1/2 - 0 - 1/2."""
    left = torch.zeros(1, 1, 4, 4, dtype=torch.int64)
    left[..., :2] = 1
    assert energy_distance(left, torch.cat([left, 1 - left], 1), 2).item() == pytest.approx(0.5)


def test_the_same_set_in_another_order_or_repeated_scores_best():
    some = masks(7, 3, 4)
    again = some[:, [2, 0, 3, 1]].repeat(1, 2, 1, 1)
    assert energy_distance(again, some, 2).abs().max() < 1e-12
    assert matched_iou(again, some, 2).tolist() == [1, 1, 1]
    assert energy_distance(masks(8, 3, 4), some, 2).min() > 0.05


@pytest.mark.parametrize(("samples", "annotators"), [(4, 4), (1, 3), (6, 3), (2, 3)])
def test_the_matching_is_the_best_of_all_permutations(samples: int, annotators: int):
    s, y = masks(2, 2, samples), masks(4, 2, annotators)
    many = lcm(samples, annotators)
    for b, found in enumerate(matched_iou(s, y, 2).tolist()):
        table = np.array(
            [[iou_of(s[b, i % samples], y[b, j % annotators], 2) for j in range(many)] for i in range(many)]
        )
        best = max(table[range(many), list(order)].mean() for order in permutations(range(many)))
        assert found == pytest.approx(best)


def error(probability: Tensor, annotators: Tensor) -> float:
    """As `fid` computes it: summed image by image."""
    metric = CalibrationError()
    summaries = empty_summaries([metric])
    for i in range(len(probability)):
        values = calibration(probability[i : i + 1], annotators[i : i + 1])
        summaries["reference", "segmentation"].update({"calibration": values})
    return metric.compute(summaries)["ece"]


def probabilities(seed: int, n: int, classes: int) -> Tensor:
    return Noise(range(seed, seed + n), torch.device("cpu"))(torch.empty(n, classes, 6, 6)).softmax(1)


def test_the_calibration_error_agrees_with_torchmetrics():
    from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error

    two, three, marked = probabilities(1, 8, 2), probabilities(2, 8, 3), masks(3, 8, 1, 3)
    two[0, :, 0] = torch.tensor([0.0, 1.0])[:, None]  # 1 itself has a bin of its own
    expected = binary_calibration_error(two[:, 1], marked[:, 0].clamp(max=1), n_bins=BINS)
    assert error(two, marked.clamp(max=1)) == pytest.approx(expected.item(), rel=1e-5)
    expected = multiclass_calibration_error(three, marked[:, 0], 3, n_bins=BINS)
    assert error(three, marked) == pytest.approx(expected.item(), rel=1e-5)


def test_a_probability_that_is_the_share_of_the_annotators_is_calibrated():
    annotators = masks(4, 5, 4)
    share = annotators.float().mean(1, keepdim=True)
    assert error(torch.cat([1 - share, share], 1), annotators) < 1e-6
    assert error(torch.cat([share, 1 - share], 1), annotators) > 0.1


def test_the_bins_of_a_report_add_up():
    metric, summaries = CalibrationError(), empty_summaries([CalibrationError()])
    summaries["reference", "segmentation"].update({"calibration": calibration(probabilities(1, 4, 2), masks(1, 4, 3))})
    shares, told, marked = torch.tensor(metric.more(summaries)["calibration"]).T
    assert shares.sum() == pytest.approx(1)
    assert (shares * (told - marked).abs()).sum().item() == pytest.approx(metric.compute(summaries)["ece"], rel=1e-5)

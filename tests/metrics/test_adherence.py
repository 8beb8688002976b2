"""F1 of edges: closed forms, and the count that a loop over pixels makes."""

import numpy as np
import pytest
import torch
from torch import Tensor

from diffcli.metrics.adherence import edges_f1
from diffcli.metrics.metric import empty_summaries
from diffcli.metrics.scores import metrics_by_name


def line(column: int, size: int = 12) -> Tensor:
    edges = torch.zeros(1, 1, size, size, dtype=torch.bool)
    edges[..., column] = True
    return edges


@pytest.mark.parametrize(("shift", "expected"), [(0, 1), (1, 1), (-1, 1), (2, 0)])
def test_a_line_may_lie_one_pixel_elsewhere_and_no_more(shift: int, expected: float) -> None:
    assert edges_f1(line(5), line(5 + shift)).item() == expected


def test_half_of_the_edges_with_none_too_many_is_two_thirds() -> None:
    both = line(2) | line(8)
    assert edges_f1(line(2), both).item() == pytest.approx(2 / 3)
    assert edges_f1(both, line(2)).item() == pytest.approx(2 / 3)


def test_no_edges_agree_with_none_and_with_nothing_else() -> None:
    none = torch.zeros_like(line(1))
    assert edges_f1(none, none).item() == 1
    assert edges_f1(none, line(1)).item() == edges_f1(line(1), none).item() == 0


def test_random_edges_are_counted_as_a_loop_counts_them() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(5, 1, 9, 11, generator=generator) > 0.85 for _ in range(2))

    def share(one: np.ndarray, two: np.ndarray) -> float:
        near = [any(abs(y - v) <= 1 and abs(x - u) <= 1 for v, u in np.argwhere(two)) for y, x in np.argwhere(one)]
        return float(np.mean(near))

    for found, one, two in zip(edges_f1(a, b), a[:, 0].numpy(), b[:, 0].numpy(), strict=True):
        precision, recall = share(one, two), share(two, one)
        assert found.item() == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-6)


def test_the_score_under_other_conditions_stands_beside() -> None:
    (metric,) = metrics_by_name(["follows"])
    summaries = empty_summaries([metric])
    summaries["samples", "condition"].update(
        {"follows": torch.tensor([0.9, 0.7]), "shuffled": torch.tensor([0.2, 0.4])}
    )
    scores = metric.compute(summaries)
    assert scores["follows"] == pytest.approx(0.8)
    assert scores["follows_shuffled"] == pytest.approx(0.3)
    assert metric.lines(scores, {}) == {
        "follows": "0.8 +- 0.1 over the images",
        "shuffled": "0.3 against the condition of another image",
    }

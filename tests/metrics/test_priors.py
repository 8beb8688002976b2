"""Retrieval on known neighbours, and what the scores of a prior are made of."""

import pytest
import torch

from diffcli.metrics.metric import empty_summaries
from diffcli.metrics.priors import retrieved
from diffcli.metrics.scores import metrics_by_name


def test_retrieval_counts_the_right_neighbours() -> None:
    image = torch.eye(6)
    assert retrieved(image * 3, image) == 1
    swapped = image[[1, 0, 2, 3, 4, 5]]
    assert retrieved(swapped, image) == pytest.approx(4 / 6)
    many = torch.randn(2500, 16, generator=torch.Generator().manual_seed(0))  # more than are compared at once
    assert retrieved(many, many) == 1
    assert retrieved(many.roll(1, 0), many) == 0


def test_a_prediction_that_tells_nothing_apart_retrieves_by_chance() -> None:
    image = torch.eye(4)
    assert retrieved(torch.zeros(4, 4), image) == 1 / 4
    assert retrieved(image, image[[0, 0, 2, 3]]) == (1 / 2 + 1 / 4 + 1 + 1) / 4


def test_scores_are_means_over_the_pairs_beside_those_of_the_identity() -> None:
    metrics = metrics_by_name(["mse", "retrieval", "cosine"])
    summaries = empty_summaries(metrics)
    summary = summaries["reference", "translation"]
    image = torch.eye(4)
    for rows in (range(3), range(3, 4)):
        batch = {"cosine": torch.tensor([float(i) for i in rows]), "identity_cosine": torch.zeros(len(rows))}
        batch |= {"mse": torch.ones(len(rows)), "identity_mse": 3 * torch.ones(len(rows))}
        chosen = slice(rows.start, rows.stop)
        summary.update(batch | {"text": image.flip(0)[chosen], "image": image[chosen], "predicted": image[chosen]})
    scores = {name: value for metric in metrics for name, value in metric.compute(summaries).items()}
    expected = {
        "mse": 1,
        "identity_mse": 3,
        "retrieval": 1,
        "identity_retrieval": 0,
        "cosine": 1.5,
        "identity_cosine": 0,
    }
    assert scores == expected
    assert metrics[0].lines(scores, {}) == {"mse": "1 (identity 3)"}

"""What stays over the frames: the class, one thing, and features of neighbours."""

import pytest
import torch

from diffcli.metrics.metric import empty_summaries
from diffcli.metrics.motion.constancy import FrameSimilarity, Kept, KeptClass


def logits(read: list[list[int]], sure: float = 10.0) -> torch.Tensor:
    return sure * torch.nn.functional.one_hot(torch.tensor(read), 3).float()


def kept(read: list[list[int]], pieces: list[list[int]], **options) -> dict[str, float]:
    metric = Kept(**options)
    of = empty_summaries([metric])
    of["samples", "features"].update({"logits": logits(read)})
    of["samples", "motion"].update({"pieces": torch.tensor(pieces).float()})
    of["reference", "features"].update({"logits": logits([[0, 0]])})
    of["reference", "motion"].update({"pieces": torch.ones(1, 2)})
    return metric.compute(of)


def test_a_clip_keeps_its_class_only_if_every_frame_shows_it():
    found = kept([[0, 0, 0], [1, 1, 2], [2, 2, 2], [0, 1, 0]], [[1] * 3] * 4)
    assert found == {
        "kept": 0.5,
        "one_thing": 1,
        "pieces": 1,
        "kept_reference": 1,
        "one_thing_reference": 1,
        "pieces_reference": 1,
    }


def test_a_frame_is_one_thing_if_it_is_in_one_piece_and_read_with_confidence():
    assert kept([[0, 0, 0, 0]], [[1, 2, 0, 1]])["one_thing"] == 0.5
    likeliest = torch.tensor([10.0, 0, 0]).softmax(0)[0].item()
    assert kept([[0, 0]], [[1, 1]], confidence=likeliest - 1e-9)["one_thing"] == 1
    assert kept([[0, 0]], [[1, 1]], confidence=likeliest + 1e-6)["one_thing"] == 0
    assert kept([[0, 0]], [[1, 3]])["pieces"] == 2


def test_the_class_that_was_asked_for_must_be_read_in_every_frame():
    metric = KeptClass()
    of = empty_summaries([metric])
    label = torch.tensor([0, 1, 1, 2])
    of["samples", "features"].update({"logits": logits([[0, 0], [1, 1], [2, 2], [2, 0]]), "label": label})
    assert metric.compute(of) == {"kept_class": 0.5}


def test_similarity_is_the_mean_over_all_pairs_of_neighbours():
    metric = FrameSimilarity()
    of = empty_summaries([metric])
    of["samples", "features"].update({"similarity": torch.tensor([[1.0, 0.5], [0.0, 0.5]])})
    of["reference", "features"].update({"similarity": torch.ones(2, 2)})
    assert metric.compute(of) == {"frame_similarity": pytest.approx(0.5), "frame_similarity_reference": 1}

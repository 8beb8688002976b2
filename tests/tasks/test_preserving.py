"""Prior preservation in the loss: own pictures plus a weight times those of the class, each sample by itself."""

import torch

from diffcli import preset as presets
from diffcli.data.personal import PRESERVED, PRESERVED_TEXT
from diffcli.engine.run.state import build_state
from diffcli.fields import Batch
from diffcli.noise import Domain, derive
from diffcli.tasks.diffusion import DiffusionTask
from diffcli.tasks.preserving import of_class
from tests.conftest import TINY, changed

KEYS = {
    "data": {
        "kind": "personal", "size": 8, "channels": 1, "token": "sks", "prompts": ["sks"], "preserve": {"prompts": ["a dog"]},
    },
    "task__conditioners": [{"kind": "text", "width": 8, "depth": 1, "heads": 2, "length": 16, "gives": "vector"}],
}  # fmt: skip


def task(weight: float = 0.5, **keys: object) -> DiffusionTask:
    tree = changed(TINY, **{**KEYS, "task__preservation": weight, **keys})
    built = build_state(presets.build(tree, "tiny.yaml"), torch.device("cpu")).task
    assert isinstance(built, DiffusionTask)
    return built


def batch(n: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(3)
    pictures = {name: torch.rand(n, 1, 8, 8, generator=generator) * 2 - 1 for name in ("image", PRESERVED)}
    texts = {"text": ["sks"] * n, PRESERVED_TEXT: ["a dog", "the dog"] * (n // 2)}
    place = torch.arange(n)
    return {**pictures, **texts, "position": place, "stream": derive(1, Domain.TRAIN, place)}


def test_the_loss_is_that_of_own_pictures_plus_weight_times_that_of_the_class() -> None:
    both, alone, given = task(), task(0), batch()
    terms = both(given)
    assert terms["own"].equal(alone(given)["loss"])
    assert terms[PRESERVED].equal(alone(of_class(given, "image"))["loss"])
    assert terms["loss"].equal(terms["own"] + 0.5 * terms[PRESERVED])


def test_pictures_of_the_class_have_noise_and_times_of_their_own() -> None:
    given = dict(batch())
    given[PRESERVED], given[PRESERVED_TEXT] = given["image"], given["text"]
    terms = task()(given)
    assert not terms["own"].equal(terms[PRESERVED])


def test_micro_batches_add_up_to_the_whole() -> None:
    both, given = task(), batch()
    halves = [{name: value[part] for name, value in given.items()} for part in (slice(0, 2), slice(2, 4))]
    found = sum(both(half)["loss"] for half in halves) / 2
    torch.testing.assert_close(found, both(given)["loss"])


def test_a_history_of_losses_knows_own_pictures_alone() -> None:
    both = task(task__times={"kind": "loss_aware"}, task__schedule={"kind": "cosine", "steps": 10})
    both.train()
    both(batch())
    assert [len(place) for place, _ in both.drawn] == [4]


def test_fields_of_the_class_are_for_training_alone() -> None:
    assert task().trains_on.keys() == {PRESERVED, PRESERVED_TEXT}
    assert not task().reads.keys() & task().trains_on.keys()
    assert not task(0).trains_on
    assert not task(
        data={"kind": "digits", "size": 8}, task__conditioners=[], task__drop_condition=0, guidance=1
    ).trains_on

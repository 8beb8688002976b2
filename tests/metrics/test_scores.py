"""Every metric's known answers, its agreement with torchmetrics on the same features, and bounded memory."""

import pickle

import pytest
import torch
from torch import Tensor

from diffcli.config import RunFailed, UserError
from diffcli.metrics import summary
from diffcli.metrics.scores import METRICS, Kid, Scorer, covered, metrics_by_name
from diffcli.metrics.summary import FeatureBatch, Hits, Part, Reservoir, Splits, Summary
from diffcli.noise import Noise, permutation

BEST = {"fid": 0.0, "kid": 0.0, "precision": 1.0, "recall": 1.0, "accuracy": 1.0}
CLASSES = 5


def normal(seed: int, *shape: int) -> Tensor:
    return Noise([seed], torch.device("cpu"))(torch.empty(1, *shape))[0]


def labelled(x: Tensor) -> tuple[FeatureBatch, Tensor]:
    """A batch whose logits are its first features and whose labels are what they say."""
    return FeatureBatch(x, x[:, :CLASSES]), x[:, :CLASSES].argmax(1)


def score(real: Tensor, fake: Tensor, names: list[str], batch: int = 64) -> dict[str, float]:
    scorer = Scorer(metrics_by_name(names))
    for side, x in (("real", real), ("fake", fake)):
        for rows in x.split(batch):
            scorer.update(side, *labelled(rows))
    return scorer.compute()


@pytest.mark.parametrize("name", sorted(set(BEST) - {"kid"}))
def test_identical_sets_score_best(name: str):
    x = normal(1, 300, 12)
    assert score(x, x, [name])[name] == pytest.approx(BEST[name], abs=1e-5)


def test_kid_of_a_set_and_itself_is_below_zero_by_what_is_on_the_diagonal():
    x = normal(1, 300, 12).double()
    kernel = (x @ x.T / 12 + 1) ** 3
    diagonal = kernel.trace() / 300
    others = (kernel.sum() - kernel.trace()) / (300 * 299)
    assert score(x, x, ["kid"])["kid"] == pytest.approx((2 / 300 * (others - diagonal)).item(), rel=1e-5)


def test_kid_of_two_samples_of_one_distribution_is_zero_on_average():
    values = torch.tensor([score(normal(2 * i, 80, 6), normal(2 * i + 1, 80, 6), ["kid"])["kid"] for i in range(40)])
    assert abs(values.mean()) < 4 * values.std() / 40**0.5


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"accuracy", "is"}))  # which see the fake side alone
def test_a_different_set_scores_worse_than_one_alike(name: str):
    real, alike, other = normal(1, 400, 6), normal(2, 400, 6), normal(3, 400, 6) * 0.3 + 3
    good, bad = (score(real, fake, [name])[name] for fake in (alike, other))
    assert bad > good + 0.5 if BEST[name] == 0 else bad < good - 0.3


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"is"}))
def test_the_order_of_images_does_not_matter(name: str):
    real, fake = normal(1, 200, 8), normal(2, 200, 8) + 0.3
    once = score(real, fake, [name])[name]
    assert score(real.flip(0), fake[permutation(0, 0, 200)], [name])[name] == pytest.approx(once, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", sorted(METRICS))
def test_the_split_into_batches_does_not_matter(name: str):
    real, fake = normal(1, 200, 8), normal(2, 150, 8) + 0.3
    once = score(real, fake, [name], batch=200)
    assert score(real, fake, [name], batch=7) == pytest.approx(once, rel=1e-9, abs=1e-9)


def test_kid_agrees_with_torchmetrics():
    import diffcli.torchvision_compat  # noqa: F401, I001
    from torchmetrics.image.kid import KernelInceptionDistance

    oracle = KernelInceptionDistance(torch.nn.Identity(), subsets=1, subset_size=120)
    real, fake = normal(1, 120, 16), normal(2, 120, 16) * 1.2 + 0.3
    oracle.update(real, real=True)
    oracle.update(fake, real=False)
    found = score(real, fake, ["kid"])
    assert found["kid"] == pytest.approx(oracle.compute()[0].item(), rel=1e-4)
    assert found["kid_std"] == 0


def test_kid_averages_over_subsets_of_larger_sets():
    real, fake = normal(1, 500, 6), normal(2, 500, 6) + 0.5
    sides = Scorer([Kid(subsets=60, subset_size=100)])
    for side, x in (("real", real), ("fake", fake)):
        sides.update(side, FeatureBatch(x))
    found = sides.compute()
    assert found["kid"] == pytest.approx(score(real, fake, ["kid"])["kid"], abs=4 * found["kid_std"] / 60**0.5)
    assert found["kid_std"] > 0


def test_the_inception_score_agrees_with_torchmetrics(monkeypatch):
    import diffcli.torchvision_compat  # noqa: F401, I001
    from torchmetrics.image.inception import InceptionScore

    monkeypatch.setattr(summary, "SPLITS", 1)  # torchmetrics splits in an order of its own
    logits = 3 * normal(1, 200, 10)
    splits, oracle = Splits(), InceptionScore(torch.nn.Identity(), splits=1)
    for batch in logits.split(33):
        splits.update(batch)
        oracle.update(batch)
    assert splits.scores().item() == pytest.approx(oracle.compute()[0].item(), rel=1e-5)


def test_the_inception_score_lies_between_one_and_the_number_of_classes():
    sure, unsure = Splits(), Splits()
    labels = torch.arange(5000) % 10  # the order that `--class all` gives
    sure.update(torch.nn.functional.one_hot(labels, 10) * 100.0)
    unsure.update(torch.zeros(1000, 10))
    assert sure.scores().mean() == pytest.approx(10, rel=0.01)
    assert unsure.scores().tolist() == pytest.approx([1.0] * 10)


def test_precision_and_recall_of_disjoint_sets_are_zero():
    assert score(normal(1, 100, 4), normal(2, 100, 4) + 50, ["precision", "recall"]) == {"precision": 0, "recall": 0}


def test_dropping_modes_costs_recall_and_noise_costs_precision():
    real = torch.cat([normal(1, 200, 4), normal(2, 200, 4) + 40])
    one_mode = score(real, normal(3, 200, 4), ["precision", "recall"])
    assert one_mode["precision"] > 0.8
    assert one_mode["recall"] == pytest.approx(0.5, abs=0.1)
    noisy = score(real, torch.cat([normal(1, 200, 4), normal(2, 200, 4) + 40, normal(4, 400, 4) - 70]), ["precision"])
    assert noisy["precision"] == pytest.approx(0.5, abs=0.02)


def test_precision_agrees_with_torch_fidelity():
    import diffcli.torchvision_compat  # noqa: F401, I001
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    real, fake = normal(1, 300, 5), normal(2, 250, 5) * 1.3 + 0.4
    precision, recall = calculate_precision_recall_full(fake, real, 3)
    assert score(real, fake, ["precision", "recall"]) == pytest.approx({"precision": precision, "recall": recall})


def test_duplicates_are_at_distance_zero_of_each_other():
    point = normal(1, 1, 64) * 1000
    same, near = point.repeat(10, 1), point + 1e-3
    assert covered(same, same, 3) == 1
    assert covered(near, same, 3) == 0  # a manifold of one point is that point


def test_the_manifold_does_not_depend_on_the_block_size():
    points, manifold = normal(1, 90, 5), normal(2, 110, 5)
    assert covered(points, manifold, 3, block=7) == covered(points, manifold, 3, block=1000)


def test_accuracy_is_the_share_of_labels_met():
    hits = Hits()
    hits.update(torch.eye(4), torch.tensor([0, 1, 0, 3]))
    assert (hits.right, hits.n) == (3, 4)
    with pytest.raises(UserError, match=r"labels 0\.\.9 are not classes of the classifier \(0\.\.3\)"):
        hits.update(torch.eye(4), torch.tensor([0, 1, 0, 9]))


def test_a_reservoir_is_a_uniform_sample_without_repetition():
    reservoir = Reservoir(cap=200)
    for batch in torch.arange(4000.0)[:, None].split(130):
        reservoir.update(batch)
    rows = reservoir.rows()[:, 0]
    assert len(rows) == len(rows.unique()) == 200
    assert rows.mean().item() == pytest.approx(2000, abs=4 * 1155 / 200**0.5)
    other = Reservoir(cap=200, stream=1)
    other.update(torch.arange(4000.0)[:, None])
    assert not torch.equal(other.rows()[:, 0].sort().values, rows.sort().values)


def test_a_reservoir_does_not_depend_on_batches():
    whole, split = Reservoir(cap=50), Reservoir(cap=50)
    x = normal(1, 700, 3)
    whole.update(x)
    for batch in x.split(11):
        split.update(batch)
    assert torch.equal(whole.rows(), split.rows())


def test_memory_does_not_grow_with_the_number_of_images(monkeypatch):
    monkeypatch.setattr(summary, "CAP", 100)
    side = Summary(frozenset(Part))
    sizes = []
    for i in range(40):
        side.update(*labelled(normal(i, 50, 8)))
        sizes.append(len(pickle.dumps(side)))
    assert max(sizes[20:]) <= max(sizes[:10])
    assert side.n == 2000


def test_features_that_are_not_finite_stop_the_scoring():
    side = Summary(frozenset({Part.MOMENTS}))
    with pytest.raises(RunFailed, match=r"images 0\.\.1 are not finite"):
        side.update(FeatureBatch(torch.tensor([[1.0], [torch.inf]])))


def test_a_summary_comes_back_from_its_arrays():
    side = Summary(frozenset({Part.MOMENTS, Part.SAMPLE}))
    side.update(FeatureBatch(normal(1, 60, 4)))
    again = Summary.from_arrays(side.arrays())
    assert again.parts == side.parts
    assert again.n == 60
    assert torch.equal(again.statistics().sigma, side.statistics().sigma)
    assert again.sample is not None
    assert side.sample is not None
    assert torch.equal(again.sample.rows(), side.sample.rows())


def test_too_few_images_for_the_dimension_warn():
    def warnings(n: int) -> list[str]:
        scorer = Scorer(metrics_by_name(["fid", "kid", "is"]))
        for side in ("real", "fake"):
            scorer.update(side, *labelled(normal(1, n, 40)))
        return scorer.warnings()

    assert any("30 real images are too few for 40 features" in w for w in warnings(30))
    assert any("60 fake images are few for 40 features" in w for w in warnings(60))
    assert any("subsets of 60 images" in w for w in warnings(60))
    assert any("is: 30 images" in w for w in warnings(30))
    assert warnings(1000) == []


def test_a_capped_sample_is_stated(monkeypatch):
    monkeypatch.setattr("diffcli.metrics.scores.CAP", 50)
    scorer = Scorer(metrics_by_name(["precision"]))
    for side in ("real", "fake"):
        scorer.update(side, FeatureBatch(normal(1, 60, 4)))
    assert scorer.warnings() == ["precision: from a random sample of 50 of the 60 real and 60 fake images"]


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'presicion' is not a metric") as error:
        metrics_by_name(["fid", "presicion"])
    assert "did you mean 'precision'?" in error.value.hint


def test_metrics_are_computed_once_in_the_order_asked_for():
    assert [m.kind for m in metrics_by_name(["recall", " FID", "recall"])] == ["recall", "fid"]

"""Every metric's known answers, its agreement with torchmetrics on the same features, and bounded memory."""

import pickle

import pytest
import torch
from torch import Tensor

from diffcli.config import RunFailed, UserError
from diffcli.metrics import keepers
from diffcli.metrics.extractor import Extracted
from diffcli.metrics.fidelity import Kid, covered
from diffcli.metrics.keepers import CLASSES, HITS, MOMENTS, SAMPLE, Hits, Means, Reservoir, Splits
from diffcli.metrics.metric import Metric, Summaries, empty_summaries
from diffcli.metrics.scores import METRICS, metrics_by_name
from diffcli.metrics.summary import Summary
from diffcli.noise import Noise, permutation

LOGITS = 5
OVER_FRAMES = {"kept", "kept_class", "frame_similarity"}  # which need each frame of a clip, see tests/metrics/motion
BEST = {
    name: best for name, metric in METRICS.items() if (best := metric().best) is not None and name not in OVER_FRAMES
}
OF_IMAGES = sorted(
    {name for name, metric in METRICS.items() if metric().needs[0].extractor == "features"} - OVER_FRAMES
)


def normal(seed: int, *shape: int) -> Tensor:
    return Noise([seed], torch.device("cpu"))(torch.empty(1, *shape))[0]


def labelled(x: Tensor) -> Extracted:
    """A batch whose logits are its first features and whose labels are what they say."""
    return {"features": x, "logits": x[:, :LOGITS], "label": x[:, :LOGITS].argmax(1)}


def gathered(metrics: list[Metric], real: Tensor, fake: Tensor, batch: int = 64) -> Summaries:
    """What the metrics keep of two sides of features (N, D)."""
    summaries = empty_summaries(metrics)
    for (side, _), summary in summaries.items():
        for rows in (real if side == "reference" else fake).split(batch):
            summary.update(labelled(rows))
    return summaries


def computed(metrics: list[Metric], real: Tensor, fake: Tensor, batch: int = 64) -> dict[str, float]:
    summaries = gathered(metrics, real, fake, batch)
    return {name: value for metric in metrics for name, value in metric.compute(summaries).items()}


def score(real: Tensor, fake: Tensor, names: list[str], batch: int = 64) -> dict[str, float]:
    return computed(metrics_by_name(names), real, fake, batch)


def said(metrics: list[Metric], real: Tensor, fake: Tensor) -> list[str]:
    summaries = gathered(metrics, real, fake)
    return [warning for metric in metrics for warning in metric.warnings(summaries)]


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


@pytest.mark.parametrize("name", sorted(set(BEST) - {"accuracy"}))  # which sees the samples alone
def test_a_different_set_scores_worse_than_one_alike(name: str):
    real, alike, other = normal(1, 400, 6), normal(2, 400, 6), normal(3, 400, 6) * 0.3 + 3
    good, bad = (score(real, fake, [name])[name] for fake in (alike, other))
    assert bad > good + 0.5 if BEST[name] == 0 else bad < good - 0.3


@pytest.mark.parametrize("name", sorted(set(OF_IMAGES) - {"is"}))
def test_the_order_of_images_does_not_matter(name: str):
    real, fake = normal(1, 200, 8), normal(2, 200, 8) + 0.3
    once = score(real, fake, [name])[name]
    assert score(real.flip(0), fake[permutation(0, 0, 200)], [name])[name] == pytest.approx(once, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", OF_IMAGES)
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
    found = computed([Kid(subsets=60, subset_size=100)], real, fake)
    assert found["kid"] == pytest.approx(score(real, fake, ["kid"])["kid"], abs=4 * found["kid_std"] / 60**0.5)
    assert found["kid_std"] > 0


def test_the_inception_score_agrees_with_torchmetrics(monkeypatch):
    import diffcli.torchvision_compat  # noqa: F401, I001
    from torchmetrics.image.inception import InceptionScore

    monkeypatch.setattr(keepers, "SPLITS", 1)  # torchmetrics splits in an order of its own
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
    monkeypatch.setattr(keepers, "CAP", 100)
    side = Summary([MOMENTS, SAMPLE, CLASSES, HITS])
    sizes = []
    for i in range(40):
        side.update(labelled(normal(i, 50, 8)))
        sizes.append(len(pickle.dumps(side)))
    assert max(sizes[20:]) <= max(sizes[:10])
    assert side.n == 2000


def test_features_that_are_not_finite_stop_the_scoring():
    side = Summary([MOMENTS])
    with pytest.raises(RunFailed, match=r"features of rows 0\.\.1 are not finite"):
        side.update({"features": torch.tensor([[1.0], [torch.inf]])})


def test_a_summary_comes_back_from_its_arrays():
    side = Summary([MOMENTS, SAMPLE])
    side.update({"features": normal(1, 60, 4)})
    again = Summary.from_arrays(side.arrays())
    assert again.keeps == side.keeps
    assert again.n == 60
    assert torch.equal(again.statistics().sigma, side.statistics().sigma)
    assert torch.equal(again.sample(), side.sample())


def test_too_few_images_for_the_dimension_warn():
    def warnings(n: int) -> list[str]:
        return said(metrics_by_name(["fid", "kid", "is"]), normal(1, n, 40), normal(1, n, 40))

    assert any("30 real images are too few for 40 features" in w for w in warnings(30))
    assert any("60 fake images are few for 40 features" in w for w in warnings(60))
    assert any("subsets of 60 images" in w for w in warnings(60))
    assert any("is: 30 images" in w for w in warnings(30))
    assert warnings(1000) == []


def test_random_samples_of_two_equal_sides_are_not_the_same(monkeypatch):
    """Else neighbours that are the very same image would be found in both."""
    monkeypatch.setattr(keepers, "CAP", 50)
    x = normal(1, 400, 4)
    of = gathered(metrics_by_name(["kid"]), x, x)
    samples, reference = (set(map(tuple, of[side, "features"].sample().tolist())) for side in ("samples", "reference"))
    assert len(samples) == len(reference) == 50
    assert len(samples & reference) < 25


def test_a_capped_sample_is_stated(monkeypatch):
    monkeypatch.setattr("diffcli.metrics.fidelity.CAP", 50)
    found = said(metrics_by_name(["precision"]), normal(1, 60, 4), normal(2, 60, 4))
    assert found == ["precision: from a random sample of 50 of the 60 real and 60 fake images"]


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(UserError, match="'presicion' is not a metric") as error:
        metrics_by_name(["fid", "presicion"])
    assert "did you mean 'precision'?" in error.value.hint


def test_metrics_are_computed_once_in_the_order_asked_for():
    assert [m.kind for m in metrics_by_name(["recall", " FID", "recall"])] == ["recall", "fid"]


def test_options_of_a_metric_are_validated_and_named() -> None:
    kid, fid = metrics_by_name(["kid", "fid"], {"kid": {"subset_size": 500}})
    assert isinstance(kid, Kid)
    assert (kid.subset_size, kid.subsets) == (500, 100)
    assert (kid.options, fid.options) == ({"subset_size": 500}, {})
    for names, options, problem, hint in (
        (
            ["kid"],
            {"kid": {"subset_sise": 5}},
            "metrics.kid.subset_sise is not a known key",
            "did you mean 'subset_size'",
        ),
        (["kid"], {"kid": {"subset_size": 1}}, "metrics.kid.subset_size is 1", "--set metrics.kid.subset_size"),
        (
            ["kid"],
            {"kid": {"subset_size": "many"}},
            "metrics.kid.subset_size is 'many'",
            "--set metrics.kid.subset_size",
        ),
        (["fid"], {"kid": {"subset_size": 5}}, "'kid' is not among --metrics fid", "add kid to --metrics"),
        (["kid"], {"kdi": {"subset_size": 5}}, "'kdi' is not among --metrics kid", "did you mean 'kid'"),
    ):
        with pytest.raises(UserError) as error:
            metrics_by_name(names, options)
        assert problem in error.value.problem
        assert hint in error.value.hint


@pytest.mark.parametrize("name", sorted(METRICS))
def test_a_metric_keeps_nothing_that_it_does_not_say_it_needs(name: str) -> None:
    """Every registered metric computes from the parts of its needs, and from no other side or extractor."""
    metric = METRICS[name]()
    summaries = empty_summaries([metric])
    assert set(summaries) == {(need.side, need.extractor) for need in metric.needs}
    rows = torch.rand(24, 6)
    values = {"bits": rows, "bpd": rows.sum(1), "text": rows, "image": rows, "predicted": rows, **labelled(rows)}
    values |= {f"{who}{value}": rows[:, 0] for who in ("", "identity_") for value in ("cosine", "mse")}
    values |= dict.fromkeys(("psnr", "ssim", "lpips", "consistency", "follows", "shuffled"), rows[:, 0])
    values |= {"calibration": rows.view(24, 2, 3), **dict.fromkeys(("dice", "iou", "ged", "hm_iou"), rows[:, 0])}
    values |= {"places": 8 * torch.rand(24, 6, 2), "pieces": torch.ones(24, 6), "similarity": torch.rand(24, 5)}
    if name in OVER_FRAMES:
        values["logits"] = torch.rand(24, 6, LOGITS)
    for summary in summaries.values():
        summary.update({value: values[value] for value in summary.values})
    scores = metric.compute(summaries)
    assert scores
    assert all(isinstance(value, float) for value in scores.values())
    assert next(iter(metric.lines(scores, metric.more(summaries)))) == name
    assert metric.warnings(summaries) is not None


def test_means_and_deviations_of_values_are_those_of_all_rows() -> None:
    means, values = Means(), 1e4 + normal(3, 100, 2, 3)
    for rows in values.split(17):
        means.update(rows)
    torch.testing.assert_close(means.mean, values.double().mean(0))
    torch.testing.assert_close(means.std(), values.double().std(0, unbiased=False), rtol=1e-6, atol=1e-9)

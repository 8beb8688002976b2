"""The metrics: each says what it keeps of a side and computes its scores from two summaries; `Scorer` streams any of them.

real is the reference, fake what is scored. Adding a metric: a class here, its place in `AnyMetric`.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, ClassVar, Literal, get_args

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import Config, UserError, did_you_mean
from diffcli.metrics.statistics import frechet
from diffcli.metrics.summary import CAP, FeatureBatch, Part, Summary
from diffcli.noise import permutation

Side = Literal["real", "fake"]
NEIGHBOUR = 3  # k of precision and recall
CLOSE = 1e-12  # of the squared norms: below it, a squared distance in float64 is rounding


class Metric(Config):
    """A score of fake images, as a rule against real ones."""

    kind: str
    keeps_real: ClassVar[frozenset[Part]] = frozenset()
    keeps_fake: ClassVar[frozenset[Part]] = frozenset()
    least: ClassVar[int] = 2  # images a side

    @abstractmethod
    def compute(self, real: Summary, fake: Summary) -> dict[str, float]:
        """The scores by name."""

    def warnings(self, real: Summary, fake: Summary) -> list[str]:
        """What the reader of the scores must know about these summaries."""
        return []


class Fid(Metric):
    """Frechet distance of the features' Gaussians; 0 is best. Source: Heusel et al. 2017, eq. 6 (arXiv 1706.08500)."""

    kind: Literal["fid"] = "fid"
    keeps_real: ClassVar[frozenset[Part]] = frozenset({Part.MOMENTS})
    keeps_fake: ClassVar[frozenset[Part]] = frozenset({Part.MOMENTS})

    def compute(self, real: Summary, fake: Summary) -> dict[str, float]:
        """`fid`, from mean and covariance over all images."""
        a, b = real.statistics(), fake.statistics()
        return {"fid": frechet(a.mu, a.sigma, b.mu, b.sigma)}

    def warnings(self, real: Summary, fake: Summary) -> list[str]:
        """Sides with fewer images than a covariance of this dimension asks for."""
        found = []
        for name, side in (("real", real), ("fake", fake)):
            statistics = side.statistics()
            n, dim = statistics.n, len(statistics.mu)
            if n is None:
                found.append(f"fid: the statistics of the {name} side do not say of how many images they are")
            elif n <= dim:
                found.append(f"fid: {n} {name} images are too few for {dim} features: the covariance is singular")
            elif n < 2 * dim:
                found.append(f"fid: {n} {name} images are few for {dim} features: the score is biased upwards")
        return found


class Kid(Metric):
    """Squared maximum mean discrepancy, kernel (x.y / D + 1)^3, unbiased: near 0 is best, it may be negative.

    Mean and standard deviation over random subsets. Source: Binkowski et al. 2018 (arXiv 1801.01401).
    """

    kind: Literal["kid"] = "kid"
    keeps_real: ClassVar[frozenset[Part]] = frozenset({Part.SAMPLE})
    keeps_fake: ClassVar[frozenset[Part]] = frozenset({Part.SAMPLE})
    subsets: int = Field(100, ge=1)
    subset_size: int = Field(1000, ge=2, description="images; less where a side has less")

    def compute(self, real: Summary, fake: Summary) -> dict[str, float]:
        """`kid` and `kid_std`; 0 spread where both sides fit into a single subset."""
        import diffcli.torchvision_compat  # noqa: F401, I001 - before torchmetrics, which imports torchvision
        from torchmetrics.image.kid import poly_mmd

        a, b = _rows(real).double(), _rows(fake).double()
        size = min(self.subset_size, len(a), len(b))
        subsets = 1 if size == len(a) == len(b) else self.subsets
        values = []
        for i in range(subsets):
            rows_a, rows_b = permutation(0, 2 * i, len(a))[:size], permutation(0, 2 * i + 1, len(b))[:size]
            values.append(poly_mmd(a[rows_a], b[rows_b]))
        kid = torch.stack(values)
        return {"kid": kid.mean().item(), "kid_std": kid.std(unbiased=False).item()}

    def warnings(self, real: Summary, fake: Summary) -> list[str]:
        """Where features were left out, and subsets smaller than usual."""
        found, size = _capped("kid", real, fake), min(self.subset_size, real.n, fake.n)
        if size < self.subset_size:
            found.append(f"kid: subsets of {size} images, not the usual {self.subset_size}")
        return found


class InceptionScore(Metric):
    """exp(E KL(p(y|x) || p(y))) in 1..K, higher is better; sees the fake images only.

    Mean and standard deviation over ten random splits. Source: Salimans et al. 2016 (arXiv 1606.03498).
    """

    kind: Literal["is"] = "is"
    keeps_fake: ClassVar[frozenset[Part]] = frozenset({Part.SPLITS})

    def compute(self, real: Summary, fake: Summary) -> dict[str, float]:
        """`is` and `is_std`."""
        assert fake.splits is not None
        scores = fake.splits.scores()
        return {"is": scores.mean().item(), "is_std": scores.std(unbiased=False).item()}

    def warnings(self, real: Summary, fake: Summary) -> list[str]:
        """Splits that cannot have seen every class."""
        assert fake.splits is not None
        assert fake.splits.p is not None
        splits, classes = fake.splits.p.shape
        if fake.n < splits * classes:
            return [f"is: {fake.n} images in {splits} splits are too few for {classes} classes: the score is biased"]
        return []


class Precision(Metric):
    """Share of fake images within the real images' manifold: 1 is best.

    The manifold is the union of balls around features out to their 3rd nearest neighbour.
    Source: Kynkaanniemi et al. 2019, eq. 1-3 (arXiv 1904.06991).
    """

    kind: Literal["precision"] = "precision"
    keeps_real: ClassVar[frozenset[Part]] = frozenset({Part.SAMPLE})
    keeps_fake: ClassVar[frozenset[Part]] = frozenset({Part.SAMPLE})
    least: ClassVar[int] = NEIGHBOUR + 1

    def compute(self, real: Summary, fake: Summary) -> dict[str, float]:
        """`precision`."""
        return {"precision": covered(_rows(fake), _rows(real), NEIGHBOUR)}

    def warnings(self, real: Summary, fake: Summary) -> list[str]:
        """Where features were left out."""
        return _capped("precision", real, fake)


class Recall(Metric):
    """Share of real images within the fake images' manifold: 1 is best. Source: as for Precision."""

    kind: Literal["recall"] = "recall"
    keeps_real: ClassVar[frozenset[Part]] = frozenset({Part.SAMPLE})
    keeps_fake: ClassVar[frozenset[Part]] = frozenset({Part.SAMPLE})
    least: ClassVar[int] = NEIGHBOUR + 1

    def compute(self, real: Summary, fake: Summary) -> dict[str, float]:
        """`recall`."""
        return {"recall": covered(_rows(real), _rows(fake), NEIGHBOUR)}

    def warnings(self, real: Summary, fake: Summary) -> list[str]:
        """Where features were left out."""
        return _capped("recall", real, fake)


class Accuracy(Metric):
    """Share of fake images that the extractor's classifier gives the label they were asked to have; 1 is best."""

    kind: Literal["accuracy"] = "accuracy"
    keeps_fake: ClassVar[frozenset[Part]] = frozenset({Part.HITS})

    def compute(self, real: Summary, fake: Summary) -> dict[str, float]:
        """`accuracy`."""
        assert fake.hits is not None
        return {"accuracy": fake.hits.right / fake.hits.n}


class Scorer:
    """Streams two sides through any metrics: `update` as often as there are batches, then `compute`."""

    def __init__(self, metrics: Sequence[Metric]) -> None:
        self.metrics = list(metrics)
        keeps_real = frozenset[Part]().union(*(m.keeps_real for m in metrics))
        keeps_fake = frozenset[Part]().union(*(m.keeps_fake for m in metrics))
        # two streams: the same images on both sides must not lead to the same sample of them
        self.sides: dict[Side, Summary] = {"real": Summary(keeps_real, stream=0), "fake": Summary(keeps_fake, stream=1)}

    def update(self, side: Side, batch: FeatureBatch, labels: Tensor | None = None) -> None:
        """Add a batch to a side."""
        self.sides[side].update(batch, labels)

    def compute(self) -> dict[str, float]:
        """Every metric's scores, in the order asked for."""
        scores: dict[str, float] = {}
        for metric in self.metrics:
            scores |= metric.compute(self.sides["real"], self.sides["fake"])
        return scores

    def warnings(self) -> list[str]:
        """What the metrics say about the amount of data."""
        return [w for metric in self.metrics for w in metric.warnings(self.sides["real"], self.sides["fake"])]


def covered(points: Tensor, manifold: Tensor, neighbour: int, block: int = 1000) -> float:
    """Share of `points` (N, D) in the union of balls around `manifold` (M, D) that reach out to its k-th neighbour.

    Works in blocks of rows: memory is block * max(N, M). M must exceed `neighbour`.
    """
    points, manifold = points.double(), manifold.double()
    centre = manifold.mean(0)  # distances lose fewer digits around the origin
    points, manifold = points - centre, manifold - centre
    radius = torch.cat(  # the nearest is the point itself
        [_squared_distances(rows, manifold).kthvalue(neighbour + 1, dim=1).values for rows in manifold.split(block)]
    )
    inside = sum(int((_squared_distances(rows, manifold) <= radius).any(1).sum()) for rows in points.split(block))
    return inside / len(points)


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    norms = a.square().sum(1)[:, None] + b.square().sum(1)
    distances = norms - 2 * a @ b.T
    return distances.masked_fill_(distances <= CLOSE * norms, 0.0)  # duplicates are at distance 0, not at rounding


def _rows(side: Summary) -> Tensor:
    assert side.sample is not None
    return side.sample.rows()


def _capped(name: str, real: Summary, fake: Summary) -> list[str]:
    sides = [f"{side.n} {which}" for which, side in (("real", real), ("fake", fake)) if side.n > CAP]
    return [f"{name}: from a random sample of {CAP} of the {' and '.join(sides)} images"] if sides else []


AnyMetric = Annotated[
    Fid | Kid | InceptionScore | Precision | Recall | Accuracy,
    Field(discriminator="kind"),
]
METRICS: dict[str, Callable[[], Metric]] = {
    cls.model_fields["kind"].default: cls for cls in get_args(get_args(AnyMetric)[0])
}


def metrics_by_name(names: Sequence[str]) -> list[Metric]:
    """The metrics of these names, in order, each once. Raises UserError for an unknown name."""
    chosen: dict[str, Metric] = {}
    for name in (n.strip().lower() for n in names):
        if name not in METRICS:
            raise UserError(f"--metrics: '{name}' is not a metric", did_you_mean(name, METRICS))
        chosen[name] = METRICS[name]()
    if not chosen:
        raise UserError("--metrics: names no metric", did_you_mean("", METRICS))
    return list(chosen.values())

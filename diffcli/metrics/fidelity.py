"""The similarity of features of samples and of a reference: Frechet and kernel distances, inception score, precision, recall.

All of them use the extractor `features`, a network that --features chooses. Warnings call the samples fake and the reference
real.
"""

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from diffcli.config import UserError
from diffcli.metrics.extractor import Extractor
from diffcli.metrics.keepers import CAP, CLASSES, HITS, MOMENTS, SAMPLE
from diffcli.metrics.metric import Metric, Need, Role, Summaries, of_both
from diffcli.metrics.motion.clip_networks import ClipNetwork
from diffcli.metrics.statistics import frechet
from diffcli.noise import permutation

FEATURES = "features"
SAMPLES: tuple[Role, str] = ("samples", FEATURES)
REFERENCE: tuple[Role, str] = ("reference", FEATURES)
NEIGHBOUR = 3  # k of precision and recall
CLOSE = 1e-12  # of the squared norms: below it, a squared distance in float64 is rounding


class Fid(Metric):
    """Frechet distance of the features' Gaussians; 0 is best. Of clips it is that of their frames taken as images.

    Source: Heusel et al. 2017, eq. 6 (arXiv 1706.08500).
    """

    kind: Literal["fid"] = "fid"
    needs: ClassVar[tuple[Need, ...]] = of_both(FEATURES, MOMENTS)
    best: ClassVar[float | None] = 0.0

    def check(self, extractors: Mapping[str, Extractor]) -> None:
        found = extractors.get(FEATURES)
        if isinstance(found, ClipNetwork):
            problem = f"--metrics fid: {found.name} sees whole clips, and their distance is called fvd"
            raise UserError(problem, "type --metrics fvd, or score single frames: --features inception")

    def compute(self, of: Summaries) -> dict[str, float]:
        """`fid`, from mean and covariance over all images, or all frames of clips."""
        a, b = of[REFERENCE].statistics(), of[SAMPLES].statistics()
        return {"fid": frechet(a.mu, a.sigma, b.mu, b.sigma)}

    def warnings(self, of: Summaries) -> list[str]:
        """Sides with fewer images than a covariance of this dimension asks for."""
        found = []
        for name, key in (("real", REFERENCE), ("fake", SAMPLES)):
            statistics = of[key].statistics()
            n, dim = statistics.n, len(statistics.mu)
            if n is None:
                found.append(f"fid: the statistics of the {name} side do not say of how many images they are")
            elif n <= dim:
                found.append(f"fid: {n} {name} images are too few for {dim} features: the covariance is singular")
            elif n < 2 * dim:
                found.append(f"fid: {n} {name} images are few for {dim} features: the score is biased upwards")
        return found


class Fvd(Fid):
    """Frechet distance of the Gaussians of features of whole clips; 0 is best.

    Source: Unterthiner et al. 2018 (arXiv 1812.01717).
    """

    kind: Literal["fvd"] = "fvd"  # type: ignore[assignment]

    def check(self, extractors: Mapping[str, Extractor]) -> None:
        found = extractors.get(FEATURES)
        if found is not None and not isinstance(found, ClipNetwork):
            problem = f"--metrics fvd: {found.describe()['name']} sees no clips, only images"
            hint = (
                "give --features FILE of a TorchScript I3D, r3d_18, or RUN of a classifier of clips; `fid` is of frames"
            )
            raise UserError(problem, hint)

    def compute(self, of: Summaries) -> dict[str, float]:
        """`fvd`, from mean and covariance over all clips."""
        return {"fvd": super().compute(of)["fid"]}

    def warnings(self, of: Summaries) -> list[str]:
        """Sides with fewer clips than a covariance of this dimension asks for."""
        return [note.replace("fid:", "fvd:").replace(" images", " clips") for note in super().warnings(of)]


class Kid(Metric):
    """Squared maximum mean discrepancy, kernel (x.y / D + 1)^3, unbiased: near 0 is best, it may be negative.

    Mean and standard deviation over random subsets. Source: Binkowski et al. 2018 (arXiv 1801.01401).
    """

    kind: Literal["kid"] = "kid"
    needs: ClassVar[tuple[Need, ...]] = of_both(FEATURES, SAMPLE)
    best: ClassVar[float | None] = 0.0  # on average over samples of one law
    subsets: int = Field(100, ge=1)
    subset_size: int = Field(1000, ge=2, description="images; less where a side has less")

    def compute(self, of: Summaries) -> dict[str, float]:
        """`kid` and `kid_std`; 0 spread where both sides fit into a single subset."""
        import diffcli.torchvision_compat  # noqa: F401, I001 - before torchmetrics, which imports torchvision
        from torchmetrics.image.kid import poly_mmd

        a, b = of[REFERENCE].sample().double(), of[SAMPLES].sample().double()
        size = min(self.subset_size, len(a), len(b))
        subsets = 1 if size == len(a) == len(b) else self.subsets
        values = []
        for i in range(subsets):
            rows_a, rows_b = permutation(0, 2 * i, len(a))[:size], permutation(0, 2 * i + 1, len(b))[:size]
            values.append(poly_mmd(a[rows_a], b[rows_b]))
        kid = torch.stack(values)
        return {"kid": kid.mean().item(), "kid_std": kid.std(unbiased=False).item()}

    def warnings(self, of: Summaries) -> list[str]:
        """Warnings about left-out features, and about small subsets."""
        found, size = _capped("kid", of), min(self.subset_size, of[REFERENCE].n, of[SAMPLES].n)
        if size < self.subset_size:
            found.append(f"kid: subsets of {size} images, not the usual {self.subset_size}")
        return found


class InceptionScore(Metric):
    """exp(E KL(p(y|x) || p(y))) in 1..K, higher is better; sees the fake images only.

    Mean and standard deviation over ten random splits. Source: Salimans et al. 2016 (arXiv 1606.03498).
    """

    kind: Literal["is"] = "is"
    needs: ClassVar[tuple[Need, ...]] = (Need("samples", FEATURES, CLASSES),)

    def compute(self, of: Summaries) -> dict[str, float]:
        """`is` and `is_std`."""
        scores = of[SAMPLES].splits().scores()
        return {"is": scores.mean().item(), "is_std": scores.std(unbiased=False).item()}

    def warnings(self, of: Summaries) -> list[str]:
        """Splits that cannot have seen every class."""
        samples = of[SAMPLES]
        splits, classes = samples.splits().shape
        if samples.n < splits * classes:
            return [f"is: {samples.n} images in {splits} splits are too few for {classes} classes: the score is biased"]
        return []


class Precision(Metric):
    """Share of fake images within the real images' manifold: 1 is best.

    The manifold is the union of balls around features out to their 3rd nearest neighbour.
    Source: Kynkaanniemi et al. 2019, eq. 1-3 (arXiv 1904.06991).
    """

    kind: Literal["precision"] = "precision"
    needs: ClassVar[tuple[Need, ...]] = of_both(FEATURES, SAMPLE)
    best: ClassVar[float | None] = 1.0
    least: ClassVar[int] = NEIGHBOUR + 1

    def compute(self, of: Summaries) -> dict[str, float]:
        """`precision`."""
        return {"precision": covered(of[SAMPLES].sample(), of[REFERENCE].sample(), NEIGHBOUR)}

    def warnings(self, of: Summaries) -> list[str]:
        """Where features were left out."""
        return _capped("precision", of)


class Recall(Metric):
    """Share of real images within the fake images' manifold: 1 is best. Source: as for Precision."""

    kind: Literal["recall"] = "recall"
    needs: ClassVar[tuple[Need, ...]] = of_both(FEATURES, SAMPLE)
    best: ClassVar[float | None] = 1.0
    least: ClassVar[int] = NEIGHBOUR + 1

    def compute(self, of: Summaries) -> dict[str, float]:
        """`recall`."""
        return {"recall": covered(of[REFERENCE].sample(), of[SAMPLES].sample(), NEIGHBOUR)}

    def warnings(self, of: Summaries) -> list[str]:
        """Where features were left out."""
        return _capped("recall", of)


class Accuracy(Metric):
    """Share of fake images to which the extractor's classifier gives their requested label; 1 is best."""

    kind: Literal["accuracy"] = "accuracy"
    needs: ClassVar[tuple[Need, ...]] = (Need("samples", FEATURES, HITS),)
    best: ClassVar[float | None] = 1.0

    def compute(self, of: Summaries) -> dict[str, float]:
        """`accuracy`."""
        hits = of[SAMPLES].hits()
        return {"accuracy": hits.right / hits.n}


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


def _capped(name: str, of: Summaries) -> list[str]:
    sides = [f"{of[key].n} {which}" for which, key in (("real", REFERENCE), ("fake", SAMPLES)) if of[key].n > CAP]
    return [f"{name}: from a random sample of {CAP} of the {' and '.join(sides)} images"] if sides else []

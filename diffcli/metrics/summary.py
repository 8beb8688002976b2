"""What is kept of one side of a comparison while its images stream by: of bounded size, whatever their number.

A `Summary` holds the parts that the chosen metrics ask for; `arrays` and `from_arrays` move it to and from a cache file.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from diffcli.config import RunFailed, UserError
from diffcli.metrics.statistics import Moments, Statistics
from diffcli.noise import Domain, derive

CAP = 10_000  # images whose features are kept for KID, precision and recall
SPLITS = 10  # of the inception score, as Salimans et al. 2016 have it


class FeatureBatch(NamedTuple):
    """What an extractor says about a batch of images."""

    features: Tensor  # (B, D) float
    logits: Tensor | None = None  # (B, K) float, where the extractor is a classifier


class Part(StrEnum):
    """The kinds of state that a metric may need of a side."""

    MOMENTS = "moments"  # mean and covariance of the features
    SAMPLE = "sample"  # the features of at most CAP images
    SPLITS = "splits"  # class probabilities, summed within random splits
    HITS = "hits"  # how often the classifier agrees with the label


class Reservoir:
    """A uniform random sample without replacement of at most `cap` rows, the same for every split into batches.

    Each row's rank is a counter-based random number of its position; the rows with the smallest ranks stay.
    """

    def __init__(self, cap: int = CAP, stream: int = 0) -> None:
        self.cap, self.stream, self.seen = cap, stream, 0
        self.ranks = torch.empty(0, dtype=torch.int64)
        self.kept: Tensor | None = None  # (<= 1.25 cap, D) float32 on the CPU

    def update(self, features: Tensor) -> None:
        """Add features (B, D)."""
        positions = torch.arange(self.seen, self.seen + len(features))
        self.seen += len(features)
        ranks = derive(self.stream, Domain.ORDER, positions)
        if len(self.ranks) >= self.cap:
            chosen = ranks < self.ranks.max()
            ranks, features = ranks[chosen], features[chosen.to(features.device)]
        rows = features.float().cpu()
        self.kept = rows if self.kept is None else torch.cat([self.kept, rows])
        self.ranks = torch.cat([self.ranks, ranks])
        if len(self.ranks) > self.cap * 5 // 4:  # not at every batch: pruning copies the whole reservoir
            self._prune()

    def rows(self) -> Tensor:
        """The sample in random order: (min(cap, seen), D) float32."""
        self._prune()
        if self.kept is None:
            raise ValueError("no features were added")
        return self.kept

    def _prune(self) -> None:
        order = self.ranks.argsort()[: self.cap]
        self.ranks = self.ranks[order]
        self.kept = None if self.kept is None else self.kept[order]


class Splits:
    """Sums of p and of sum(p log p) within SPLITS random splits, for the inception score.

    The split of an image is random, not its position modulo SPLITS: class-conditional samples often cycle through the
    classes in order, and ten classes would fall into one split each.
    """

    def __init__(self) -> None:
        self.n = 0
        self.count = torch.zeros(SPLITS, dtype=torch.float64)
        self.p: Tensor | None = None  # (SPLITS, K) float64
        self.p_log_p = torch.zeros(SPLITS, dtype=torch.float64)

    def update(self, logits: Tensor) -> None:
        """Add logits (B, K)."""
        logits = logits.cpu().double()
        log_p = logits.log_softmax(1)
        p = log_p.exp()
        split = derive(0, Domain.ORDER, torch.arange(self.n, self.n + len(p))) % SPLITS
        self.n += len(p)
        if self.p is None:
            self.p = torch.zeros(SPLITS, p.shape[1], dtype=torch.float64)
        self.count += torch.bincount(split, minlength=SPLITS)
        self.p.index_add_(0, split, p)
        self.p_log_p.index_add_(0, split, torch.special.xlogy(p, p).sum(1))

    def scores(self) -> Tensor:
        """exp(mean KL(p(y|x) || p(y))) of each split that has images: float64 (<= SPLITS,)."""
        if self.p is None:
            raise ValueError("no logits were added")
        full = self.count > 0
        q = self.p[full] / self.count[full, None]
        return (self.p_log_p[full] / self.count[full] - torch.special.xlogy(q, q).sum(1)).exp()


class Hits:
    """How many images the classifier gives the label they were asked to have."""

    def __init__(self) -> None:
        self.n = 0
        self.right = 0

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add logits (B, K) and labels (B,) in 0..K-1."""
        labels = labels.to(logits.device)
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
            found = f"{int(labels.min())}..{int(labels.max())}"
            hint = "score samples with the classifier of their own data set, or leave accuracy out of --metrics"
            raise UserError(f"labels {found} are not classes of the classifier (0..{logits.shape[1] - 1})", hint)
        self.right += int((logits.argmax(1) == labels).sum())
        self.n += len(labels)


class Summary:
    """All that the metrics will need of one side; `stream` keeps the random samples of two sides apart."""

    def __init__(self, parts: frozenset[Part], stream: int = 0) -> None:
        self.parts, self.n = parts, 0
        self.moments = Moments() if Part.MOMENTS in parts else None
        self.sample = Reservoir(CAP, stream) if Part.SAMPLE in parts else None
        self.splits = Splits() if Part.SPLITS in parts else None
        self.hits = Hits() if Part.HITS in parts else None
        self.given: Statistics | None = None

    def update(self, batch: FeatureBatch, labels: Tensor | None = None) -> None:
        """Add a batch: features (B, D), logits (B, K) where a part needs them, labels (B,) for accuracy."""
        features, logits = batch.features, batch.logits
        if features.device.type == "mps":  # which has no float64
            features = features.cpu()
        if not bool(features.isfinite().all()):
            raise RunFailed(
                f"features of images {self.n}..{self.n + len(features) - 1} are not finite",
                "check the extractor's weights (--features, --weights)",
            )
        if self.moments:
            self.moments.update(features)
        if self.sample:
            self.sample.update(features)
        if self.splits and logits is not None:
            self.splits.update(logits)
        if self.hits and logits is not None and labels is not None:
            self.hits.update(logits, labels)
        self.n += len(features)

    def statistics(self) -> Statistics:
        """Mean and covariance, gathered or given."""
        if self.given is not None:
            return self.given
        if self.moments is None:
            raise ValueError("this summary keeps no moments")
        return self.moments.statistics()

    @classmethod
    def from_statistics(cls, statistics: Statistics) -> Self:
        """A side of which only mean and covariance are known."""
        self = cls(frozenset({Part.MOMENTS}))
        self.given, self.n = statistics, statistics.n or 0
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """Moments and sample as arrays, for a cache file; splits and hits belong to the generated side and stay out."""
        kept = {"n": np.array(self.n)}
        if Part.MOMENTS in self.parts:
            statistics = self.statistics()
            kept |= {"mu": statistics.mu.numpy(), "sigma": statistics.sigma.numpy()}
        if self.sample:
            kept["sample"] = self.sample.rows().numpy()
        return kept

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], stream: int = 0) -> Self:
        """The summary that `arrays` came from, complete: nothing can be added. Raises ValueError where they do not fit."""
        parts = {Part.MOMENTS: "mu", Part.SAMPLE: "sample"}
        self = cls(frozenset(part for part, name in parts.items() if name in arrays), stream)
        self.n = int(arrays["n"])
        if "mu" in arrays:
            mu, sigma = torch.from_numpy(arrays["mu"]), torch.from_numpy(arrays["sigma"])
            if (
                mu.ndim != 1
                or sigma.shape != (len(mu), len(mu))
                or not (mu.isfinite().all() and sigma.isfinite().all())
            ):
                raise ValueError("mu and sigma do not fit")
            self.given = Statistics(mu, sigma, self.n)
        if self.sample:
            rows = torch.from_numpy(arrays["sample"])
            if rows.ndim != 2 or len(rows) != min(self.n, CAP) or not rows.isfinite().all():
                raise ValueError("the sample does not fit")
            self.sample.kept, self.sample.seen, self.sample.ranks = rows, self.n, torch.arange(len(rows))
        return self

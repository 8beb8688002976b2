"""The parts of a summary that a metric may need, computed while the values of a side stream by.

Every part has a bounded size, whatever the number of rows, but for `rows_of`. No part depends on the split into batches.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.metrics.statistics import FeatureMoments
from diffcli.noise import Domain, derive

CAP = 10_000  # images whose features are kept for KID, precision and recall
SPLITS = 10  # of the inception score, as Salimans et al. 2016 have it


class Keep(NamedTuple):
    """A part of a summary, with the values of an extractor (or fields of the side) that it uses."""

    how: Literal["moments", "sample", "splits", "hits", "mean", "rows"]
    of: tuple[str, ...] = ("features",)


MOMENTS = Keep("moments")  # mean and covariance of the features
SAMPLE = Keep("sample")  # the features of at most CAP images
CLASSES = Keep("splits", ("logits",))  # class probabilities, summed within random splits
HITS = Keep("hits", ("logits", "label"))  # how often the classifier agrees with the label

OF_FEATURES = frozenset({"moments", "sample", "splits", "hits"})  # parts made of single rows of features or logits


def mean_of(value: str) -> Keep:
    """Mean and standard deviation of a value over the rows."""
    return Keep("mean", (value,))


def rows_of(value: str) -> Keep:
    """All values themselves, for scores that compare each with all others."""
    return Keep("rows", (value,))


class Keeper(Protocol):
    """The state of one part."""

    @property
    def update(self) -> Callable[..., None]:
        """Adds a batch of the values that the part is made of, each (B, ...)."""


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

    @property
    def shape(self) -> tuple[int, int]:
        """The number of splits and of classes."""
        return SPLITS, 0 if self.p is None else self.p.shape[1]

    def scores(self) -> Tensor:
        """exp(mean KL(p(y|x) || p(y))) of each split that has images: float64 (<= SPLITS,)."""
        if self.p is None:
            raise ValueError("no logits were added")
        full = self.count > 0
        q = self.p[full] / self.count[full, None]
        return (self.p_log_p[full] / self.count[full] - torch.special.xlogy(q, q).sum(1)).exp()


class Hits:
    """The number of images to which the classifier gives their requested label."""

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


class Means:
    """Mean and standard deviation of each entry of a value (B, ...), in float64 around the first batch's mean."""

    def __init__(self) -> None:
        self.n = 0
        self.sums: tuple[Tensor, Tensor, Tensor] | None = None  # shift, sum, sum of squares

    def update(self, values: Tensor) -> None:
        """Add values (B, ...)."""
        if not len(values):
            return
        x = values.cpu().double()
        if self.sums is None:
            self.sums = x.mean(0), torch.zeros_like(x[0]), torch.zeros_like(x[0])
        shift, total, squares = self.sums
        total += (x - shift).sum(0)
        squares += (x - shift).square().sum(0)
        self.n += len(x)

    @property
    def mean(self) -> Tensor:
        """float64 (...)."""
        shift, total, _ = self._known()
        return shift + total / self.n

    def std(self) -> Tensor:
        """The standard deviation of the rows themselves (divided by their number), float64 (...)."""
        _, total, squares = self._known()
        return (squares / self.n - (total / self.n).square()).clamp(min=0).sqrt()

    def _known(self) -> tuple[Tensor, Tensor, Tensor]:
        if self.sums is None:
            raise ValueError("no values were added")
        return self.sums


class AllRows:
    """Every value, on the CPU."""

    def __init__(self) -> None:
        self.parts: list[Tensor] = []

    def update(self, values: Tensor) -> None:
        """Add values (B, ...)."""
        self.parts.append(values.cpu())


KEEPERS: dict[str, Callable[[int], Keeper]] = {
    "moments": lambda stream: FeatureMoments(),
    "sample": lambda stream: Reservoir(CAP, stream),
    "splits": lambda stream: Splits(),
    "hits": lambda stream: Hits(),
    "mean": lambda stream: Means(),
    "rows": lambda stream: AllRows(),
}
"""The initial state of each part; stream: of its random numbers."""

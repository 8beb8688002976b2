"""The summary of one side of a comparison by one extractor: the parts that the metrics need.

`arrays` and `from_arrays` move moments and sample to and from a cache file.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffcli.config import RunFailed
from diffcli.metrics.extractor import Extracted
from diffcli.metrics.keepers import (
    CAP,
    CLASSES,
    HITS,
    KEEPERS,
    MOMENTS,
    OF_FEATURES,
    SAMPLE,
    AllRows,
    Hits,
    Keep,
    Keeper,
    Means,
    Reservoir,
    Splits,
    mean_of,
    rows_of,
)
from diffcli.metrics.statistics import FeatureMoments, Statistics

K = TypeVar("K", bound=Keeper)


class Summary:
    """All that the metrics need of what one extractor gives of one side; `stream` separates the random samples of two sides.

    n: rows of the side, or of features where there are several for each: of clips, one for every frame.
    """

    def __init__(self, keeps: Iterable[Keep], stream: int = 0) -> None:
        self.keepers = {keep: KEEPERS[keep.how](stream) for keep in keeps}
        self.n = 0
        self.given: Statistics | None = None

    @property
    def keeps(self) -> frozenset[Keep]:
        """Its parts."""
        return frozenset(self.keepers)

    @property
    def values(self) -> tuple[str, ...]:
        """The values that a batch must have."""
        return tuple(dict.fromkeys(name for keep in self.keepers for name in keep.of))

    def update(self, batch: Extracted) -> None:
        """Add a batch of `values`, each (B, ...). Raises RunFailed where one is not finite."""
        values = {name: _finite(name, batch[name], self.n) for name in self.values}
        for keep, keeper in self.keepers.items():
            keeper.update(*_as_rows(keep, [values[name] for name in keep.of]))
        counted = next((values[name] for name in ("features", "logits") if name in values), None)
        self.n += len(next(iter(values.values()))) if counted is None else counted.shape[:-1].numel()

    def statistics(self) -> Statistics:
        """Mean and covariance of the features, gathered or given."""
        return self.given if self.given is not None else self._part(MOMENTS, FeatureMoments).statistics()

    def sample(self) -> Tensor:
        """The features of at most CAP rows, in random order: (n, D) float32."""
        return self._part(SAMPLE, Reservoir).rows()

    def splits(self) -> Splits:
        """Class probabilities within random splits."""
        return self._part(CLASSES, Splits)

    def hits(self) -> Hits:
        """The number of rows for which the classifier agrees with the label."""
        return self._part(HITS, Hits)

    def mean(self, value: str) -> Means:
        """Mean and standard deviation of a value."""
        return self._part(mean_of(value), Means)

    def rows(self, value: str) -> Tensor:
        """Every row of a value: (n, ...)."""
        return torch.cat(self._part(rows_of(value), AllRows).parts)

    def _part(self, keep: Keep, kind: type[K]) -> K:
        found = self.keepers.get(keep)
        if not isinstance(found, kind):
            raise ValueError(f"this summary does not keep {keep.how} of {', '.join(keep.of)}")
        return found

    @classmethod
    def from_statistics(cls, statistics: Statistics) -> Self:
        """A side of which only mean and covariance are known."""
        self = cls({MOMENTS})
        self.given, self.n = statistics, statistics.n or 0
        return self

    def arrays(self) -> dict[str, np.ndarray]:
        """Moments and sample as arrays, for a cache file; the other parts stay out."""
        kept = {"n": np.array(self.n)}
        if MOMENTS in self.keepers:
            statistics = self.statistics()
            kept |= {"mu": statistics.mu.numpy(), "sigma": statistics.sigma.numpy()}
        if SAMPLE in self.keepers:
            kept["sample"] = self.sample().numpy()
        return kept

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], stream: int = 0) -> Self:
        """The summary that `arrays` came from, complete: nothing can be added. Raises ValueError where they do not fit."""
        self = cls((keep for keep, name in {MOMENTS: "mu", SAMPLE: "sample"}.items() if name in arrays), stream)
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
        if "sample" in arrays:
            rows = torch.from_numpy(arrays["sample"])
            if rows.ndim != 2 or len(rows) != min(self.n, CAP) or not rows.isfinite().all():
                raise ValueError("the sample does not fit")
            sample = self._part(SAMPLE, Reservoir)
            sample.kept, sample.seen, sample.ranks = rows, self.n, torch.arange(len(rows))
        return self


def _as_rows(keep: Keep, values: Sequence[Tensor]) -> Sequence[Tensor]:
    """Values for a part that is made of single rows of features: those of frames, (B, T, D), become B * T rows.

    The label of a clip, (B,), is that of each of its frames.
    """
    if keep.how not in OF_FEATURES or values[0].ndim < 3:
        return values
    frames = values[0].shape[1]
    return [value.flatten(0, 1) if value.ndim > 1 else value.repeat_interleave(frames) for value in values]


def _finite(name: str, values: Tensor, first: int) -> Tensor:
    if values.device.type == "mps":  # which has no float64
        values = values.cpu()
    if not bool(values.isfinite().all()):
        raise RunFailed(
            f"{name} of rows {first}..{first + len(values) - 1} are not finite",
            "check the weights that they come from: those of --features and --weights, or of --ckpt",
        )
    return values

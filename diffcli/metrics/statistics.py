"""Mean and covariance of features, gathered while they stream by, and the Frechet distance between two Gaussians.

    d^2 = |mu1 - mu2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))

Everything is float64 and computed once over all images. Source: Heusel et al. 2017, eq. 6 (arXiv 1706.08500).
"""

import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from diffcli.config import UserError


class Statistics(NamedTuple):
    """A Gaussian fitted to the features of `n` images; n, features and layer are None in a file of other tools."""

    mu: Tensor  # (D,) float64
    sigma: Tensor  # (D, D) float64, unbiased
    n: int | None = None
    features: str | None = None
    layer: str | None = None

    def save(self, path: Path) -> None:
        """Write an `.npz` with `mu` and `sigma`, as other tools expect them, and our `n`, `features`, `layer`."""
        arrays: dict[str, Any] = {"mu": self.mu.cpu().numpy(), "sigma": self.sigma.cpu().numpy()}
        arrays |= {k: np.array(v) for k, v in self._asdict().items() if k not in arrays and v is not None}
        with open(path, "wb") as file:  # an open file: numpy would add .npz to a name without it
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read an `.npz` with `mu` (D,) and `sigma` (D, D), of this or another tool. Raises UserError."""
        hint = "give an .npz of statistics with float arrays mu (D,) and sigma (D, D)"
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {k: file[k] for k in ("mu", "sigma", "n", "features", "layer") if k in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise UserError(f"{path}: cannot be read as statistics ({error})", hint) from error
        if missing := {"mu", "sigma"} - arrays.keys():
            raise UserError(f"{path}: has no array {' and '.join(sorted(missing))}", hint)
        mu, sigma = arrays["mu"], arrays["sigma"]
        if mu.dtype.kind != "f" or sigma.dtype.kind != "f" or mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            shapes = f"mu {mu.dtype} {mu.shape}, sigma {sigma.dtype} {sigma.shape}"
            raise UserError(f"{path}: the shapes do not fit: {shapes}", hint)
        if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
            raise UserError(f"{path}: mu or sigma holds values that are not finite", hint)
        words = {k: str(arrays[k]) for k in ("features", "layer") if k in arrays}
        n = int(arrays["n"]) if "n" in arrays and arrays["n"].dtype.kind in "iu" and arrays["n"].ndim == 0 else None
        return cls(torch.from_numpy(mu).double(), torch.from_numpy(sigma).double(), n, **words)


class FeatureMoments:
    """Sums for mean and covariance: state of size D^2, whatever the number of images.

    The first batch's mean is taken off every feature before it is squared, so that nothing cancels in the end.
    """

    def __init__(self) -> None:
        self.n = 0
        self.sums: tuple[Tensor, Tensor, Tensor] | None = None  # shift (D,), sum (D,), sum of outer products (D, D)

    def update(self, features: Tensor) -> None:
        """Add features (B, D) of any float type, on any device that has float64."""
        if not len(features):
            return
        x = features.double()
        if self.sums is None:
            self.sums = x.mean(0), x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1], x.shape[1])
        shift, total, outer = self.sums
        x = x - shift
        total += x.sum(0)
        outer.addmm_(x.T, x)
        self.n += len(x)

    def statistics(self) -> Statistics:
        """Mean and unbiased covariance of all that was added, on the CPU; at least 2 images."""
        mean, sigma = self.fitted()
        return Statistics(mean.cpu(), sigma.cpu(), self.n)

    def fitted(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and unbiased covariance (D, D), float64, where the features were; of 2 images at least."""
        if self.sums is None or self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.n}")
        shift, total, outer = self.sums
        mean = total / self.n
        sigma = (outer - self.n * torch.outer(mean, mean)) / (self.n - 1)
        return shift + mean, sigma


def frechet(mu1: Tensor, sigma1: Tensor, mu2: Tensor, sigma2: Tensor) -> float:
    """Squared Frechet distance of two Gaussians: means (D,), covariances (D, D), computed in float64; never below 0.

    The trace of the root of S1 S2 is that of the symmetric S1^(1/2) S2 S1^(1/2): the sum of the roots of its eigenvalues.
    """
    mu1, sigma1, mu2, sigma2 = (x.double() for x in (mu1, sigma1, mu2, sigma2))
    values, vectors = torch.linalg.eigh(sigma1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ sigma2 @ root
    trace = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    return max(0.0, ((mu1 - mu2).square().sum() + sigma1.trace() + sigma2.trace() - 2 * trace).item())

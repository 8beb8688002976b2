"""Linear operators A of images with their pseudo-inverses A^+: low resolution, blur, grey, and holes.

A A^+ A = A and A A^+ y = y for every y that A can give. All act on (B, C, H, W) of any range, are linear, and keep a constant
picture constant, so that pixels in [-1, 1] times any scale may be measured. Sums run in float64, where the device has it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor

from diffcli.lookup.kernels import Kernel

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, Pillow's grey
LEAST_GAIN = 0.1  # share of the largest singular value below which a blur counts as having lost a frequency
RANK = 1e-9  # the same for operators that lose none, up to rounding


class Operator(ABC):
    """A and A^+ for images of one size."""

    @abstractmethod
    def measure(self, x: Tensor) -> Tensor:
        """A x: (B, C, H, W) -> the degraded picture, (B, C', H', W')."""

    @abstractmethod
    def invert(self, y: Tensor) -> Tensor:
        """A^+ y: (B, C', H', W') -> (B, C, H, W), the x of least norm with A x = y."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """For sidecars and reports: JSON values."""

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return self


class Separable(Operator):
    """A linear map along the columns of every channel, then one along its rows: x -> D x R^T, by their SVDs.

    With D = U S V^T and R = U' S' V'^T the singular values of A are the products of those of D and R; A^+ divides by these
    products. least: products below this share of the largest count as 0 in A and in A^+ alike.
    """

    def __init__(self, down: Tensor, across: Tensor, described: dict[str, Any], least: float = RANK) -> None:
        """down: (H', H), across: (W', W)."""
        self.described = described
        factors = [torch.linalg.svd(matrix.double(), full_matrices=False) for matrix in (down, across)]
        (self.left, s, self.top), (self.right, r, self.bottom) = factors
        gains = torch.outer(s, r)
        kept = gains >= least * gains.max()
        self.gains = torch.where(kept, gains, 0.0)
        self.losses = torch.where(kept, 1 / gains, 0.0)

    def to(self, device: torch.device) -> Self:
        for name in ("left", "top", "right", "bottom", "gains", "losses"):
            setattr(self, name, getattr(self, name).to(device, _wide(device)))
        return self

    def measure(self, x: Tensor) -> Tensor:
        inside = self.top @ x.to(self.gains) @ self.bottom.T
        return (self.left @ (self.gains * inside) @ self.right.T).to(x)

    def invert(self, y: Tensor) -> Tensor:
        inside = self.left.T @ y.to(self.gains) @ self.right
        return (self.top.T @ (self.losses * inside) @ self.bottom).to(y)

    def describe(self) -> dict[str, Any]:
        return self.described


class Luma(Operator):
    """Grey of three channels, weights .299, .587 and .114: (B, 3, H, W) -> (B, 1, H, W)."""

    def measure(self, x: Tensor) -> Tensor:
        wide = x.to(_wide(x.device))
        return sum(w * wide[:, i : i + 1] for i, w in enumerate(LUMA)).to(x)  # type: ignore[union-attr]

    def invert(self, y: Tensor) -> Tensor:
        square = sum(w * w for w in LUMA)
        return torch.cat([y * (w / square) for w in LUMA], dim=1)

    def describe(self) -> dict[str, Any]:
        return {"operator": "colour", "weights": list(LUMA)}


class Known(Operator):
    """Pixels that are known, and 0 elsewhere. known: bool, broadcast to (B, C, H, W)."""

    def __init__(self, known: Tensor) -> None:
        self.known = known

    def to(self, device: torch.device) -> Self:
        self.known = self.known.to(device)
        return self

    def measure(self, x: Tensor) -> Tensor:
        return torch.where(self.known, x, 0.0)

    def invert(self, y: Tensor) -> Tensor:
        return torch.where(self.known, y, 0.0)

    def describe(self) -> dict[str, Any]:
        return {"operator": "mask"}


def lowered(size: tuple[int, int], factor: int, kernel: Kernel = "bicubic") -> Separable:
    """Images of (height, width), multiples of `factor`, smaller by it with Pillow's antialiased kernel; nothing is rounded.

    A^+ is exact: the kernel's matrix along an axis has full row rank.
    """
    height, width = size
    if height % factor or width % factor:
        raise ValueError(f"{factor} does not divide {height}x{width}")
    described = {"operator": f"sr{factor}", "factor": factor, "kernel": f"{kernel}, antialiased as Pillow's"}
    down, across = (resizing(side, side // factor, kernel) for side in size)
    return Separable(down, across, described)


def blurred(size: tuple[int, int], sigma: float) -> Separable:
    """A Gaussian blur of `sigma` pixels, mirrored at the border, without frequencies whose gain is below `LEAST_GAIN`.

    The inverse of smaller gains would amplify the rounding of a blurred file too much.
    """
    described = {"operator": "blur", "kernel": f"Gaussian, mirrored at the border, gains from {LEAST_GAIN:g}"}
    down, across = (blurring(side, sigma) for side in size)
    return Separable(down, across, {**described, "sigma": sigma}, LEAST_GAIN)


def resizing(inside: int, outside: int, kernel: Kernel) -> Tensor:
    """The matrix (outside, inside) float64 by which Pillow resizes a line, antialiased where it becomes shorter.

    Output i looks at places around (i + 1/2) inside / outside; weights outside of the line are left out and the rest sum to 1.
    Source: Pillow's documentation of `Image.resize`; Keys 1981 with a = -1/2 for bicubic.
    """
    reach, weight = SHAPES[kernel]
    scale = inside / outside
    wider = max(scale, 1.0)
    centre = (torch.arange(outside, dtype=torch.float64) + 0.5)[:, None] * scale
    place = torch.arange(inside, dtype=torch.float64)
    first = (centre - reach * wider + 0.5).trunc().clamp(min=0)
    end = (centre + reach * wider + 0.5).trunc().clamp(max=inside)
    weights = torch.where((place >= first) & (place < end), weight((place - centre + 0.5) / wider), 0.0)
    return weights / weights.sum(1, keepdim=True)


def blurring(length: int, sigma: float) -> Tensor:
    """The matrix (length, length) float64 of a Gaussian blur of a line that is mirrored at its ends, edge pixels twice.

    Its rows sum to 1, it is symmetric, and its eigenvectors are cosines, of which it loses the fast ones.
    """
    place = torch.arange(length, dtype=torch.float64)
    reach = math.ceil(7 * sigma)
    beyond = torch.arange(-reach, length + reach)
    weights = torch.exp(-((place[:, None] - beyond) / sigma).square() / 2)
    folded = beyond % (2 * length)
    inside = torch.where(folded < length, folded, 2 * length - 1 - folded)
    matrix = torch.zeros(length, length, dtype=torch.float64).index_add_(1, inside, weights)
    return matrix / matrix.sum(1, keepdim=True)


def _bicubic(x: Tensor) -> Tensor:
    a, x = -0.5, x.abs()
    near, far = ((a + 2) * x - (a + 3)) * x * x + 1, ((x - 5) * x + 8) * x * a - 4 * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _lanczos(x: Tensor) -> Tensor:
    return torch.where((x >= -3) & (x < 3), torch.sinc(x) * torch.sinc(x / 3), 0.0)


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


def _box(x: Tensor) -> Tensor:
    return ((x > -0.5) & (x <= 0.5)).double()


SHAPES: dict[Kernel, tuple[float, Callable[[Tensor], Tensor]]] = {
    "bicubic": (2.0, _bicubic),
    "lanczos": (3.0, _lanczos),
    "bilinear": (1.0, _bilinear),
    "box": (0.5, _box),
}
"""The reach of each kernel in pixels of the coarser grid, and its values."""


def _wide(device: torch.device) -> torch.dtype:
    """float64, or float32 on a device without it."""
    return torch.float32 if device.type == "mps" else torch.float64

"""Vector quantisation: every position of the latent becomes the nearest row of a codebook.

Codes are the nearest ones by brute force, and the codebook is float32. A codebook without gradients is a moving average, which is
updated after a batch was quantised, from sums and counts of the latents of all processes. All values for an update are gathered
first, so it is the same on every process, and for any number of processes and micro-batches.
If every position has its own codebook, all of them are one table of K rows: position p of P has the codes p K / P to
(p + 1) K / P - 1, and the rest is the same as for one codebook of K codes.
Source: van den Oord et al. 2017 (arXiv 1711.00937), eq. 3 and appendix A.1; several codebooks: Jegou et al. 2011 (product
quantisation).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.kmeans import counts_of, kmeans, lloyd, nearest, plus_plus, sums_of
from diffcli.networks.bottleneck import Bottleneck, Coded, Gathers, as_maps, as_rows, of_each
from diffcli.networks.code_usage import CodeUsage, CountedConfig
from diffcli.noise import Domain, Noise, derive

LAPLACE = 1e-5  # latents that are added to the count of every code
ROWS_A_CODE = 64  # of the start by k-means: rows for each code at most,
IMAGES = 1024  # images at most,
MANY = 16384  # where each position has its own codebook, of which k-means++ sees
FIRST = 8  # rows for each code,
ROUNDS = 10  # and rounds of Lloyd


class VectorQuantiser(Bottleneck):
    """See the module's docstring. sizes: the moving average of the share of latents of each code; sums: of their sum over N.

    loss: beta * |h - sg(code)|^2, which moves the encoder, and, where gradients teach the codebook, |sg(h) - code|^2; both are
    means over the numbers of an image's latent. term `commitment`: the first without beta.
    """

    codebook: Tensor  # (K, C)
    sizes: Tensor  # (K,)
    sums: Tensor  # (K, C)
    updates: Tensor  # () int64

    def __init__(self, config: "Vq", latent: int, books: int = 1) -> None:
        super().__init__()
        self.config = config
        self.inputs = self.channels = latent
        self.books, self.rows = books, books * config.codes
        self.bits = math.log2(config.codes)
        self.measures = 0 if config.start != "kmeans" else IMAGES if books == 1 else MANY
        codebook = torch.randn(self.rows, latent)
        if config.codebook == "ema":
            self.register_buffer("codebook", codebook)
            self.register_buffer("sums", codebook / self.rows)
        else:
            self.codebook = nn.Parameter(codebook)
        self.register_buffer("sizes", torch.full((self.rows,), 1 / self.rows))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.usage = CodeUsage(self.rows, config.window)
        self.seen: list[tuple[Tensor, Tensor]] = []  # h and codes of each micro-batch since the last update

    def forward(self, h: Tensor, noise: Tensor | None) -> Coded:
        h = h.float()
        codes = self.codes_of(h)
        chosen = as_maps(self.codebook[codes.flatten()], h)
        commitment = of_each((h - chosen.detach()).square())  # (B,)
        loss = self.config.beta * commitment
        if self.config.codebook == "gradient":
            loss = loss + of_each((h.detach() - chosen).square())
        terms = {"commitment": commitment.detach(), **(self.usage.terms(len(h)) if self.training else {})}
        through = rotated if self.config.estimator == "rotation" else straight_through
        return Coded(through(h, chosen.detach()), loss, terms, codes)

    def latent(self, h: Tensor, noise: Tensor | None) -> Tensor:
        return h.float()

    def snapped(self, z: Tensor) -> Tensor:
        return as_maps(self.codebook[self.codes_of(z).flatten()], z)

    def codes_of(self, z: Tensor) -> Tensor:
        """The codes (B, *S) int64 nearest to latents z (B, C, *S), in which NaN counts as 0."""
        rows = as_rows(z).nan_to_num(0)
        if self.books == 1:
            return nearest(rows, self.codebook).view(len(z), *z.shape[2:])
        own = [nearest(*pair) for pair in zip(self.by_book(rows), self.codebook.split(self.config.codes), strict=True)]
        first = torch.arange(self.books, device=z.device) * self.config.codes
        return (torch.stack(own, dim=1) + first).view(len(z), *z.shape[2:])

    def by_book(self, rows: Tensor) -> Sequence[Tensor]:
        """The rows (B x P, C) of each of the P positions with their own codebooks: (B, C)."""
        return rows.unflatten(0, (-1, self.books)).unbind(dim=1)

    def of_codes(self, codes: Tensor) -> Tensor:
        """The rows of the codebook (B, C, *S) that codes (B, *S) stand for."""
        return as_maps(self.codebook[codes.flatten()], codes[:, None])

    def remember(self, coded: Coded, h: Tensor) -> None:
        assert coded.codes is not None
        self.seen.append((h.detach().float(), coded.codes))

    @torch.no_grad()
    def update(self, ranks: Gathers) -> None:
        """Updates the averages, then the codebook, then revives dead codes.

        A latent that is not finite is replaced by its code, so the codebook stays finite; the loss shows that a run failed.
        """
        if not self.seen:
            return
        h, codes = (ranks.gather(torch.cat(parts)) for parts in zip(*self.seen, strict=True))
        self.seen.clear()
        rows, k = as_rows(h), self.rows
        rows = torch.where(rows.isfinite().all(dim=1, keepdim=True), rows, self.codebook[codes.flatten()])
        counts = counts_of(codes, k)
        self.usage.add(counts, len(h))
        self.sizes.lerp_(counts / len(rows), 1 - self.config.decay)
        if self.config.codebook == "ema":
            self.sums.lerp_(sums_of(rows, codes.flatten(), k) / len(rows), 1 - self.config.decay)
            self.codebook.copy_(self.sums / self.smoothed(LAPLACE / len(rows))[:, None])
        self.updates += 1
        self.revive(rows)

    def smoothed(self, extra: float) -> Tensor:
        """The sizes (K,) with a constant added to every code, scaled to the same sum."""
        total = self.sizes.sum()
        return (self.sizes + extra) * (total / (total + self.rows * extra))

    def revive(self, rows: Tensor) -> None:
        """Codes whose share of latents fell below config.revive / K become latents of this batch, with the share 1 / K.

        Their running sum is that share of the latent, so that the next update keeps them where they are. rows: (B x P, C).
        """
        k = self.rows
        place = torch.arange(k, device=rows.device)
        drawn = derive(0, Domain.CODEBOOK, self.updates * k + place) % (len(rows) // self.books)
        picked = rows[drawn * self.books + place // self.config.codes]  # (K, C), each of the position of its code
        dead = self.sizes < self.config.revive / k
        self.sizes.masked_fill_(dead, 1 / k)
        self.codebook.copy_(torch.where(dead[:, None], picked, self.codebook))
        if self.config.codebook == "ema":
            self.sums.copy_(torch.where(dead[:, None], picked / k, self.sums))

    @torch.no_grad()
    def start(self, h: Tensor) -> None:
        """Sets the codebook to the k-means of the latents in h, or of as many as `ROWS_A_CODE` says. Their order does not matter.

        Raises UserError if there are fewer latents than codes.
        """
        rows, k = as_rows(h.float()), self.config.codes
        each = len(rows) // self.books
        if each < k:
            what = "latents" if self.books == 1 else "latents at each position"
            raise UserError(
                f"task.bottleneck.codes is {k}, but the {len(h)} images that k-means looks at have {each} {what}",
                f"use --set task.bottleneck.codes={each} or fewer, or --set task.bottleneck.start=random",
            )
        books = [rows] if self.books == 1 else self.by_book(rows)
        self.reset(torch.cat([self.first(own) for own in books]))

    def first(self, rows: Tensor) -> Tensor:
        """The k-means (codes, C) of the latents of one codebook."""
        k = self.config.codes
        rows = rows[(rows.double() * irregular(rows.shape[1], rows.device)).sum(dim=1).argsort(stable=True)]
        if len(rows) > ROWS_A_CODE * k:
            rows = rows[torch.arange(ROWS_A_CODE * k, device=rows.device) * len(rows) // (ROWS_A_CODE * k)]
        noise = Noise([0], torch.device("cpu"), Domain.CODEBOOK)
        drawn = torch.cat([noise.uniform() for _ in range(k)])
        if self.books == 1:
            return kmeans(rows, drawn, ROUNDS)
        begun = plus_plus(rows[:: max(1, len(rows) // (FIRST * k))], drawn.to(rows.device))
        return lloyd(rows, begun, ROUNDS)

    @torch.no_grad()
    def reset(self, codebook: Tensor) -> None:
        """Sets the codebook (K, C), all codes with the same share of latents."""
        k = self.rows
        self.codebook.copy_(codebook)
        self.sizes.fill_(1 / k)
        if self.config.codebook == "ema":
            self.sums.copy_(self.codebook / k)


def irregular(n: int, device: torch.device) -> Tensor:
    """A direction (n,) float64 along which no two different rows are likely to be level."""
    return torch.arange(1, n + 1, dtype=torch.float64, device=device).sqrt().sin()


def straight_through(h: Tensor, code: Tensor) -> Tensor:
    """The code, whose gradient is passed to h as it is. Source: van den Oord et al. 2017, section 3.2."""
    return code + (h - h.detach())


def rotated(h: Tensor, code: Tensor) -> Tensor:
    """The code, as a constant rotation and scaling of h, both (B, C, *S).

    Gradients are turned by the angle from h to its code. Source: Fifty et al. 2024, section 4 (arXiv 2410.06424).
    """
    fixed = h.detach()
    length, wanted = (x.norm(dim=1, keepdim=True).clamp(min=1e-12) for x in (fixed, code))
    here, there = fixed / length, code / wanted  # unit vectors
    between = here + there
    between = between / between.norm(dim=1, keepdim=True).clamp(min=1e-12)
    moved = h - fixed  # 0, and what the gradient of h goes through
    along = (between * moved).sum(dim=1, keepdim=True)
    ahead = (here * moved).sum(dim=1, keepdim=True)
    return code + wanted / length * (moved - 2 * between * along + 2 * there * ahead)


class Vq(CountedConfig):
    """Every position of the latent becomes one of `codes` vectors."""

    kind: Literal["vq"] = "vq"
    codes: int = Field(512, ge=2, description="vectors in the codebook")
    own: bool = Field(
        False,
        description="a codebook of this number of codes for each position of the latent; needs task.network.whole",
    )
    beta: float = Field(0.25, ge=0, description="factor of the commitment, which moves the encoder")
    estimator: Literal["straight_through", "rotation"] = Field(
        "straight_through", description="estimator of the gradient of the quantisation"
    )
    codebook: Literal["ema", "gradient"] = Field(
        "ema", description="update of the codebook: moving averages, or gradients"
    )
    decay: float = Field(0.99, ge=0, lt=1, description="decay of the moving averages in each update")
    start: Literal["kmeans", "random"] = Field("kmeans", description="the codebook before the first step")
    revive: float = Field(
        0.03,
        ge=0,
        lt=1,
        description="a code is dead if its share of latents times the number of codes is smaller; 0: never",
    )

    def build(self, latent: int, positions: int | None = None) -> VectorQuantiser:
        if not self.own:
            return VectorQuantiser(self, latent)
        if positions is None:
            raise UserError(
                "task.bottleneck.own is true, but a latent has a position for each place of images of any size",
                "name the one size of the images in task.network.whole, or use --set task.bottleneck.own=false",
            )
        return VectorQuantiser(self, latent, positions)

"""The distance of a prior's embeddings to those of the images, compared with the identity.

The extractor `translation` gives of each pair `text`, `image` and `predicted`, each (D,) of length sqrt(D), and of the prediction
and of the text (`identity_...`) how near it is to the image: `cosine` and `mse`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from diffcli.metrics.keepers import mean_of, rows_of
from diffcli.metrics.metric import Metric, Need, Role, Summaries

CHUNK = 1024  # rows compared with all others at once
KEY: tuple[Role, str] = ("reference", "translation")


class BesideIdentity(Metric):
    """A score of a prior, and the same score of the identity."""

    least: ClassVar[int] = 1

    def lines(self, scores: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, str]:
        """Prior and identity side by side."""
        return {self.kind: f"{scores[self.kind]:.6g} (identity {scores[f'identity_{self.kind}']:.6g})"}


class Closeness(BesideIdentity):
    """The mean over the pairs of a value of the extractor."""

    def compute(self, of: Summaries) -> dict[str, float]:
        """The mean for the prior and, as identity_NAME, for the identity."""
        return {name: of[KEY].mean(name).mean.item() for name in (self.kind, f"identity_{self.kind}")}


class CosineSimilarity(Closeness):
    """Cosine of the angle between prediction and image; 1 is best."""

    kind: Literal["cosine"] = "cosine"
    needs: ClassVar[tuple[Need, ...]] = tuple(Need(*KEY, mean_of(name)) for name in ("cosine", "identity_cosine"))


class SquaredError(Closeness):
    """Squared error of a value of the embedding; 0 is best."""

    kind: Literal["mse"] = "mse"
    needs: ClassVar[tuple[Need, ...]] = tuple(Need(*KEY, mean_of(name)) for name in ("mse", "identity_mse"))


class Retrieval(BesideIdentity):
    """The share of predictions whose nearest image in the reference is the right one; 1 is best."""

    kind: Literal["retrieval"] = "retrieval"
    needs: ClassVar[tuple[Need, ...]] = tuple(Need(*KEY, rows_of(name)) for name in ("text", "image", "predicted"))

    def compute(self, of: Summaries) -> dict[str, float]:
        """`retrieval` and `identity_retrieval`."""
        text, image, predicted = (of[KEY].rows(name) for name in ("text", "image", "predicted"))
        return {"retrieval": retrieved(predicted, image), "identity_retrieval": retrieved(text, image)}


def retrieved(predicted: Tensor, image: Tensor) -> float:
    """The share of predictions (n, D) whose nearest image embedding of (n, D), by cosine, is the right one.

    Where several are equally near, the right one among them counts as much as a random choice of one of them would give.
    """
    images = torch.nn.functional.normalize(image, dim=1)
    hits = 0.0
    predictions = torch.nn.functional.normalize(predicted, dim=1)
    for first, rows in zip(range(0, len(images), CHUNK), predictions.split(CHUNK), strict=True):
        near = rows @ images.T
        nearest = near == near.amax(1, keepdim=True)
        own = nearest[torch.arange(len(rows)), torch.arange(first, first + len(rows))]
        hits += float((own / nearest.sum(1)).sum())
    return hits / len(images)

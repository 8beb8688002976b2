"""Bits a dimension: how many bits a model needs, by its variational bound, to code reference images.

The extractor `bound` gives of each image the `bits` of every term, (T + 1,), and `bpd`, their sum.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from diffcli.metrics.keepers import mean_of
from diffcli.metrics.metric import Metric, Need, Role, Summaries

KEY: tuple[Role, str] = ("reference", "bound")


class BitsPerDim(Metric):
    """The variational bound in bits a dimension, its mean and spread over the images. Source: Ho et al. 2020, eq. 5."""

    kind: Literal["bpd"] = "bpd"
    needs: ClassVar[tuple[Need, ...]] = (Need(*KEY, mean_of("bpd")), Need(*KEY, mean_of("bits")))
    least: ClassVar[int] = 1

    def compute(self, of: Summaries) -> dict[str, float]:
        """`bpd` and `bpd_std`, the standard deviation over the images."""
        bits = of[KEY].mean("bpd")
        return {"bpd": bits.mean.item(), "bpd_std": bits.std().item()}

    def more(self, of: Summaries) -> dict[str, Any]:
        """`terms`: means over the images, from t = 1 to 1/T, then the prior's; they add up to `bpd`."""
        return {"terms": of[KEY].mean("bits").mean.tolist()}

    def lines(self, scores: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, str]:
        """The bound and its parts."""
        *between, last, prior = more["terms"]
        spread = f"{scores['bpd']:.6g} +- {scores['bpd_std']:.3g}"
        return {
            "bpd": f"{spread} over the images (variational bound, bits a dimension)",
            "parts": f"steps {sum(between):.6g}, last step {last:.6g}, prior {prior:.6g}",
        }

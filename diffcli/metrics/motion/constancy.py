"""What stays the same over the frames of a clip: the class that a classifier of frames reads, and features of neighbours.

The extractor `features` looks at every frame: `--features RUN` of a classifier of images for `kept` and `kept_class`, a CLIP or
any other network of images for `frame_similarity`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor

from diffcli.metrics.fidelity import FEATURES
from diffcli.metrics.keepers import mean_of, rows_of
from diffcli.metrics.metric import Metric, Need, Role, Summaries, of_both
from diffcli.metrics.motion.tracking import MOTION

SIDES: dict[str, Role] = {"": "samples", "_reference": "reference"}


class Kept(Metric):
    """Share of frames that are read as one thing, and of clips that are read as the same class in every frame.

    One thing: in one piece, and its likeliest class has at least `confidence`.
    """

    kind: Literal["kept"] = "kept"
    needs: ClassVar[tuple[Need, ...]] = (
        *of_both(FEATURES, rows_of("logits")),
        *of_both(MOTION, rows_of("pieces")),
    )
    least: ClassVar[int] = 1
    confidence: float = Field(0.8, gt=0, le=1, description="probability of the likeliest class")

    def compute(self, of: Summaries) -> dict[str, float]:
        """`kept`, `one_thing` and the mean number of `pieces` in a frame, each with its `_reference`."""
        return {
            f"{name}{suffix}": value
            for suffix, side in SIDES.items()
            for name, value in self._of(of[side, FEATURES].rows("logits"), of[side, MOTION].rows("pieces")).items()
        }

    def _of(self, logits: Tensor, pieces: Tensor) -> dict[str, float]:
        """The scores of logits (n, T, K) and pieces (n, T)."""
        sure = logits.double().softmax(-1).amax(-1) >= self.confidence
        read = logits.argmax(-1)
        return {
            "kept": (read == read[:, :1]).all(1).double().mean().item(),
            "one_thing": (sure & (pieces == 1)).double().mean().item(),
            "pieces": pieces.double().mean().item(),
        }

    def lines(self, scores: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, str]:
        """The scores, each beside that of the reference."""
        beside = {name: f"(reference {scores[f'{name}_reference']:.4g})" for name in ("kept", "one_thing", "pieces")}
        return {
            "kept": f"{scores['kept']:.2%} of clips {beside['kept']}",
            "one thing": f"{scores['one_thing']:.2%} of frames {beside['one_thing']}",
            "pieces": f"{scores['pieces']:.4g} a frame {beside['pieces']}",
        }


class KeptClass(Metric):
    """Share of clips that are read as the class that was asked for in every frame."""

    kind: Literal["kept_class"] = "kept_class"
    needs: ClassVar[tuple[Need, ...]] = (
        Need("samples", FEATURES, rows_of("logits")),
        Need("samples", FEATURES, rows_of("label")),
    )
    least: ClassVar[int] = 1
    best: ClassVar[float | None] = 1.0

    def compute(self, of: Summaries) -> dict[str, float]:
        """`kept_class`."""
        side = of["samples", FEATURES]
        read = side.rows("logits").argmax(-1)  # (n, T)
        return {"kept_class": (read == side.rows("label")[:, None]).all(1).double().mean().item()}


class FrameSimilarity(Metric):
    """Cosine of the features of neighbouring frames, of the samples and of the reference; 1 is a still picture."""

    kind: Literal["frame_similarity"] = "frame_similarity"
    needs: ClassVar[tuple[Need, ...]] = of_both(FEATURES, mean_of("similarity"))
    least: ClassVar[int] = 1

    def compute(self, of: Summaries) -> dict[str, float]:
        """`frame_similarity` and `frame_similarity_reference`, means over all pairs of neighbours."""
        return {
            f"frame_similarity{suffix}": of[side, FEATURES].mean("similarity").mean.mean().item()
            for suffix, side in SIDES.items()
        }

    def lines(self, scores: Mapping[str, float], more: Mapping[str, Any]) -> dict[str, str]:
        """Both means in one line."""
        beside = f"(reference {scores['frame_similarity_reference']:.6g})"
        return {"frame_similarity": f"{scores['frame_similarity']:.6g} {beside}"}

"""The best checkpoint of a run by its score: `RUN/checkpoints/best`, a checkpoint like any other, which is never pruned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffcli import checkpoint
from diffcli.config import UserError

NAME = "best"


class Best:
    """The best checkpoint of a run that continues after step `start`; one of a later step is moved away."""

    def __init__(self, root: Path, start: int) -> None:
        self.root, self.score = root, float("inf")
        try:
            record = checkpoint.read_record(root / NAME)
        except UserError:  # there is none, or it is damaged: the next score is taken as the best
            return
        if record["step"] <= start:
            self.score = float(record["score"])
            return
        checkpoint.set_aside(root / NAME, f"{NAME}-{record['step']:08d}")

    def keep(self, step: int, score: float, scored: str, parts: Any, record: Mapping[str, Any]) -> Path | None:
        """Writes the checkpoint of a step if its score is the lowest so far. scored: the description of the score."""
        if not score < self.score:
            return None
        self.score = score
        return checkpoint.save(self.root, step, parts(), {**record, "score": score, "scored": scored}, NAME)

"""The clean-up of a run's checkpoints: `train.keep_last` and `train.keep_every`, beside what other runs need."""

from pathlib import Path

from diffcli import checkpoint
from diffcli.lookup.dependents import needing
from diffcli.preset import TrainConfig


class Keeping:
    """See the module. It notes each checkpoint once that it keeps for other runs alone."""

    def __init__(self, root: Path, cfg: TrainConfig) -> None:
        self.root, self.cfg = root, cfg
        self.noted: set[Path] = set()
        self.pending: list[str] = []

    def prune(self) -> None:
        """Removes old checkpoints that no other run needs."""
        spared = checkpoint.prune(self.root, self.cfg.keep_last, self.cfg.keep_every)
        for path in (each for each in spared if each not in self.noted):
            self.pending.append(f"{path} is kept beside the newest {self.cfg.keep_last}: {needing(path)}")
        self.noted |= set(spared)

    def notes(self) -> list[str]:
        """The notes since the last call."""
        found, self.pending = self.pending, []
        return found

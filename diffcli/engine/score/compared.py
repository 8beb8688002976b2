"""The arguments of `fid`: two sides, or a checkpoint and perhaps a reference. Imports nothing heavy."""

from collections.abc import Sequence
from pathlib import Path

from diffcli.config import UserError
from diffcli.lookup.checkpoint_files import is_checkpoint


def apart(given: Sequence[str], ckpt: Path | None) -> tuple[tuple[str, ...], Path | None]:
    """The sides that are given, and the checkpoint: a single side that is one stands for --ckpt."""
    alone = Path(given[0]).expanduser() if ckpt is None and len(given) == 1 else None
    return ((), alone) if alone is not None and is_checkpoint(alone) else (tuple(given), ckpt)


def check_compared(sides: Sequence[str], ckpt: Path | None, ref: str | None) -> None:
    """Raises UserError unless they are two sides or a checkpoint alone."""
    if ckpt is None and len(sides) != 2:
        raise UserError(
            f"fid compares two sides, {len(sides)} given" + (f" ({', '.join(sides)})" if sides else ""),
            "type diffcli fid A B, or diffcli fid --ckpt RUN --ref B",
        )
    if ckpt is not None and sides:
        raise UserError(f"fid takes either A B or --ckpt, both given: {' '.join(sides)}", "use --ref for the reference")
    if ckpt is None and ref is not None:
        raise UserError(f"--ref {ref} goes with --ckpt", "type diffcli fid A B, the reference second")

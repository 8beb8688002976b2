"""Widths of averages over a run, as shares of it. Imports nothing heavy."""

from collections.abc import Iterable

from diffcli.config import UserError

MAX_STD = 0.29  # the mean of all steps alike has 12^-0.5 = 0.2887


def check_widths(stds: Iterable[float]) -> None:
    """Raises UserError for the first --std that no average has."""
    for std in stds:
        if not 0 < std < MAX_STD:
            raise UserError(
                f"--std {std}: a width relative to the run is above 0 and below {MAX_STD}", "try --std 0.05,0.1"
            )

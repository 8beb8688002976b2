"""Stopping a run by SIGINT or SIGTERM, after the current step."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from diffcli.engine.distributed import is_worker

STDERR = 2  # a file descriptor
STOPPING = "\nstopping after this step, which is saved"
AGAIN = "; Ctrl-C again stops at once, without saving"


class Interrupted(KeyboardInterrupt):
    """Training was stopped by a signal and its last step is saved. A plain KeyboardInterrupt saves nothing."""


class Stop:
    """Set by a signal; read once a step."""

    wanted = False


@contextmanager
def stop_signals() -> Iterator[Stop]:
    """SIGINT and SIGTERM set `wanted`; a second one interrupts at once, but for workers, whose launcher repeats the first."""
    stop = Stop()

    def ask(number: int, frame: object) -> None:
        if stop.wanted and not is_worker():
            raise KeyboardInterrupt
        if not stop.wanted and os.environ.get("RANK", "0") == "0":  # by a call that may interrupt a print
            os.write(STDERR, f"{STOPPING}{'' if is_worker() else AGAIN}\n".encode())
        stop.wanted = True

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""How a run is asked to stop: by SIGINT or SIGTERM, which are answered after the step that is under way."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from diffcli.engine.distributed import is_worker


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
        stop.wanted = True

    previous = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

"""Processes that need not import torch: forked from one process that has imported it, and that runs nothing else.

They cost tenths of a second each, those of torchrun's launcher three seconds of processor time. The launcher is tested with
`start` and `in_subprocess` of conftest.py, and so are signals and kill -9 in the slow tests.
"""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

IMPORTED = (  # once, by the process from which all are forked
    "diffcli.torchvision_compat",
    "diffcli.cli.app",
    "diffcli.cli.session",
    "diffcli.engine.run.train",
    "diffcli.engine.run.resume",
    "diffcli.engine.draw.sample",
    "diffcli.engine.score.evaluate",
    "torch._dynamo",  # which every optimizer imports
    "torch.distributed.nn",
    "tests.warm",
)


@cache
def context() -> ForkServerContext:
    """Where processes are forked."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(IMPORTED))
    return found


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def diffcli(*arguments: str) -> int:
    """The command line; returns its exit code."""
    from diffcli.cli import session
    from diffcli.cli.app import app

    sys.argv = ["diffcli", *arguments]
    return session.run(app)


def killed_in_its_preview(*arguments: str) -> int:
    """The command line, of a training that ends by kill -9 where it begins to draw its first preview."""
    from diffcli.engine.run.loop import Loop

    loops: Any = Loop
    loops.preview = lambda loop: os.kill(os.getpid(), signal.SIGKILL)
    return diffcli(*arguments)


def rank_of(function: Callable[..., Any], arguments: tuple[Any, ...], env: dict[str, str], output: Path) -> None:
    """Ends this process with what the function returns, if that is an exit code; stdout and stderr go to OUTPUT.out and .err."""
    for stream, end in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        stream.flush()
        os.dup2(os.open(f"{output}{end}", os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.environ.update(env)

    import torch

    from diffcli.cli import session
    from diffcli.engine import tuning

    torch.set_num_threads(1)
    tuned: Any = tuning
    tuned.cpu_flags = frozenset  # so `auto` is fp32, as in the process of the tests
    code = function(*arguments)
    session.leave(code if isinstance(code, int) else 0)


class Started:
    """A process that calls function(*arguments), all of which can be pickled.

    env: its variables; output: where its stdout and stderr go, to files with .out and .err at the end.
    """

    def __init__(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], env: dict[str, str], output: Path
    ) -> None:
        self.output = output
        self.process = context().Process(target=rank_of, args=(function, arguments, env, output))
        self.process.start()

    def poll(self) -> int | None:
        """Its exit code, that of a signal below 0; None as long as it runs."""
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Its stdout and stderr, once it has ended. timeout: in seconds, after which it is killed."""
        self.process.join(timeout)
        late = self.process.exitcode is None
        self.kill()
        assert not late, f"it ran for more than {timeout} s:\n{self._read('.err')}"
        return self._read(".out"), self._read(".err")

    @property
    def returncode(self) -> int:
        assert self.process.exitcode is not None
        return self.process.exitcode

    def kill(self) -> None:
        """Ends it at once, if it has not ended."""
        self.process.kill()
        self.process.join()

    def _read(self, end: str) -> str:
        return Path(f"{self.output}{end}").read_text()


def ranks(
    world: int, function: Callable[..., Any], *arguments: Any, limit: float, env: dict[str, str]
) -> tuple[int, str, str]:
    """Calls function(*arguments) in `world` processes, a group as torchrun makes it if there are several. All can be pickled.

    Returns the exit code and stderr of the first that failed, or of rank 0, and rank 0's stdout between them. limit: in seconds;
    env: variables for all.
    """
    port = str(free_port())
    with TemporaryDirectory() as folder:
        started = []
        for rank in range(world):
            group = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
            }
            group |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
            what = env | (group if world > 1 else {})
            started.append(Started(function, arguments, what, Path(folder) / f"rank-{rank}"))
        try:
            outputs = [each.communicate(limit) for each in started]
        finally:
            for each in started:
                each.kill()
        codes = [each.returncode for each in started]
        first = next((rank for rank, code in enumerate(codes) if code), 0)
        return codes[first], outputs[0][0], outputs[first][1]

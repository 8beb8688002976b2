"""Processes that need not import torch: forked from one process that has imported it, and that runs nothing else.

They cost tenths of a second each, those of torchrun's launcher three seconds of processor time. The launcher, signals and
kill -9 are tested with `start` and `in_subprocess` of conftest.py.
"""

import multiprocessing
import os
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


def rank_of(function: Callable[..., Any], arguments: tuple[Any, ...], env: dict[str, str], output: Path) -> None:
    """Ends this process with what the function returns, if that is an exit code; stdout and stderr go to OUTPUT.out and .err."""
    for stream, end in ((sys.stdout, ".out"), (sys.stderr, ".err")):
        stream.flush()
        os.dup2(os.open(f"{output}{end}", os.O_WRONLY | os.O_CREAT), stream.fileno())
    os.environ.update(env)

    import torch

    from diffcli.cli import session

    torch.set_num_threads(1)
    code = function(*arguments)
    session.leave(code if isinstance(code, int) else 0)


def ranks(
    world: int, function: Callable[..., Any], *arguments: Any, limit: float, env: dict[str, str]
) -> tuple[int, str, str]:
    """Calls function(*arguments) in `world` processes, a group as torchrun makes it if there are several. All can be pickled.

    Returns the exit code and stderr of the first that failed, or of rank 0, and rank 0's stdout between them. limit: in seconds;
    env: variables for all.
    """
    port = str(free_port())
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"rank-{rank}" for rank in range(world)]
        processes = []
        for rank, output in enumerate(outputs):
            group = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world),
                "LOCAL_WORLD_SIZE": str(world),
            }
            group |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
            what = (function, arguments, env | (group if world > 1 else {}), output)
            processes.append(context().Process(target=rank_of, args=what))
        for process in processes:
            process.start()
        for process in processes:
            process.join(limit)
        late = [process for process in processes if process.exitcode is None]
        for process in late:
            process.kill()
            process.join()
        errors = [Path(f"{output}.err").read_text() for output in outputs]
        assert not late, f"{len(late)} of {world} processes ran for more than {limit} s:\n" + "\n".join(errors)
        codes = [int(process.exitcode or 0) for process in processes]
        first = next((rank for rank, code in enumerate(codes) if code), 0)
        return codes[first], Path(f"{outputs[0]}.out").read_text(), errors[first]

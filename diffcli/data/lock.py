"""One writer in a run or a set at a time: an exclusive flock on its `.lock`, which the kernel releases when its holder dies.

The file holds the process id and host of its holder, and is removed while the lock is still held. On systems and file systems
without such locks, nothing is locked.
"""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from diffcli.config import UserError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = ".lock"
PATIENCE = 1.0  # seconds to wait for a lock: other processes hold it briefly to check, and killed ones until they exit
Work = Literal["run", "set"]
WRITING = {"run": "is writing into this run", "set": "is preparing this set"}
ENDING = {
    "run": "it saves first; workers whose launcher was killed do so by themselves",
    "set": "the shards that are finished stay",
}
_held: set[int] = set()  # descriptors of this process


@contextmanager
def only_writer(folder: Path, what: Work = "run") -> Iterator[None]:
    """Context that keeps other writers out of a folder of a run or of a prepared set.

    Raises UserError with the process that holds the lock, OSError if the folder cannot be written.
    """
    if fcntl is None:
        yield
        return
    path = folder / LOCK
    descriptor = _take(path, what)
    _held.add(descriptor)
    try:
        yield
    finally:
        _held.discard(descriptor)
        with suppress(OSError):
            path.unlink()  # before it is released, so that nobody removes a file that another has locked since
        os.close(descriptor)


def _take(path: Path, what: Work) -> int:
    """A descriptor of the locked file."""
    deadline = time.monotonic() + PATIENCE
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 200).decode(errors="replace").split()
            os.close(descriptor)
            if time.monotonic() > deadline:
                raise _taken(path.parent, holder, what) from None
            time.sleep(PATIENCE / 20)
            continue
        except OSError:
            return descriptor  # this file system has no locks
        if _is_at(descriptor, path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
            return descriptor
        os.close(descriptor)  # its holder removed it after it was opened here


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _taken(folder: Path, holder: list[str], what: Work) -> UserError:
    process, host = holder if len(holder) == 2 else ("", "")
    who = f"process {process} on {host}" if process else "another process"
    return UserError(
        f"{folder}: {who} {WRITING[what]}",
        f"wait until it has ended, or stop it (`kill {process or 'PID'}`: {ENDING[what]}), then type this again",
    )


def _let_go() -> None:
    """Releases the inherited lock in a forked loader process, which may outlive its parent."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if fcntl is not None:
    os.register_at_fork(after_in_child=_let_go)

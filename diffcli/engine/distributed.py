"""Several processes as one: starting workers through torchrun's launcher, joining its group, and collectives of one line.

A worker that `launch` started writes its UserError to a file, so that the parent prints it once. A worker that fails because
such a peer has exited prints nothing.
"""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar, get_args

import torch
import torch.distributed as dist
from torch import Tensor

from diffcli.config import RunFailed, UserError, did_you_mean
from diffcli.lookup.torch_build import no_cuda

T = TypeVar("T")

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
LAUNCHED = "DIFFCLI_LAUNCHED"  # for workers that `launch` started: the folder where they leave their errors
SAVING = 600  # seconds for interrupted workers to end their step and save before they are killed; older torch has 30


COLLECTIVES = timedelta(hours=2)  # limit for waiting on a rank that saves, reads a large reference or decodes its data


@dataclass(frozen=True)
class Group:
    """This process among its peers."""

    rank: int
    world: int
    device: torch.device

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def shares(self, n: int) -> list[range]:
        """Every rank's contiguous share of range(n)."""
        return [range(rank * n // self.world, (rank + 1) * n // self.world) for rank in range(self.world)]

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks, on every rank; values: any shape, on the group's device."""
        if self.world > 1:
            dist.all_reduce(values)
            values /= self.world
        return values

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks, on every rank; values: any shape, on the group's device."""
        if self.world == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all ranks on rank 0, in rank order; an empty list elsewhere. All of one shape."""
        if self.world == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.world)] if self.leads else None
        dist.gather(tensor.contiguous(), parts, dst=0)
        return parts or []

    def collect(self, what: T) -> list[T]:
        """Small objects of all ranks on rank 0, in rank order; an empty list elsewhere. They are pickled."""
        if self.world == 1:
            return [what]
        parts: list[Any] | None = [None] * self.world if self.leads else None
        dist.gather_object(what, parts, dst=0)
        return parts or []

    def agreed(self, flag: bool) -> bool:
        """The value of rank 0, on every rank."""
        if self.world == 1:
            return flag
        value = torch.tensor([int(flag)], device=self.device)
        dist.broadcast(value, src=0)
        return bool(value)

    def spread(self, tensor: Tensor) -> Tensor:
        """The tensor of rank 0 on every rank; other ranks pass one of the same shape and type, which is overwritten."""
        if self.world > 1:
            dist.broadcast(tensor, src=0)
        return tensor

    def gather_rows(self, rows: Tensor, counts: Sequence[int] | None = None) -> Tensor:
        """The rows (n, ...) of all ranks on every rank, in rank order; n may differ from rank to rank.

        counts: n of every rank, where that is known; otherwise the ranks ask each other, and wait for the device to hear.
        """
        if self.world == 1:
            return rows
        if counts is None:
            count = torch.tensor([len(rows)], device=rows.device)
            found = [torch.empty_like(count) for _ in range(self.world)]
            dist.all_gather(found, count)
            counts = [int(n) for n in found]
        most = max(counts)
        padded = rows.new_zeros(most, *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in range(self.world)]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    def barrier(self) -> None:
        """Waits for every rank."""
        if self.world > 1:
            dist.barrier()


@dataclass(frozen=True)
class Launch:
    """The numbers of workers and machines to start."""

    nproc: int = 1
    nnodes: int = 1
    node_rank: int = 0
    rdzv_endpoint: str = ""

    @property
    def world(self) -> int:
        return self.nproc * self.nnodes

    def check(self) -> None:
        """Raises UserError for numbers that contradict each other."""
        if self.nnodes > 1 and not self.rdzv_endpoint:
            raise UserError(
                f"--nnodes is {self.nnodes} without --rdzv-endpoint", "add --rdzv-endpoint HOST:PORT of node 0"
            )
        if not 0 <= self.node_rank < self.nnodes:
            raise UserError(
                f"--node-rank is {self.node_rank} of --nnodes {self.nnodes}",
                f"use 0 to {self.nnodes - 1}, one for each node",
            )


def pick_device(name: DeviceName, nproc: int = 1) -> torch.device:
    """The device of --device for this one of nproc processes.

    Raises UserError if it does not exist, or if there are fewer CUDA devices than processes.
    """
    if name not in get_args(DeviceName):
        hint = did_you_mean(name, get_args(DeviceName)) + "; one GPU of several is chosen by CUDA_VISIBLE_DEVICES"
        raise UserError(f"--device {name}: no such device", hint)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise no_cuda()
    if name == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: no Apple GPU is available", "use --device cpu")
    if name == "cuda":
        rank, found = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        wanted = max(nproc, rank + 1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        if wanted > found:
            raise UserError(
                f"--nproc {wanted}: only {found} CUDA device{'s' if found > 1 else ''}",
                f"start at most {found} on this machine, or add --device cpu",
            )
        return torch.device("cuda", rank)
    return torch.device(name)


def is_worker() -> bool:
    """Whether torchrun (ours or the user's) started this process."""
    return "LOCAL_RANK" in os.environ and "RANK" in os.environ


def speaks() -> bool:
    """Whether this process prints for the user: the process of the command, or rank 0 if the user typed torchrun."""
    return not is_worker() or (LAUNCHED not in os.environ and os.environ["RANK"] == "0")


@contextmanager
def join(name: DeviceName) -> Iterator[Group]:
    """The group that torchrun made, or a group of one."""
    device = pick_device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if not is_worker():
        yield Group(0, 1, device)
        return
    if LAUNCHED in os.environ and sys.platform == "linux":
        _stop_with_parent()
    from torch.distributed import nn  # noqa: F401  its defaults keep a group that was made before it, past our destroying it

    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=COLLECTIVES)
    try:
        yield Group(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def launch(how: Launch, arguments: Sequence[str]) -> int:
    """Runs `python -m diffcli ARGUMENTS` in how.nproc workers through torchrun's launcher; returns the exit code.

    Raises the UserError of the first worker that failed with one.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    how.check()
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // how.nproc)))
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    _quiet_launcher()
    patience: dict[str, Any] = (
        {"shutdown_timeout": SAVING} if "shutdown_timeout" in LaunchConfig.__dataclass_fields__ else {}
    )
    config = LaunchConfig(
        min_nodes=how.nnodes,
        max_nodes=how.nnodes,
        nproc_per_node=how.nproc,
        run_id="diffcli",
        rdzv_backend="static" if how.nnodes > 1 else "c10d",
        rdzv_endpoint=how.rdzv_endpoint or "localhost:0",
        rdzv_configs={"rank": how.node_rank} if how.nnodes > 1 else {},
        max_restarts=0,
        monitor_interval=0.1,
        start_method="spawn",
        **patience,
    )
    with TemporaryDirectory(prefix="diffcli-") as folder:
        os.environ[LAUNCHED] = folder
        try:
            elastic_launch(config, sys.executable)("-u", "-m", "diffcli", *arguments)
        except ChildFailedError as error:
            for reported in told_errors():
                raise reported from None
            rank, failure = error.get_first_failure()
            if failure.exitcode < 0:
                raise RunFailed(
                    f"worker {rank} was killed by signal {-failure.exitcode}",
                    "where memory ran out, use a smaller batch or fewer processes; a training goes on with `diffcli resume`",
                ) from None
            return failure.exitcode
        except SignalException:
            return 130
        finally:
            del os.environ[LAUNCHED]
    return 0


def tell_launcher(error: UserError) -> bool:
    """Writes the error for the parent; False if `launch` did not start this process."""
    if LAUNCHED not in os.environ or not is_worker():
        return False
    path = Path(os.environ[LAUNCHED]) / f"rank-{int(os.environ['RANK']):06d}.json"
    partial = path.with_suffix(".partial")
    record = {"problem": error.problem, "hint": error.hint, "also": error.also, "exit_code": error.exit_code}
    partial.write_text(json.dumps(record))
    partial.rename(path)
    return True


def told_errors() -> list[UserError]:
    """The errors that workers of this launch have reported so far, in the order of their ranks."""
    errors = []
    for path in sorted(Path(os.environ[LAUNCHED]).glob("rank-*.json")) if LAUNCHED in os.environ else []:
        record = json.loads(path.read_text())
        errors.append(UserError(record["problem"], record["hint"], record["also"]))
        errors[-1].exit_code = record["exit_code"]
    return errors


def _stop_with_parent() -> None:
    """Asks Linux for SIGTERM when the launcher dies, even by kill -9: orphans would go on writing beside a resumed run."""
    import ctypes

    PR_SET_PDEATHSIG = 1
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _quiet_launcher() -> None:
    """Its own report of a failed worker repeats what the worker said, at length."""
    import logging

    for name in [*logging.root.manager.loggerDict]:  # each has a level of its own
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

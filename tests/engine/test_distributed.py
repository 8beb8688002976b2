"""The end of a worker: its group leaves nothing behind that could fail after the interpreter has ended."""

import re
import subprocess
import sys

from tests.conftest import ROOT, environment

SCRIPT = """
from pathlib import Path

import torch.distributed as dist

from diffcli.engine.distributed import join

with join("cpu") as group:
    import torch.distributed.nn  # as torchmetrics and torch's compiler do, at the first use

    dist.barrier()
print(*(path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")))
"""


def test_no_thread_of_the_group_outlives_it() -> None:
    """A thread of gloo that drops a tensor while Python ends aborts the process, at random."""
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    told = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment(**alone),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "gloo" not in told.stdout


def test_the_command_that_docs_give_for_torchrun_passes_its_own_parser():
    """Which takes `--n` for an ambiguous beginning of its options, unless `--` ends them."""
    from torch.distributed.run import parse_args

    text = (ROOT / "docs/using.md").read_text()
    command = re.search(r"`torchrun ([^`]* -m -- diffcli [^`]*)`", text).group(1).split()
    assert "--n" in command
    found = parse_args(command)
    assert (found.module, found.training_script) == (True, "diffcli")
    assert found.training_script_args == command[command.index("diffcli") + 1 :]

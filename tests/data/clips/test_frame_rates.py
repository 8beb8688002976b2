"""Frame rates have an upper bound, in every key and flag that takes one."""

import pytest
from pydantic import TypeAdapter, ValidationError

from diffcli.data.datasets import AnyData
from tests.conftest import Cli


@pytest.mark.parametrize("kind", ["clips", "shards", "moving_digits"])
def test_the_rate_of_data_is_bounded(kind: str) -> None:
    given = {"kind": kind, "size": 32, "frames": 4, "root": None if kind == "moving_digits" else "films"}
    made = TypeAdapter(AnyData).validate_python({**given, "fps": 1000})
    assert made.fps == 1000
    for fps in (1000.5, 1e9, 0):
        with pytest.raises(ValidationError, match="fps"):
            TypeAdapter(AnyData).validate_python({**given, "fps": fps})


@pytest.mark.parametrize("command", ["sample", "gif", "fid"])
def test_the_rate_that_is_drawn_is_bounded(cli: Cli, command: str) -> None:
    cli(command, "runs/x", "--fps", "1e9").refused("--fps 1e9", "1000")

"""What a console is shown, whatever it can show."""

import io
import os

import pytest

from diffcli.cli.console import show_anything


@pytest.mark.parametrize(
    ("encoding", "shown"), [("ascii", b"r\\xe9 \\u4e03 \xff"), ("utf-8", "r\xe9 \u4e03 ".encode() + b"\xff")]
)
def test_names_that_no_console_has_are_shown_all_the_same(encoding: str, shown: bytes) -> None:
    file = io.BytesIO()
    stream = io.TextIOWrapper(file, encoding=encoding)
    show_anything(stream)
    print("r\xe9 \u4e03 " + os.fsdecode(b"\xff"), end="", file=stream, flush=True)
    assert file.getvalue() == shown

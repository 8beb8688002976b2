"""The worked examples of CONTRIBUTING.md work: each diff applies, is short, and the test that it brings passes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXAMPLES = re.findall(r"^```diff\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE | re.DOTALL)
LINES = 60  # that a change of one kind may have, fewer


def changed_lines(diff: str) -> int:
    return sum(line[:1] in ("+", "-") and line[:3] not in ("+++", "---") for line in diff.splitlines())


def test_there_is_one_example_of_each_kind():
    assert len(EXAMPLES) == 5


@pytest.mark.parametrize("diff", EXAMPLES, ids=range(len(EXAMPLES)))
def test_every_example_is_short(diff: str) -> None:
    assert 0 < changed_lines(diff) < LINES


def test_every_example_applies_and_the_tests_that_it_brings_pass(tmp_path: Path) -> None:
    for folder in ("diffcli", "tests", "presets"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "fixtures"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    brought = []
    for diff in EXAMPLES:
        command = ["git", "apply", "-C1", "-"]
        done = subprocess.run(command, input=diff, cwd=tmp_path, text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        brought += re.findall(r"^\+\+\+ b/(tests/\S+)", diff, re.MULTILINE)
    assert len(brought) == len(EXAMPLES)
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *brought, "tests/test_layers.py"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr

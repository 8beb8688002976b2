"""A benchmark's contenders, each in a process of its own, that work by turns on one machine."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}  # the second is of the process that asks


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Gives a benchmark the option `--clock`."""
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor: where others use the machine, too")


class Worker:
    """The process of a script with words: `turn` makes it work, else it waits. about: the first line that it answers, as JSON."""

    def __init__(self, script: str, *words: str) -> None:
        paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
        self.process = subprocess.Popen(
            [sys.executable, script, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
        )
        self.about = self.answer()

    def answer(self) -> dict[str, Any]:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"error: {' '.join(self.process.args[2:])} ended with exit code {self.process.wait()}")
        return json.loads(line)

    def told(self, word: object = "") -> dict[str, Any]:
        """What it answers to a word."""
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        return self.answer()

    def turn(self, steps: int) -> float:
        """Images per second of the median step."""
        return self.told(steps)["rate"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

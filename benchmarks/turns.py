"""A benchmark's contenders, each in a process of its own, that work by turns on one machine."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent


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

    def turn(self, steps: int) -> float:
        """Images per second of the median step."""
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self.answer()["rate"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()

"""What end-to-end tests share: a preset that trains in a second, and the command line run in this process or as another.

In this process a command costs milliseconds, by `in_ranks` in several processes tenths of a second. `start` and `in_subprocess`
cost about three seconds of each process, for what needs one that nothing is shared with: signals, kill -9, torchrun.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import yaml
from hypothesis import settings

import diffcli.torchvision_compat  # noqa: F401  before anything that imports torchvision
from diffcli.cli import session
from diffcli.cli.app import app
from tests import warm

settings.register_profile("here", deadline=None)  # an example's milliseconds say who else is at work
settings.register_profile("ci", derandomize=True, deadline=None)  # there the change is judged, not the luck of the day
settings.load_profile("ci" if os.environ.get("CI") else "here")

ROOT = Path(__file__).parent.parent
WAIT = 120  # seconds that a subprocess may take on a loaded machine

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"kind": "digits", "size": 8},
    "task": {
        "kind": "diffusion",
        "target": "v",
        "schedule": {"kind": "cosine", "steps": 1000},
        "network": {"kind": "unet", "width": 8, "mult": [1, 2], "blocks": ["res"], "attend_at": [], "head_dim": 8},
        "conditioners": [{"kind": "class", "num_classes": 10, "dim": 8}],
        "drop_condition": 0.1,
    },
    "train": {
        "steps": 4,
        "batch_size": 6,
        "precision": "fp32",
        "ema": 0.9,
        "optimizer": {"kind": "adamw", "lr": 2e-3},
        "every": {"log": 1, "preview": 0, "save": 2},
        "previews": 4,
    },
    "sampler": {"kind": "ddim", "steps": 3},
    "guidance": 2,
}


def pytest_runtest_setup(item: pytest.Item) -> None:
    """`make test-slow` takes every test, on machines without a GPU, too."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


class Outcome(NamedTuple):
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("error:")]

    @property
    def hints(self) -> list[str]:
        return [line for line in self.err.splitlines() if line.startswith("hint:")]

    def refused(self, *words: str, code: int = 2) -> str:
        """Asserts one error line, one hint line and no traceback; that both together hold all `words`. Returns the two."""
        assert self.code == code, f"exit code {self.code}:\n{self.err}"
        assert "Traceback" not in self.err, self.err
        assert len(self.errors) == 1, self.err
        assert len(self.hints) == 1, self.err
        told = f"{self.errors[0]}\n{self.hints[0]}"
        assert len(self.errors[0]) > len("error: ")
        assert len(self.hints[0]) > len("hint:  ")
        for word in words:
            assert word in told, f"{word!r} is not in\n{told}"
        return told


Cli = Callable[..., Outcome]


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests share their machine; tiny tensors gain nothing from threads."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def float32_where_nothing_is_said() -> Iterator[None]:
    """The precision `auto` is fp32 on every processor: most tests compare numbers, and few are about precision."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffcli.engine.tuning.cpu_flags", frozenset)
        yield


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Runs `diffcli ARGUMENTS` in this process."""

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["diffcli", *map(str, arguments)])
        capfd.readouterr()
        code = session.run(app)
        return Outcome(code, *capfd.readouterr())

    return run


def environment(**more: str) -> dict[str, str]:
    """For subprocesses: one thread each, so that sums are those of any other single-threaded run."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path} | more


def start(*arguments: object, cwd: Path | None = None, module: str = "diffcli", **env: str) -> subprocess.Popen[str]:
    """Starts `python -m diffcli ARGUMENTS` in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env=environment(**env),
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str]) -> Outcome:
    """Waits for a process and its output."""
    out, err = process.communicate(timeout=WAIT)
    return Outcome(process.returncode, out, err)


def in_subprocess(*arguments: object, cwd: Path | None = None, **env: str) -> Outcome:
    """Runs `python -m diffcli ARGUMENTS` to its end."""
    return finish(start(*arguments, cwd=cwd, **env))


def in_ranks(*arguments: object, **env: str) -> Outcome:
    """Runs `diffcli ARGUMENTS` in as many processes as its --nproc says, without the launcher; see warm.py."""
    words = [str(argument) for argument in arguments]
    world = int(words[words.index("--nproc") + 1]) if "--nproc" in words else 1
    return Outcome(*warm.ranks(world, warm.diffcli, *words, limit=WAIT, env=env))


def changed(tree: dict[str, Any], **keys: Any) -> dict[str, Any]:
    """A copy of `tree` with keys such as task__network__width replaced; None removes the key."""
    copy = yaml.safe_load(yaml.safe_dump(tree))
    for key, value in keys.items():
        *parents, last = key.split("__")
        node = copy
        for part in parents:
            node = node.setdefault(part, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = deepcopy(value)  # a later key may change what lies in it
    return copy


def writing(tree: dict[str, Any], folder: Path) -> Callable[..., Path]:
    """What writes a preset, with changes, into a folder, and returns its file."""

    def write(name: str = "tiny", **keys: Any) -> Path:
        path = folder / f"{name}.yaml"
        path.write_text(f"# {name} - for tests\n" + yaml.safe_dump(changed(tree, name=name, **keys), sort_keys=False))
        return path

    return write


def trained_to_its_end(tree: dict[str, Any], path: Path) -> Path:
    """Trains a preset, in this process, into a run, which it returns."""
    from diffcli import preset as presets
    from diffcli.engine.distributed import join
    from diffcli.engine.run.runlog import RunDir
    from diffcli.engine.run.train import train

    run = RunDir(path)
    run.claim()
    with join("cpu") as group:
        for _ in train(presets.build(tree, "tiny.yaml"), run, group):
            pass
    return run.path


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Writes the tiny preset, with changes, and returns its file."""
    return writing(TINY, tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tiny preset, 4 steps, two checkpoints; its weights differ from their average. Do not change it."""
    return trained_to_its_end(TINY, tmp_path_factory.mktemp("trained") / "run")

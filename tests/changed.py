"""Which tests to run for what changed: `python -m tests.changed` prints them, and `make test-fast` runs them.

Changed is what differs from the branch `main`, or from the last commit where that is main. The test file that mirrors a changed
one stands for it; where there is none, those files of the deepest folder that mirrors its folder which import it; if none does,
those that import a file which imports it, and where nothing in that folder comes near it all of them.
"""

import re
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path, PurePath, PurePosixPath

ROOT = Path(__file__).parent.parent
ALWAYS = ("tests/test_layers.py",)  # takes a second and knows every file
ELSEWHERE = {  # what no test mirrors, by the first part of its path
    "presets": "tests/test_presets.py",
    "README.md": "tests/test_readme.py",
    "docs": "tests/test_readme.py",
    "Makefile": "tests/test_readme.py",
    "CONTRIBUTING.md": "tests/test_contributing.py",
    "benchmarks": "tests/test_gpu_check.py",
}
BY_ANOTHER_NAME = {  # files beside the folders of the package, whose tests stand elsewhere than they do
    "diffcli/__init__.py": ("tests/test_facade.py",),
    "diffcli/__main__.py": ("tests/cli/test_console.py", "tests/cli/test_door.py"),
    "diffcli/config.py": ("tests/config_errors/test_explaining.py", "tests/cli/test_bad_input.py"),
    "diffcli/preset.py": ("tests/test_presets.py", "tests/test_preset_schema.py"),
    "diffcli/transfer.py": ("tests/tasks/test_waits.py", "tests/data/test_loader.py"),
    "tests/conftest.py": ("tests/cli/test_commands.py",),
}

THROUGH_A_FIXTURE = {  # tests of a part of the package that they do not import
    "diffcli/cli": ("tests/cli/test_bad_input.py", "tests/cli/test_commands.py"),
}


def changed(root: Path = ROOT) -> list[str]:
    """Paths that differ from main and those that git does not know yet, below `root`."""
    base = _git(root, "merge-base", "HEAD", "main") or ["HEAD"]
    return sorted({*_git(root, "diff", "--name-only", base[0]), *_git(root, "ls-files", "-o", "--exclude-standard")})


def mirrors_of(paths: Iterable[str], root: Path = ROOT) -> list[str]:
    """The test files for changed paths, each once, in alphabetical order."""
    return sorted({*ALWAYS, *(test for path in paths for test in _mirrors_of(PurePosixPath(path), root))})


def _mirrors_of(path: PurePosixPath, root: Path) -> list[str]:
    first = path.parts[0]
    if str(path) in BY_ANOTHER_NAME:
        return [*BY_ANOTHER_NAME[str(path)]]
    if first in ELSEWHERE:
        return [ELSEWHERE[first]]
    if first not in ("tests", "diffcli") or path.suffix != ".py":
        return []
    if path.name.startswith("test_"):
        return [str(path)] if (root / path).is_file() else []
    mirrored = PurePosixPath("tests", *path.parts[1:])
    own = mirrored.with_name(f"test_{path.name}")
    if (root / own).is_file():
        return [str(own)]
    folder = mirrored.parent
    while not any((root / folder).glob("test_*.py")) and folder.name != "tests":
        folder = folder.parent
    if folder.name == "tests":
        return []
    return _nearest(path, sorted((root / folder).glob("test_*.py")), root)


def _nearest(path: PurePosixPath, tests: list[Path], root: Path) -> list[str]:
    """Of these tests the ones that import a file of the package; else those that import what imports it; else all."""
    module = _name(path)
    beside = {name for name, imported in _package(root / path.parts[0]).items() if module in imported}
    direct = [test for test in tests if module in _imported(test)]
    found = direct or [test for test in tests if beside & _imported(test)] or tests
    always = THROUGH_A_FIXTURE.get("/".join(path.parts[:2]), ())
    return [*(test.relative_to(root).as_posix() for test in found), *always]


def _name(path: PurePath) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


@cache
def _package(folder: Path) -> dict[str, frozenset[str]]:
    """The modules of a package, and what each imports."""
    return {_name(file.relative_to(folder.parent)): _imported(file) for file in folder.rglob("*.py")}


@cache
def _imported(file: Path) -> frozenset[str]:
    """The modules that a file imports, and what it imports from them, as dotted names."""
    names = set()
    for module, what in re.findall(r"^ *from ([\w.]+) import (\([^)]*\)|.*)$", file.read_text(), re.MULTILINE):
        names |= {module, *(f"{module}.{name}" for name in re.findall(r"\w+", what))}
    return frozenset(names | {*re.findall(r"^ *import ([\w.]+)", file.read_text(), re.MULTILINE)})


def _git(root: Path, *arguments: str) -> list[str]:
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    return done.stdout.splitlines() if done.returncode == 0 else []


if __name__ == "__main__":
    print(*mirrors_of(changed()))

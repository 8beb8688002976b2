"""`make test-fast` runs the tests of what changed."""

import subprocess
from pathlib import Path

import pytest

from tests.changed import ALWAYS, BY_ANOTHER_NAME, ROOT, changed, mirrors_of


@pytest.mark.parametrize(
    ("path", "test"),
    [
        ("diffcli/ema.py", "tests/test_ema.py"),
        ("tests/test_ema.py", "tests/test_ema.py"),
        ("diffcli/engine/draw/output.py", "tests/engine/draw/test_output.py"),
        ("presets/digits.yaml", "tests/test_presets.py"),
        ("docs/using.md", "tests/test_readme.py"),
    ],
)
def test_a_changed_file_has_the_test_that_mirrors_it(path: str, test: str) -> None:
    assert set(mirrors_of([path])) == {test, "tests/test_layers.py"}


def test_a_file_that_no_test_mirrors_has_those_of_its_folder() -> None:
    found = mirrors_of(["diffcli/cli/options.py"])
    assert {"tests/cli/test_commands.py", "tests/cli/test_bad_input.py"} <= set(found)
    assert all(path.startswith("tests/cli/") for path in found if path != "tests/test_layers.py")


def test_of_a_folder_only_the_tests_that_come_near_a_file_are_run_for_it(tmp_path: Path) -> None:
    files = {
        "diffcli/a/near.py": "from diffcli.a import (\n    far,\n)",
        "diffcli/a/far.py": "",
        "diffcli/a/alone.py": "",
        "tests/a/test_one.py": "from diffcli.a.near import x",
        "tests/a/test_two.py": "    import diffcli.a.other",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = {name: set(mirrors_of([f"diffcli/a/{name}.py"], tmp_path)) - {*ALWAYS} for name in ("near", "far", "alone")}
    both = {"tests/a/test_one.py", "tests/a/test_two.py"}
    assert found == {"near": {"tests/a/test_one.py"}, "far": {"tests/a/test_one.py"}, "alone": both}


def test_every_file_of_the_package_has_a_test_and_every_test_is_there() -> None:
    files = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "diffcli").rglob("*.py"))
    found = {file: {*mirrors_of([file])} - {*ALWAYS} for file in files}
    assert [file for file, tests in found.items() if not tests] == []
    assert not [test for tests in found.values() for test in tests if not (ROOT / test).is_file()]
    assert all(test in mirrors_of([path]) for path, tests in BY_ANOTHER_NAME.items() for test in tests)


def test_what_is_committed_since_main_and_what_is_not_are_both_changed(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    def write(name: str) -> None:
        (tmp_path / name).write_text(name)

    git("init", "-q", "-b", "main")
    write("old.py")
    git("add", "-A")
    git("commit", "-qm", "a")
    assert changed(tmp_path) == []
    git("checkout", "-qb", "work")
    write("committed.py")
    git("add", "-A")
    git("commit", "-qm", "b")
    write("new.py")
    write("old.py.txt")
    assert changed(tmp_path) == ["committed.py", "new.py", "old.py.txt"]

"""The script for machines with a GPU, tried on the CPU: it goes the same way there, with tiny networks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_check
from tests.conftest import ROOT, environment

SCRIPT = ROOT / "benchmarks/gpu_check.py"


@pytest.mark.slow
def test_all_of_it_runs_on_the_cpu_and_is_written_down(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    command = [sys.executable, SCRIPT, "--device", "cpu", "--tiny", "--json", file]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())
    assert report["tests"]["exit_code"] == 0
    assert report["left_out"] == []
    assert report["versions"]["torch"]
    assert report["command"][1:] == [str(part) for part in command[2:]]
    measured = {tuple(row[key] for key in ("preset", "what", "who", "precision", "compiled")) for row in report["rows"]}
    assert measured == set(gpu_check.plan(tiny=True))
    assert all(row["images_per_s"] > 0 for row in report["rows"])
    parameters = {(row["preset"], row["who"]): row["parameters"] for row in report["rows"]}
    assert parameters["cifar10", "diffcli"] == parameters["cifar10", "diffusers"]
    assert "cifar10" in done.stdout


def test_without_a_gpu_it_says_how_to_try_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check.py"])
    assert gpu_check.main() == 2
    assert "--device cpu --tiny" in capsys.readouterr().err


def test_what_is_missing_or_fails_is_left_out_by_name_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(name: str, what: str, who: str, *_: object) -> gpu_check.gpu_contenders.Contender:
        if name == "cifar10":
            raise RuntimeError("CUDA out of memory")
        return gpu_check.gpu_contenders.Contender(lambda: None, 1, 1, 1)

    monkeypatch.setattr(gpu_check.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(gpu_check.gpu_contenders, "build", build)
    monkeypatch.setattr(gpu_check.gc, "collect", lambda: 0)  # nothing was built
    monkeypatch.setattr(gpu_check.torch.compiler, "reset", lambda: None)
    notes: list[str] = []
    until = gpu_check.time.monotonic() + 100
    rows = list(gpu_check.measurements(gpu_check.torch.device("cpu"), True, until, notes))
    assert {row.who for row in rows} == {"diffcli"}
    assert {row.preset for row in rows} == {"imagenet64-adm", "imagenet64-dit"}
    assert sum("diffusers is not installed" in note for note in notes) == 6
    assert sum("out of memory" in note for note in notes) == 2
    list(gpu_check.measurements(gpu_check.torch.device("cpu"), True, 0.0, notes := []))
    assert sum("no time was left" in note for note in notes) == 7


def test_the_ratio_is_ours_over_theirs_in_the_same_precision() -> None:
    row = gpu_check.Row("cifar10", "train", "diffcli", "bf16", False, 30.0, 100.0, 1, 1, 1.0)
    lines = list(gpu_check.table([row, row._replace(who="diffusers", images_per_s=20.0), row._replace(compiled=True)]))
    assert "1.50" in lines[1]
    assert lines[3].split()[-3] == "-"

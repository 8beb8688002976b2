"""Mistakes of the keyboard are answered before anything heavy is imported."""

import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from diffcli.cli.door import FROM_FILES
from diffcli.cli.parsing.choices import METRICS, SAMPLERS
from diffcli.config import UserError
from diffcli.data.dataset import DataConfig
from diffcli.data.datasets import AnyData
from diffcli.data.naming import COMES_WITH
from diffcli.diffusion.samplers import AnySampler
from diffcli.engine.score.compared import OF_A_MODEL
from diffcli.metrics import scores
from diffcli.prep.kinds import KINDS
from diffcli.prep.openers import OPENERS
from tests.conftest import Cli, environment

AT_ONCE = [
    "--help", "", "smaple", "presets list", "presets show digits", "presets show nope", "presets check nope",
    "train", "train --preset nope", "train --preset digits --set train.steps", "train --preset digits --lr 3",
    "train --preset digits --set train.steps=-1", "train --preset digits --set trian.steps=1",
    "train --preset digits --set task.network.kind=unett", "presets schema",
    "resume nowhere", "ema nowhere --out x --std 0.1", "sample", "sample nowhere", "sample . --sampler dimm",
    "sample . --out a.jpg", "sample . --steps 0", "sample . --seed 3-1", "gif . --seed 1,2 --n 3", "gif nowhere",
    "gif . --out a.png", "export nowhere --out x",
    "import nowhere --out x", "info nowhere", "presets new x/y --data .", "presets new mine --data nowhere",
    "train --preset digits --from-weights raw", "train --preset cifar10 --data nowhere",
    "train --preset digits --data nowhere", "train --preset moving-digits --data nowhere",
    "prep-data folder nowhere --out x", "sample --like nowhere.png",
    "fid", "fid a b --metrics fiid", "prep-data mnist", "prep-data minst", "prep-data mnist .",
]  # fmt: skip
FINE = ["--help", "presets list", "presets show digits", "presets schema"]
HEAVY = {"torch", "numpy", "PIL", "imageio", "scipy", "webdataset", "torchvision"}


def answered_without(heavy: set[str], lines: list[str], folder: Path) -> None:
    """All in one process, which imports what each of them would: a start of Python costs more than the answers."""
    script = f"""
import shlex, sys
from diffcli.cli import session
from diffcli.cli.app import app
for line in {lines!r}:
    sys.argv = ["diffcli", *shlex.split(line)]
    code = session.run(app)
    heavy = {heavy!r} & sys.modules.keys()
    assert not heavy, f"{{line}} imports {{sorted(heavy)}}"
    assert code == (0 if line in {FINE!r} else 2), f"{{line}}: {{code}}"
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment(), cwd=folder)
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_flags_alone_decide_is_answered_without_torch(tmp_path: Path) -> None:
    answered_without(HEAVY, AT_ONCE, tmp_path)
    assert not list(tmp_path.iterdir())


OF_A_RUN = [
    "sample RUN --class house", "sample RUN --class 77", "sample RUN --prompt hi", "sample RUN --frames 3",
    "gif RUN --class house", "sample RUN --set train.steps=3",
    "sample RUN --negative-prompt hi", "sample RUN --strength 0.5", "gif RUN --strength 0.5", "sample RUN --compare",
    "sample RUN --tile 8 --no-tile", "sample RUN --restore sr3 --image .", "sample RUN --steps 3 --set sampler.steps=4",
    "sample RUN --then nowhere", "sample RUN --base nowhere", "sample RUN --control nowhere", "sample RUN --prompts nowhere",
    "fid . nowhere", "fid . . --features nowhere", "fid . . --weights nowhere", "fid . . --steps 3", "fid . . --tile 8",
    "fid . . --metrics psnr",
    "fid . . --metrics dice", "fid . . --metrics mse", "sample RUN --interpolate 3 --n 4",
    "sample RUN --set sampler.stepz=3", "sample RUN --set sampler.steps=-3", "fid RUN --set sampler.steps=-3",
    "sample RUN --image nowhere.png", "sample RUN --mask nowhere.png", "sample RUN --field hint=nowhere.png",
    "sample RUN --scale 3 --out squares", "fid RUN --ref nowhere", "fid RUN --features nowhere", "resume RUN",
    "resume RUN --set train.stepz=1", "resume RUN --set task.kind=prior", "resume RUN --set train.steps=-1",
    "export RUN --out RUN", "prep-data folder . --out RUN", "ema RUN --out x --std 0.5", "sample --like RUN",
    "train --preset digits --run-dir RUN", "train --preset digits --run-dir RUN/preset.yaml",
   
]  # fmt: skip


def test_what_the_record_of_a_run_decides_is_answered_without_torch(trained: Path, tmp_path: Path) -> None:
    lines = [line.replace("RUN", shlex.quote(str(trained))) for line in OF_A_RUN]
    answered_without({"torch", "scipy", "webdataset", "torchvision"}, lines, tmp_path)


def test_the_door_knows_which_metrics_need_a_model() -> None:
    asked = {kind: {need.extractor for need in metric().needs} for kind, metric in scores.METRICS.items()}
    for who, extractors in (
        ("a prior", {"translation"}),
        ("a model that tells masks", {"segmentation"}),
        ("a model", {"bound", "reconstruction", "condition"}),
    ):
        assert {kind for kind, found in asked.items() if found & extractors} == set(OF_A_MODEL[who])


def test_the_door_knows_which_kinds_of_data_need_files_and_which_come_with_the_package(tmp_path: Path) -> None:
    """For both, what it answers is what the data themselves say."""
    for kind in FROM_FILES:
        config = TypeAdapter[DataConfig](AnyData).validate_python(
            {"kind": kind, "root": tmp_path / "nowhere", "size": 8}
        )
        with pytest.raises(UserError, match=r"data\.root is '.*nowhere', which does not exist"):
            config.build("train")
    for kind in COMES_WITH:
        with pytest.raises(ValidationError, match=f"root must not be set for kind '{kind}'"):
            TypeAdapter[DataConfig](AnyData).validate_python({"kind": kind, "root": tmp_path})


def test_the_door_knows_every_sampler_metric_and_kind_of_data() -> None:
    assert sorted(SAMPLERS) == sorted(kind.model_fields["kind"].default for kind in get_args(get_args(AnySampler)[0]))
    assert sorted(METRICS) == sorted(scores.METRICS)
    assert set(KINDS) == set(OPENERS)


@pytest.mark.parametrize("name", ["cfg_2.5", "v1.0", "there.d"])
def test_a_folder_may_have_a_dot_in_its_name(cli: Cli, trained: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "there.d").mkdir()
    done = cli("sample", trained, "--n", 2, "--steps", 1, "--out", tmp_path / name)
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / name).iterdir()) == ["000000.png", "000001.png"]


@pytest.mark.parametrize("name", ["A.PNG", "A.Npz", "A.GIF"])
def test_a_suffix_may_be_written_in_capitals(cli: Cli, trained: Path, tmp_path: Path, name: str) -> None:
    command = "gif" if name == "A.GIF" else "sample"
    done = cli(command, trained, "--n", 2, "--steps", 1, "--out", tmp_path / name)
    assert done.code == 0, done.err
    assert (tmp_path / name).stat().st_size
    assert {path.suffix for path in tmp_path.iterdir()} == {Path(name).suffix, ".json"}


def test_a_plan_may_be_for_data_of_another_machine(cli: Cli) -> None:
    done = cli("train", "--preset", "mnist", "--data", "/nowhere", "--dry-run", "--device", "cpu")
    assert done.code == 0, done.err
    assert "data.root is '/nowhere', which does not exist" in done.out

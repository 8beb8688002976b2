"""The contract of the command line: help, outputs, plans, presets and what goes where."""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import imageio.v3 as imageio
import numpy as np
import pytest
import torch
import typer
import yaml

import diffcli
from diffcli import preset as presets
from diffcli.cli.app import app
from diffcli.data.datasets import Digits
from diffcli.engine.score.compared import apart
from diffcli.engine.tuning import auto_precision
from diffcli.lookup import preset_files
from tests.conftest import Cli, environment, in_subprocess

COMMANDS = {"train", "resume", "sample", "gif", "fid", "ema", "prep-data", "presets", "import", "export", "info"}

EXTRAS = (
    "transformers",
    "open_clip",
    "img2dataset",
    "pyarrow",
    "fsspec",
    "s3fs",
    "pydicom",
    "pillow_heif",
    "diffusers",
)

OPTIONS = {
    "train": "--preset --set --data --run-dir --steps --seed --device --nproc --nnodes --node-rank --rdzv-endpoint --dry-run",
    "resume": "--from --steps --set --device --nproc",
    "sample": "--ckpt --n --class --seed --sampler --steps --ddim-eta --guidance --batch-size --no-ema --out --device --nproc "
    "--image --mask --strength --interpolate --field --then --augment --tile --overlap --exact-tiles --no-tile "
    "--scale --columns --captions",
    "gif": "--ckpt --n --class --seed --sampler --steps --ddim-eta --guidance --batch-size --no-ema --out --device --nproc "
    "--fps --frames --show --image --mask --strength --field --then --augment --tile --overlap --exact-tiles --no-tile "
    "--scale --columns --captions --hold",
    "fid": "--ckpt --ref --n --class --seed --sampler --steps --ddim-eta --guidance --batch-size --no-ema --device --nproc "
    "--metrics --features --weights --json --augment --tile --overlap --exact-tiles --no-tile",
    "ema": "--std --rate --out",
    "info": "--json",
    "import": "--out --as",
    "export": "--ckpt --to --out --no-ema",
    "prep-data": "--out --size --workers --limit --resume --strict",
}


def commands(group: Any = None, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command with its path."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        path = f"{prefix} {name}".strip()
        yield path, command
        if hasattr(command, "commands"):
            yield from commands(command, path)


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help"]


def test_the_commands_are_those_of_the_contract() -> None:
    assert {path for path, _ in commands() if " " not in path} == COMMANDS
    assert {path for path, _ in commands() if " " in path} == {
        f"presets {c}" for c in ("list", "show", "check", "new", "schema")
    }


@pytest.mark.parametrize("command", OPTIONS)
def test_a_command_has_the_options_of_the_contract(command: str) -> None:
    known = {name for o in options(dict(commands())[command]) for name in [*o.opts, *o.secondary_opts]}
    assert set(OPTIONS[command].split()) <= known


@pytest.mark.parametrize("path", [path for path, _ in commands()])
def test_every_option_is_in_the_help_with_its_default(cli: Cli, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERMINAL_WIDTH", "200")
    done = cli(*path.split(), "--help")
    assert done.code == 0
    command = dict(commands())[path]
    assert command.help
    for option in options(command):
        assert option.help, option.name
        assert all(name in done.out for name in [*option.opts, *option.secondary_opts]), option.name
        optional = not option.required and option.default != ""
        if optional:
            shown = isinstance(option.show_default, str) or option.default is not None
            assert shown, f"{path}: --{option.name} shows no default"


def test_every_switch_can_be_switched_off() -> None:
    for path, command in commands():
        for option in options(command):
            if option.is_flag:
                assert option.secondary_opts, f"{path}: {option.opts} has no off switch"


def test_numbers_that_may_be_fractions_are_floats() -> None:
    """And a whole number has a whole default: typer would cut a fraction off in silence."""
    fractions = {}
    for info in app.registered_commands:
        hints = get_type_hints(info.callback)
        for name, parameter in inspect.signature(info.callback).parameters.items():
            if name in ("fps", "ddim_eta", "guidance", "strength", "augment"):
                fractions[name] = float in (hints[name], *get_args(hints[name]))
            if int in (hints[name], *get_args(hints[name])):
                assert not isinstance(parameter.default, float), f"{info.callback.__name__}: {name}"
    assert fractions == {"fps": True, "ddim_eta": True, "guidance": True, "strength": True, "augment": True}


def test_help_answers_without_torch_and_pydantic() -> None:
    """0.2 s on a quiet machine. Imports are counted, as seconds say more about who else is at work."""
    script = (
        "import sys; sys.argv = ['diffcli', '--help']\n"
        "from diffcli.cli import session\nfrom diffcli.cli.app import app\n"
        "assert session.run(app) == 0\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'yaml', 'imageio'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert "prep-data" in done.stdout


def test_version_and_no_arguments(cli: Cli) -> None:
    assert cli("--version") == (0, f"diffcli {diffcli.__version__}\n", "")
    done = cli()
    assert "Usage: diffcli" in done.out
    assert done.code == 2


# --dry-run


@pytest.fixture
def planned(tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The dry run of the tiny preset with options: its resolved preset, and its facts."""

    def run(*arguments: object) -> tuple[presets.Preset, dict[str, str]]:
        monkeypatch.chdir(tmp_path)
        path = tiny()
        before = sorted(tmp_path.rglob("*"))
        done = cli("train", "--preset", path, "--dry-run", *arguments)
        assert done.code == 0, done.err
        assert sorted(tmp_path.rglob("*")) == before, "a dry run wrote something"
        facts = dict(line[2:].split(": ", 1) for line in done.out.splitlines() if line.startswith("# "))
        return presets.build(yaml.safe_load(done.out), "what was printed"), facts

    return run


def test_a_dry_run_prints_a_preset_that_trains_the_same_and_writes_nothing(planned: Any, tmp_path: Path) -> None:
    resolved, facts = planned("--steps", 12, "--seed", 3, "--set", "train.batch_size=50")
    asked = presets.load(str(tmp_path / "tiny.yaml"), ["train.steps=12", "seed=3", "train.batch_size=50"])
    assert resolved == asked
    task = resolved.task.build(resolved.specs)
    assert facts["parameters"] == f"{sum(p.numel() for p in task.parameters()):,}"
    assert facts["images"] == "9,000"
    assert facts["epochs"] == "180 steps an epoch, 0.06667 epochs in all"
    assert "GFLOP" in facts["flops"]
    assert "GiB" in facts["memory"]
    assert facts["run directory"] == "runs/tiny"
    assert facts["checkpoints"].startswith("runs/tiny/checkpoints/step-")
    assert facts["log"].startswith("runs/tiny/log.jsonl")


def test_a_dry_run_decides_precision_as_the_run_will(planned: Any) -> None:
    resolved, _ = planned("--set", "train.precision=auto", "--device", "cpu")
    assert resolved.train.precision == auto_precision(torch.device("cpu"))


def test_the_estimate_of_arithmetic_counts_every_convolution(planned: Any) -> None:
    """Forward and backward of one 3x3 convolution at 8x8 is 3 x 2 x 9 x in x out x 64 FLOP; doubled width is about 4 times."""
    narrow, wide = (
        planned("--set", f"task.network.width={w}", "--set", f"task.network.head_dim={w}") for w in (32, 64)
    )
    ratio = float(wide[1]["flops"].split()[0]) / float(narrow[1]["flops"].split()[0])
    assert 3.5 < ratio < 4.1


def test_a_dry_run_counts_objectives_that_look_at_values(planned: Any) -> None:
    plain = planned()[1]["flops"]
    for objective in ("task.times.kind=loss_aware", "task.coupling=optimal_transport"):
        assert planned("--set", objective)[1]["flops"] == plain


def test_a_dry_run_without_its_data_says_so(planned: Any) -> None:
    _, facts = planned("--set", "data={kind: mnist, root: nowhere, size: 8}")
    assert "nowhere" in facts["images"]
    assert "parameters" in facts


def test_a_dry_run_for_more_processes_counts_one_share(planned: Any) -> None:
    _, one = planned("--set", "train.batch_size=60")
    _, six = planned("--set", "train.batch_size=60", "--nproc", 6)
    assert "activations of 60 images" in one["memory"]
    assert "activations of 10 images" in six["memory"]


# presets


def test_presets_list_shows_every_preset_by_its_data(cli: Cli) -> None:
    done = cli("presets", "list")
    assert done.code == 0
    rows = [line for line in done.out.splitlines() if line.startswith("  ")]
    names = [line.split()[0] for line in rows]
    assert sorted(names) == sorted(preset_files.available())
    assert all(len(line.split()) > 6 for line in rows)
    assert cli("presets").out == done.out
    groups = [group.splitlines() for group in done.out.split("\n\n")]
    found = {name: group[0].partition(":")[0] for group in groups for name in (row.split()[0] for row in group[1:])}
    assert found["digits"] == found["digits-14"] == found["moving-digits"] == "digits, which ship with diffcli"
    assert {name: found[name] for name in ("mnist", "cifar10", "imagenet64", "kl-f8-256", "cc3m-64")} == {
        "mnist": "mnist", "cifar10": "cifar10", "imagenet64": "imagenet", "kl-f8-256": "imagenet", "cc3m-64": "cc3m"
    }  # fmt: skip


def test_presets_list_says_size_work_and_needs(cli: Cli) -> None:
    rows = {line.split()[0]: line for line in cli("presets", "list").out.splitlines() if line.startswith("  ")}
    for name in ("digits", "digits-14", "cifar10", "imagenet64-adm", "mnist-latent"):
        preset = presets.load(name)
        steps, batch = preset.train.steps, preset.train.batch_size
        assert f" {preset.data.size}x{preset.data.size} " in rows[name]
        assert f" {f'{steps / 1000:g}k' if steps >= 1000 else steps} x {batch} " in rows[name]
    assert "needs mnist-vae trained before" in rows["mnist-latent"]
    assert "minutes" in rows["captions-mnist"]
    assert "needs" not in rows["digits"]


def test_presets_show_prints_the_file(cli: Cli) -> None:
    assert cli("presets", "show", "digits").out == preset_files.available()["digits"].read_text()


def test_presets_check_prints_the_resolved_preset(cli: Cli, tiny: Callable[..., Path]) -> None:
    done = cli("presets", "check", tiny())
    assert done.code == 0
    assert presets.build(yaml.safe_load(done.out), "printed") == presets.load(str(tiny()))
    cli("presets", "check", tiny(task__network__attend_at=[5])).refused("attend_at", "5")


def test_presets_schema_is_json_that_knows_every_key(cli: Cli) -> None:
    schema = json.loads(cli("presets", "schema").out)
    assert {"data", "from", "task", "train", "sampler", "guidance", "guide", "prior", "seed", "name"} == set(
        schema["properties"]
    )


def test_a_local_preset_hides_the_shipped_one(
    cli: Cli, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "presets").mkdir()
    tiny().rename(tmp_path / "presets" / "digits.yaml")
    (tmp_path / "presets" / "empty.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    assert "name: tiny" in cli("presets", "show", "digits").out
    listed = cli("presets", "list")
    assert listed.code == 0, listed.err
    assert "for tests" in listed.out


def test_an_installed_diffcli_finds_its_presets_in_any_folder(tmp_path: Path) -> None:
    done = in_subprocess("presets", "list", cwd=tmp_path)
    assert done.code == 0
    assert "imagenet64" in done.out


# the whole way


def test_a_newcomer_trains_samples_animates_and_scores(
    cli: Cli, tiny: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the defaults for every output, in the current folder, and with the package alone: no extra is imported."""
    monkeypatch.chdir(tmp_path)
    for extra in EXTRAS:
        monkeypatch.setitem(sys.modules, extra, None)
    preset = tiny()
    judge = tiny("judge", task={"kind": "classifier", "num_classes": 10, "network": {"width": 4}}, guidance=1)
    assert cli("train", "--preset", preset).out == "runs/tiny\n"
    assert cli("train", "--preset", judge).out == "runs/judge\n"
    assert cli("sample", "--ckpt", "runs/tiny").out == "samples.png\n"
    assert cli("gif", "--ckpt", "runs/tiny").out == "denoise.gif\n"
    scoring = ["--ckpt", "runs/tiny", "--n", 20, "--features", "runs/judge", "--metrics", "fid,accuracy"]
    told = cli("fid", *scoring)
    assert told.code == 0, told.err
    assert "fid" in told.out
    assert "accuracy" in told.out
    as_json = json.loads(cli("fid", *scoring, "--json").out)
    assert json.dumps(as_json).count("fid")
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix != ".yaml") == [
        "denoise.gif", "denoise.gif.json", "runs", "samples.png", "samples.png.json",
    ]  # fmt: skip


def test_data_goes_to_stdout_and_talk_to_stderr(cli: Cli, trained: Path, tmp_path: Path) -> None:
    done = cli("sample", "--ckpt", trained, "--out", tmp_path / "a.png", "--n", 2)
    assert (done.out, done.err) == (f"{tmp_path / 'a.png'}\n", "")


def test_a_checkpoint_needs_no_flag(cli: Cli, trained: Path, tmp_path: Path) -> None:
    for name, how in (("flag", ("--ckpt", trained)), ("place", (trained,))):
        assert cli("sample", *how, "--n", 2, "--steps", 1, "--out", tmp_path / f"{name}.npz").code == 0
    checkpoint = trained / "checkpoints" / "step-00000004"
    for one in (trained, checkpoint, checkpoint / "ema.safetensors"):
        assert apart((str(one),), None) == ((), one)
    assert apart((str(tmp_path),), None) == ((str(tmp_path),), None)
    assert apart((str(trained), str(tmp_path)), None)[1] is None
    assert (tmp_path / "flag.npz").read_bytes() == (tmp_path / "place.npz").read_bytes()


def test_prepared_data_train_as_their_preset_says(cli: Cli, tiny: Callable[..., Path], tmp_path: Path) -> None:
    """--data takes what prep-data wrote, whatever kind the preset names."""
    images = Digits().build("train").read(torch.arange(20))
    for i, (image, label) in enumerate(zip(images["image"], images["label"], strict=True)):
        path = tmp_path / "files" / str(int(label)) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        imageio.imwrite(path, image[0].numpy())
    done = cli("prep-data", "folder", tmp_path / "files", "--out", tmp_path / "shards", "--workers", 1)
    assert done.code == 0, done.err
    preset = tiny(data={"kind": "folder", "size": 8, "channels": 1})
    logs = []
    for name in ("files", "shards"):
        run = tmp_path / f"run-{name}"
        done = cli("train", "--preset", preset, "--data", tmp_path / name, "--run-dir", run)
        assert done.code == 0, done.err
        logs.append([json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()])
    assert logs[0] == logs[1]


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m diffcli presets schema | head -c 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment(), cwd=tmp_path)
    assert (done.stdout, done.stderr) == ("{", "")


def test_the_npz_of_many_images_holds_exactly_as_many(cli: Cli, trained: Path, tmp_path: Path) -> None:
    for n in (1, 64, 65):
        assert cli("sample", "--ckpt", trained, "--out", tmp_path / "a.npz", "--n", n, "--steps", 1).code == 0
        assert len(np.load(tmp_path / "a.npz")["arr_0"]) == n

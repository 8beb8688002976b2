"""Every mistake of a user: one error line that names file, key or flag and the value, one hint, exit code 2, no traceback."""

import json
import os
import pickle
import shlex
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli import checkpoint
from tests.conftest import Cli, in_subprocess


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run that a test may break."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def refuse(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> Callable[..., str]:
    """Trains the tiny preset with options that must be refused before anything is saved."""

    def train(options: list[object], *words: str, **keys: object) -> str:
        target = tmp_path / "refused"
        done = cli("train", "--preset", tiny(**keys), "--run-dir", target, *options)
        told = done.refused(*words)
        assert not (target / "checkpoints").exists()
        return told

    return train


def test_a_command_in_a_hint_is_one_that_a_shell_understands(cli: Cli, run: Path, tmp_path: Path) -> None:
    """A path with a space is one word of it."""
    spaced = run.rename(tmp_path / "my run")
    images = tmp_path / "my images"
    images.mkdir()
    Image.new("L", (8, 8)).save(images / "a.png")
    for typed, begins, place in (
        (["resume", spaced], "diffcli resume", spaced),
        (["resume", spaced / "checkpoints"], "diffcli resume", spaced),
        (["resume", spaced / "checkpoints/step-00000004"], "diffcli resume", spaced),
        (["train", "--preset", spaced / "preset.yaml", "--run-dir", spaced], "diffcli resume", spaced),
        (["fid", spaced, images], "--ckpt", spaced),
    ):
        told = cli(*typed).refused(begins)
        hint = told.splitlines()[1]
        assert str(place) in shlex.split(hint[hint.index(begins) :].replace("`", " ").replace(",", " ")), hint


def test_levels_that_cannot_attend_have_a_hint(cli: Cli) -> None:
    told = cli("train", "--preset", "mnist-vae", "--set", "task.network.attend=[3]", "--dry-run")
    told.refused("task.network", "attend names 3", "task.network.attend")


# Presets and --set


def test_an_unknown_preset_is_met_with_the_nearest_name(cli: Cli) -> None:
    cli("train", "--preset", "digit").refused("--preset digit", "did you mean 'digits'?", "cifar10")
    cli("presets", "show", "imagnet64").refused("imagnet64", "did you mean 'imagenet64'?")


def test_a_missing_preset_file_is_named(cli: Cli, tmp_path: Path) -> None:
    cli("train", "--preset", tmp_path / "gone.yaml").refused("gone.yaml", "no such file")


@pytest.mark.parametrize(
    "text", ["name: [", "a: b: c", "- 1\n- 2", "", "name: !!python/object:os.system x", "\x00", "x: 2024-13-45"]
)
def test_a_file_that_is_no_preset_is_named(cli: Cli, tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    cli("train", "--preset", path).refused(str(path))
    cli("presets", "check", path).refused(str(path))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("train.stepz=3", ["train.stepz", "did you mean 'steps'?"]),
        ("trian.steps=3", ["trian", "did you mean 'train'?"]),
        ("task.network.widht=3", ["task.network.widht", "did you mean 'width'?"]),
        ("task.schedule.kind=cosin", ["task.schedule.kind is 'cosin'", "did you mean 'cosine'?"]),
        ("sampler.kind=dimm", ["sampler.kind is 'dimm'", "did you mean 'ddim'?"]),
        ("data.kind=minst", ["data.kind is 'minst'", "did you mean 'mnist'?"]),
        ("train.optimizer.kind=adamx", ["train.optimizer.kind is 'adamx'", "did you mean 'adam"]),
        ("train.curve.kind=cosin", ["train.curve.kind is 'cosin'", "did you mean 'cosine'?"]),
        ("task.kind=difusion", ["task.kind is 'difusion'", "did you mean 'diffusion'?"]),
        ("task.target=epsilon", ["task.target is 'epsilon'", "did you mean 'eps'?"]),
        ("train.precision=fp8", ["train.precision is 'fp8'", "bf16"]),
        ("train.steps=abc", ["train.steps is 'abc'", "must be a whole number"]),
        ("train.steps=1.5", ["train.steps is 1.5"]),
        ("train.steps=0", ["train.steps is 0"]),
        ("train.ema=1", ["train.ema is 1"]),
        ("train.optimizer.lr=.nan", ["train.optimizer.lr is nan"]),
        ("train.optimizer.lr=-1", ["train.optimizer.lr is -1"]),
        ("seed=-1", ["seed is -1"]),
        ("seed=99999999999999999999", ["seed is 99999999999999999999"]),
        ("task.network.blocks=[res,atention]", ["task.network.blocks.1 is 'atention'", "did you mean 'attention'?"]),
        ("task.conditioners.0.num_classes=zero", ["task.conditioners.0.num_classes is 'zero'"]),
        ("task.conditioners.3.dim=8", ["task.conditioners.3.dim", "'3'"]),
        ("train.accumulate=7", ["accumulate is 7", "batch_size 6"]),
        ("task.network.attend_at=[5]", ["task.network.attend_at names 5", "8, 4"]),
        ("task.network.head_dim=3", ["task.network.head_dim is 3", "--set task.network.head_dim="]),
        ("sampler.steps=2000", ["sampler.steps is 2000", "1000", "--set sampler.steps=1000"]),
        ("task.schedule.steps=2", ["sampler.steps is 3", "2 steps"]),
        ("task.drop_condition=0", ["guidance is 2.0", "task.drop_condition is 0"]),
        ("sampler={kind: ddpm, variance: learned}", ["sampler.variance is 'learned'", "task.learn_variance"]),
        ("foo", ["--set foo", "KEY=VALUE"]),
        ("=3", ["--set =3", "KEY=VALUE"]),
        ("train.steps=[1", ["--set train.steps", "'[1'", "YAML"]),
        ("seed=2024-13-45", ["--set seed", "2024-13-45"]),
        ("kind=3", ["kind"]),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_with_key_value_and_remedy(
    refuse: Callable[..., str], setting: str, words: list[str]
) -> None:
    refuse(["--set", setting], *words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["task.target=eps", "task.schedule.kind=flow"], ["'eps'", "flow", "task.target"]),
        (["task.learn_variance=true", "task.schedule.kind=flow"], ["learn_variance", "flow"]),
        (["task.conditioners=[]", "guidance=1"], ["drop_condition is 0.1", "conditioners"]),
        (["task.conditioners=[]", "task.drop_condition=0"], ["guidance is 2.0", "unconditional"]),
        (["sampler.eta=0.5", "sampler.kind=heun"], ["sampler.eta"]),
        (["task.kind=classifier", "guidance=1", "task.num_classes=1"], ["task.num_classes", "2"]),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    refuse: Callable[..., str], settings: list[str], words: list[str]
) -> None:
    refuse([part for setting in settings for part in ("--set", setting)], *words)


def test_the_file_is_named_where_the_file_is_wrong_and_the_flag_where_the_flag_is(refuse: Callable[..., str]) -> None:
    assert "--set" not in refuse([], "tiny.yaml: train.epochs", train__epochs=3).splitlines()[0]
    refuse(["--set", "train.epochs=3"], "tiny.yaml with --set: train.epochs")


# Data


def folder_options(root: Path, **more: object) -> list[object]:
    keys = {"data": "{kind: folder, size: 8, channels: 1}", **more}
    return ["--data", root, *(part for key, value in keys.items() for part in ("--set", f"{key}={value}"))]


def images(root: Path, *classes: str, each: int = 3) -> Path:
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(np.full((8, 8), 40 * number + i, np.uint8)).save(root / name / f"{i}.png")
    return root


def test_data_that_are_missing_empty_or_not_given_are_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refuse(folder_options(tmp_path / "gone"), "gone", "data.root")
    refuse(folder_options(tmp_path / "empty"), "empty", "holds no images")
    refuse(["--set", "data={kind: folder, size: 8}"], "data.root is not set", "--data PATH")
    refuse(["--data", tmp_path], "--data", "digits")


@pytest.mark.parametrize("in_memory", ["true", "false"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_corrupt_image_is_named(refuse: Callable[..., str], tmp_path: Path, in_memory: str, workers: int) -> None:
    broken = images(tmp_path / "data", "a", "b") / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    data = f"{{kind: folder, size: 8, channels: 1, in_memory: {in_memory}}}"
    refuse(folder_options(tmp_path / "data", **{"data": data, "train.workers": workers}), str(broken))


@pytest.mark.slow
def test_a_corrupt_image_is_told_once_by_two_processes(tiny: Callable[..., Path], tmp_path: Path) -> None:
    broken = images(tmp_path / "data", "a", each=6) / "a" / "1.png"
    broken.write_bytes(b"not a picture")
    options = folder_options(tmp_path / "data", data="{kind: folder, size: 8, channels: 1, in_memory: false}")
    done = in_subprocess("train", "--preset", tiny(), "--run-dir", tmp_path / "run", "--nproc", 2, *options)
    done.refused(str(broken))


def test_data_with_more_classes_than_the_preset_are_refused(refuse: Callable[..., str], tmp_path: Path) -> None:
    refuse(["--set", "task.conditioners.0.num_classes=5"], "knows 5 classes of 'label'", "has 10", "num_classes=10")
    classifier = ["--set", "task={kind: classifier, num_classes: 4}", "--set", "guidance=1"]
    refuse(classifier, "task.num_classes (classifier) knows 4 classes", "has 10", "--set task.num_classes=10")
    (tmp_path / "flat").mkdir()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "flat" / "0.png")
    refuse(folder_options(tmp_path / "flat"), "label", "task.conditioners=[]")


# Checkpoints


def test_a_path_without_a_checkpoint_is_refused(cli: Cli, tmp_path: Path) -> None:
    cli("sample", "--ckpt", tmp_path / "gone").refused("gone", "no such checkpoint")
    cli("sample", "--ckpt", tmp_path).refused(str(tmp_path), "no whole checkpoint")
    cli("resume", tmp_path).refused(str(tmp_path), "no whole checkpoint")
    cli("resume", tmp_path / "gone").refused("gone", "no such run directory")


DAMAGED = [("ema", "truncated"), ("task", "tampered"), ("optimizer", "missing"), ("ema", "empty")]


@pytest.mark.parametrize(("part", "damage"), DAMAGED)
def test_a_damaged_checkpoint_is_refused_and_resume_names_a_whole_one(cli: Cli, run: Path, part: str, damage: str):
    """Every file and every damage; all of both together are a matter of checkpoints, not of commands."""
    file = run / "checkpoints/step-00000004" / f"{part}.safetensors"
    content = file.read_bytes()
    match damage:
        case "truncated":
            file.write_bytes(content[: len(content) // 2])
        case "tampered":
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        case "missing":
            file.unlink()
        case "empty":
            file.write_bytes(b"")
    told = cli("resume", run, "--steps", 9).refused(file.name, "step-00000002", "--from 2")
    assert "step-00000004" in told
    if part == "ema":
        cli("sample", "--ckpt", run).refused(file.name, "step-00000002")
    if damage in ("missing", "truncated"):
        done = cli("resume", run, "--from", 2)
        assert done.code == 0, done.err
        assert checkpoint.is_whole(run / "checkpoints/step-00000004")


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"format": 1}', '{"format": 1, "step": "x"}', '{"format": 1, "step": 4, "preset": 3}'],
)
def test_a_damaged_record_is_refused(cli: Cli, run: Path, text: str) -> None:
    (run / "checkpoints/step-00000004/checkpoint.json").write_text(text)
    cli("resume", run, "--steps", 9).refused("step-00000004")
    cli("sample", "--ckpt", run).refused("step-00000004")


def test_a_checkpoint_of_another_format_is_refused_with_the_version_that_wrote_it(cli: Cli, run: Path) -> None:
    path = run / "checkpoints/step-00000004/checkpoint.json"
    record = json.loads(path.read_text()) | {"format": 7, "version": "9.9.9"}
    path.write_text(json.dumps(record))
    cli("sample", "--ckpt", run).refused("format is 7", "reads format 1", "9.9.9")
    cli("resume", run, "--steps", 9).refused("format is 7", "9.9.9")


def test_a_record_changed_by_hand_is_refused(cli: Cli, run: Path) -> None:
    path = run / "checkpoints/step-00000004/checkpoint.json"
    record = json.loads(path.read_text())
    record["preset"]["task"]["network"]["width"] = 16
    path.write_text(json.dumps(record))
    cli("sample", "--ckpt", run).refused("step-00000004", "step-00000002")
    cli("resume", run, "--steps", 9).refused("step-00000004", "--from 2")


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("name", ["model.pt", "model.ckpt", "model.safetensors", "model"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_a_pickle_is_refused_and_never_loaded(cli: Cli, tmp_path: Path, name: str, kind: str) -> None:
    path, trace = tmp_path / name, tmp_path / "exploded"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb(trace)))
    else:
        torch.save({"x": Bomb(trace)}, path, _use_new_zipfile_serialization=kind == "torch")
    cli("sample", "--ckpt", path).refused(name, "pickle", "never loaded")
    assert not trace.exists()


def test_a_pickle_in_letters_is_refused_by_its_name(cli: Cli, tmp_path: Path) -> None:
    """Protocol 0 has no mark at its start."""
    path = tmp_path / "model.pkl"
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "exploded"), protocol=0))
    cli("sample", "--ckpt", path).refused("model.pkl", "pickle", "never loaded")
    path = path.rename(tmp_path / "model.safetensors")
    cli("sample", "--ckpt", path).refused("model.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_files_that_are_no_checkpoint_are_refused(cli: Cli, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    save_file({"x": torch.zeros(2)}, tmp_path / "other.safetensors")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("a", "b")
    cli("sample", "--ckpt", tmp_path / "notes.txt").refused("notes.txt")
    cli("sample", "--ckpt", tmp_path / "empty.safetensors").refused("empty.safetensors")
    cli("sample", "--ckpt", tmp_path / "other.safetensors").refused("other.safetensors", "not one of diffcli's")
    cli("sample", "--ckpt", tmp_path / "a.zip").refused("a.zip", "zip")


def test_an_exported_file_has_no_weights_but_the_averaged(cli: Cli, run: Path) -> None:
    file = run / "checkpoints/step-00000004/ema.safetensors"
    cli("sample", "--ckpt", file, "--no-ema").refused(str(file), "holds an average only")


def test_a_classifier_draws_no_images(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    preset = tiny(task={"kind": "classifier", "num_classes": 10, "network": {"width": 4}}, guidance=1)
    done = cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--steps", 1)
    assert done.code == 0, done.err
    cli("sample", "--ckpt", tmp_path / "run").refused("classifier", "--features")
    cli("gif", "--ckpt", tmp_path / "run").refused("classifier")


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "fp8"], ["--precision", "'fp8'", "bf16"]),
        (["--class", "12"], ["--class 12", "0 to 9"]),
        (["--class", "-1"], ["--class -1", "0 to 9"]),
        (["--class", "nine"], ["--class nine", "choose one of 0, 1"]),
        (["--class", "rndom"], ["--class rndom", "did you mean 'random'?"]),
        (["--class", "²"], ["--class ²"]),
        (["--sampler", "dimm"], ["--sampler dimm", "did you mean 'ddim'?"]),
        (["--ddim-eta", "0.5", "--sampler", "heun"], ["--ddim-eta 0.5", "--sampler heun", "--sampler ddim"]),
        (["--ddim-eta", "2"], ["--ddim-eta", "2"]),
        (["--ddim-eta", "nan"], ["--ddim-eta", "nan"]),
        (["--guidance", "nan"], ["--guidance", "nan"]),
        (["--guidance", "inf"], ["--guidance", "inf"]),
        (["--guidance", "much"], ["--guidance", "much"]),
        (["--steps", "1001"], ["--steps 1001", "1000"]),
        (["--steps", "0"], ["--steps", "0"]),
        (["--steps", "2.5"], ["--steps", "2.5"]),
        (["--n", "0"], ["--n", "0"]),
        (["--n", "many"], ["--n", "many"]),
        (["--seed=-1"], ["--seed", "-1"]),
        (["--batch-size", "0"], ["--batch-size", "0"]),
        (["--nproc", "0"], ["--nproc", "0"]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--stepz", "3"], ["--stepz", "--steps"]),
        (["extra"], ["extra"]),
    ],
)
@pytest.mark.parametrize("command", ["sample", "gif"])
def test_a_wrong_sampling_option_is_refused(
    cli: Cli, trained: Path, tmp_path: Path, command: str, options: list[str], words: list[str]
) -> None:
    out = tmp_path / ("a.png" if command == "sample" else "a.gif")
    cli(command, "--ckpt", trained, "--out", out, *options).refused(*words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [(["--fps", "0"], ["--fps", "0"]), (["--fps", "inf"], ["--fps", "inf"]), (["--show", "y"], ["--show", "y"])],
)
def test_a_wrong_animation_option_is_refused(cli: Cli, trained: Path, options: list[str], words: list[str]) -> None:
    cli("gif", "--ckpt", trained, *options).refused(*words)


def test_a_checkpoint_is_named_once(cli: Cli, trained: Path, tmp_path: Path) -> None:
    for command in ("sample", "gif", "export"):
        out = () if command == "gif" else ("--out", tmp_path / "x")
        cli(command, trained, "--ckpt", trained, *out).refused("--ckpt", str(trained), "give one")
    cli("export", "--out", tmp_path / "x").refused("--ckpt", "diffcli export --help")
    cli("fid", trained, "--ckpt", trained).refused("either A B or --ckpt")
    cli("fid", tmp_path, "--ref", tmp_path).refused("--ckpt")


@pytest.mark.parametrize("command", ["sample", "gif", "train"])
def test_a_missing_option_is_named(cli: Cli, command: str) -> None:
    cli(command).refused("--preset" if command == "train" else "--ckpt", f"diffcli {command} --help")


def test_an_unknown_command_is_refused(cli: Cli) -> None:
    cli("smaple").refused("smaple", "diffcli --help")


@pytest.mark.parametrize(
    ("name", "remedy"), [("a.jpg", ".png, .npz"), ("a.npy", ".png, .npz"), ("a.gif", "diffcli gif")]
)
def test_a_kind_of_file_that_cannot_be_written_is_refused(
    cli: Cli, trained: Path, tmp_path: Path, name: str, remedy: str
) -> None:
    cli("sample", "--ckpt", trained, "--out", tmp_path / name).refused("--out", name, remedy, "a folder")


@pytest.mark.parametrize("name", ["a.png", "a", "a.webm"])
def test_an_animation_of_another_kind_is_refused(cli: Cli, trained: Path, tmp_path: Path, name: str) -> None:
    cli("gif", "--ckpt", trained, "--out", tmp_path / name).refused("--out", name, ".gif, .mp4, .webp")


@pytest.mark.parametrize("name", ["file/a.png", "file/folder", "file", "folder.png"])
def test_an_output_that_cannot_be_written_is_refused_before_any_work(
    cli: Cli, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    done = cli("sample", "--ckpt", tmp_path / "no checkpoint is looked at", "--out", tmp_path / name)
    done.refused("--out", name, "cannot be written")


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_run_directory_that_cannot_be_made_is_refused(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, name: str
) -> None:
    (tmp_path / "file").write_text("")
    cli("train", "--preset", tiny(), "--run-dir", tmp_path / name).refused("--run-dir", name, "cannot be written")


def test_an_output_without_a_name_is_refused(cli: Cli, run: Path) -> None:
    cli("sample", run, "--n", 1, "--out", ".").refused("--out .", "samples.png")


def test_a_run_in_the_folder_of_its_data_is_refused(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    data = ["--set", "data={kind: folder, size: 8}", "--data", images(tmp_path / "mine", "a", "b")]
    cli("train", "--preset", tiny(), *data, "--run-dir", tmp_path / "mine").refused("--run-dir", "runs/mine")


def test_a_run_with_checkpoints_is_never_trained_over(tiny: Callable[..., Path], cli: Cli, run: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    cli("train", "--preset", tiny(), "--run-dir", run).refused(str(run), "step-00000004", f"diffcli resume {run}")
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], ["step 4 of 4", "nothing left", "--steps 8"]),
        (["--steps", "3"], ["step 4 of 3", "nothing left"]),
        (["--from", "3"], ["--from 3", "choose one of 2, 4"]),
        (["--set", "data.size=12"], ["--set data.size=12", "train.*"]),
        (["--set", "seed=3"], ["--set seed=3", "train.*"]),
        (["--set", "train.stepz=12"], ["train.stepz", "did you mean 'steps'?"]),
        (["--steps", "8", "--nproc", "7"], ["--nproc", "7 processes", "6 images"]),
    ],
)
def test_a_run_cannot_be_resumed_otherwise_than_it_can(
    cli: Cli, run: Path, options: list[str], words: list[str]
) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    cli("resume", run, *options).refused(*words)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--nproc", "7"], ["--nproc", "7 processes", "train.batch_size 6"]),
        (["--nproc", "4", "--set", "train.accumulate=2"], ["--nproc", "4 processes", "3 images"]),
        (["--nnodes", "2"], ["--nnodes is 2", "--rdzv-endpoint"]),
        (["--node-rank", "1"], ["--node-rank is 1", "--nnodes 1"]),
        (["--node-rank", "2", "--nnodes", "2", "--rdzv-endpoint", "localhost:1"], ["--node-rank is 2", "0 to 1"]),
    ],
)
def test_processes_that_do_not_fit_are_refused(
    refuse: Callable[..., str], options: list[str], words: list[str]
) -> None:
    refuse(options, *words)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_absent_is_refused(refuse: Callable[..., str], cli: Cli, trained: Path) -> None:
    refuse(["--device", "cuda"], "--device cuda", "--device cpu")
    cli("sample", "--ckpt", trained, "--device", "cuda").refused("--device cuda", "--device cpu")


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an Apple GPU")
def test_an_apple_device_that_is_absent_is_refused(refuse: Callable[..., str]) -> None:
    refuse(["--device", "mps"], "--device mps", "--device cpu")


@pytest.mark.slow
def test_an_error_of_a_worker_is_told_once_by_the_parent(trained: Path, tmp_path: Path) -> None:
    done = in_subprocess("sample", "--ckpt", trained, "--class", 12, "--nproc", 2, "--out", tmp_path / "a.png")
    done.refused("--class 12", "0 to 9")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["two sides", "0 given"]),
        (["a"], ["two sides", "1 given", "a"]),
        (["a", "b", "--metrics", "fiid"], ["fiid", "did you mean 'fid'?"]),
        (["a", "b", "--ref", "c"], ["--ref c", "--ckpt"]),
        (["a", "--ckpt", "run"], ["either", "--ref"]),
        (["a", "b"], ["a"]),
        (["digits:train", "digits:test", "--precision", "bf16"], ["--precision bf16", "leave --precision out"]),
        (["digits:train", "digits:test", "--compile"], ["--compile with two sides", "--ckpt"]),
        (["digits:train", "digits:test", "--steps", "5"], ["--steps 5", "--ckpt"]),
    ],
)
def test_scores_without_two_sides_are_refused(
    cli: Cli, arguments: list[str], words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    cli("fid", *arguments).refused(*words)

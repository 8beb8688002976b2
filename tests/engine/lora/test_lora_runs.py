"""Runs of low-rank changes: small checkpoints that name their base, exact, drawn from as one model, and out again."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import diffcli
from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.distributed import join
from diffcli.engine.lora.lora_bases import digest_of
from diffcli.engine.model import load_model
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import build_on_meta, build_state
from diffcli.engine.run.train import train
from diffcli.networks.lora import low_rank, merged, of_change
from tests.conftest import Cli, changed, in_ranks
from tests.engine.one_level import SMALL, TWO_LEVELS
from tests.engine.run.test_exact_resume import LINEAR, bytes_of

CPU = torch.device("cpu")
LORA = {"rank": 2, "alpha": 3, "targets": ["all"]}


def tree(base: Path | None, **keys: Any) -> dict[str, Any]:
    begins = {} if base is None else {"from": str(base)}
    return changed(SMALL, **{"train__log": [], "train__lora": LORA, **begins, **keys})


def run_to(path: Path, steps: int, base: Path | None, given: Path | None = None, **keys: Any) -> Path:
    """Trains to a step, from the newest checkpoint where there is one; returns the run."""
    run, preset = RunDir(path), presets.build(tree(base, train__steps=steps, **keys), "tiny.yaml")
    kept = checkpoint.checkpoints(run.checkpoints)
    with join("cpu") as group:
        for _ in train(preset, run, group, kept[-1] if kept else None, given):
            pass
    return path


@pytest.fixture(scope="module")
def base(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole model. Do not change it."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("lora") / "base"))


@pytest.fixture(scope="module")
def adapted(base: Path) -> Path:
    """A run of changes of it, 4 steps, two checkpoints. Do not change it."""
    return run_to(base.parent / "adapted", 4, base)


def last(run: Path) -> Path:
    return checkpoint.checkpoints(run / "checkpoints")[-1]


def part(run: Path, name: str) -> dict[str, Tensor]:
    return load_file(last(run) / f"{name}.safetensors")


def weights(path: Path, **how: Any) -> dict[str, Tensor]:
    return dict(load_model(path, CPU, precision="fp32", **how).task.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor], atol: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(tensor, other[name], rtol=0, atol=atol)


def test_a_checkpoint_holds_changes_alone_and_names_its_base(base: Path, adapted: Path) -> None:
    for name in ("ema", "task"):
        tensors = part(adapted, name)
        assert tensors
        assert all(of_change(key) for key in tensors)
    moments = {
        key.partition("/")[2].rpartition(":")[0] for key in part(adapted, "optimizer") if key.startswith("main/")
    }
    assert moments == {key for key in part(adapted, "task") if not key.endswith(".alpha")}
    record = checkpoint.read_record(last(adapted))
    assert record["base"]["sha256"] == digest_of(part(base, "ema"))
    assert record["base"]["step"] == 4
    assert (record["base"]["weights"], Path(record["base"]["path"]), record["base"]["beside"]) == (
        "ema", last(base), "../base/checkpoints/step-00000004",
    )  # fmt: skip
    sizes = [sum(file.stat().st_size for file in last(run).glob("*.safetensors")) for run in (base, adapted)]
    assert sizes[1] < sizes[0]


def test_it_learns_and_its_base_stays_to_the_bit(base: Path, adapted: Path) -> None:
    assert all(tensor.any() for name, tensor in part(adapted, "task").items() if name.endswith("up.weight"))
    drawn, before = weights(adapted), part(base, "ema")
    changes = {f"{layer}.weight" for layer in low_rank(part(adapted, "ema"))}
    assert {name for name, tensor in drawn.items() if not tensor.equal(before[name])} == changes
    same(drawn, merged(before, low_rank(part(adapted, "ema"))))


def test_before_its_first_step_it_draws_as_its_base(base: Path) -> None:
    preset = presets.build(tree(base), "tiny.yaml")
    state = build_state(preset, CPU)
    whole = build_state(presets.build(changed(SMALL), "tiny.yaml"), CPU).task
    names = set(whole.state_dict())
    assert {name for name in state.task.state_dict() if not of_change(name)} == names
    assert {name for name, p in state.task.named_parameters() if p.requires_grad} == {
        name for name, _ in state.task.named_parameters() if of_change(name)
    }
    for average in state.emas:
        assert all(average.module.get_parameter(n) is state.task.get_parameter(n) for n, _ in whole.named_parameters())


def test_resumed_it_is_the_run_in_one_go_to_the_byte(base: Path, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"train__ema": [0.9, 0.5], "task__network__dropout": 0.2}
    half, whole = tmp_path / "half", tmp_path / "whole"
    run_to(half, 2, base, **keys)
    run_to(half, 4, base, **keys)
    run_to(whole, 4, base, **keys)
    parted, straight = ({n: b for n, b in bytes_of(run).items() if "step-00000004" in n} for run in (half, whole))
    assert len(parted) == 4
    assert parted == straight


@pytest.mark.slow
def test_two_processes_are_one(base: Path, tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    preset = tiny(**LINEAR, train__batch_size=5, train__lora=LORA, **{"from": str(base)})
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    done = in_ranks("train", "--preset", preset, "--run-dir", two, "--nproc", 2)
    assert done.code == 0, done.err
    same(part(one, "task"), part(two, "task"), atol=1e-5)


def test_what_is_trained_whole_beside_is_held_whole(base: Path, tmp_path: Path) -> None:
    run = run_to(tmp_path / "run", 2, base, train__lora=LORA | {"whole": ["conditioners.0", "network.norm.weight"]})
    whole = {name for name in part(run, "task") if not of_change(name)}
    assert whole == {"conditioners.0.embedding.weight", "denoiser.network.norm.weight"}
    found, before = weights(run), part(base, "ema")
    assert all(found[name].equal(part(run, "ema")[name]) for name in whole)
    assert not any(found[name].equal(before[name]) for name in whole)


# ---- the base elsewhere, gone or another -----------------------------------------------------------------------------------


@pytest.fixture
def pair(base: Path, adapted: Path, tmp_path: Path) -> Path:
    """Copies of both below one folder, which may be moved and changed. The place where the base lay is not that of the copy."""
    for run in (base, adapted):
        shutil.copytree(run, tmp_path / "both" / run.name)
    for kept in checkpoint.checkpoints(tmp_path / "both" / "adapted" / "checkpoints"):
        record = json.loads((kept / checkpoint.RECORD).read_text())
        record["base"]["path"] = str(tmp_path / "elsewhere")
        tensors = load_file(kept / "ema.safetensors")
        shutil.rmtree(kept)
        parts = {"ema": tensors, "task": part(adapted, "task"), "optimizer": part(adapted, "optimizer")}
        body = {key: value for key, value in record.items() if key not in ("format", "sha256", "step")}
        checkpoint.save(kept.parent, record["step"], parts, body)
    return tmp_path / "both"


def test_both_move_together(pair: Path, adapted: Path, tmp_path: Path) -> None:
    moved = pair.rename(tmp_path / "moved")
    same(weights(moved / "adapted"), weights(adapted))


def test_a_base_that_is_gone_is_told_and_found_by_base(pair: Path, adapted: Path, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    moved = (pair / "base").rename(tmp_path / "far" / "hidden")
    out = tmp_path / "x.npz"
    told = cli("sample", pair / "adapted", "--n", 2, "--out", out).refused("--base", "step 4")
    assert str(tmp_path / "elsewhere") in told
    assert cli("sample", pair / "adapted", "--n", 2, "--out", out, "--base", moved).code == 0
    same(weights(pair / "adapted", base=moved), weights(adapted))
    cli("resume", pair / "adapted", "--steps", 6).refused("--base")
    assert cli("resume", pair / "adapted", "--steps", 6, "--base", moved).code == 0
    assert checkpoint.read_record(last(pair / "adapted"))["base"]["path"] == str(last(moved))


def test_without_its_base_it_is_merged_first(pair: Path, tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (pair / "base").rename(tmp_path / "far" / "away")
    kept = last(pair / "adapted")
    told = cli("train", "--preset", tiny(), "--from", kept, "--run-dir", tmp_path / "run")
    told.refused("from", f"diffcli export {kept} --base PATH --merge --out DIR")
    assert cli("export", kept, "--base", tmp_path / "far" / "away", "--merge", "--out", tmp_path / "whole").code == 0


def test_another_base_is_refused(pair: Path, cli: Cli, tmp_path: Path) -> None:
    other = tmp_path / "other"
    with join("cpu") as group:
        for _ in train(presets.build(changed(SMALL, seed=5), "tiny.yaml"), RunDir(other), group):
            pass
    found = cli("sample", pair / "adapted", "--n", 2, "--out", tmp_path / "x.npz", "--base", other)
    found.refused("--base", "weights")
    told = cli("sample", other, "--n", 2, "--out", tmp_path / "x.npz", "--lora", pair / "adapted")
    told.refused("--lora", "--ckpt", f"{last(other)} has ")
    cli("sample", other, "--n", 2, "--out", tmp_path / "x.npz", "--base", other).refused("--base", "whole model")
    cli("sample", other, "--n", 2, "--out", tmp_path / "x.npz", "--lora", other).refused("--lora", "--ckpt")
    assert not (tmp_path / "x.npz").exists()


def test_raw_weights_of_a_base_are_another_model_than_averaged_ones(base: Path, adapted: Path) -> None:
    with pytest.raises(UserError, match="adapted"):
        load_model(base, CPU, use_ema=False, loras=[str(adapted)])


# ---- sample --lora ---------------------------------------------------------------------------------------------------------


def test_a_lora_on_its_base_is_the_run_itself_and_half_of_it_half_the_change(base: Path, adapted: Path) -> None:
    whole, before = weights(adapted), part(base, "ema")
    same(weights(base, loras=[str(adapted)]), whole)
    half = weights(base, loras=[f"{adapted}:0.5"])
    for name, tensor in half.items():
        torch.testing.assert_close(tensor, (before[name] + whole[name]) / 2)
    same(weights(base, loras=[f"{adapted}:0.25", f"{adapted}:0.25"]), half, atol=1e-6)
    same(weights(base, loras=[f"{adapted}:0"]), dict(before))


def test_what_is_drawn_is_noted_and_drawn_again(base: Path, adapted: Path, cli: Cli, tmp_path: Path) -> None:
    first, again = tmp_path / "a.npz", tmp_path / "b.npz"
    assert cli("sample", base, "--n", 2, "--out", first, "--lora", f"{adapted}:0.5").code == 0
    record = json.loads((tmp_path / "a.npz.json").read_text())
    assert [(each["path"], each["scale"]) for each in record["loras"]] == [(str(adapted), 0.5)]
    assert cli("sample", "--like", first, "--out", again).code == 0
    assert np.array_equal(np.load(first)["arr_0"], np.load(again)["arr_0"])
    assert cli("sample", base, "--n", 2, "--out", again).code == 0
    assert not np.array_equal(np.load(first)["arr_0"], np.load(again)["arr_0"])


def test_a_lora_that_has_changed_since_is_not_drawn_again(base: Path, pair: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("sample", base, "--n", 2, "--out", tmp_path / "a.npz", "--lora", pair / "adapted").code == 0
    shutil.rmtree(last(pair / "adapted"))
    cli("sample", "--like", tmp_path / "a.npz", "--out", tmp_path / "b.npz").refused("--lora", "other weights")


def test_python_takes_them_too(base: Path, adapted: Path) -> None:
    model = diffcli.load(base, device="cpu", precision="fp32", lora=[f"{adapted}:0.5"])
    assert model.record["loras"][0]["scale"] == 0.5
    drawn = diffcli.load(adapted, device="cpu", precision="fp32").sample(n=1)
    assert np.array_equal(drawn.numpy(), diffcli.load(base, device="cpu", lora=str(adapted)).sample(n=1).numpy())


# ---- out -------------------------------------------------------------------------------------------------------------------


def test_merged_it_is_a_whole_checkpoint_that_needs_no_base(pair: Path, cli: Cli, tmp_path: Path) -> None:
    expected = weights(pair / "adapted")
    assert cli("export", pair / "adapted", "--merge", "--out", tmp_path / "out").code == 0
    shutil.rmtree(pair)
    same(weights(tmp_path / "out"), expected)
    model = load_model(tmp_path / "out", CPU)
    assert (model.base, model.preset.train.lora, model.classes) == (None, None, tuple("0123456789"))
    assert "base" not in checkpoint.read_record(model.path)


def test_its_matrices_go_out_and_come_in_to_the_bit(base: Path, adapted: Path, cli: Cli, tmp_path: Path) -> None:
    """The network has residual blocks alone, which diffusers has where it resamples by a convolution."""
    keys = {"task__network__resample": "conv", **TWO_LEVELS}
    with join("cpu") as group:
        for _ in train(
            presets.build(changed(SMALL, **keys, train__steps=2), "tiny.yaml"), RunDir(tmp_path / "whole"), group
        ):
            pass
    targets = LORA | {"targets": ["conv1", "*.conv"]}
    run = run_to(tmp_path / "run", 4, tmp_path / "whole", train__lora=targets, **keys)
    for form in ("peft", "kohya"):
        done = cli("export", run, "--to", form, "--out", tmp_path / form)
        assert done.code == 0, done.err
        for path in (Path(done.out.strip()), tmp_path / form):
            same(weights(tmp_path / "whole", loras=[str(path)]), weights(run))
    (tmp_path / "kohya" / "second.safetensors").touch()
    with pytest.raises(UserError, match="2 files"):
        weights(tmp_path / "whole", loras=[str(tmp_path / "kohya")])
    told = cli("export", base, "--to", "peft", "--out", tmp_path / "no").refused("--to peft", "train.lora")
    assert str(base) in told
    cli("export", base, "--merge", "--out", tmp_path / "no").refused("--merge", "--lora")


# ---- mistakes --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lora", "words"),
    [
        (LORA | {"rank": 400}, ["train.lora.rank is 400"]),
        (LORA | {"targets": ["nowhere"]}, ["train.lora.targets", "nowhere", "linear ("]),
        (LORA | {"targets": ["attention"]}, ["train.lora.targets", "attention", "linear ("]),
        (LORA | {"whole": ["nowhere"]}, ["train.lora.whole", "nowhere"]),
        (LORA | {"rank": 0}, ["train.lora.rank"]),
        (LORA | {"alpha": -1}, ["train.lora.alpha"]),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_written(
    base: Path, tiny: Callable[..., Path], cli: Cli, tmp_path: Path, lora: dict[str, Any], words: list[str]
) -> None:
    preset = tiny(train__lora=lora, task__network__middle=["res"], **{"from": str(base)})
    cli("train", "--preset", preset, "--run-dir", tmp_path / "run").refused(*words)
    assert not (tmp_path / "run").exists()


def test_a_run_needs_a_base_one_that_has_all_and_no_change_of_another(
    base: Path, adapted: Path, tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    cli("train", "--preset", tiny(train__lora=LORA), "--run-dir", run).refused("train.lora", "--from")
    told = cli("train", "--preset", tiny(train__lora=LORA, **{"from": str(adapted)}), "--run-dir", run)
    told.refused(str(adapted), "export", "--merge")
    fewer = tiny(
        train__lora=LORA, task__conditioners=[{"kind": "class", "num_classes": 12, "dim": 8}], **{"from": str(base)}
    )
    cli("train", "--preset", fewer, "--run-dir", run).refused(
        "train.lora", "conditioners.0.embedding", "train.lora.whole"
    )


def test_a_resumed_run_keeps_its_changes(pair: Path, cli: Cli) -> None:
    found = cli("resume", pair / "adapted", "--steps", 6, "--set", "train.lora.rank=3")
    found.refused("train.lora.rank=3")


def test_info_tells_base_rank_and_share(adapted: Path, base: Path, cli: Cli) -> None:
    found = json.loads(cli("info", adapted, "--json").out)["lora"]
    preset = presets.build(tree(base), "tiny.yaml")
    task = build_on_meta(preset)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    assert (found["rank"], found["alpha"], found["trained"]) == (2, 3, trained)
    assert found["share"] == pytest.approx(trained / sum(t.numel() for t in part(base, "ema").values()))
    lines = cli("info", adapted).out
    assert "rank 2, alpha 3 on all" in lines
    assert str(last(base)) in lines


def test_digests_are_of_names_and_values() -> None:
    one = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor(3)}
    assert digest_of(one) == digest_of(dict(reversed(one.items())))
    assert (
        len({digest_of(one), digest_of({"a": one["b"], "b": one["a"]}), digest_of(one | {"b": torch.tensor(4)})}) == 3
    )


def test_a_file_of_others_is_drawn_with_by_its_shapes(base: Path, tmp_path: Path, cli: Cli) -> None:
    save_file(
        {"unet.nowhere.lora_A.weight": torch.ones(1, 2), "unet.nowhere.lora_B.weight": torch.ones(2, 1)},
        tmp_path / "x.safetensors",
    )
    found = cli("sample", base, "--n", 2, "--out", tmp_path / "x.npz", "--lora", tmp_path / "x.safetensors")
    found.refused("nowhere", "another model")

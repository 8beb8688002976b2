"""`train.freeze` and `train.lr_scale`: which parameters a run leaves as they are, and how fast it trains the others."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.distributed import join
from diffcli.engine.run.phases import phases_of
from diffcli.engine.run.plan import part_sizes
from diffcli.engine.run.resume import changes
from diffcli.engine.run.roles.needed_memory import measure, memory, values_kept
from diffcli.engine.run.roles.parameter_roles import fits
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import build_on_meta, build_state
from diffcli.engine.run.train import train
from tests.conftest import TINY, changed, in_ranks, writing

CPU = torch.device("cpu")
FROZEN = ["network.down", "denoiser.network.stem.*", "*.embedding.time.0.bias"]
KEYS: dict[str, Any] = {
    "train__log": [],
    "train__freeze": FROZEN,
    "train__lr_scale": {"network.up.*": 0.25},
    "train__ema": [0.9, 0.5],
}
LINEAR = {
    "train__optimizer": {"kind": "adamw", "lr": 1.0, "eps": 100}
}  # steps as long as gradients: see test_exact_resume


def is_frozen(name: str) -> bool:
    places = ("denoiser.network.down.", "denoiser.network.stem.")
    return name.startswith(places) or name.endswith("embedding.time.0.bias")


def preset_of(**keys: Any) -> presets.Preset:
    return presets.build(changed(TINY, **keys), "tiny.yaml")


def run_to(path: Path, steps: int, **keys: Any) -> Path:
    """Trains the tiny preset to a step, from the newest checkpoint where there is one; returns the one it leaves."""
    run = RunDir(path)
    kept = checkpoint.checkpoints(run.checkpoints)
    with join("cpu") as group:
        for _ in train(preset_of(**(KEYS | keys | {"train__steps": steps})), run, group, kept[-1] if kept else None):
            pass
    return checkpoint.checkpoints(run.checkpoints)[-1]


def parts_of(path: Path) -> dict[str, dict[str, Tensor]]:
    return {part: load_file(path / f"{part}.safetensors") for part in checkpoint.PARTS}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_to(tmp_path_factory.mktemp("roles") / "run", 4)


@pytest.mark.parametrize(
    ("pattern", "fitting"),
    [
        ("network.down", True),
        ("network.down.*", True),
        ("denoiser.network.down", True),
        ("*.conv1.weight", True),
        ("network.down.0.conv1.weight", True),
        ("network.do", False),
        ("down", False),
        ("network", True),
        ("conv1", False),
    ],
)
def test_a_pattern_names_parameters_or_what_they_lie_in(pattern: str, fitting: bool) -> None:
    assert fits(pattern, "denoiser.network.down.0.conv1.weight") == fitting


def test_what_is_frozen_stays_as_it_began_and_everything_else_moves(straight: Path) -> None:
    first = build_state(preset_of(**KEYS), CPU).task.state_dict()
    found = parts_of(straight)
    for part in ("task", "ema"):
        assert found[part].keys() == first.keys()  # both files are complete
        for name, value in found[part].items():
            assert torch.equal(value, first[name]) == is_frozen(name), name


def test_what_is_frozen_has_no_moments_no_average_and_no_gradient(straight: Path) -> None:
    kept = parts_of(straight)["optimizer"]
    assert any(name.startswith("main/") for name in kept)
    assert any(name.startswith("rate-0.5/") for name in kept)
    assert not [name for name in kept if is_frozen(name.partition("/")[2].partition(":")[0])]
    state = build_state(preset_of(**KEYS), CPU)
    for name, p in state.task.named_parameters():
        same = [ema.module.get_parameter(name).data_ptr() == p.data_ptr() for ema in state.emas]
        assert same == [is_frozen(name)] * 2, name
        assert p.requires_grad != is_frozen(name)


def test_modules_of_an_average_are_its_own_though_frozen_tensors_are_one_memory() -> None:
    state = build_state(preset_of(**KEYS), CPU)
    stem = state.task.get_submodule("denoiser.network.stem")
    stem.register_forward_hook(lambda module, given, found: found + 1)
    of_average = state.averaged.get_submodule("denoiser.network.stem")
    x = torch.ones(1, 1, 8, 8)
    assert torch.equal(stem(x), of_average(x) + 1)


def test_a_run_with_frozen_parameters_and_factors_resumes_bit_for_bit(straight: Path, tmp_path: Path) -> None:
    run_to(tmp_path / "run", 2)
    resumed = parts_of(run_to(tmp_path / "run", 4))
    for part, tensors in parts_of(straight).items():
        assert tensors.keys() == resumed[part].keys()
        assert all(torch.equal(value, resumed[part][name]) for name, value in tensors.items()), part


def test_a_resumed_run_may_freeze_more_or_less(tmp_path: Path) -> None:
    """What is frozen later goes on with its trained weights and not their average; what is thawed begins from there."""
    earlier = run_to(tmp_path / "run", 2)
    trained = parts_of(earlier)["task"]
    notes = changes(preset_of(**(KEYS | {"train__freeze": ["network.head"]})), earlier)
    assert any("train.freeze" in note and "network.head" in note for note in notes)
    later = parts_of(run_to(tmp_path / "run", 4, train__freeze=["network.head"]))
    for name, value in later["task"].items():
        assert torch.equal(value, trained[name]) == name.startswith("denoiser.network.head."), name
    assert torch.equal(later["ema"]["denoiser.network.head.weight"], trained["denoiser.network.head.weight"])
    again = parts_of(run_to(tmp_path / "run", 6, train__freeze=[]))  # the second average of the head was in no file
    assert not torch.equal(again["task"]["denoiser.network.head.weight"], trained["denoiser.network.head.weight"])
    assert "rate-0.5/denoiser.network.head.weight" in again["optimizer"]


def test_a_factor_multiplies_the_step_of_what_it_names() -> None:
    def steps_of(**keys: Any) -> dict[str, Tensor]:
        """What one update of plain descent adds to each parameter."""
        optimizer = {"kind": "sgd", "lr": 0.5, "momentum": 0}
        state = build_state(preset_of(train__optimizer=optimizer, **keys), CPU)
        before = {name: value.clone() for name, value in state.task.named_parameters()}
        for p in state.task.parameters():
            p.grad = torch.full_like(p, 0.5) if p.requires_grad else None
        for group in state.optimizers["main"].param_groups:
            group["lr"] *= group.get("scale", 1.0)
        state.optimizers["main"].step()
        return {name: (p.detach() - before[name]).double() for name, p in state.task.named_parameters()}

    plain, scaled = steps_of(), steps_of(train__lr_scale={"network.up": 0.5, "network.up.1": 2, "conditioners.*": 0.25})
    for name, step in plain.items():
        places = {"denoiser.network.up.1.": 2.0, "denoiser.network.up.0.": 0.5, "conditioners.": 0.25}
        factor = next((f for place, f in places.items() if name.startswith(place)), 1.0)
        assert torch.allclose(scaled[name], factor * step, atol=1e-6), name
        assert step.abs().min() > 0.2


def test_the_loop_trains_a_part_at_the_rate_of_its_factor(tmp_path: Path) -> None:
    """The output layer is 0 at first, so that the blocks before it take their first step in the second update."""
    first = build_state(preset_of(), CPU).task.state_dict()
    keys = {"train__optimizer": {"kind": "sgd", "lr": 0.5, "momentum": 0}, "train__clip": None, "train__freeze": []}
    plain = parts_of(run_to(tmp_path / "plain", 2, **keys, train__lr_scale={}))["task"]
    slow = parts_of(run_to(tmp_path / "slow", 2, **keys, train__lr_scale={"network.up": 0.25}))["task"]
    ups = [name for name in first if name.startswith("denoiser.network.up.")]
    assert any(not torch.equal(plain[name], first[name]) for name in ups)
    for name, value in first.items():
        factor = 0.25 if name in ups else 1.0
        assert torch.allclose(slow[name] - value, factor * (plain[name] - value), atol=1e-6), name


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"train__freeze": ["network.dwn.*"]}, ["train.freeze", "'network.dwn.*'", "did you mean 'network.down'"]),
        ({"train__freeze": ["NETWORK.DWN.*"]}, ["train.freeze", "'NETWORK.DWN.*'", "did you mean 'network.down'"]),
        ({"train__freeze": ["denoiser", "conditioners"]}, ["train.freeze", "main", "train.freeze=[]"]),
        ({"train__lr_scale": {"nework.up": 2}}, ["train.lr_scale", "'nework.up'", "did you mean 'network.up'"]),
        ({"train__lr_scale": {"network.up": 0}}, ["lr_scale is 0", "'network.up'", "train.freeze=[network.up]"]),
        ({"train__lr_scale": {"network.up": -1}}, ["lr_scale is -1", "'network.up'"]),
        (
            {"train__lr_scale": {"network.up.*": 2}, "train__freeze": ["network.up"]},
            ["train.lr_scale", "'network.up.*'", "frozen"],
        ),
    ],
)
def test_patterns_and_factors_that_cannot_be_are_refused(keys: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        build_on_meta(preset_of(**keys))
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_plan_counts_what_is_frozen_apart() -> None:
    preset = preset_of(**KEYS)
    task = build_on_meta(preset)
    sizes = {name: p.numel() for name, p in task.named_parameters()}
    frozen = sum(size for name, size in sizes.items() if is_frozen(name))
    trained = sum(sizes.values()) - frozen
    kept = values_kept(task, phases_of(task, preset.train), preset.train)
    assert kept == {
        "trained weights": trained,
        "frozen weights": frozen,
        "gradients": trained,
        "optimizer": 2 * trained,
        "averages": 2 * trained,
    }
    assert "frozen weights" not in memory(kept | {"frozen weights": 0})
    told = list(part_sizes(task))
    assert "denoiser.network.down 8,192 (frozen)" in told
    assert "denoiser.network.embedding 1,632 (32 frozen)" in told
    assert sum(int(line.split()[1].replace(",", "")) for line in told) == sum(sizes.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_frozen_weights_are_no_activations_of_a_plan(precision: str) -> None:
    """Without what a frozen end of the network keeps nothing is saved for its weights, in whatever precision they are used."""

    def kept(freeze: list[str]) -> int:
        preset = preset_of(train__freeze=freeze, train__precision=precision)
        task = build_on_meta(preset).train()
        return measure(task, preset, phases_of(task, preset.train)).an_image

    assert kept(["network.down", "network.middle", "network.up"]) <= kept([])


@pytest.mark.slow
def test_two_processes_train_what_is_not_frozen_as_one_does(straight: Path, tmp_path: Path) -> None:
    preset = writing(TINY, tmp_path)(**(KEYS | LINEAR))
    for name, more in (("one", ()), ("two", ("--nproc", 2, "--set", "train.accumulate=3"))):
        done = in_ranks("train", "--preset", preset, "--run-dir", tmp_path / name, *more)
        assert done.code == 0, done.err
    one, two = (parts_of(checkpoint.checkpoints(tmp_path / name / "checkpoints")[-1]) for name in ("one", "two"))
    for part, tensors in one.items():
        assert tensors.keys() == two[part].keys()
        for name, value in tensors.items():
            assert torch.allclose(value, two[part][name], atol=1e-5), (part, name)


def test_an_exclamation_mark_takes_out_of_what_stands_before_it() -> None:
    def trained(*freeze: str) -> set[str]:
        task = build_on_meta(presets.build(changed(TINY, train__freeze=list(freeze)), "frozen.yaml"))
        return {name for name, p in task.named_parameters() if p.requires_grad}

    everything = trained()
    up = {name for name in everything if name.startswith("denoiser.network.up.")}
    assert trained("*", "!network.up") == up
    assert trained("*", "!network.up", "*.bias") == {name for name in up if not name.endswith(".bias")}
    assert trained("!network.up") == everything, "nothing stands before it"
    with pytest.raises(UserError, match=r"'network\.ups' fits no parameter"):
        trained("*", "!network.ups")

"""Several networks and phases in one loop: the same on any number of processes, resumed exactly, every role kept."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.engine.loading import fill, read_to_sample
from diffcli.engine.run.phases import phases_of
from diffcli.engine.run.plan import roles
from diffcli.engine.run.runlog import read_log
from diffcli.engine.run.state import build_on_meta, build_state
from diffcli.tasks.task import Batch
from tests import warm
from tests.conftest import WAIT
from tests.engine.run.test_exact_resume import FILES, bytes_of, close, lines
from tests.engine.run.two_networks import KILLED, PairConfig, PairTask, in_this_process, pair, trained

CPU = torch.device("cpu")
CONSTANT = {
    "train__phases": {"critic": {"curve": {"kind": "constant"}}}
}  # not stretched where a run goes on for longer


def on_two(run: Path, **keys: Any) -> None:
    """Trains on two processes."""
    code, _, told = warm.ranks(2, in_this_process, str(run), json.dumps(keys), limit=WAIT, env={})
    assert code == 0, told


def weights(run: Path, part: str, step: int = 8) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / f"{part}.safetensors")


def prefixes(tensors: dict[str, torch.Tensor]) -> set[str]:
    return {name.partition(".")[0] for name in tensors}


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run in one go, in this process. Do not change it."""
    run = tmp_path_factory.mktemp("pair") / "run"
    trained(run)
    return run


def test_two_processes_with_uneven_shares_and_micro_batches_give_the_weights_of_one(
    straight: Path, tmp_path: Path
) -> None:
    on_two(tmp_path / "two", train__accumulate=2)
    close(tmp_path / "two", straight, 8)


def test_micro_batches_give_the_updates_of_the_whole_batch(straight: Path, tmp_path: Path) -> None:
    for parts in (2, 5):
        trained(tmp_path / f"{parts}", train__accumulate=parts)
        close(tmp_path / f"{parts}", straight, 8)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_half_the_steps_and_then_the_rest_are_all_of_them_to_the_byte(tmp_path: Path, precision: str) -> None:
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    keys = {"train__precision": precision, **CONSTANT}
    trained(whole, **keys)
    trained(parted, **keys, train__steps=4)
    trained(parted, **keys)
    last = "step-00000008"
    assert {n: b for n, b in bytes_of(parted).items() if last in n} == {
        n: b for n, b in bytes_of(whole).items() if last in n
    }
    assert lines(parted) == lines(whole)


def test_a_run_killed_and_resumed_is_the_run_in_one_go_to_the_byte(tmp_path: Path) -> None:
    """In the preview of step 6: the kill finds lines past the checkpoint of step 4."""
    keys = {"train__every": {"log": 1, "preview": 6, "save": 4}}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    code, _, told = warm.ranks(1, in_this_process, str(killed), json.dumps(keys), limit=WAIT, env={KILLED: "1"})
    assert code == -signal.SIGKILL, told
    assert len(lines(killed)) == 6
    assert [p.name for p in checkpoint.checkpoints(killed / "checkpoints")] == ["step-00000004"]
    trained(killed, **keys)
    trained(whole, **keys)
    assert list(bytes_of(killed)) == [f"step-{step:08d}/{name}" for step in (4, 8) for name in FILES]
    assert bytes_of(killed) == bytes_of(whole)
    assert lines(killed) == lines(whole)


def test_each_file_holds_what_the_roles_say(straight: Path) -> None:
    to_sample, to_train = weights(straight, "ema"), weights(straight, "task")
    assert prefixes(to_sample) == {"generator", "colour", "stage", "updates"}
    assert prefixes(to_train) == {"generator", "colour", "critic", "eye", "updates"}
    assert all(torch.equal(to_sample[name], to_train[name]) for name in to_sample if name.startswith("colour"))
    assert not any(torch.equal(to_sample[name], to_train[name]) for name in to_sample if name.startswith("generator"))
    assert int(to_sample["updates"]) == int(to_train["updates"]) == 8
    moments = {name.rpartition(".")[0].partition(".")[0] for name in weights(straight, "optimizer")}
    assert moments == {"critic/critic", "generator/generator", "generator/colour"}


def test_frozen_networks_stay_as_they_were_made_and_in_evaluation_mode(straight: Path) -> None:
    first = build_state(pair(), CPU).task.state_dict()
    saved = weights(straight, "ema") | weights(straight, "task")
    for name, value in saved.items():
        frozen = name.startswith(("stage", "eye"))
        assert torch.equal(value, first[name]) == frozen, name


def test_an_average_copies_what_it_averages_alone(straight: Path) -> None:
    state = build_state(pair(), CPU)
    ours, theirs = state.task, state.averaged
    assert isinstance(ours, PairTask)
    assert isinstance(theirs, PairTask)
    for name in ("colour", "stage", "critic", "eye"):  # one memory, in modules that may differ
        mine, other = (getattr(task, name).state_dict(keep_vars=True) for task in (ours, theirs))
        assert all(value is other[key] for key, value in mine.items()), name
        assert getattr(ours, name) is not getattr(theirs, name)
    mine, other = (task.generator.state_dict() for task in (ours, theirs))
    assert not any(value.data_ptr() == other[key].data_ptr() for key, value in mine.items())
    assert ours.updates is not theirs.updates
    assert not any(part.training for part in theirs.modules())
    assert ours.critic.training
    assert not ours.eye.training
    assert {name for name, p in ours.named_parameters() if not p.requires_grad} == {
        name for name, _ in ours.named_parameters() if name.startswith(("stage", "eye"))
    }


@pytest.mark.parametrize("use_ema", [True, False])
def test_what_sampling_needs_is_loaded_and_the_rest_is_forgotten(straight: Path, use_ema: bool) -> None:
    path = straight / "checkpoints" / "step-00000008"
    task = build_on_meta(pair())
    tensors, _ = read_to_sample(task, path, checkpoint.read_record(path), use_ema)
    task.forget_unsampled()
    fill(task, tensors, path)
    expected = weights(straight, "ema") | ({} if use_ema else weights(straight, "task"))
    found = task.state_dict()
    assert prefixes(found) == {"generator", "colour", "stage", "updates"}
    assert all(torch.equal(value, expected[name]) for name, value in found.items())


def test_the_log_tells_each_phase_by_name_when_it_is_due(straight: Path) -> None:
    kept = list(read_log(straight / "log.jsonl"))
    critic = {"critic/loss", "critic/right", "critic/grad_norm", "critic/lr"}
    generator = {"generator/loss", "generator/near", "generator/grad_norm", "generator/lr"}
    for line in kept:
        due = critic | (generator if line["step"] % 2 == 0 else set())
        assert {name for name in line if "/" in name} == due
        assert "loss" not in line
    rates = [line["critic/lr"] for line in kept]
    assert rates == pytest.approx([0.5 * (1 - 0.5 * step / 8) for step in range(1, 9)])  # its own optimizer and curve
    assert [line["generator/lr"] for line in kept if line["step"] % 2 == 0] == [1.0] * 4  # those of train


def test_validation_and_previews_find_every_network_at_rest_and_leave_it_in_training(tmp_path: Path) -> None:
    keys = {"train__every": {"log": 4, "preview": 4, "save": 0, "validate": 4}, "train__validate_images": 7}
    progress = trained(tmp_path / "run", **keys)
    kept = list(read_log(tmp_path / "run" / "log.jsonl"))
    assert [line["step"] for line in kept if "val_loss" in line] == [4, 8]
    quiet = trained(tmp_path / "quiet", train__every={"log": 4, "preview": 0, "save": 0})
    assert [p.values for p in quiet if p.step > 4] == [
        {name: value for name, value in p.values.items() if name != "val_loss"} for p in progress if p.step > 4
    ]


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_at_which_no_phase_is_due_changes_nothing(tmp_path: Path, precision: str) -> None:
    phases = {"critic": {"every": 4}, "generator": {"every": 4, "first": 5}}
    keys = {"train__phases": phases, "train__precision": precision, "train__keep_last": 4}
    progress = trained(tmp_path / "run", **keys, train__every={"log": 1, "preview": 0, "save": 2})
    assert [len(p.losses) for p in progress] == [1, 0, 0, 0, 2, 0, 0, 0]
    before, after = weights(tmp_path / "run", "task", 2), weights(tmp_path / "run", "task", 4)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["updates"]


def test_a_preset_changes_a_phase_and_its_curve_counts_its_own_updates(tmp_path: Path) -> None:
    change = {"first": 3, "every": 2, "optimizer": {"kind": "sgd", "lr": 0.1}, "curve": {"kind": "linear", "warmup": 2}}
    progress = trained(tmp_path / "run", train__phases={"generator": change})
    kept = list(read_log(tmp_path / "run" / "log.jsonl"))
    assert {line["step"]: line["generator/lr"] for line in kept if "generator/lr" in line} == pytest.approx(
        {3: 0.05, 5: 0.1, 7: 0.0}
    )
    assert [sorted(p.losses) for p in progress[:3]] == [["critic/loss"]] * 2 + [["critic/loss", "generator/loss"]]


def test_the_loss_is_told_the_phase_and_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int]] = []
    forward = PairTask.forward

    def listening(self: PairTask, batch: Batch, phase: str, step: int) -> dict[str, torch.Tensor]:
        heard.append((phase, step))
        return forward(self, batch, phase, step)

    monkeypatch.setattr(PairTask, "forward", listening)
    trained(tmp_path / "run", train__steps=4)
    critic, generator = "critic", "generator"
    assert heard == [(critic, 1), (critic, 2), (generator, 2), (critic, 3), (critic, 4), (generator, 4)]
    trained(tmp_path / "run", train__steps=5)
    assert heard[6:] == [(critic, 5)]


def test_an_update_leaves_no_gradient_of_one_phase_to_the_other(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found: dict[str, set[str]] = {}
    backward = torch.Tensor.backward

    def watched(self: torch.Tensor, *args: Any) -> None:
        backward(self, *args)
        graded = {name.partition(".")[0] for name, p in built[0].named_parameters() if p.grad is not None}
        found.setdefault("critic" if "critic" in graded else "generator", set()).update(graded)

    built: list[PairTask] = []
    make = PairConfig.build

    def build(self: PairConfig, *args: Any) -> PairTask:
        built.append(make(self, *args))
        return built[-1]

    monkeypatch.setattr(PairConfig, "build", build)
    monkeypatch.setattr(torch.Tensor, "backward", watched)
    trained(tmp_path / "run", train__steps=2, train__accumulate=2)
    assert found == {"critic": {"critic"}, "generator": {"generator", "colour"}}


def test_an_overflow_of_one_phase_skips_its_update_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """In fp16: both phases are due at step 6, the gradient of the critic alone overflows there."""
    make, found = PairConfig.build, []
    for name, bad in (("whole", None), ("overflowing", 5)):

        def build(self: PairConfig, *args: Any, bad: int | None = bad) -> PairTask:
            task, calls = make(self, *args), iter(range(100))
            task.critic[0].weight.register_hook(lambda grad: grad * float("inf") if next(calls) == bad else grad)
            return task

        monkeypatch.setattr(PairConfig, "build", build)
        trained(tmp_path / name, train__precision="fp16")
        moments = weights(tmp_path / name, "optimizer")
        updates = {key.partition("/")[0]: int(value) for key, value in moments.items() if key.endswith(":step")}
        found.append((updates["critic"], updates["generator"], float(moments["scaler/scale"])))
    (critic, generator, scale), after = found
    assert generator == 4
    assert after == (critic - 1, generator, scale / 2)


def test_a_preset_can_freeze_a_network_for_the_rest_of_a_run(straight: Path, tmp_path: Path) -> None:
    """It goes on with the weights that training left, which are then those to sample from."""
    run = tmp_path / "run"
    trained(run, train__steps=4)
    before = weights(run, "task", 4)
    trained(run, train__phases={"generator": {"networks": ["colour"]}})
    to_sample, to_train = weights(run, "ema"), weights(run, "task")
    assert prefixes(to_train) == {"colour", "critic", "eye", "updates"}
    kept = [name for name in before if name.startswith("generator")]
    assert kept
    assert all(torch.equal(to_sample[name], before[name]) for name in kept)
    assert not torch.equal(to_train["colour.weight"], before["colour.weight"])
    trained(run, train__steps=10)  # and back: trained again from there
    assert not any(torch.equal(weights(run, "task", 10)[name], before[name]) for name in kept)


def test_several_averages_and_their_snapshots_hold_what_sampling_needs(tmp_path: Path) -> None:
    run = tmp_path / "run"
    keys = {"train__ema": {"kind": "power", "stds": [0.05, 0.1], "every": 4}, **CONSTANT}
    trained(run, **keys, train__steps=4)
    trained(run, **keys)
    whole = tmp_path / "whole"
    trained(whole, **keys)
    for part in checkpoint.PARTS:
        one, other = weights(run, part), weights(whole, part)
        assert one.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    names = [f"step-0000000{step}-std-{std}.safetensors" for step in (4, 8) for std in ("0.050", "0.100")]
    assert sorted(p.name for p in (run / "snapshots").iterdir()) == names
    for name in names:
        assert prefixes(load_file(run / "snapshots" / name)) == {"generator", "colour", "stage", "updates"}


def test_a_plan_counts_each_network_by_its_role() -> None:
    task = build_state(pair(), CPU).task
    assert list(roles(task, phases_of(task, pair().train))) == [
        "generator 1,012 (trained by generator)",
        "colour 2 (trained by generator, not averaged)",
        "stage 4,160 (frozen)",
        "critic 793 (trained by critic, not sampled from)",
        "eye 804 (frozen, not sampled from)",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"critics": {}}, ["train.phases.critics", "no such phase", "did you mean 'critic'"]),
        ({"critic": {"networks": ["critics"]}}, ["train.phases.critic.networks", "'critics'", "did you mean 'critic'"]),
        ({"critic": {"networks": ["critic", "eye"]}}, ["train.phases.critic.networks", "'eye'", "frozen"]),
        (
            {"critic": {"networks": ["critic", "colour"]}},
            ["train.phases.generator.networks", "'colour'", "the phase critic trains"],
        ),
        ({"critic": {"networks": []}}, ["train.phases.critic.networks", "is empty"]),
        (
            {"critic": {"first": 3}},
            ["no phase is due at step 1", "critic begins at step 3", "train.phases.critic.first=1"],
        ),
    ],
    ids=["phase", "network", "frozen", "twice", "empty", "late"],
)
def test_phases_that_cannot_be_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        build_state(pair(train__phases=changes), CPU)
    assert all(word in str(refused.value) for word in words), refused.value


def test_a_parameter_in_no_network_or_in_two_is_a_mistake_of_the_task(monkeypatch: pytest.MonkeyPatch) -> None:
    networks = PairTask.networks.fget
    assert networks is not None
    for change, count in ((lambda all_of: all_of[1:], 0), (lambda all_of: (*all_of, all_of[0]._replace(name="x")), 2)):
        monkeypatch.setattr(PairTask, "networks", property(lambda self, change=change: change(networks(self))))
        with pytest.raises(TypeError, match=f"PairTask.networks: generator.0.weight lies in {count} of them"):
            build_state(pair(), CPU)

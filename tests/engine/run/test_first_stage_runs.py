"""A first stage is trained like all else: resumed exactly, and the same on any number of processes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from diffcli import preset as presets
from diffcli.engine.run.loop import Loop
from diffcli.engine.run.runlog import read_log
from diffcli.tasks.autoencoder.adversary import LEARNED_NOTHING, OVERRUN
from diffcli.tasks.autoencoder.autoencoder_task import AutoencoderTask
from tests.conftest import Cli, in_ranks
from tests.engine.run.test_exact_resume import LINEAR, bytes_of, close, lines
from tests.tasks.autoencoder.stages import ADVERSARIAL, NETWORK

LAST = "step-00000008"


def keys(**task: Any) -> dict[str, Any]:
    """A preset of 8 steps, saved at 4 and 8."""
    return {
        "task": {"kind": "autoencoder", "network": NETWORK, **task},
        "guidance": 1,
        "train__steps": 8,
        "train__batch_size": 5,
        "train__every": {"log": 1, "preview": 8, "save": 4},
    }


VQ = {"kind": "vq", "codes": 6, "decay": 0.5, "window": 8}
TWO_PHASES = keys(bottleneck=VQ, adversarial=ADVERSARIAL | {"lecam": 0.1})


def test_a_run_of_two_phases_resumed_within_them_is_the_run_in_one_go_to_the_byte(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    """The discriminator begins at step 3 and counts from step 5 on; the run goes on after step 4."""
    preset, half, whole = tiny(**TWO_PHASES), tmp_path / "half", tmp_path / "whole"
    assert cli("train", "--preset", preset, "--run-dir", half, "--steps", 4).code == 0
    assert cli("resume", half, "--steps", 8).code == 0
    assert cli("train", "--preset", preset, "--run-dir", whole).code == 0
    parted, straight = ({n: b for n, b in bytes_of(run).items() if LAST in n} for run in (half, whole))
    assert len(parted) == 4
    assert parted == straight
    assert lines(half) == lines(whole)
    log = list(read_log(whole / "log.jsonl"))
    assert ["discriminator/loss" in line for line in log] == [False] * 2 + [True] * 6
    assert ["main/gan_weight" in line for line in log] == [False] * 4 + [True] * 4
    assert log[-1]["main/gan_weight"] > 0
    assert (whole / "previews" / "step-00000008.png").is_file()


def test_micro_batches_give_the_run_of_whole_batches(tiny: Callable[..., Path], cli: Cli, tmp_path: Path) -> None:
    preset, whole, parts = tiny(**TWO_PHASES, **LINEAR), tmp_path / "whole", tmp_path / "parts"
    assert cli("train", "--preset", preset, "--run-dir", whole).code == 0
    assert cli("train", "--preset", preset, "--run-dir", parts, "--set", "train.accumulate=2").code == 0
    close(whole, parts, 8)


@pytest.mark.slow
def test_two_processes_with_uneven_shares_give_the_codebook_and_the_weights_of_one(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    preset, two, one = tiny(**TWO_PHASES, **LINEAR), tmp_path / "two", tmp_path / "one"
    done = in_ranks("train", "--preset", preset, "--run-dir", two, "--nproc", 2, "--set", "train.accumulate=2")
    assert done.code == 0, done.err
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    close(two, one, 8)
    kept = load_file(one / "checkpoints" / LAST / "task.safetensors")
    assert int(kept["autoencoder.bottleneck.updates"]) == 8
    assert int(kept["adversary.updates"]) == 6


@pytest.mark.slow
def test_two_processes_resumed_within_two_phases_are_two_in_one_go_to_the_byte(
    tiny: Callable[..., Path], tmp_path: Path
) -> None:
    preset, half, whole = tiny(**TWO_PHASES), tmp_path / "half", tmp_path / "whole"
    commands = [
        ("train", "--preset", preset, "--run-dir", half, "--steps", 4),
        ("resume", half, "--steps", 8),
        ("train", "--preset", preset, "--run-dir", whole),
    ]
    for command in commands:
        done = in_ranks(*command, "--nproc", 2)
        assert done.code == 0, done.err
    parted, straight = ({n: b for n, b in bytes_of(run).items() if LAST in n} for run in (half, whole))
    assert parted == straight
    assert lines(half) == lines(whole)


def test_what_is_amiss_is_said_when_it_begins_and_logged_as_long_as_it_is(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def remarks(self: AutoencoderTask, step: int, values: dict[str, float]) -> list[str]:
        assert ("discriminator/recent_hinge" in values) == (step >= 3)
        return {4: [LEARNED_NOTHING], 5: [LEARNED_NOTHING], 7: [OVERRUN], 8: [OVERRUN]}.get(step, [])

    monkeypatch.setattr(AutoencoderTask, "remarks", remarks)
    run = tmp_path / "run"
    done = cli("train", "--preset", tiny(**TWO_PHASES), "--run-dir", run)
    assert done.code == 0, done.err
    said = [line for line in done.err.splitlines() if line.startswith("note:")]
    assert said == [f"note:  {LEARNED_NOTHING}", f"note:  {OVERRUN}"]
    logged = {line["step"]: line["remarks"] for line in read_log(run / "log.jsonl") if "remarks" in line}
    assert logged == {4: [LEARNED_NOTHING], 5: [LEARNED_NOTHING], 7: [OVERRUN], 8: [OVERRUN]}


def test_the_discriminator_has_no_gradient_when_the_autoencoder_is_updated(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, accumulate = [], Loop.accumulate

    def watched(self: Loop, batch: Any, phase: Any, step: int) -> Any:
        terms = accumulate(self, batch, phase, step)
        theirs = self.state.task.parameters_of(["discriminator"])
        seen.append((phase.name, {p.grad is None for p in theirs}))
        return terms

    monkeypatch.setattr(Loop, "accumulate", watched)
    preset = tiny(**TWO_PHASES)
    more = ("--steps", 6, "--set", "train.accumulate=2")
    assert cli("train", "--preset", preset, "--run-dir", tmp_path / "run", *more).code == 0
    main, other = ("main", {True}), ("discriminator", {False})
    assert seen == [main] * 2 + [main, other] * 4


def test_the_discriminator_begins_at_one_step_that_one_key_names(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    first = "train.phases.discriminator.first"
    train = ["train", "--preset", tiny(**TWO_PHASES), "--run-dir", tmp_path / "run", "--dry-run", "--set"]
    cli(*train, f"{first}=6").refused(f"{first} is 6", "task.adversarial.start=6")
    assert cli(*train, f"{first}=3").code == 0


def test_codes_are_counted_over_an_epoch_whose_length_the_run_keeps(
    tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    without = {name: value for name, value in VQ.items() if name != "window"}
    preset = tiny(**keys(bottleneck=without | {"start": "random"}))
    assert cli("train", "--preset", preset, "--run-dir", run, "--steps", 1).code == 0
    window = presets.load(str(run / "preset.yaml")).task.bottleneck.window
    assert window == len(presets.load(str(preset)).data.build("train"))
    assert cli("resume", run, "--steps", 2).code == 0
    assert presets.load(str(run / "preset.yaml")).task.bottleneck.window == window

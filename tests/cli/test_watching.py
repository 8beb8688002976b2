"""What a training shows of itself: facts before and after, lines, and bars of any width."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from diffcli.cli.watching import LinePart, distinct, duration, fitting, watch_training
from diffcli.engine.run.loop import Progress
from tests.conftest import Cli


def steps(*found: Progress) -> Iterator[Progress]:
    yield from found


def test_what_matters_least_is_left_out_first_where_a_line_is_short() -> None:
    parts = [
        LinePart(0, "100/600"),
        LinePart(1, "loss 0.1234"),
        LinePart(3, "300 images/s"),
        LinePart(2, "0:01:05 left"),
    ]
    assert fitting(parts, 100) == "100/600  loss 0.1234  300 images/s  0:01:05 left"
    assert fitting(parts, 40) == "100/600  loss 0.1234  0:01:05 left"
    assert fitting(parts, 20) == "100/600  loss 0.1234"
    assert fitting(parts, 1) == "100/600"


def test_times_are_those_of_a_clock() -> None:
    assert [duration(s) for s in (0, 59.6, 3661)] == ["0:00:00", "0:01:00", "1:01:01"]


def test_a_term_that_is_the_whole_loss_is_not_said_again() -> None:
    assert distinct({"loss": 0.5, "mse": 0.5, "grad_norm": 2.0}) == {"loss": 0.5, "grad_norm": 2.0}
    assert distinct({"loss": 0.5, "mse": 0.4}) == {"loss": 0.5, "mse": 0.4}
    two = {"a/loss": 1.0, "a/mse": 1.0, "b/loss": 2.0, "b/real": 1.0}
    assert distinct(two) == {"a/loss": 1.0, "b/loss": 2.0, "b/real": 1.0}


def test_lines_are_those_of_the_log_and_no_odd_steps_between(capsys: pytest.CaptureFixture[str]) -> None:
    found = [Progress(i, 6, {"loss": 0.5}, 10, "log" if i % 3 == 0 else "") for i in range(1, 7)]
    last = watch_training(steps(*found), leads=True)
    told = [line.split()[1] for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert told == ["3/6", "6/6"]
    assert last == found[-1]
    assert watch_training(steps(*found), leads=False) is None
    assert capsys.readouterr().err == ""


class Screen(io.StringIO):
    """A terminal that keeps what is written to it."""

    def isatty(self) -> bool:
        return True


def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of 60 columns in place of stderr; made within the test, as pytest puts its own there before."""
    found = Screen()
    for name, value in {"COLUMNS": "60", "TERM": "xterm", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.stderr", found)
    return found


def test_a_bar_of_sixty_columns_keeps_step_and_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screen(monkeypatch)
    watch_training(steps(Progress(7, 600, {"loss": 0.25, "mse": 0.25}, 300, trained=1.0)), leads=True)
    shown = terminal.getvalue()
    assert "7/600  loss 0.2500" in shown
    assert "left" in shown
    assert "data wait" not in shown  # for which there is no room
    assert "…" not in shown


def test_an_interrupted_bar_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = screen(monkeypatch)

    def interrupted() -> Iterator[Progress]:
        yield Progress(1, 6, {"loss": 0.5}, 10)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch_training(interrupted(), leads=True)
    assert terminal.getvalue().endswith("\x1b[1A\x1b[2K")  # one line up, which is cleared


def test_a_training_says_what_it_will_do_and_what_it_did(cli: Cli, tiny, tmp_path: Path) -> None:
    run = tmp_path / "a run"
    done = cli("train", "--preset", tiny(), "--run-dir", run)
    told = dict(line.split(":", 1) for line in done.err.splitlines() if ":" in line)
    assert "cpu, fp32" in told["device"]
    assert "parameters" in told["model"]
    assert "10: 0" in told["classes"]
    assert "1 to 4 of batches of 6" in told["steps"]
    assert "4 steps" in told["done"]
    assert f"{run}/loss.png" in told["look at"]
    assert told["next"].strip() == f"diffcli sample '{run}'"
    assert cli("sample", run, "--n", 1, "--out", tmp_path / "s.png").code == 0
    again = cli("resume", run, "--steps", 6)
    assert "5 to 6 of batches" in again.err
    assert "step 4" in again.err


def test_help_is_printed_once_where_nothing_is_typed(cli: Cli) -> None:
    done = cli()
    assert done.code == 2
    assert (done.out + done.err).count("Usage: diffcli") == 1


def test_a_pass_over_the_data_before_the_first_step_shows_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from diffcli import preset as presets
    from diffcli.engine.distributed import Group
    from diffcli.engine.run.measuring import measure
    from diffcli.engine.run.state import build_on_meta
    from diffcli.tasks.diffusion import DiffusionTask
    from tests.conftest import TINY, changed

    seen: list[tuple[str, int, int]] = []
    monkeypatch.setattr(DiffusionTask, "measures", 1400)
    monkeypatch.setattr(DiffusionTask, "measure", lambda self, batches, ranks: [None for _ in batches])
    preset = presets.build(changed(TINY, train__batch_size=700), "tiny")
    task, data = build_on_meta(preset), preset.data.build("train")

    @contextmanager
    def counting():
        yield lambda what, done, total: seen.append((what, done, total))

    measure(preset, Group(0, 1, torch.device("cpu")), data, task, counting)
    assert [each[1:] for each in seen] == [(0, 1400), (700, 1400), (1400, 1400)]
    assert {each[0] for each in seen} == {DiffusionTask.measured}

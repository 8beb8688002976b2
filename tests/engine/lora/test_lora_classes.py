"""Low-rank changes of a model for pictures of other classes than its own."""

from collections.abc import Callable
from pathlib import Path

from tests.conftest import Cli
from tests.data.making import class_folders


def test_as_many_other_classes_are_answered_with_what_trains_their_rows(
    trained: Path, tiny: Callable[..., Path], cli: Cli, tmp_path: Path
) -> None:
    class_folders(tmp_path / "letters", tuple("abcdefghij"), n=1, size=8)
    data = {"kind": "folder", "size": 8, "channels": 1, "grey": True, "root": str(tmp_path / "letters")}
    preset, run = (
        tiny(train__lora={"rank": 2, "targets": ["all"]}, data=data, **{"from": str(trained)}),
        tmp_path / "run",
    )
    line = ("train", "--preset", preset, "--run-dir", run, "--steps", 1)
    cli(*line).refused("'train.lora.whole=[conditioners.0.embedding]'")
    done = cli(*line, "--set", "train.lora.whole=[conditioners.0.embedding]")
    assert done.code == 0, done.err

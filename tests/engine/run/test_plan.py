from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import Cli

PLAIN = {"kind": "folder", "size": 8, "channels": 1}


@pytest.mark.parametrize(
    ("content", "said"), [({}, "which holds no images"), ({"a.png": b"no picture"}, "a.png cannot be read")]
)
def test_a_dry_run_refuses_data_that_training_refuses_though_the_preset_says_their_size(
    cli: Cli, tiny: Callable[..., Path], tmp_path: Path, content: dict[str, bytes], said: str
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for name, text in content.items():
        (data / name).write_bytes(text)
    preset = tiny(data={**PLAIN, "root": str(data)}, task__conditioners=[], task__drop_condition=0, guidance=1)
    for dry in ([], ["--dry-run"]):
        cli("train", "--preset", preset, "--run-dir", tmp_path / "run", *dry).refused(str(data), said)


def test_a_dry_run_needs_no_data_and_decodes_one_picture_alone(
    cli: Cli, tiny: Callable[..., Path], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    preset = tiny(data={**PLAIN, "root": str(data)}, task__conditioners=[], task__drop_condition=0, guidance=1)
    done = cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--dry-run")
    assert "# images: unknown: data.root is" in done.out
    data.mkdir()
    Image.new("L", (8, 8)).save(data / "a.png")
    (data / "b.png").write_bytes(b"seen by training")
    done = cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--dry-run")
    assert done.code == 0, done.err
    assert "# images: 2" in done.out

"""Here the preset that tests change, and the run that they share, are small; see one_level.py."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import trained_to_its_end, writing
from tests.engine.one_level import SMALL


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., Path]:
    """Writes the small preset, with changes, and returns its file."""
    return writing(SMALL, tmp_path)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the small preset, 4 steps, two checkpoints; its weights differ from their average. Do not change it."""
    return trained_to_its_end(SMALL, tmp_path_factory.mktemp("trained") / "run")

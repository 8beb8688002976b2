"""Hints name data as they are typed."""

from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.data.files import open_tree
from diffcli.data.naming import TYPED
from diffcli.data.shards import open_shards


@pytest.mark.parametrize("key", ["data.root", "SOURCE", "the folder"])
def test_a_path_that_is_not_there_says_where_another_is_typed(tmp_path: Path, key: str) -> None:
    for opened in (open_tree, open_shards):
        with pytest.raises(UserError, match="nowhere") as caught:
            opened(tmp_path / "nowhere", key)  # type: ignore[operator]
        assert TYPED[key] in caught.value.hint
        assert "set " not in caught.value.hint.partition("prep-data")[0]

from pathlib import Path

import pytest

from diffcli.config import UserError
from diffcli.engine.draw.masks.mask_files import check_folder


def test_masks_join_no_pictures_of_others(tmp_path: Path) -> None:
    (tmp_path / "a-mask.png").touch()
    check_folder(tmp_path, ["a"])
    (tmp_path / "cats").mkdir()
    with pytest.raises(UserError, match="holds cats/, not masks of these images alone"):
        check_folder(tmp_path, ["a"])
    with pytest.raises(UserError, match=r"holds a-mask\.png and 1 other, not"):
        check_folder(tmp_path, ["b"])

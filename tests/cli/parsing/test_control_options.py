"""How runs and scales of control are typed."""

from pathlib import Path

import pytest
import typer

from diffcli.cli.parsing.control_options import named_scales, scaled_paths


def test_a_run_may_end_in_a_scale_and_its_name_may_hold_colons(tmp_path: Path) -> None:
    odd = tmp_path / "run:2"
    odd.mkdir()
    found = scaled_paths(["runs/a", "runs/a:0.5", str(odd), f"{odd}:3", "C:\\runs\\a", "C:\\runs\\a:2"], "--control")
    assert found == (
        (Path("runs/a"), 1.0),
        (Path("runs/a"), 0.5),
        (odd, 1.0),
        (odd, 3.0),
        (Path("C:\\runs\\a"), 1.0),
        (Path("C:\\runs\\a"), 2.0),
    )


def test_a_scale_is_one_for_all_or_one_for_each_name() -> None:
    assert named_scales(None) == ()
    assert named_scales("0.5") == ((None, 0.5),)
    assert named_scales("edges=0.5,grey=0") == (("edges", 0.5), ("grey", 0.0))


@pytest.mark.parametrize("text", ["x", "edges=", "=1", "edges=nan", "1,,2", "inf"])
def test_what_is_no_scale_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter):
        named_scales(text)
    if "=" not in text and "," not in text:
        with pytest.raises(typer.BadParameter):
            scaled_paths([f"run:{text}"], "--control")

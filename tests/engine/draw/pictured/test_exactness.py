"""Exact tiles: images and memory of large pictures, and what has to be so for them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffcli.config import UserError
from diffcli.engine.draw.pictured.exactness import exact_overlap
from diffcli.engine.draw.sample import SampleOptions, request
from diffcli.engine.model import Model
from tests.conftest import Cli, changed
from tests.engine.draw.making import made
from tests.engine.draw.pictured.small import LOW, opened, picture, saved, upscaler
from tests.engine.draw.pictured.test_tiles import asked, one_step

LOCAL: dict[str, Any] = {"task__network__blocks": ["res"], "task__network__middle": [], "task__network__attend_at": []}
FLAT: dict[str, Any] = {**LOCAL, "task__network__mult": [1], "task__network__fold": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return opened(tmp_path_factory.mktemp("up"), upscaler(**FLAT))


def test_exact_tiles_predict_what_the_whole_would(model: Model, tmp_path: Path) -> None:
    file = picture(tmp_path / "a.png", 48, 60)
    whole, exact, blended = (one_step(asked(model, file, **o)) for o in ({"whole": True}, {"exact_tiles": True}, {}))
    assert (exact - whole).abs().max() < 1e-4 * whole.std()
    assert (blended - whole).abs().max() > 1e-2 * whole.std()
    least = exact_overlap(model)
    told = asked(model, file, exact_tiles=True).describe()["tiles"]
    assert told == {"size": [2 * least] * 2, "overlap": least, "count": told["count"], "exact": True}
    assert told["count"] > 1
    some = asked(model, file, exact_tiles=True, batch_size=2)
    assert (some.images(range(1)).int() - asked(model, file, whole=True).images(range(1)).int()).abs().max() <= 1


def test_guidance_by_two_branches_and_by_a_weaker_model_is_exact_in_tiles(tmp_path: Path) -> None:
    kept = {**LOW, "drop": True}
    keys = {"task__conditioners": [kept], "task__drop_condition": 0.1, "guidance": 3}
    tree = changed(upscaler(**FLAT, **keys), task__codec={"kind": "pixels", "clip": False})
    path = saved(tmp_path / "m", tree)
    weaker = saved(tmp_path / "weak", tree)
    guided, file = opened(tmp_path / "n", tree), picture(tmp_path / "a.png", 40)
    assert path != weaker
    for options in ({}, {"overrides": (f"guide.weaker={weaker}",)}):
        exact, whole = (one_step(asked(guided, file, **options, **o)) for o in ({"exact_tiles": True}, {"whole": True}))
        assert (exact - whole).abs().max() < 1e-4 * whole.std()
    far = saved(tmp_path / "far", changed(tree, task__network__blocks=["res", "res"]))
    with pytest.raises(UserError, match=r"guide\.weaker") as refused:
        asked(guided, file, exact_tiles=True, overrides=(f"guide.weaker={far}",))
    assert (
        f"--overlap {exact_overlap(opened(tmp_path / 'f', changed(tree, task__network__blocks=['res', 'res'])))}"
        in str(refused.value.hint)
    )


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that was made within."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        self.most = max([self.most, *sizes])
        return made


def largest(work: Callable[[], object]) -> int:
    with Largest() as counted:
        work()
    return counted.most


def test_no_activation_of_exact_tiles_grows_with_the_picture(model: Model, tmp_path: Path) -> None:
    files = [picture(tmp_path / f"{edge}.png", edge, 24) for edge in (40, 80)]
    exact = [largest(lambda f=file: one_step(asked(model, f, exact_tiles=True, batch_size=1))) for file in files]
    whole = [largest(lambda f=file: one_step(asked(model, f, whole=True))) for file in files]
    assert exact[0] == exact[1]
    assert whole[1] == 2 * whole[0]
    assert exact[1] < whole[1]


def test_each_thing_that_exact_tiles_need_is_told(model: Model, tmp_path: Path) -> None:
    file, least = picture(tmp_path / "a.png", 48), exact_overlap(model)
    for options, problem, hint in (
        ({"overlap": least - 2}, "--overlap", f"--overlap {least}"),
        ({"tile": least}, f"--tile {least}", f"--tile {2 * least}"),
    ):
        with pytest.raises(UserError, match=problem) as refused:
            asked(model, file, exact_tiles=True, **options)
        assert hint in refused.value.hint
    attending = opened(tmp_path / "attending", upscaler(task__network__middle=["res", "attention"]))
    with pytest.raises(UserError, match="--exact-tiles") as refused:
        asked(attending, file, exact_tiles=True)
    assert "--no-tile" in refused.value.hint
    with pytest.raises(UserError, match="--exact-tiles with --no-tile"):
        SampleOptions(exact_tiles=True, whole=True).check()
    with pytest.raises(UserError, match="--exact-tiles: nothing"):
        request(made(), SampleOptions(n=1, exact_tiles=True))
    odd = made(**{**LOCAL, "task__network__mult": [1, 1, 1]})
    with pytest.raises(UserError, match="multiples of 4") as refused:
        request(odd, SampleOptions(n=1, size=(200, 202), tile=160, exact_tiles=True))
    assert "--size 200x" in refused.value.hint


def test_exact_tiles_are_asked_for_on_the_command_line(cli: Cli, tmp_path: Path) -> None:
    ckpt, file, out = saved(tmp_path / "m", upscaler(**FLAT)), picture(tmp_path / "a.png", 40, 24), tmp_path / "x.png"
    flags = ("sample", "--ckpt", ckpt, "--image", file, "--steps", 1, "--out", out)
    assert cli(*flags, "--exact-tiles").code == 0
    assert json.loads(Path(f"{out}.json").read_text())["tiles"]["exact"] is True
    cli(*flags, "--exact-tiles", "--compile").refused("--compile")

"""What `--dry-run` says of the memory of a run, and of what could be chosen otherwise."""

import pytest
import torch

from diffcli import preset as presets
from diffcli.engine.run.phases import phases_of
from diffcli.engine.run.roles.needed_memory import GIB, measure, needed, otherwise
from diffcli.engine.run.state import build_on_meta
from diffcli.networks.lora import LoraConfig
from diffcli.preset import Preset
from diffcli.tasks.starting_point import StartingPoint
from tests.conftest import TINY, changed

WIDE = {"task__network__width": 32, "train__ema": 0.99}


def values(preset: Preset, images: int = 4) -> dict[str, float]:
    task = build_on_meta(preset).train()
    phases = phases_of(task, preset.train)
    return needed(task, phases, preset.train, measure(task, preset, phases), images)


def preset_of(**keys: object) -> Preset:
    return presets.build(changed(TINY, **(WIDE | keys)), "tiny.yaml")


def test_each_choice_takes_from_the_part_that_it_is_for() -> None:
    plain, saving, bytes_, low = (
        values(preset_of(**keys))
        for keys in (
            {},
            {"task__network__save_memory": True},
            {"train__optimizer": {"kind": "adamw8bit"}},
            {"train__lora": {"rank": 2, "targets": ["all"]}, "from": "somewhere"},
        )
    )
    activations = "activations of 4 images"
    assert saving[activations] < 0.7 * plain[activations]
    assert all(saving[name] == plain[name] for name in ("trained weights", "gradients", "optimizer", "averages"))
    assert plain["optimizer"] / 5 < bytes_["optimizer"] < plain["optimizer"]
    assert bytes_ | {"optimizer": 0} == plain | {"optimizer": 0}
    assert low["trained weights"] == low["gradients"] == low["averages"] == low["optimizer"] / 2
    assert low["frozen weights"] == plain["trained weights"]
    assert low["trained weights"] < plain["trained weights"] / 5


def test_weights_that_a_step_copies_in_half_precision_are_counted_once_and_not_for_each_image() -> None:
    whole, half = values(preset_of(train__precision="fp32")), values(preset_of(train__precision="bf16"))
    folded = whole["copies of weights"]  # into larger convolutions, in every precision
    assert 0.3 * half["trained weights"] < half["copies of weights"] - folded / 2 <= 0.5 * half["trained weights"]
    activations = "activations of 4 images"
    assert 0.4 * whole[activations] < half[activations] < whole[activations]  # norms are computed in float32
    more = values(preset_of(train__precision="bf16"), images=8)
    assert more["copies of weights"] == half["copies of weights"]


@pytest.mark.slow
@pytest.mark.parametrize("keys", [{}, {"train__optimizer": {"kind": "adamw8bit"}, "task__network__save_memory": True}])
def test_what_a_plan_offers_is_what_the_plan_of_that_choice_says(keys: dict[str, object]) -> None:
    origin = StartingPoint(path="somewhere")
    preset = preset_of(**keys).model_copy(update={"origin": origin})
    task = build_on_meta(preset).train()
    offered = dict(otherwise(preset, None, measure(task, preset, phases_of(task, preset.train)), 4))
    assert len(offered) == 3
    for key, total in offered.items():
        name, _, value = key.partition("=")
        if name == "train.lora":
            lora = LoraConfig.model_validate({"rank": 8, "targets": ["all"]})
            chosen = preset.model_copy(update={"train": preset.train.model_copy(update={"lora": lora})})
        else:
            kind = {"kind": value, "lr": 2e-3} if name.endswith(".kind") else value == "true"
            chosen = preset_of(**{**keys, name.removesuffix(".kind").replace(".", "__"): kind})
        assert total == f"{sum(values(chosen).values()) / GIB:.2g} GiB"


@pytest.mark.parametrize("saving", [False, True])
def test_the_bytes_of_a_step_are_those_of_the_tensors_that_are_kept_for_the_way_back(saving: bool) -> None:
    preset = preset_of(task__network__save_memory=saving)
    task = preset.task.build(preset.specs).train()
    own, kept = {p.untyped_storage().data_ptr() for p in task.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    fields = preset.data.build("train").read(torch.arange(4))
    batch = fields | {"image": fields["image"] / 127.5 - 1, "position": torch.arange(4), "stream": torch.arange(4)}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        task(batch, "main", 1)["loss"]
    counted = sum(kept.values())
    told = values(preset)
    assert counted == pytest.approx(4 * (told["activations of 4 images"] + told["copies of weights"]), rel=0.02)

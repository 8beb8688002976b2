"""Where a first stage is looked for, what is said where it is not, and what its digest is of."""

from pathlib import Path
from typing import Any

import pytest
import torch

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine import stage_reading
from diffcli.tasks.diffusion import DiffusionTask
from tests.latents import latent_tree, random_stage, stage_checkpoint, stage_config


@pytest.mark.parametrize(
    ("keys", "moves"),
    [
        ({"save_memory": True}, False),
        ({"dropout": 0.3}, False),
        ({"groups": 2}, True),
        ({"norm_eps": 1e-3}, True),
    ],
    ids=["save_memory", "dropout", "groups", "norm_eps"],
)
def test_a_digest_is_of_what_is_computed_and_not_of_how_it_was_trained(keys: dict[str, Any], moves: bool) -> None:
    stage = random_stage()
    own, other = (stage_config(**{f"network__{key}": value for key, value in each.items()}) for each in ({}, keys))
    tensors = stage.state_dict()
    changed = other.build().eval()
    changed.load_state_dict(tensors)
    x = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    assert stage.encode(x).equal(changed.encode(x)) != moves
    assert (stage_reading.digest_of(own, tensors) != stage_reading.digest_of(other, tensors)) == moves


def test_a_digest_moves_with_every_tensor() -> None:
    config, tensors = stage_config(), random_stage().state_dict()
    before = stage_reading.digest_of(config, tensors)
    for name, value in tensors.items():
        assert stage_reading.digest_of(config, {**tensors, name: value + 1}) != before


def refused(path: Path) -> UserError:
    with pytest.raises(UserError, match=r"task\.codec\.from") as raised:
        stage_reading.read(path)
    return raised.value


def test_what_is_not_there_is_to_be_trained_by_a_command_that_can_be_pasted(tmp_path: Path) -> None:
    folder = tmp_path / "my runs" / "mnist-vae"
    assert refused(folder).hint == f"train it first: diffcli train --preset mnist-vae --run-dir '{folder}'"


def test_a_damaged_run_is_not_to_be_trained_again_in_its_place(tmp_path: Path) -> None:
    run = stage_checkpoint(tmp_path / "mnist-vae")
    (run / "checkpoint.json").write_text("{")
    assert "cannot be read as a checkpoint" in refused(run).problem
    assert "diffcli train" not in refused(run).hint
    (run / "checkpoint.json").unlink()
    assert "holds no whole checkpoint" in refused(run).problem
    assert "wait for its first checkpoint" in refused(run).hint


def test_weights_that_do_not_fit_are_told_by_the_name_of_their_place(tmp_path: Path) -> None:
    tree = latent_tree(task__codec={"kind": "latent", "from": str(stage_checkpoint(tmp_path / "stage"))})
    preset = stage_reading.completed(presets.build(tree, "latent.yaml"))
    task, stage = preset.task.build(preset.specs), stage_reading.begun(preset)
    assert stage is not None
    stage_reading.install(task, stage)
    assert isinstance(task, DiffusionTask)
    lacking = dict(list(stage.tensors.items())[1:])
    with pytest.raises(UserError, match=rf"{tmp_path}/stage: weights do not fit"):
        stage_reading.install(task, stage._replace(tensors=lacking))

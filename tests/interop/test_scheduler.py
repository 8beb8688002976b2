"""Schedulers of diffusers: which classes are understood, with which defaults, and what their keys become here."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from diffcli.config import UserError
from diffcli.interop import importing, scheduler
from diffcli.interop.foreign import Foreign
from diffcli.interop.scheduler_classes import UNDERSTOOD, clips, spaced, understood
from diffcli.preset import Preset
from tests.interop.test_diffusers import config_with, pipeline, unet


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline with random weights, saved. Do not change it."""
    return pipeline(tmp_path_factory.mktemp("plain"))[1]


def stated(**values: Any) -> Foreign:
    return Foreign(values, scheduler.DEFAULTS, "scheduler_config.json")


@pytest.mark.parametrize("name", UNDERSTOOD)
def test_a_file_that_says_nothing_but_its_class_means_the_defaults_of_that_class(name: str):
    cls = getattr(diffusers, name)
    if getattr(cls, "_backends", None):  # a stand-in of diffusers for a class whose package is not installed
        pytest.skip(f"{name} needs {cls._backends}")
    theirs, config = cls(), stated(_class_name=name)
    read = scheduler.read_scheduler(config)
    schedule = scheduler.recognised(scheduler.completed(config))
    alpha = schedule.alpha_sigma(torch.arange(1, 1001) / 1000)[0]
    torch.testing.assert_close(alpha.float(), theirs.alphas_cumprod.sqrt(), rtol=1e-4, atol=1e-6)
    assert read["sampler"]["kind"] == understood(config).sampler
    assert spaced(config) == theirs.config.get("timestep_spacing", "linspace")
    assert clips(config) == bool(theirs.config.get("clip_sample"))
    assert read["task"]["target"] == "eps"
    ends = read["sampler"].get("ends") == "cleanest"
    assert ends == (theirs.config.get("set_alpha_to_one") is False)


@pytest.mark.parametrize(
    "other",
    [
        diffusers.FlowMatchEulerDiscreteScheduler(),
        diffusers.EDMEulerScheduler(),
        diffusers.EDMDPMSolverMultistepScheduler(),
        diffusers.LCMScheduler(),
        diffusers.KarrasVeScheduler() if hasattr(diffusers, "KarrasVeScheduler") else diffusers.ScoreSdeVeScheduler(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_class_of_another_path_is_refused_by_its_name(other: Any, plain: Path, tmp_path: Path):
    folder = Path(shutil.copytree(plain, tmp_path / "pipeline"))
    other.save_pretrained(folder / "scheduler")
    with pytest.raises(UserError, match=rf"{type(other).__name__}.*\n.*DDPMScheduler"):
        importing.load(folder, None)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"use_flow_sigmas": True}, "use_flow_sigmas"),
        ({"prediction_type": "flow_prediction"}, "prediction_type"),
        ({"timestep_type": "continuous"}, "timestep_type"),
    ],
    ids=str,
)
def test_a_key_that_makes_a_class_another_path_is_refused(changes: dict[str, Any], named: str):
    with pytest.raises(UserError, match=named):
        scheduler.read_scheduler(stated(_class_name="DPMSolverMultistepScheduler", **changes))


def test_an_old_file_that_predicts_the_image_says_so_by_another_key():
    read = scheduler.read_scheduler(stated(_class_name="DDPMScheduler", predict_epsilon=False))
    assert read["task"]["target"] == "x0"


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "dpmpp_2m"),
        ({"solver_order": 1}, "ddim"),
        ({"solver_order": 3}, "dpmpp_3m"),
        ({"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde"),
    ],
    ids=str,
)
def test_the_options_of_dpm_solver_choose_the_sampler(options: dict[str, Any], kind: str):
    config = stated(_class_name="DPMSolverMultistepScheduler", **options)
    assert scheduler.read_scheduler(config)["sampler"]["kind"] == kind


def test_sigmas_of_karras_become_that_spacing_and_are_noted():
    config = stated(_class_name="EulerDiscreteScheduler", use_karras_sigmas=True, timestep_spacing="trailing")
    assert scheduler.read_scheduler(config)["sampler"]["spacing"] == "karras"
    (note,) = scheduler.notes(config)
    assert "use_karras_sigmas true" in note


@pytest.mark.parametrize("outputs", [3, 6])
def test_without_a_variance_type_the_outputs_tell_whether_one_was_learned(outputs: int, tmp_path: Path):
    """null in the files of DPM-Solver; DDIM has no such key."""
    for other in (diffusers.DPMSolverMultistepScheduler(variance_type=None), diffusers.DDIMScheduler()):
        _, folder = pipeline(tmp_path / type(other).__name__, other, out_channels=outputs)
        assert importing.load(folder, None).preset.task.learn_variance == (outputs == 6)


@pytest.mark.parametrize(
    ("ends", "kind", "steps"),
    [
        ((0.0015, 0.0195), "linear", 1000),
        ((0.0002, 0.04), "linear", 400),
        ((0.0015, 0.0195), "scaled_linear", 400),
        ((0.0002, 0.04), "scaled_linear", 1000),
    ],
    ids=str,
)
def test_any_two_betas_are_understood(ends: tuple[float, float], kind: str, steps: int, tmp_path: Path):
    options = {"beta_start": ends[0], "beta_end": ends[1], "num_train_timesteps": steps}
    made, folder = pipeline(tmp_path, diffusers.DDPMScheduler(beta_schedule=kind, **options))
    schedule = importing.load(folder, None).preset.task.schedule
    assert schedule.kind == kind
    alpha = schedule.alpha_sigma(torch.arange(1, steps + 1) / steps)[0]
    torch.testing.assert_close(alpha.float(), made.scheduler.alphas_cumprod.sqrt(), rtol=1e-4, atol=1e-6)


def flat(tmp_path: Path) -> Path:
    """The published folder of google's DDPM: all files beside model_index.json."""
    other = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    _, folder = pipeline(tmp_path, other)
    for name in ("unet", "scheduler"):
        for file in (folder / name).iterdir():
            shutil.move(file, folder / file.name)
        (folder / name).rmdir()
    return folder


def test_a_flat_folder_keeps_its_scheduler(tmp_path: Path):
    imported = importing.load(flat(tmp_path), None)
    task = imported.preset.task
    assert (task.target, task.schedule.kind, imported.preset.sampler.spacing) == ("v", "cosine", "leading")
    assert not any("no scheduler" in note for note in imported.notes)


def test_the_index_of_a_pipeline_names_the_class_where_the_file_does_not(tmp_path: Path):
    folder = flat(tmp_path)
    path = folder / "scheduler_config.json"
    values = json.loads(path.read_text())
    del values["_class_name"]
    path.write_text(json.dumps(values))
    config_with(folder, "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    with pytest.raises(UserError, match="FlowMatchEulerDiscreteScheduler"):
        importing.load(folder, None)


def walk(preset: Preset) -> dict[str, Any]:
    written = scheduler.write_scheduler(preset)
    return {key: written.get(key) for key in ("_class_name", "timestep_spacing", "steps_offset", "set_alpha_to_one")}


@pytest.mark.parametrize(
    "other",
    [
        diffusers.DDPMScheduler(timestep_spacing="linspace", clip_sample=False),
        diffusers.DDIMScheduler(timestep_spacing="leading", steps_offset=1, set_alpha_to_one=False, clip_sample=False),
        diffusers.DDIMScheduler(timestep_spacing="trailing", clip_sample=False),
        diffusers.PNDMScheduler(skip_prk_steps=True, steps_offset=1),
        diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True, timestep_spacing="trailing"),
    ],
    ids=str,
)
def test_the_walk_of_a_scheduler_goes_out_as_it_came(other: Any, tmp_path: Path):
    unet().save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    imported = importing.load(tmp_path, None)
    assert not imported.notes
    expected = {key: other.config.get(key) for key in ("timestep_spacing", "steps_offset", "set_alpha_to_one")}
    assert walk(imported.preset) == {"_class_name": type(other).__name__, **expected}

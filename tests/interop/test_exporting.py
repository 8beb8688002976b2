"""Which of the shipped latent models can go out to diffusers, and what the others are told to train instead."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.interop import exporting
from diffcli.interop.blockers import SET
from diffcli.interop.imported import on_meta
from diffcli.interop.scheduler import write_scheduler
from diffcli.preset import Preset
from tests.conftest import ROOT

TEXTS = {path.stem: path.read_text() for path in (ROOT / "presets").glob("*.yaml")}
LATENT = {
    name for name, text in TEXTS.items() if "kind: latent" in text and "imported/" not in text
}  # else it came in before
GO_OUT = {"celeba-256-latent": "VQModel", "imagenet256-unet-latent": "VQModel"}
BETAS = "--set task.target=v --set task.schedule.kind=cosine"
REFUSED = {
    "cifar10-latent": BETAS,
    "imagenet256-dit-latent": f"{BETAS} --set task.network.max_period=10752.168531898922",
    "mnist-latent": BETAS,
    "cc3m-256-latent": "classes alone",
    "upscale-64-256-latent": "classes alone",
    "webvid-256-latent": "the model of images that it began from can",
}
STAGES = {
    "cifar10-kl": "--set task.network.patch=1",
    "mnist-vae": "--set task.network.patch=1",
    "vqgan-f4-256-clip": "--set task.embedding=null",
}


def described(name: str, *overrides: str) -> tuple[Preset, Mapping[str, Tensor]]:
    """A preset over the first stage that it names, and tensors without memory, but for a scale as it is measured."""
    preset = presets.load(name, overrides)
    stage = presets.load(preset.task.codec.source.name)
    raw = preset.model_dump(mode="json")
    made = stage.task.first_stage(stage.data.shape.channels)
    raw["task"]["codec"]["first_stage"] = made.model_dump(mode="json")
    preset = presets.build(raw, name)
    latent = made.network.latent
    scaling = {"codec.shift": torch.zeros(latent), "codec.scale": torch.full((latent,), 2.0)}
    return preset, on_meta(preset).state_dict() | scaling


def written(name: str, *overrides: str) -> list[exporting.WrittenPart]:
    """The networks of the folder that this preset's model would become."""
    preset, tensors = described(name, *overrides)
    exporting.check(preset)
    return [exporting.network(preset, tensors), *exporting.first_stage(preset, tensors)]


def test_each_latent_preset_is_known_to_go_out_or_not():
    assert {*GO_OUT, *REFUSED} == LATENT


@pytest.mark.parametrize("name", GO_OUT)
def test_a_shipped_latent_model_goes_out(name: str):
    network, stage = written(name)
    assert network.config["_class_name"] == "UNet2DModel"
    assert stage.config["_class_name"] == GO_OUT[name]
    assert stage.config["scaling_factor"] == 0.5
    assert network.config["in_channels"] == stage.config["latent_channels"]


@pytest.mark.parametrize("name", REFUSED)
def test_one_that_cannot_is_told_what_can(name: str):
    with pytest.raises(UserError) as error:
        written(name)
    assert REFUSED[name] in error.value.hint


@pytest.mark.parametrize("name", ["imagenet256-dit-latent", "cifar10-latent"])
def test_what_the_hint_says_leads_past_all_of_it(name: str):
    """What the model itself is told in one go; its first stage is another training, whose hint is held apart."""
    with pytest.raises(UserError) as error:
        written(name)
    typed = error.value.hint.partition("; and first")[0].split("--set ")[1:]
    assert len(typed) >= 2
    preset, tensors = described(name, *(item.strip() for item in typed))
    assert write_scheduler(preset)["prediction_type"] == "v_prediction"
    assert exporting.network(preset, tensors).tensors
    if name == "imagenet256-dit-latent":
        exporting.check(preset)


def test_all_that_keeps_a_model_in_is_told_at_once_and_its_target_first():
    with pytest.raises(UserError) as error:
        written("cifar10-latent", "task.network.activation=leaky_relu", "task.network.max_period=500")
    told = error.value.problem
    places = [told.index(key) for key in ("task.target", "task.network.activation", "task.network.max_period", "patch")]
    assert places == sorted(places)


def test_a_transformer_of_other_than_1000_classes_is_noted():
    typed = [
        "task.target=v",
        "task.schedule.kind=cosine",
        "task.network.max_period=10752.168531898922",
        "sampler.kind=ddim",
    ]
    preset, _ = described("imagenet256-dit-latent", *typed)
    assert not exporting.notes(preset)
    preset, _ = described("imagenet256-dit-latent", *typed, "task.conditioners.0.num_classes=7")
    (note,) = exporting.notes(preset)
    assert "guidance_scale=1" in note
    preset, _ = described("imagenet256-dit-latent", *typed, "sampler.spacing=karras")
    assert "sampler.spacing is karras" in exporting.notes(preset)[0]


@pytest.mark.parametrize("name", ["digits", "mnist", "cifar10", "cifar10-class", "cifar10-64", "imagenet64-adm"])
def test_a_shipped_model_of_pixels_goes_out(name: str):
    preset = presets.load(name)
    exporting.check(preset)
    network = exporting.network(preset, on_meta(preset).state_dict())
    assert network.config["_class_name"] == "UNet2DModel"
    assert network.config["norm_num_groups"] == preset.task.network.groups


@pytest.mark.parametrize("name", ["mnist-eps", "mnist-v", "mnist-hybrid", "digits-14", "mnist-flow", "mnist-edm"])
def test_what_the_hint_of_a_small_model_of_pixels_says_to_train_goes_out(name: str):
    with pytest.raises(UserError) as error:
        exporting.check(presets.load(name))
    assert error.value.problem.count("things keep") <= 1
    typed = [word.removeprefix("--set ").strip("'") for word in SET.findall(error.value.hint)]
    preset = presets.load(name, typed)
    exporting.check(preset)
    assert exporting.network(preset, on_meta(preset).state_dict()).config["_class_name"] == "UNet2DModel"


@pytest.mark.parametrize("name", ["digits-classifier", "clip-prior", "isic-unet", "cifar10-sr-cnn"])
def test_what_draws_by_no_diffusion_is_refused_by_its_kind(name: str):
    with pytest.raises(UserError, match=r"task\.kind") as error:
        exporting.check(presets.load(name))
    assert "--as" not in str(error.value)


@pytest.mark.parametrize("name", STAGES)
def test_a_first_stage_that_cannot_go_out_is_told_what_can(name: str):
    with pytest.raises(UserError) as error:
        exporting.stage_alone(presets.load(name), {})
    assert STAGES[name] in error.value.hint


def test_what_is_wrong_with_a_first_stage_is_told_at_once_and_mended_goes_out():
    with pytest.raises(UserError) as error:
        exporting.check(presets.load("mnist-vae"))
    assert error.value.hint.endswith("--set task.network.patch=1 --set task.network.middle_blocks=2")
    preset = presets.load("mnist-vae", ["task.network.patch=1", "task.network.middle_blocks=2"])
    exporting.check(preset)
    with torch.device("meta"):
        tensors = preset.task.build(preset.specs).state_dict()
    assert exporting.stage_alone(preset, tensors).config["_class_name"] == "AutoencoderKL"


def test_a_model_of_clips_is_refused_by_the_layers_that_make_it_one():
    with pytest.raises(UserError, match=r"task\.network\.temporal"):
        exporting.check(presets.load("moving-digits"))

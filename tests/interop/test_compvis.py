"""Single files of Stable Diffusion and latent-diffusion; diffusers' own converter is the witness for every name."""

from pathlib import Path

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.interop import compvis, first_stages, importing
from diffcli.interop.foreign import Foreign
from diffcli.interop.imported import Imported, on_meta
from diffcli.interop.stages.autoencoder_rules import COMPVIS, stage_rules
from diffcli.interop.unets import diffusers_conditional, openai
from diffcli.interop.unets.places import NETWORK
from diffcli.interop.weight_files import wanted_shapes, write
from diffcli.networks.conditioning import CondShape
from diffcli.networks.unet import UNetConfig
from diffcli.preset import Preset
from tests.encoders.making import WIDTH
from tests.interop.making import close, loaded, network, noise
from tests.interop.pipes import UNET, stable
from tests.interop.test_conditional_unet import PUBLISHED
from tests.interop.test_inert_pickle import Callback, Touch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inside diffusers

GROUPS = {"norm_num_groups": 32, "block_out_channels": [32, 64]}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """A tiny Stable Diffusion out of a pipeline, with the 32 groups that all files of CompVis have."""
    folder = stable(tmp_path_factory.mktemp("pipeline") / "tiny", stage=GROUPS, **GROUPS)
    return importing.load(folder, None)


def unet_of(tensors: dict[str, Tensor], preset: Preset, linear: bool = False) -> dict[str, Tensor]:
    """The U-Net of a model of ours under the names of CompVis."""
    ours = {name: tensor for name, tensor in tensors.items() if name.startswith(NETWORK)}
    return write(openai.openai_rules(on_meta(preset).denoiser.network, ours, linear=linear), ours)


def file_of(found: Imported) -> dict[str, Tensor]:
    """A model as a file of CompVis holds it, with all that is not taken from there."""
    codec = {n.removeprefix("codec.first_stage."): t for n, t in found.tensors.items() if "first_stage." in n}
    stage = found.preset.task.codec.first_stage
    rules = stage_rules(stage.network, stage.bottleneck, codec, COMPVIS)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    return {
        **{compvis.UNET + name: tensor for name, tensor in unet_of(found.tensors, found.preset).items()},
        **{first_stages.INSIDE + name: tensor for name, tensor in write(rules, codec).items()},
        "first_stage_model.loss.logvar": torch.zeros(()),
        "cond_stage_model.transformer.text_model.embeddings.token_embedding.weight": torch.zeros(3, WIDTH),
        "betas": betas.float(),
        "alphas_cumprod": (1 - betas).cumprod(0).float(),
    }


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model as if it were one of the published ones, whose heads and size of training are known."""
    monkeypatch.setitem(compvis.HEADS, (32, WIDTH), {"heads": UNET["attention_head_dim"]})
    monkeypatch.setattr(compvis, "TRAINED_AT", {True: 16, False: 16})


def same_model(found: Imported, expected: Imported) -> None:
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        torch.testing.assert_close(found.tensors[name], tensor, rtol=1e-6, atol=0)


@torch.no_grad()
def test_the_unet_of_such_a_file_is_that_which_diffusers_converts(imported: Imported) -> None:
    theirs = diffusers.UNet2DConditionModel(**{**UNET, **GROUPS})
    converted = convert_ldm_unet_checkpoint(file_of(imported), theirs.config)
    theirs.load_state_dict(converted)
    task, x, times = loaded(imported), noise(2, 4, 8, 8), torch.tensor([0.0, 999.0])
    cond = task.condition({"text": ["a cat", "a dog"]}, torch.tensor([True, False]), x)
    close(network(task)(x, times, cond), theirs.eval()(x, times, cond.tokens).sample)


def test_a_safetensors_file_of_a_published_model_needs_no_preset(
    imported: Imported, published: None, tmp_path: Path
) -> None:
    save_file({name: tensor.contiguous() for name, tensor in file_of(imported).items()}, tmp_path / "sd.safetensors")
    found = importing.load(tmp_path / "sd.safetensors", None)
    same_model(found, imported)
    task, expected = found.preset.task, imported.preset.task
    assert task.network == expected.network
    assert (task.schedule, task.target, task.codec) == (expected.schedule, expected.target, expected.codec)
    assert found.preset.data.shape == imported.preset.data.shape
    assert found.preset.guidance == 7.5
    assert task.conditioners[0].encoder.model == "openai/clip-vit-large-patch14"
    assert "task.conditioners.0.encoder.model=FOLDER" in found.notes[0]


def test_a_ckpt_with_averages_and_what_a_trainer_keeps_runs_no_code(
    imported: Imported, published: None, tmp_path: Path
) -> None:
    state = file_of(imported)
    trained = {name: tensor + 1 if name.startswith(compvis.UNET) else tensor for name, tensor in state.items()}
    averages = {
        compvis.AVERAGE + name.removeprefix("model.").replace(".", ""): tensor
        for name, tensor in state.items()
        if name.startswith(compvis.UNET)
    }
    kept = {"global_step": 7, "callbacks": {Callback: Callback(), "x": [Touch(tmp_path / "made")]}}
    torch.save({"state_dict": trained | averages, **kept}, tmp_path / "model.ckpt")
    same_model(importing.load(tmp_path / "model.ckpt", None), imported)
    assert not (tmp_path / "made").exists()
    torch.load(tmp_path / "model.ckpt", weights_only=False)
    assert (tmp_path / "made").exists(), "there was code to run"


def test_a_preset_tells_what_a_file_does_not(imported: Imported, tmp_path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in file_of(imported).items()}, tmp_path / "sd.safetensors")
    with pytest.raises(UserError, match=r"32 wide, told tokens 24 wide, is none.*\n.*--as PRESET"):
        importing.load(tmp_path / "sd.safetensors", None)
    found = importing.load(tmp_path / "sd.safetensors", imported.preset)
    same_model(found, imported)
    assert found.record == imported.record


def test_a_class_model_is_told_of_classes_by_one_token(imported: Imported, published: None) -> None:
    state = file_of(imported)
    del state["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
    table = noise(8, WIDTH)
    file = compvis.parts(state | {compvis.CLASSES: table}, "cin.ckpt")
    raw = compvis.derived(file, "cin.ckpt")
    assert raw["task"]["conditioners"] == [{"kind": "class", "num_classes": 7, "dim": WIDTH, "tokens": 1}]
    found = importing.from_latent_file(file, Path("cin.ckpt"), None)
    assert torch.equal(found.tensors["conditioners.0.embedding.weight"], table)
    assert found.preset.task.drop_condition == 0.1


def test_a_preset_of_classes_for_a_file_without_them_is_told_what_is_missing(
    imported: Imported, published: None
) -> None:
    raw = imported.preset.model_dump(mode="json")
    raw["task"]["conditioners"] = [{"kind": "class", "num_classes": 7, "dim": WIDTH, "tokens": 1}]
    file = compvis.parts(file_of(imported), "sd.ckpt")
    with pytest.raises(UserError, match=r"1 missing \(cond_stage_model\.embedding\.weight\)"):
        importing.from_latent_file(file, Path("sd.ckpt"), presets.build(raw, "classes"))


def test_what_the_second_stable_diffusion_does_not_tell_is_said(imported: Imported, published: None) -> None:
    state = file_of(imported)
    del state["cond_stage_model.transformer.text_model.embeddings.token_embedding.weight"]
    file = compvis.parts(state | {"cond_stage_model.model.token_embedding.weight": torch.zeros(3, WIDTH)}, "v2.ckpt")
    (told,) = compvis.derived(file, "v2.ckpt")["task"]["conditioners"]
    assert (told["encoder"]["library"], told["encoder"]["layer"]) == ("open_clip", -2)
    assert "a model of v at 768 needs --as PRESET" in file.notes[1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_of_the_published_sizes_has_its_place_and_tells_the_network(name: str) -> None:
    options = PUBLISHED[name]
    config = Foreign(options, diffusers_conditional.DEFAULTS, "config.json")
    tree = diffusers_conditional.read_config(config)
    side, tokens = options["sample_size"], options["cross_attention_dim"]
    linear = bool(options.get("use_linear_projection"))
    with torch.device("meta"):
        ours = UNetConfig.model_validate(tree).build((4, side, side), 4, CondShape(tokens=tokens))
        theirs = diffusers.UNet2DConditionModel(**options)
    state = {f"{NETWORK}.{key}": tensor for key, tensor in ours.state_dict().items()}
    shapes = wanted_shapes(openai.openai_rules(ours, state, linear=linear), state)
    unet = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    converted = convert_ldm_unet_checkpoint({compvis.UNET + key: tensor for key, tensor in unet.items()}, theirs.config)
    assert {key: tensor.shape for key, tensor in converted.items()} == {
        key: tensor.shape for key, tensor in theirs.state_dict().items()
    }
    told = compvis.shape_of(unet, side) | compvis.HEADS[320, tokens]
    assert UNetConfig.model_validate(told) == ours.config


def test_a_file_without_its_first_stage_or_for_another_preset_is_refused(imported: Imported, tmp_path: Path) -> None:
    state = file_of(imported)
    alone = {name: tensor for name, tensor in state.items() if not name.startswith(first_stages.INSIDE)}
    with pytest.raises(UserError, match=r"no first stage \(first_stage_model\.\*\)"):
        compvis.parts(alone, "file")
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, tmp_path / "sd.safetensors")
    with pytest.raises(UserError, match=r"task\.network\.kind 'dit' and task\.codec\.kind 'pixels'"):
        importing.load(tmp_path / "sd.safetensors", presets.load("dit-xl-2"))


def test_a_first_stage_alone_becomes_an_autoencoder(imported: Imported, tmp_path: Path) -> None:
    prefix = "codec.first_stage."
    codec = {n.removeprefix(prefix): t for n, t in imported.tensors.items() if n.startswith(prefix)}
    stage = imported.preset.task.codec.first_stage
    named = write(stage_rules(stage.network, stage.bottleneck, codec, COMPVIS), codec)
    torch.save({"state_dict": named | {"loss.discriminator.main.0.bias": torch.zeros(2)}}, tmp_path / "vqgan.ckpt")
    found = importing.load(tmp_path / "vqgan.ckpt", None)
    assert found.preset.task.kind == "autoencoder"
    task = found.preset.task.build(found.preset.specs)
    task.load_state_dict(found.tensors)
    assert all(torch.equal(task.autoencoder.state_dict()[name], tensor) for name, tensor in codec.items())

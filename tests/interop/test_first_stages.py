"""First stages of diffusers and of CompVis: the same latents and pictures, every key of the published sizes, and out again."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.torch import save_file
from torch import Tensor

from diffcli.config import UserError
from diffcli.interop import first_stages
from diffcli.interop.first_stages import ForeignStage, Scaling
from diffcli.interop.stages.autoencoder_rules import COMPVIS, DIFFUSERS, stage_rules
from diffcli.interop.weight_files import wanted_shapes, write
from diffcli.networks.autoencoder import Autoencoder, FirstStageConfig
from tests.interop.making import STAGE, close, noise, wake

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers

KL: dict[str, dict[str, Any]] = {
    "as Stable Diffusion": {"layers_per_block": 2},
    "three levels, grey": {
        "block_out_channels": [8, 8, 16],
        "down_block_types": ["DownEncoderBlock2D"] * 3,
        "up_block_types": ["UpDecoderBlock2D"] * 3,
        "in_channels": 1,
        "out_channels": 1,
    },
    "attention": {
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    },
    "attention in the decoder alone": {"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]},
    "attention in the encoder alone": {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
    "no attention": {"mid_block_add_attention": False},
    "no convolutions around the latent": {"use_quant_conv": False, "use_post_quant_conv": False, "latent_channels": 6},
    "shift": {"shift_factor": 0.3, "scaling_factor": 1.5},
}
VQ: dict[str, dict[str, Any]] = {"plain": {}, "narrow codes": {"latent_channels": 8, "vq_embed_dim": 3}}
STABLE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}
F4 = {
    "block_out_channels": [128, 256, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 2,
    "num_vq_embeddings": 8192,
    "sample_size": 256,
}


def kl(**options: Any) -> diffusers.AutoencoderKL:
    return wake(diffusers.AutoencoderKL(**(STAGE | options)))


def vq(**options: Any) -> diffusers.VQModel:
    return wake(diffusers.VQModel(**(STAGE | {"num_vq_embeddings": 20} | options)))


def built(stage: ForeignStage) -> Autoencoder:
    made = stage.config.build()
    made.load_state_dict(stage.tensors)
    return made.eval()


def imported(theirs: Any, folder: Path) -> ForeignStage:
    theirs.save_pretrained(folder)
    return first_stages.from_diffusers(folder)


def exported(stage: ForeignStage, scaling: Scaling, folder: Path) -> Path:
    config, tensors = first_stages.to_diffusers(stage.config, stage.tensors, scaling, 16)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.mark.parametrize("variant", KL)
@torch.no_grad()
def test_an_autoencoder_of_diffusers_has_the_same_latents_and_pictures(variant: str, tmp_path: Path):
    theirs = kl(**KL[variant])
    stage = imported(theirs, tmp_path / "vae")
    ours, x = built(stage), noise(2, theirs.config.in_channels, 16, 24)
    posterior = theirs.encode(x).latent_dist
    close(ours.encode(x), posterior.parameters)
    close(ours.bottleneck.latent(ours.encode(x), None), posterior.mode())
    z = noise(2, theirs.config.latent_channels, 4, 6, seed=2)
    close(ours.decode(ours.bottleneck.snapped(z)), theirs.decode(z).sample)
    shift = theirs.config.shift_factor or 0
    close(
        (z - stage.scaling.shift[:, None, None]) / stage.scaling.scale[:, None, None],
        (z - shift) * theirs.config.scaling_factor,
    )


@pytest.mark.parametrize("variant", VQ)
@torch.no_grad()
def test_a_quantised_one_has_the_same_latents_before_and_pictures_after_quantising(variant: str, tmp_path: Path):
    theirs = vq(**VQ[variant])
    ours, x = built(imported(theirs, tmp_path / "vqvae")), noise(2, 3, 16, 24)
    latent = ours.bottleneck.latent(ours.encode(x), None)
    close(latent, theirs.encode(x).latents)
    latent = noise(*latent.shape, seed=2)  # spread over more codes than those of an image by random weights
    assert len(ours.bottleneck(latent, None).codes.unique()) > 5
    close(ours.decode(ours.bottleneck.snapped(latent)), theirs.decode(latent).sample)


@pytest.mark.parametrize("variant", [name for name in KL if "alone" not in name and "around" not in name])
@torch.no_grad()
def test_what_came_in_goes_out_and_is_the_same_model(variant: str, tmp_path: Path):
    theirs = kl(**KL[variant])
    stage = imported(theirs, tmp_path / "in")
    again = diffusers.AutoencoderKL.from_pretrained(exported(stage, stage.scaling, tmp_path / "out")).eval()
    x, z = noise(2, theirs.config.in_channels, 16, 16), noise(2, theirs.config.latent_channels, 4, 4, seed=2)
    scaled = [
        (vae.encode(x).latent_dist.mode() - (vae.config.shift_factor or 0)) * vae.config.scaling_factor
        for vae in (theirs, again)
    ]
    close(scaled[1], scaled[0])
    drawn = [
        vae.decode(z / vae.config.scaling_factor + (vae.config.shift_factor or 0)).sample for vae in (theirs, again)
    ]
    close(drawn[1], drawn[0])


@torch.no_grad()
def test_a_scale_for_each_channel_is_folded_into_the_convolutions_around_the_latent(tmp_path: Path):
    stage = imported(kl(), tmp_path / "in")
    scaling = Scaling(torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([0.5, 2.0, 1.0, 3.0]))
    again = diffusers.AutoencoderKL.from_pretrained(exported(stage, scaling, tmp_path / "out")).eval()
    assert again.config.scaling_factor == 1
    ours, x, z = built(stage), noise(2, 3, 16, 16), noise(2, 4, 4, 4, seed=2)
    shift, scale = (value[:, None, None] for value in scaling)
    mean, log_variance = ours.encode(x).chunk(2, dim=1)
    found = again.encode(x).latent_dist
    close(found.mean, (mean - shift) / scale)
    close(found.std, (log_variance / 2).exp() / scale)
    close(again.decode(z).sample, ours.decode(z * scale + shift))


@torch.no_grad()
def test_a_codebook_takes_one_scale_and_any_shift_but_no_scale_of_each_channel(tmp_path: Path):
    stage = imported(vq(), tmp_path / "in")
    scaling = Scaling(torch.tensor([0.1, -0.2, 0.3]), torch.full((3,), 2.0))
    again = diffusers.VQModel.from_pretrained(exported(stage, scaling, tmp_path / "out")).eval()
    ours, z = built(stage), noise(2, 3, 8, 8, seed=2)
    shift, scale = (value[:, None, None] for value in scaling)
    close(again.decode(z * again.config.scaling_factor).sample, ours.decode(ours.bottleneck.snapped(z * scale + shift)))
    with pytest.raises(UserError, match="scale for each channel"):
        first_stages.to_diffusers(
            stage.config, stage.tensors, Scaling(scaling.shift, torch.tensor([1.0, 2.0, 2.0])), 16
        )


@pytest.mark.parametrize(
    ("kind", "options"), [(diffusers.AutoencoderKL, STABLE), (diffusers.VQModel, F4)], ids=["kl-f8", "vq-f4"]
)
def test_every_key_and_shape_of_the_published_sizes_has_its_place(kind: Any, options: dict[str, Any]):
    from diffcli.interop.foreign import Foreign
    from diffcli.interop.stages import stage_config

    with torch.device("meta"):
        theirs = kind(**options)
        config = Foreign(json.loads(theirs.to_json_string()), stage_config.defaults(kind.__name__), "config.json")
        stage = FirstStageConfig.model_validate(stage_config.read_config(config))
        ours = stage.build().state_dict()
    shapes = wanted_shapes(stage_rules(stage.network, stage.bottleneck, ours, DIFFUSERS), ours)
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}


def compvis_tensors(stage: ForeignStage) -> dict[str, Tensor]:
    """A first stage of ours in the other layout, with what only training needs beside it."""
    rules = stage_rules(stage.config.network, stage.config.bottleneck, stage.tensors, COMPVIS)
    return write(rules, stage.tensors) | {
        "loss.discriminator.main.0.weight": torch.zeros(1),
        "loss.logvar": torch.zeros(1),
    }


@pytest.mark.parametrize("inside", ["", first_stages.INSIDE])
@torch.no_grad()
def test_the_layout_of_compvis_is_that_which_diffusers_converts(inside: str, tmp_path: Path):
    """diffusers' own converter of latent-diffusion's autoencoders is the witness for every name."""
    theirs = kl(block_out_channels=[32, 64], norm_num_groups=32, layers_per_block=2)
    stage = imported(theirs, tmp_path / "vae")
    named = compvis_tensors(stage)
    again = diffusers.AutoencoderKL(
        **{**STAGE, "block_out_channels": [32, 64], "norm_num_groups": 32, "layers_per_block": 2}
    )
    kept = {name: tensor for name, tensor in named.items() if not name.startswith("loss.")}
    again.load_state_dict(convert_ldm_vae_checkpoint(kept, again.config))
    x = noise(2, 3, 16, 16)
    close(again.eval().encode(x).latent_dist.parameters, theirs.encode(x).latent_dist.parameters)
    read = first_stages.from_compvis({inside + name: tensor for name, tensor in named.items()}, "file")
    assert read.config == stage.config
    assert read.scaling is None
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in stage.tensors.items())


@torch.no_grad()
def test_a_vqgan_of_taming_is_told_by_its_tensors_alone(tmp_path: Path):
    options = {
        "block_out_channels": [32, 64],
        "norm_num_groups": 32,
        "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
        "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
        "latent_channels": 8,
        "vq_embed_dim": 4,
    }
    stage = imported(vq(**options), tmp_path / "vqvae")
    read = first_stages.from_compvis(compvis_tensors(stage), "file")
    assert read.config == stage.config
    x = noise(2, 3, 16, 16)
    close(built(read).encode(x), built(stage).encode(x))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "mish"),
        ("block_out_channels", [8, 12]),
        ("out_channels", 4),
        ("down_block_types", ["DownBlock2D", "DownEncoderBlock2D"]),
        ("norm_type", "spatial"),
    ],
)
def test_what_our_first_stages_have_not_is_refused_by_key(key: str, value: object, tmp_path: Path):
    vq().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=rf"config\.json: {key} is ") as error:
        first_stages.from_diffusers(tmp_path)
    assert json.dumps(value) in error.value.problem


def test_a_folder_or_file_without_a_first_stage_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"holds no config\.json of a first stage"):
        first_stages.from_diffusers(tmp_path)
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(UserError, match="_class_name is 'UNet2DModel'"):
        first_stages.from_diffusers(tmp_path)
    assert not first_stages.is_folder(tmp_path)
    with pytest.raises(UserError, match="holds no first stage in the layout"):
        first_stages.from_compvis({"model.x": torch.zeros(1)}, "file.ckpt")


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"bottleneck": {"kind": "none"}}, "bottleneck.kind"),
        ({"vector": 3}, "vector"),
        ({"network": {"norm_eps": 1e-5}}, "network.norm_eps"),
        ({"network": {"patch": 2}}, "network.patch"),
        ({"network": {"whole": (16, 16)}}, "network.whole"),
        (
            {"network": {"whole": (16, 16)}, "bottleneck": {"kind": "vq", "codes": 4, "own": True}},
            "bottleneck.own true and",
        ),
        ({"network": {"middle_blocks": 0, "middle_attention": False}}, "network.middle_blocks"),
        ({"network": {"groups": 32}}, "network.groups"),
        ({"network": {"features": 8}}, "network.features"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_key(changes: dict[str, Any], key: str):
    network = {"width": 8, "mult": (1, 2), "depth": 1, "groups": 4, **changes.get("network", {})}
    tree = {"network": network, "bottleneck": {"kind": "kl"}, "channels": 3}
    stage = FirstStageConfig.model_validate(tree | {key: value for key, value in changes.items() if key != "network"})
    scaling = Scaling(torch.zeros(4), torch.ones(4))
    with pytest.raises(UserError, match=f"has {key} "):
        first_stages.to_diffusers(stage, stage.build().state_dict(), scaling, 16)

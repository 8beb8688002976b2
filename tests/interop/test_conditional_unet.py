"""UNet2DConditionModel of diffusers: the same outputs, every key of the published sizes, and back again."""

import json
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from diffcli.config import ImageShape, UserError
from diffcli.interop.foreign import Foreign
from diffcli.interop.unets import diffusers_conditional, diffusers_config, diffusers_unet
from diffcli.interop.unets.places import NETWORK
from diffcli.interop.weight_files import read, wanted_shapes, write
from diffcli.networks.attention_blocks import TokenAttention
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.unet import UNet, UNetConfig
from tests.interop.making import TRANSFORMING, close, noise, wake

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers

TIMES = torch.tensor([0.0, 137.0, 500.0, 999.0])
SIZE, TOKENS = 8, 12
TINY = TRANSFORMING | {"cross_attention_dim": TOKENS}
VARIANTS: dict[str, dict[str, Any]] = {
    "as Stable Diffusion 1": {"layers_per_block": 2},
    "as Stable Diffusion 2": {"attention_head_dim": [2, 4], "use_linear_projection": True, "upcast_attention": True},
    "attention everywhere": {
        "block_out_channels": [16, 16, 32],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3,
        "up_block_types": ["CrossAttnUpBlock2D"] * 3,
    },
    "only the decoder attends": {"down_block_types": ["DownBlock2D"] * 2},
    "only the encoder attends": {"up_block_types": ["UpBlock2D"] * 2},
    "only the middle attends": {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
    "no middle": {"mid_block_type": None},
    "learned variance, no flip, shifted frequencies": {
        "out_channels": 8,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "norm_eps": 1e-3,
    },
    "scale and shift": {"resnet_time_scale_shift": "scale_shift"},
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "Stable Diffusion 1.5": {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8},
    "Stable Diffusion 2.1": {
        "sample_size": 96,
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "use_linear_projection": True,
        "upcast_attention": True,
    },
}


def config_of(theirs: diffusers.UNet2DConditionModel) -> Foreign:
    values = json.loads(theirs.to_json_string())
    return Foreign(values, diffusers_conditional.DEFAULTS, "config.json")


def twin(theirs: diffusers.UNet2DConditionModel) -> UNet:
    """Our network of their configuration, with its own weights."""
    config = config_of(theirs)
    tree = diffusers_conditional.read_config(config)
    size = config.get("sample_size")
    shape = ImageShape(config.get("in_channels"), size, size)
    cond = CondShape(tokens=config.get("cross_attention_dim"))
    return UNetConfig.model_validate(tree).build(shape, config.get("out_channels"), cond)


def taken(theirs: diffusers.UNet2DConditionModel) -> UNet:
    """Our network of their configuration, with their weights."""
    made, config = twin(theirs), config_of(theirs)
    ours = {f"{NETWORK}.{name}": tensor for name, tensor in made.state_dict().items()}
    rules = diffusers_unet.diffusers_rules(
        made,
        ours,
        null=False,
        gone=diffusers_config.gone(config),
        sines_first=not config.get("flip_sin_to_cos"),
        linear=config.get("use_linear_projection"),
    )
    found = read(rules, theirs.state_dict(), ours, "the test")
    made.load_state_dict({name.removeprefix(f"{NETWORK}."): tensor for name, tensor in found.items()})
    return made.eval()


def unet(**options: Any) -> diffusers.UNet2DConditionModel:
    return wake(diffusers.UNet2DConditionModel(**(TINY | options)))


def inputs(length: int = 5) -> tuple[Tensor, Tensor]:
    return noise(4, 4, SIZE, SIZE), noise(4, length, TOKENS, seed=3)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_outputs_are_those_of_diffusers_and_it_goes_out_as_it_came(variant: str):
    theirs = unet(**VARIANTS[variant])
    ours = taken(theirs)
    x, tokens = inputs()
    expected = theirs(x, TIMES, tokens).sample
    close(ours(x, TIMES, Conditioning(tokens=tokens)), expected)
    if variant in ("only the decoder attends", "only the encoder attends"):
        return  # ours has keys for the whole level
    config = diffusers_conditional.write_config(ours, ImageShape(4, SIZE, SIZE))
    again = diffusers.UNet2DConditionModel(**config, sample_size=SIZE, out_channels=theirs.config.out_channels)
    state = {f"{NETWORK}.{name}": tensor for name, tensor in ours.state_dict().items()}
    again.load_state_dict(write(diffusers_unet.diffusers_rules(ours, state, null=False), state))
    close(again.eval()(x, TIMES, tokens).sample, expected)


@torch.no_grad()
def test_a_larger_map_that_is_not_square_is_denoised_alike():
    theirs = unet()
    x, tokens = noise(2, 4, 12, 20), noise(2, 3, TOKENS, seed=3)
    found = taken(theirs)(x, TIMES[1:3], Conditioning(tokens=tokens))
    close(found, theirs(x, TIMES[1:3], tokens).sample)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_and_shape_of_the_published_sizes_has_its_place(name: str):
    with torch.device("meta"):
        theirs = diffusers.UNet2DConditionModel(**PUBLISHED[name])
        ours = twin(theirs)
    state = {f"{NETWORK}.{name}": tensor for name, tensor in ours.state_dict().items()}
    linear = theirs.config.use_linear_projection
    shapes = wanted_shapes(diffusers_unet.diffusers_rules(ours, state, null=False, linear=linear), state)
    assert shapes == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    heads = sorted(module.heads for module in theirs.modules() if hasattr(module, "to_q"))
    assert sorted(m.heads for m in ours.modules() if isinstance(m, TokenAttention)) == heads


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("down_block_types", ["SimpleCrossAttnDownBlock2D", "DownBlock2D"]),
        ("mid_block_type", "UNetMidBlock2D"),
        ("transformer_layers_per_block", 2),
        ("layers_per_block", [1, 2]),
        ("attention_head_dim", 5),
        ("class_embed_type", "projection"),
        ("num_class_embeds", 7),
        ("addition_embed_type", "text_time"),
        ("only_cross_attention", True),
        ("encoder_hid_dim", 16),
        ("norm_num_groups", None),
        ("conv_in_kernel", 5),
        ("sample_size", None),
    ],
)
def test_what_our_unet_has_not_is_refused_by_key(key: str, value: object):
    config = Foreign(TINY | {key: value}, diffusers_conditional.DEFAULTS, "config.json")
    with pytest.raises(UserError, match=rf"config\.json: {key} is ") as error:
        diffusers_conditional.read_config(config)
    assert json.dumps(value) in error.value.problem


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transformer_eps", None),
        ("resample", "residual"),
        ("middle", ("res", "res")),
        ("blocks", ("res", "res", "spatial_transformer")),
        ("activation", "leaky_relu"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_key(key: str, value: object):
    tree = diffusers_conditional.read_config(config_of(unet())) | {key: value}
    ours = UNetConfig.model_validate(tree).build(ImageShape(4, SIZE, SIZE), 4, CondShape(tokens=TOKENS))
    with pytest.raises(UserError, match=rf"task\.network\.{key} is "):
        diffusers_conditional.write_config(ours, ImageShape(4, SIZE, SIZE))

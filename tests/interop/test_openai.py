"""U-Nets of improved- and guided-diffusion: a preset says their flags, and the outputs are theirs."""

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.interop import importing
from tests.interop.making import STAGE, close, condition, loaded, network, noise, wake, write_preset
from tests.interop.openai_reference import Flags, OpenAIUNet

INDEX = torch.tensor([0.0, 41.0, 500.0, 999.0])
CLASSES = 6
VARIANTS = {
    "improved": Flags(),
    "improved, added embedding, one head": Flags(use_scale_shift_norm=False, num_heads=1),
    "improved, fixed variance, classes": Flags(learn_sigma=False, classes=CLASSES),
    "guided": Flags(num_head_channels=16, resblock_updown=True, use_new_attention_order=True, classes=CLASSES),
    "guided, old order": Flags(num_head_channels=16, resblock_updown=True),
    "guided, heads in the new order": Flags(num_heads=2, use_new_attention_order=True, attention_resolutions=(16, 8)),
    "guided at 512, whose first level is half as wide": Flags(
        num_channels=64, channel_mult=(0.5, 1), num_head_channels=16, resblock_updown=True, classes=CLASSES
    ),
    "three levels, one block, no attention": Flags(
        channel_mult=(1, 1, 2), num_res_blocks=1, attention_resolutions=(), num_channels=32
    ),
}


def described(flags: Flags, folder: Path, **changes: Any) -> presets.Preset:
    """The preset that the flags mean."""
    heads = {"head_dim": flags.num_head_channels} if flags.num_head_channels else {"heads": flags.num_heads}
    unet = {
        "kind": "unet",
        "width": flags.num_channels,
        "mult": list(flags.channel_mult),
        "blocks": (["res", "attention"] if flags.attention_resolutions else ["res"]) * flags.num_res_blocks,
        "attend_at": list(flags.attention_resolutions),
        **heads,
        "qkv": "by_part" if flags.use_new_attention_order else "by_head",
        "embed": "scale_shift" if flags.use_scale_shift_norm else "add",
        "resample": "residual" if flags.resblock_updown else "conv",
    }
    classes = {"kind": "class", "num_classes": flags.classes, "dim": changes.pop("dim", 4 * flags.num_channels)}
    return write_preset(
        folder,
        data={"kind": "none", "size": changes.pop("size", flags.image_size)},
        learn_variance=flags.learn_sigma,
        network=unet | changes.pop("network", {}),
        conditioners=[classes] if flags.classes else [],
        **changes,
    )


def saved(flags: Flags, folder: Path) -> tuple[OpenAIUNet, Path]:
    theirs, path = wake(OpenAIUNet(flags)), folder / "model.pt"
    torch.save(theirs.state_dict(), path)
    return theirs, path


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_an_imported_unet_gives_the_same_outputs(variant: str, tmp_path: Path):
    flags = VARIANTS[variant]
    theirs, path = saved(flags, tmp_path)
    task = loaded(importing.load(path, described(flags, tmp_path)))
    x, labels = noise(4, 3, 16, 16), torch.tensor([0, 5, 2, 1]) if flags.classes else None
    close(network(task)(x, INDEX, condition(task, labels, x)), theirs(x, INDEX, labels))


@torch.no_grad()
def test_a_preset_of_latents_brings_the_first_stage_that_it_names(tmp_path: Path):
    vae = wake(diffusers.AutoencoderKL(**STAGE, latent_channels=3), seed=2)
    vae.save_pretrained(tmp_path / "vae")
    theirs, path = saved(Flags(), tmp_path)
    codec = {"kind": "latent", "from": str(tmp_path / "vae")}
    task = loaded(importing.load(path, described(Flags(), tmp_path, codec=codec, size=32)))
    x = noise(4, 3, 16, 16)
    close(network(task)(x, INDEX, condition(task, None, x)), theirs(x, INDEX))
    close(task.codec.decode(x), vae.decode(x / vae.config.scaling_factor).sample)


@torch.no_grad()
def test_the_other_order_of_attention_is_another_network(tmp_path: Path):
    """So the preset, which alone can tell it, decides."""
    flags = VARIANTS["guided"]
    theirs, path = saved(flags, tmp_path)
    task = loaded(importing.load(path, described(flags, tmp_path, network={"qkv": "by_head"})))
    x, labels = noise(4, 3, 16, 16), torch.tensor([0, 5, 2, 1])
    found = network(task)(x, INDEX, condition(task, labels, x))
    assert float((found - theirs(x, INDEX, labels)).abs().max()) > 1e-2


@pytest.mark.parametrize(("scale", "told"), [(1.0, INDEX / 4), (4.0, INDEX)])
@torch.no_grad()
def test_of_4000_steps_the_network_is_told_a_rescaled_time_or_the_index(
    scale: float, told: torch.Tensor, tmp_path: Path
):
    """rescale_timesteps True, the default of improved-diffusion, and False, as its class-conditional ImageNet model has it."""
    flags = Flags()
    theirs, path = saved(flags, tmp_path)
    given = described(
        flags,
        tmp_path,
        target="eps",
        schedule={"kind": "cosine", "steps": 4000},
        network={"time_scale": scale},
        codec={"clip": False},
    )
    task, x = loaded(importing.load(path, given)), noise(4, 3, 16, 16)
    p = task.denoiser(x, (INDEX + 1).double() / 4000, condition(task, None, x))
    eps, variance = theirs(x, told).chunk(2, dim=1)
    close(p.eps, eps)
    assert p.var_frac is not None
    close(p.var_frac, (variance + 1) / 2)


def test_what_does_not_fit_is_listed_and_nothing_is_made(tmp_path: Path):
    _, path = saved(Flags(), tmp_path)
    with pytest.raises(UserError) as error:
        importing.load(path, described(Flags(num_channels=64, num_res_blocks=1), tmp_path))
    told = str(error.value)
    assert "model.pt: its tensors do not fit" in told
    assert "unexpected (input_blocks." in told
    assert "wrongly shaped (time_embed.0.weight [128, 32] instead of [256, 64]" in told
    assert "--as PRESET" in told
    with pytest.raises(UserError, match=r"\d+ missing \(.*input_blocks\.\d+\.\d+"):
        importing.load(path, described(Flags(num_res_blocks=3), tmp_path))


def test_classes_that_differ_are_told(tmp_path: Path):
    flags = Flags(classes=CLASSES)
    _, path = saved(flags, tmp_path)
    with pytest.raises(UserError, match=r"label_emb\.weight has 6 rows.*num_classes 9"):
        importing.load(path, described(flags._replace(classes=9), tmp_path))
    with pytest.raises(UserError, match=r"1 unexpected \(label_emb\.weight\)"):
        importing.load(path, described(flags._replace(classes=None), tmp_path))
    with pytest.raises(UserError, match=r"drop_condition 0\.1, which needs one more for no class"):
        importing.load(path, described(flags, tmp_path, drop_condition=0.1))
    with pytest.raises(UserError, match=r"task\.conditioners\.0\.dim is 32.*\n.*128"):
        importing.load(path, described(flags, tmp_path, dim=32))


def test_without_a_preset_the_presets_that_fit_are_named(tmp_path: Path):
    _, path = saved(Flags(), tmp_path)
    with pytest.raises(UserError, match="--as imagenet64-adm"):
        importing.load(path, None)


def test_a_preset_of_another_network_is_refused(tmp_path: Path):
    _, path = saved(Flags(), tmp_path)
    with pytest.raises(UserError, match=r"holds a U-Net, but --as mnist-dit has task\.network\.kind 'dit'"):
        importing.load(path, presets.load("mnist-dit"))
    with pytest.raises(UserError, match=r"task\.kind is 'classifier'"):
        importing.load(path, presets.load("digits-classifier"))


class Unsafe:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("this must never be printed",)


def test_a_pickle_of_more_than_tensors_is_refused_unread(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    theirs = OpenAIUNet(Flags())
    torch.save({"model": theirs.state_dict(), "args": Unsafe()}, tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"never loaded.*\n.*torch\.save\(model\.state_dict\(\), FILE\)"):
        importing.load(tmp_path / "model.pt", None)
    assert "never be printed" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "model.pt"), (b"not a pickle", "model.pt"), (None, "no such file")],
    ids=["empty", "text", "nothing"],
)
def test_a_file_that_is_no_checkpoint_is_refused(content: bytes | None, told: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(UserError, match=told):
        importing.load(tmp_path / "model.pt", None)


@pytest.mark.parametrize("found", [[1, 2], {"a": 3}, {}], ids=str)
def test_a_pickle_of_something_else_is_refused(found: object, tmp_path: Path):
    torch.save(found, tmp_path / "model.pt")
    with pytest.raises(UserError, match="not a state dict of tensors"):
        importing.load(tmp_path / "model.pt", None)


def test_tensors_of_an_unknown_model_are_refused(tmp_path: Path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"\(weight, bias, \.\.\.\) are not those of a model that diffcli knows"):
        importing.load(tmp_path / "model.pt", None)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        (
            "imagenet64-adm",
            Flags(64, 192, (1, 2, 3, 4), 3, (32, 16, 8), 4, 64, True, 1000, True, True, True),
        ),
        ("imagenet64-iddpm", Flags(64, 128, (1, 2, 3, 4), 3, (16, 8))),
        ("cifar10-iddpm", Flags(32, 128, (1, 2, 2, 2), 3, (16, 8))),
    ],
)
def test_the_shipped_presets_have_every_tensor_of_the_published_models(name: str, flags: Flags):
    from diffcli.interop.imported import on_meta
    from diffcli.interop.unets import openai
    from diffcli.interop.unets.places import class_rules
    from diffcli.interop.weight_files import wanted_shapes

    with torch.device("meta"):
        theirs = OpenAIUNet(flags).state_dict()
    task = on_meta(presets.load(name))
    ours = task.state_dict()
    classes = class_rules(ours, openai.LABELS, null=False)
    wanted = wanted_shapes(openai.openai_rules(task.denoiser.network, ours, classes), ours)
    assert wanted == {key: tensor.shape for key, tensor in theirs.items()}
    attention = task.denoiser.network.middle.blocks[1]
    assert attention.heads == (768 // 64 if flags.num_head_channels else 4)
    assert attention.by_part == flags.use_new_attention_order

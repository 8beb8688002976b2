"""DiT and SiT in the layout of their authors, and diffusers' DiT: imported the same outputs, exported the same weights."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.interop import importing, published_dit
from diffcli.interop.exporting import export_diffusers
from diffcli.noise import Noise
from diffcli.tasks.diffusion import DiffusionTask
from tests.interop.dit_reference import ReferenceDiT
from tests.interop.making import CPU, STAGE, close, condition, loaded, network, noise, wake, write_preset

WIDTH, CLASSES = 384, 5  # the smallest published width, whose heads (6) need no preset
TIMES = torch.tensor([0.0, 137.0, 500.0, 999.0])
LABELS = torch.tensor([0, 4, 2, 5])  # 5 is no class


def reference(channels: int = 3, velocity: bool = False) -> ReferenceDiT:
    return wake(ReferenceDiT(channels, 8, WIDTH, 2, 6, CLASSES, velocity), keep="pos_embed")


def flow_preset(tmp_path: Path, **changes: Any) -> presets.Preset:
    """What tells an importer that a file is a SiT."""
    network = {"kind": "dit", "patch": 2, "width": WIDTH, "depth": 2, "heads": 6, "time_scale": 0.001}
    return write_preset(
        tmp_path,
        data={"kind": "none", "size": 8, "channels": 4},
        target="flow",
        schedule={"kind": "flow"},
        network=network | changes,
        conditioners=[{"kind": "class", "num_classes": CLASSES, "dim": WIDTH}],
        drop_condition=0.1,
        codec={"kind": "pixels", "clip": False},
    )


def save_pt(theirs: torch.nn.Module, path: Path, **around: Any) -> Path:
    state = theirs.state_dict()
    torch.save({"ema": state, **around} if around else state, path)
    return path


@pytest.mark.parametrize("channels", [3, 4])
@torch.no_grad()
def test_a_published_dit_needs_no_preset_and_gives_the_same_outputs(channels: int, tmp_path: Path):
    theirs = reference(channels)
    imported = importing.load(save_pt(theirs, tmp_path / "DiT.pt"), None)
    task, x = loaded(imported), noise(4, channels, 8, 8)
    assert imported.preset.data.shape == (channels, 8, 8)
    assert task.denoiser.learn_variance
    assert (task.codec.bounds is None) == (channels == 4)  # latents are never clipped
    assert "sit-xl-2" in imported.notes[0]
    close(network(task)(x, TIMES, condition(task, LABELS, x)), theirs(x, TIMES, LABELS))


@torch.no_grad()
def test_the_averaged_weights_of_a_training_checkpoint_are_taken(tmp_path: Path):
    theirs = reference()
    worse = wake(reference(), seed=99).state_dict()
    imported = importing.load(save_pt(theirs, tmp_path / "DiT.pt", model=worse, opt={}), None)
    task, x = loaded(imported), noise(4, 3, 8, 8)
    close(network(task)(x, TIMES, condition(task, LABELS, x)), theirs(x, TIMES, LABELS))


@torch.no_grad()
def test_sit_with_time_turned_and_sign_changed_is_our_flow(tmp_path: Path):
    """tau = 1 - t and data - noise there; t and noise - data here: x0 = x - t v, eps = x + (1 - t) v."""
    theirs, given = reference(4, velocity=True), flow_preset(tmp_path)
    task, x = loaded(importing.load(save_pt(theirs, tmp_path / "SiT.pt"), given)), noise(4, 4, 8, 8)
    for t in (torch.tensor([1.0, 0.75, 0.3, 0.002]), torch.tensor([0.9, 0.5, 0.11, 0.01])):
        velocity = theirs(x, 1 - t, LABELS)
        p = task.denoiser(x, t, condition(task, LABELS, x))
        along = t[:, None, None, None]
        close(p.x0, x + along * velocity)
        close(p.eps, x - (1 - along) * velocity)


@torch.no_grad()
def test_sit_draws_what_its_own_euler_walk_draws(tmp_path: Path):
    theirs, given = reference(4, velocity=True), flow_preset(tmp_path)
    task = loaded(importing.load(save_pt(theirs, tmp_path / "SiT.pt"), given))
    start = Noise([3, 4], CPU)(torch.empty(2, 4, 8, 8))
    x, steps = start, 10
    for k in range(steps):  # from tau = 0, noise, to tau = 1, data
        x = x + theirs(x, torch.full((2,), k / steps), torch.tensor([1, 3])) / steps
    *_, last = task.trajectory({"label": torch.tensor([1, 3])}, [3, 4], presets.Ddim(steps=steps), 1.0)
    close(last.x, x, 1e-4)


@pytest.mark.parametrize("velocity", [False, True], ids=["DiT", "SiT"])
@torch.no_grad()
def test_a_preset_of_latents_brings_the_first_stage_that_it_names(velocity: bool, tmp_path: Path):
    """Its network works on latents of 4 channels, its images have 3; of SiT's 8 outputs 4 are dropped."""
    vae = wake(diffusers.AutoencoderKL(**STAGE), seed=2)
    vae.save_pretrained(tmp_path / "vae")
    theirs, raw = reference(4, velocity), flow_preset(tmp_path).model_dump(mode="json")
    raw["data"] |= {"size": 16, "channels": 3}
    raw["task"]["codec"] = {"kind": "latent", "from": str(tmp_path / "vae")}
    if not velocity:
        raw["task"] |= {"target": "eps", "schedule": {"kind": "linear"}, "learn_variance": True}
        raw["task"]["network"]["time_scale"] = 1.0
    task = loaded(importing.load(save_pt(theirs, tmp_path / "model.pt"), presets.build(raw, "latent")))
    x, times = noise(4, 4, 8, 8), TIMES if not velocity else torch.tensor([1.0, 0.75, 0.3, 0.002])
    cond = condition(task, LABELS, x)
    found = network(task)(x, times, cond) if not velocity else -network(task)(x, 1000 * times, cond)
    close(found, theirs(x, 1 - times if velocity else times, LABELS))
    close(task.codec.decode(x), vae.decode(x / vae.config.scaling_factor).sample)


def test_turning_time_twice_changes_nothing():
    weight = noise(7, published_dit.TIME_WIDTH)
    once = published_dit.against_time(weight)[0]
    assert not torch.allclose(once, weight)
    torch.testing.assert_close(published_dit.against_time(once)[0], weight)


def test_a_sit_without_the_scale_of_its_time_is_refused(tmp_path: Path):
    path = save_pt(reference(4, velocity=True), tmp_path / "SiT.pt")
    with pytest.raises(UserError, match=r"time_scale 1\n.*0\.001"):
        importing.load(path, flow_preset(tmp_path, time_scale=1.0))


def test_learned_positions_are_refused(tmp_path: Path):
    theirs = wake(reference())
    with pytest.raises(UserError, match=r"pos_embed.*not the sin-cos"):
        importing.load(save_pt(theirs, tmp_path / "DiT.pt"), None)


def test_a_dit_of_unknown_width_needs_a_preset(tmp_path: Path):
    theirs = ReferenceDiT(3, 8, 64, 1, 2, CLASSES, False)
    with pytest.raises(UserError, match=r"64 wide is none of the published sizes.*\n.*--as PRESET"):
        importing.load(save_pt(theirs, tmp_path / "DiT.pt"), None)


def diffusers_dit(**options: Any) -> diffusers.DiTTransformer2DModel:
    """Random weights, the copies of its embedders equal as in published models."""
    arguments = {
        "num_attention_heads": 4,
        "attention_head_dim": 16,
        "in_channels": 3,
        "out_channels": 6,
        "num_layers": 2,
        "sample_size": 8,
        "patch_size": 2,
        "num_embeds_ada_norm": CLASSES,
    }
    model = wake(diffusers.DiTTransformer2DModel(**(arguments | options)))
    for block in model.transformer_blocks:
        block.norm1.emb.load_state_dict(model.transformer_blocks[0].norm1.emb.state_dict())
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"norm_eps": 1e-3},
        {"sample_size": 4, "patch_size": 1, "num_layers": 1},
        {"in_channels": 4, "out_channels": 4},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_dit_of_diffusers_gives_the_same_outputs(options: dict[str, Any], tmp_path: Path):
    theirs = diffusers_dit(**options)
    theirs.save_pretrained(tmp_path / "model")
    imported = importing.load(tmp_path / "model", None)
    task, x = loaded(imported), noise(4, *imported.preset.data.shape)
    expected = theirs(x, TIMES, LABELS).sample
    close(network(task)(x, TIMES, condition(task, LABELS, x)), expected)


def former(folder: Path, **changes: Any) -> Path:
    """A DiT under the class that it was published as, whose defaults are others."""
    model = diffusers_dit()
    model.save_pretrained(folder)
    said = {"activation_fn": "gelu-approximate", "attention_bias": True, "norm_elementwise_affine": False}
    config = json.loads((folder / "config.json").read_text()) | said
    config |= {"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "cross_attention_dim": None} | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@torch.no_grad()
def test_a_transformer_with_ada_norm_zero_is_a_dit(tmp_path: Path):
    folder = former(tmp_path / "model")
    theirs = diffusers_dit()
    task, x = loaded(importing.load(folder, None)), noise(4, 3, 8, 8)
    close(network(task)(x, TIMES, condition(task, LABELS, x)), theirs(x, TIMES, LABELS).sample)
    assert task.denoiser.learn_variance


@pytest.mark.parametrize(
    ("key", "value"),
    [("norm_type", "ada_norm_single"), ("cross_attention_dim", 8), ("caption_channels", 8), ("patch_size", None)],
)
def test_another_transformer_of_that_class_is_refused_by_key(key: str, value: object, tmp_path: Path):
    with pytest.raises(UserError, match=rf"config\.json: {key} is {json.dumps(value)}"):
        importing.load(former(tmp_path / "model", **{key: value}), None)


def test_embedders_that_differ_between_blocks_are_refused(tmp_path: Path):
    theirs = diffusers_dit()
    with torch.no_grad():
        theirs.transformer_blocks[1].norm1.emb.class_embedder.embedding_table.weight[0, 0] += 1
    theirs.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"transformer_blocks\.1\.norm1\.emb\.class_embedder.*differ"):
        importing.load(tmp_path / "model", None)


@pytest.mark.parametrize(
    ("key", "value"),
    [("activation_fn", "geglu"), ("norm_elementwise_affine", True), ("attention_bias", False), ("out_channels", 5)],
)
def test_what_our_dit_has_not_is_refused_by_key(key: str, value: object, tmp_path: Path):
    diffusers_dit().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(UserError, match=rf"config\.json: {key} is {json.dumps(value)}"):
        importing.load(tmp_path, None)


@torch.no_grad()
def test_a_dit_goes_out_as_it_came_in(tmp_path: Path):
    theirs = diffusers_dit()
    theirs.save_pretrained(tmp_path / "model")
    imported = importing.load(tmp_path / "model", None)
    out = export_diffusers(imported.preset, imported.tensors, tuple("abcde"), tmp_path / "out")
    again = diffusers.DiTTransformer2DModel.from_pretrained(out / "transformer").eval()
    x = noise(4, 3, 8, 8)
    assert torch.equal(again(x, TIMES, LABELS).sample, theirs(x, TIMES, LABELS).sample)
    scheduler = diffusers.DDPMScheduler.from_pretrained(out / "scheduler")
    assert scheduler.config.variance_type == "learned_range"
    back = importing.load(out, None)
    assert back.classes == tuple("abcde")
    assert all(torch.equal(back.tensors[name], tensor) for name, tensor in imported.tensors.items())


def test_a_dit_whose_time_diffusers_cannot_embed_is_refused_by_key(tmp_path: Path):
    imported = importing.load(save_pt(reference(), tmp_path / "DiT.pt"), None)
    with pytest.raises(UserError, match=r"task\.network\.max_period is 10000.*\n.*10752\.1"):
        export_diffusers(imported.preset, imported.tensors, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_file_of_an_exported_dit_holds_a_copy_of_the_embedder_in_every_block(tmp_path: Path):
    theirs = diffusers_dit(num_layers=3)
    theirs.save_pretrained(tmp_path / "model")
    imported = importing.load(tmp_path / "model", None)
    out = export_diffusers(imported.preset, imported.tensors, None, tmp_path / "out")
    written = load_file(out / "transformer/diffusion_pytorch_model.safetensors")
    assert {name: tensor.shape for name, tensor in written.items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }


def test_tensors_of_half_precision_and_other_wrappings_are_read(tmp_path: Path):
    theirs = reference()
    half: dict[str, Tensor] = {f"module.{name}": tensor.half() for name, tensor in theirs.state_dict().items()}
    torch.save(half, tmp_path / "half.pt")
    save_file(theirs.half().float().state_dict(), tmp_path / "plain.safetensors")
    first, second = (importing.load(tmp_path / name, None) for name in ("half.pt", "plain.safetensors"))
    assert all(tensor.dtype == torch.float32 for tensor in first.tensors.values())
    torch.testing.assert_close(first.tensors, second.tensors)


def test_a_task_of_an_imported_model_is_a_diffusion_task(tmp_path: Path):
    imported = importing.load(save_pt(reference(), tmp_path / "DiT.pt"), None)
    assert isinstance(loaded(imported), DiffusionTask)

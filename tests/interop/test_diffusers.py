"""UNet2DModel and DDPMPipeline of diffusers: in through `import`, out through `export`, the same outputs and images."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.diffusion.samplers import Ddim
from diffcli.interop import importing
from diffcli.interop.exporting import export_diffusers
from diffcli.interop.imported import Imported
from diffcli.noise import Noise
from tests.conftest import Cli
from tests.interop.making import CPU, close, condition, loaded, network, noise, wake

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside diffusers

TIMES = torch.tensor([0.0, 137.0, 500.0, 999.0])
SIZE = 16
PLAIN: dict[str, Any] = {
    "sample_size": SIZE,
    "block_out_channels": [16, 32],
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
}
GUIDED = {  # as the consistency models of OpenAI are kept there
    "down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 8,
    "num_class_embeds": 7,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "as google/ddpm-cifar10-32": {
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "downsample_padding": 0,
        "norm_eps": 1e-6,
        "attention_head_dim": None,
        "layers_per_block": 2,
    },
    "guided": GUIDED,
    "learned variance": {"out_channels": 6},
    "attention everywhere, three levels": {
        "block_out_channels": [16, 16, 32],
        "down_block_types": ["AttnDownBlock2D"] * 3,
        "up_block_types": ["AttnUpBlock2D"] * 3,
        "attention_head_dim": 4,
    },
    "only the decoder attends": {"down_block_types": ["DownBlock2D", "DownBlock2D"]},
    "only the encoder attends": {"up_block_types": ["UpBlock2D", "UpBlock2D"]},
    "a middle without attention": {"add_attention": False},
    "no middle": {"mid_block_type": None},
    "attention in the middle alone": {"down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2},
    "classes": {"num_class_embeds": 7},
    "gelu": {"act_fn": "gelu"},
    "relu": {"act_fn": "relu", "norm_eps": 1e-3},
    "residual resampling through attention blocks": {
        "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
    },
    "grey and not square": {"sample_size": [8, 16], "in_channels": 1, "out_channels": 1},
}


def unet(**options: Any) -> diffusers.UNet2DModel:
    return wake(diffusers.UNet2DModel(**(PLAIN | options)))


def labels_for(model: diffusers.UNet2DModel) -> Tensor | None:
    return torch.tensor([0, 6, 3, 2]) if model.config.num_class_embeds else None


def pipeline(folder: Path, scheduler: Any = None, **options: Any) -> tuple[diffusers.DDPMPipeline, Path]:
    """A pipeline with random weights, saved."""
    made = diffusers.DDPMPipeline(unet(**options), scheduler or diffusers.DDPMScheduler())
    made.save_pretrained(folder / "pipeline")
    return made, folder / "pipeline"


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A UNet2DModel with random weights, saved. Do not change it."""
    folder = tmp_path_factory.mktemp("plain")
    unet().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DDPMPipeline of such a network, saved. Do not change it."""
    return pipeline(tmp_path_factory.mktemp("plain_pipeline"))[1]


def config_with(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_a_unet_of_diffusers_gives_the_same_outputs_and_goes_out_as_it_came(variant: str, tmp_path: Path):
    theirs = unet(**VARIANTS[variant])
    theirs.save_pretrained(tmp_path / "model")
    imported = importing.load(tmp_path / "model", None)
    assert "no scheduler" in imported.notes[0]
    task, labels = loaded(imported), labels_for(theirs)
    x = noise(4, *imported.preset.data.shape)
    expected = theirs(x, TIMES, labels).sample
    close(network(task)(x, TIMES, condition(task, labels, x)), expected)
    out = export_diffusers(imported.preset, imported.tensors, None, tmp_path / "out")
    close(diffusers.DDPMPipeline.from_pretrained(out).unet.eval()(x, TIMES, labels).sample, expected)


@torch.no_grad()
def test_weights_under_the_old_names_of_attention_and_in_a_pickle_are_read(tmp_path: Path):
    theirs = unet()
    theirs.save_config(tmp_path)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = theirs.state_dict()
    for new, old in names.items():
        state = {name.replace(new, old): tensor for name, tensor in state.items()}
    assert "mid_block.attentions.0.query.weight" in state
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    task, x = loaded(importing.load(tmp_path, None)), noise(4, 3, SIZE, SIZE)
    close(network(task)(x, TIMES, condition(task, None, x)), theirs(x, TIMES).sample)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("center_input_sample", True),
        ("time_embedding_type", "fourier"),
        ("act_fn", "mish"),
        ("mid_block_scale_factor", 1.5),
        ("class_embed_type", "timestep"),
        ("resnet_time_scale_shift", "spatial"),
        ("time_embedding_dim", 100),
        ("block_out_channels", [16, 24]),
        ("down_block_types", ["SkipDownBlock2D", "AttnDownBlock2D"]),
        ("up_block_types", ["ResnetUpsampleBlock2D", "UpBlock2D"]),
        ("attention_head_dim", 24),
        ("norm_num_groups", None),
        ("attn_norm_num_groups", 4),
        ("sample_size", None),
        ("out_channels", 4),
    ],
)
def test_what_our_unet_has_not_is_refused_by_key(key: str, value: object, plain: Path, tmp_path: Path):
    shutil.copytree(plain, tmp_path, dirs_exist_ok=True)
    config_with(tmp_path, "config.json", **{key: value})
    with pytest.raises(UserError, match=rf"config\.json: {key} is ") as error:
        importing.load(tmp_path, None)
    assert json.dumps(value) in error.value.problem


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"prediction_type": "flow"}, "prediction_type"),
        ({"variance_type": "learned"}, "variance_type"),
        ({"variance_type": "learned_range"}, "variance_type"),  # without the outputs for it
        ({"thresholding": True}, "thresholding"),
        ({"clip_sample_range": 2.0}, "clip_sample_range"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule"),
        ({"beta_end": 2}, "beta_end 2"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
    ],
    ids=str,
)
def test_a_scheduler_that_ours_cannot_be_is_refused_by_key(
    changes: dict[str, Any], named: str, plain_pipeline: Path, tmp_path: Path
):
    folder = shutil.copytree(plain_pipeline, tmp_path / "pipeline")
    config_with(folder, "scheduler/scheduler_config.json", **changes)
    with pytest.raises(UserError, match=rf"scheduler_config\.json: .*{named}"):
        importing.load(folder, None)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, ("linear", 1000, False)),
        ({"beta_schedule": "squaredcos_cap_v2"}, ("cosine", 1000, False)),
        ({"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 400}, ("cosine", 400, False)),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}, ("scaled_linear", 1000, False)),
        ({"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}, ("linear", 1000, True)),
    ],
    ids=str,
)
def test_the_schedule_is_known_by_its_betas(options: dict[str, Any], expected: tuple[str, int, bool], tmp_path: Path):
    made, folder = pipeline(tmp_path, diffusers.DDPMScheduler(**options))
    schedule = importing.load(folder, None).preset.task.schedule
    assert (schedule.kind, schedule.steps, schedule.zero_terminal_snr) == expected
    grid = torch.arange(1, schedule.steps + 1) / schedule.steps
    torch.testing.assert_close(
        schedule.alpha_sigma(grid)[0].float(), made.scheduler.alphas_cumprod.sqrt(), rtol=1e-4, atol=1e-6
    )


SCHEDULERS = {
    "eps": {"clip_sample": False},
    "v, cosine": {"prediction_type": "v_prediction", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
    "x0, clipped": {"prediction_type": "sample"},
    "v, no signal at the end": {
        "prediction_type": "v_prediction",
        "rescale_betas_zero_snr": True,
        "clip_sample": False,
    },
    "cosine of 500 steps": {"num_train_timesteps": 500, "beta_schedule": "squaredcos_cap_v2", "clip_sample": False},
}


def walked(made: diffusers.DDPMPipeline, start: Tensor, steps: int, own: bool = False) -> Tensor:
    """What their network and DDIM scheduler make of this noise: on our uniform grid, or, where `own`, as it is set up."""
    changed = {} if own else {"timestep_spacing": "trailing"}
    scheduler = diffusers.DDIMScheduler.from_config(made.scheduler.config, **changed)
    scheduler.set_timesteps(steps)
    x = start
    for t in scheduler.timesteps:
        x = scheduler.step(made.unet(x, t).sample, t, x, use_clipped_model_output=True).prev_sample
    return x


@pytest.mark.parametrize("kind", SCHEDULERS)
@torch.no_grad()
def test_both_libraries_draw_the_same_images_before_and_after(kind: str, tmp_path: Path):
    made, folder = pipeline(tmp_path, diffusers.DDPMScheduler(**SCHEDULERS[kind]))
    start = Noise([5, 6], CPU)(torch.empty(2, 3, SIZE, SIZE))
    expected = walked(made, start, 10)
    imported = importing.load(folder, None)
    *_, last = loaded(imported).trajectory({}, [5, 6], Ddim(steps=10), 1.0)
    close(last.x, expected, 1e-4)
    out = export_diffusers(imported.preset, imported.tensors, None, tmp_path / "out")
    close(walked(diffusers.DDPMPipeline.from_pretrained(out), start, 10), expected, 1e-4)


@torch.no_grad()
def test_the_ancestral_sampler_of_an_exported_pipeline_is_theirs(tmp_path: Path):
    """Stochastic, so they share torch's generator: the same images, step by step, as from the pipeline that came in."""
    for number, variance in enumerate(("fixed_small", "fixed_large", "learned_range")):
        scheduler = diffusers.DDPMScheduler(variance_type=variance, timestep_spacing="trailing")
        outputs = {"out_channels": 6} if variance == "learned_range" else {}
        made, folder = pipeline(tmp_path / str(number), scheduler, **outputs)
        imported = importing.load(folder, None)
        assert imported.preset.sampler.kind == "ddpm"
        out = export_diffusers(imported.preset, imported.tensors, None, tmp_path / f"out{number}")
        again = diffusers.DDPMPipeline.from_pretrained(out)
        drawn = []
        for each in (made, again):
            each.set_progress_bar_config(disable=True)
            generator = torch.Generator().manual_seed(1)
            drawn.append(each(batch_size=2, generator=generator, num_inference_steps=10, output_type="np").images)
        assert drawn[0].std() > 0.05
        np.testing.assert_allclose(drawn[1], drawn[0], atol=1e-4)


def test_through_the_command_line_and_back(tmp_path: Path, cli: Cli):
    made, folder = pipeline(tmp_path, diffusers.DDIMScheduler(clip_sample=False))
    run = cli("import", folder, "--out", tmp_path / "ours")
    assert run.code == 0, run.err
    assert Path(run.out.strip()) == tmp_path / "ours/step-00000000"
    drawn = cli(
        "sample", "--ckpt", tmp_path / "ours", "--n", 2, "--steps", 10, "--seed", 5, "--out", tmp_path / "x.npz"
    )
    assert drawn.code == 0, drawn.err
    start = Noise([5, 6], CPU)(torch.empty(2, 3, SIZE, SIZE))
    with torch.no_grad():
        expected = ((walked(made, start, 10, own=True).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    assert np.abs(np.load(tmp_path / "x.npz")["arr_0"] - expected).max() <= 0.51  # rounded to bytes
    out = cli("export", "--ckpt", tmp_path / "ours", "--to", "diffusers", "--out", tmp_path / "theirs")
    assert out.code == 0, out.err
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "theirs")
    assert isinstance(again.scheduler, diffusers.DDIMScheduler)
    with torch.no_grad():
        close(walked(again, start, 10, own=True), walked(made, start, 10, own=True), 1e-4)
    animated = cli("gif", "--ckpt", tmp_path / "ours", "--steps", 3, "--out", tmp_path / "x.gif")
    assert animated.code == 0, animated.err
    cli("sample", "--ckpt", tmp_path / "ours", "--no-ema").refused(
        "step-00000000 holds an average only", "--no-ema out"
    )


def test_a_model_that_was_trained_here_goes_out(trained: Path, tmp_path: Path, cli: Cli):
    """Class-conditional with a row for no class: both branches of guidance are there."""
    from diffcli.engine.draw.sample import load_model

    refused = cli("export", "--ckpt", trained, "--out", tmp_path / "out")
    refused.refused("task.network.groups is 32", "widths")  # 8 and 16 channels: norms of 8 and of 16 groups
    model = load_model(trained, CPU)
    raw = model.preset.model_dump(mode="json")
    raw["task"]["network"] |= {"groups": 4}
    preset = presets.build(raw, "tiny")
    wake(model.task)
    out = export_diffusers(preset, model.task.state_dict(), None, tmp_path / "out")
    theirs = diffusers.UNet2DModel.from_pretrained(out / "unet").eval()
    scheduler = diffusers.DDIMScheduler.from_pretrained(out / "scheduler")
    assert theirs.config.num_class_embeds == 11
    assert scheduler.config.prediction_type == "v_prediction"
    task = loaded(Imported(preset, model.task.state_dict(), None, ()))
    x, labels = noise(4, 1, 8, 8), torch.tensor([0, 9, 4, 10])
    with torch.no_grad():
        close(theirs(x, TIMES, labels).sample, network(task)(x, TIMES, condition(task, labels, x)))


@pytest.mark.parametrize("dropped", [0.0, 0.1])
def test_names_of_classes_and_the_row_for_no_class_come_back(dropped: float, tmp_path: Path):
    unet(num_class_embeds=3).save_pretrained(tmp_path / "model")
    raw = importing.load(tmp_path / "model", None).preset.model_dump(mode="json")
    raw["task"]["drop_condition"] = dropped
    preset, names = presets.build(raw, "named"), ("a cat, sleeping", "dog", "é")
    task = wake(preset.task.build(preset.specs))
    back = importing.load(export_diffusers(preset, task.state_dict(), names, tmp_path / "out"), None)
    assert back.classes == names
    assert back.preset.task.conditioners[0].num_classes == 3
    assert back.preset.task.drop_condition == dropped
    again, x, labels = loaded(back), noise(4, 3, SIZE, SIZE), torch.tensor([0, 1, 2, 3 if dropped else 0])
    close(network(again)(x, TIMES, condition(again, labels, x)), network(task)(x, TIMES, condition(task, labels, x)))


@pytest.mark.parametrize(
    "network_keys",
    [
        {"qkv": "by_part", "head_dim": 8},
        {"heads": 1, "down_padding": "end"},
        {"resample": "residual", "embed": "scale_shift", "norm_eps": 1e-3},
        {"activation": "relu", "middle": ["res", "res"], "attend_at": [16]},
        {"middle": [], "mult": [1, 2, 2], "blocks": ["res"] * 3, "attend_at": []},
    ],
    ids=str,
)
@torch.no_grad()
def test_keys_of_ours_become_keys_or_weights_of_theirs(network_keys: dict[str, Any], plain: Path, tmp_path: Path):
    raw = importing.load(plain, None).preset.model_dump(mode="json")
    raw["task"]["network"] |= network_keys
    preset = presets.build(raw, "ours")
    task = wake(preset.task.build(preset.specs))
    out = export_diffusers(preset, task.state_dict(), None, tmp_path / "out")
    theirs, x = diffusers.DDPMPipeline.from_pretrained(out).unet.eval(), noise(4, 3, SIZE, SIZE)
    close(theirs(x, TIMES).sample, network(task)(x, TIMES, condition(task, None, x)))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("task.target", "flow", "task.target is 'flow'"),
        ("task.network.resample", "pool", "task.network.resample"),
        ("task.network.activation", "leaky_relu", "task.network.activation"),
        ("task.network.max_period", 500, "task.network.max_period"),
        ("task.network.middle", "[res]", "task.network.middle"),
        ("task.network.blocks", "[res, res, attention]", "task.network.blocks"),
        ("task.network.heads", 2, "task.network.heads"),
        ("task.schedule.steps", 500, "task.schedule.steps is 500"),
        ("task.codec.scale", 2, "task.codec"),
        ("data.size", 15, "task.network.mult"),
    ],
)
def test_what_diffusers_cannot_express_is_refused_by_key(
    key: str, value: object, named: str, plain: Path, tmp_path: Path
):
    raw = importing.load(plain, None).preset.model_dump(mode="json")
    raw["task"]["network"] |= {"blocks": ["res", "attention"], "attend_at": [16, 8]}
    flow = ["task.schedule.kind=flow"] if value == "flow" else []
    sizes = ["task.network.attend_at=[8]"] if key == "data.size" else []
    preset = presets.build(raw, "given", ["sampler.steps=10", *flow, *sizes, f"{key}={value}"])
    task = preset.task.build(preset.specs)
    with pytest.raises(UserError, match=named.replace(".", r"\.")):
        export_diffusers(preset, task.state_dict(), None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_preset_beside_a_configuration_must_say_the_same(tmp_path: Path):
    _, folder = pipeline(tmp_path)
    own = importing.load(folder, None).preset
    path = tmp_path / "given.yaml"
    path.write_text(presets.dump(own.model_copy(update={"name": "given"})))
    assert importing.load(folder, presets.load(str(path))).preset.name == "given"
    other = presets.load(str(path), ["task.network.norm_eps=1e-6"])
    with pytest.raises(UserError, match=r"task\.network\.norm_eps 1e-05, but --as given has 1e-06"):
        importing.load(folder, other)
    with pytest.raises(UserError, match=r"task\.schedule\.kind 'linear', but --as given has 'cosine'"):
        importing.load(folder, presets.load(str(path), ["task.schedule.kind=cosine"]))


def test_a_row_for_no_class_is_kept_where_a_preset_says_that_there_is_one(tmp_path: Path):
    theirs = unet(num_class_embeds=7)
    theirs.save_pretrained(tmp_path / "model")
    own = importing.load(tmp_path / "model", None).preset
    assert own.task.drop_condition == 0
    raw = own.model_dump(mode="json")
    raw["task"] |= {"drop_condition": 0.1, "conditioners": [{"kind": "class", "num_classes": 6, "dim": 64}]}
    imported = importing.load(tmp_path / "model", presets.build(raw, "given"))
    table = imported.tensors["conditioners.0.embedding.weight"]
    assert torch.equal(table, theirs.class_embedding.weight)


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("unet/config.json", "no config.json"),
        ("unet/diffusion_pytorch_model.safetensors", "holds none of diffusion_pytorch_model.safetensors"),
    ],
)
def test_a_folder_that_lacks_a_file_is_refused(missing: str, told: str, tmp_path: Path):
    _, folder = pipeline(tmp_path)
    (folder / missing).unlink()
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        importing.load(folder, None)


def test_bad_input_writes_nothing_and_says_what_to_type(tmp_path: Path, cli: Cli):
    _, folder = pipeline(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    cli("import", folder, "--out", tmp_path / "full").refused("--out", "is not empty", "empty folder")
    cli("import", tmp_path / "nothing", "--out", tmp_path / "new").refused("no such file or folder")
    cli("export", "--ckpt", tmp_path / "nothing", "--out", tmp_path / "new").refused("no such checkpoint")
    cli("export", "--ckpt", tmp_path, "--to", "timm", "--out", tmp_path / "new").refused("timm", "--help")
    (folder / "unet/config.json").write_text("{")
    cli("import", folder, "--out", tmp_path / "new").refused("config.json", "JSON")
    (folder / "unet/config.json").write_text('{"_class_name": "UNet3DConditionModel"}')
    cli("import", folder, "--out", tmp_path / "new").refused("UNet3DConditionModel", "UNet2DModel")
    assert not (tmp_path / "new").exists()

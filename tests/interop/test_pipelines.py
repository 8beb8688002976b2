"""Pipelines of diffusers that draw in a latent space: in through `import`, the same images, and out through `export`."""

import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.engine.draw.sample import load_model
from diffcli.interop import importing
from diffcli.interop.exporting import export_diffusers
from tests.conftest import Cli
from tests.encoders.making import tiny_text_tower
from tests.interop.making import CPU, close, loaded, network, noise, wake
from tests.interop.pipes import STABLE, STAGE, STEPS, drawn, stable, start, transformer, unconditional, vae, walked
from tests.ranks import Alone

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # inside diffusers
    pytest.mark.xdist_group("pipelines"),  # one pipeline serves most of them
]

TEXTS = ["a cat", "two dogs"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A StableDiffusionPipeline. Do not change it."""
    return stable(tmp_path_factory.mktemp("pipeline") / "tiny")


@pytest.fixture(scope="module")
def ours(pipeline: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a checkpoint of ours. Do not change it."""
    out = tmp_path_factory.mktemp("ours") / "run"
    return importing.save(importing.load(pipeline, None), out, pipeline)


def config_with(folder: Path, file: str, **changes: Any) -> None:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def images(cli: Cli, ckpt: Path, out: Path, *options: object) -> np.ndarray:
    done = cli("sample", "--ckpt", ckpt, "--out", out, "--sampler", "ddim", "--steps", STEPS, "--seed", 5, *options)
    assert done.code == 0, done.err
    found: np.ndarray = np.load(out)["arr_0"]
    return found


def alike(found: np.ndarray, expected: np.ndarray) -> None:
    """Pictures that have something on them, equal to one grey level."""
    assert found.shape == expected.shape
    assert expected.std() > 5
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_it_draws_the_same_images_as_diffusers_from_the_same_noise(
    cli: Cli, pipeline: Path, ours: Path, tmp_path: Path
) -> None:
    """Steps of DDIM, guidance 7.5, which the checkpoint knows; with a negative prompt, too."""
    prompts = [word for text in TEXTS for word in ("--prompt", text)]
    found = images(cli, ours, tmp_path / "x.npz", *prompts)
    alike(found, drawn(pipeline, [5, 6], (4, 8, 8), prompt=TEXTS, guidance_scale=7.5))
    against = images(cli, ours, tmp_path / "x.npz", *prompts, "--negative-prompt", "a bird", "--guidance", 4)
    expected = drawn(pipeline, [5, 6], (4, 8, 8), prompt=TEXTS, negative_prompt=["a bird"] * 2, guidance_scale=4.0)
    alike(against, expected)
    assert not np.array_equal(found, against)


def test_it_draws_other_sizes_as_diffusers_does(cli: Cli, pipeline: Path, ours: Path, tmp_path: Path) -> None:
    found = images(cli, ours, tmp_path / "x.npz", "--prompt", "a cat", "--size", "24x16")
    alike(found, drawn(pipeline, [5], (4, 12, 8), prompt=["a cat"], guidance_scale=7.5))


@pytest.mark.parametrize("kind", [diffusers.AutoencoderKL, diffusers.VQModel])
@torch.no_grad()
def test_a_first_stage_comes_in_and_goes_out_alone(cli: Cli, kind: Any, tmp_path: Path) -> None:
    theirs = wake(kind(**STAGE), seed=3)
    theirs.save_pretrained(tmp_path / "theirs")
    done = cli("import", tmp_path / "theirs", "--out", tmp_path / "ours")
    assert done.code == 0, done.err
    done = cli("export", "--ckpt", tmp_path / "ours", "--to", "diffusers", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    again, z = kind.from_pretrained(tmp_path / "out").eval(), noise(2, theirs.config.latent_channels, 4, 4)
    assert again.config.scaling_factor == 1
    assert torch.equal(again.decode(z).sample, theirs.decode(z).sample)


def test_what_came_in_goes_out_and_draws_the_same_images(cli: Cli, pipeline: Path, ours: Path, tmp_path: Path) -> None:
    done = cli("export", "--ckpt", ours, "--to", "diffusers", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    call = {"prompt": TEXTS, "guidance_scale": 7.5, "negative_prompt": ["a bird"] * 2}
    found = drawn(tmp_path / "out", [5, 6], (4, 8, 8), **call)
    alike(found, drawn(pipeline, [5, 6], (4, 8, 8), **call))
    again = importing.load(tmp_path / "out", None)
    task = importing.load(pipeline, None)
    assert again.preset.task.network == task.preset.task.network
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in task.tensors.items())


@pytest.mark.parametrize("quantised", [True, False])
def test_an_unconditional_pipeline_draws_the_same_and_goes_out_again(cli: Cli, quantised: bool, tmp_path: Path) -> None:
    folder = unconditional(tmp_path / "theirs", quantised)
    ours = importing.save(importing.load(folder, None), tmp_path / "ours", folder)
    begin = start([5, 6], 3 if quantised else 4, 8, 8)
    pipe = diffusers.LDMPipeline.from_pretrained(folder)
    expected = walked(pipe, begin, lambda x, t: pipe.unet(x, t).sample)
    alike(images(cli, ours, tmp_path / "x.npz", "--n", 2), expected)
    done = cli("export", "--ckpt", ours, "--to", "diffusers", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    again = diffusers.LDMPipeline.from_pretrained(tmp_path / "out")
    again.set_progress_bar_config(disable=True)
    alike(walked(again, begin, lambda x, t: again.unet(x, t).sample), expected)
    assert again(num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)


@torch.no_grad()
def test_a_quantised_latent_model_that_measured_its_own_scale_goes_out_and_draws_the_same(
    cli: Cli, tmp_path: Path
) -> None:
    imported = importing.load(unconditional(tmp_path / "theirs"), None)
    task = loaded(imported)
    task.codec.scale.fill_(1.0)
    task.codec.measure((task.codec.encode(part) for part in noise(8, 3, 16, 16).tanh().split(3)), Alone())
    assert task.codec.shift.abs().min() > 1e-3
    ours = importing.save(imported._replace(tensors=task.state_dict()), tmp_path / "ours", tmp_path)
    done = cli("export", "--ckpt", ours, "--to", "diffusers", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    pipe = diffusers.LDMPipeline.from_pretrained(tmp_path / "out")
    expected = walked(pipe, start([5, 6], 3, 8, 8), lambda x, t: pipe.unet(x, t).sample)
    alike(images(cli, ours, tmp_path / "x.npz", "--n", 2), expected)


def test_a_transformer_with_its_first_stage_draws_the_same_and_goes_out_again(cli: Cli, tmp_path: Path) -> None:
    folder = transformer(tmp_path / "theirs")
    ours = importing.save(importing.load(folder, None), tmp_path / "ours", folder)
    begin, labels, none = start([5, 6], 4, 8, 8), torch.tensor([1, 3]), torch.tensor([5, 5])

    def guided(pipe: Any) -> Any:
        def predict(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            both = [pipe.transformer(x, t.expand(2), classes).sample[:, :4] for classes in (labels, none)]
            return both[1] + 4 * (both[0] - both[1])

        return predict

    pipe = diffusers.DiTPipeline.from_pretrained(folder)
    expected = walked(pipe, begin, guided(pipe))
    classes = ["--n", 1, "--guidance", 4, "--class"]
    found = [images(cli, ours, tmp_path / "x.npz", *classes, name, "--seed", seed) for name, seed in ((1, 5), (3, 6))]
    alike(np.concatenate(found), expected)
    done = cli("export", "--ckpt", ours, "--to", "diffusers", "--out", tmp_path / "out")
    assert done.code == 0, done.err
    again = diffusers.DiTPipeline.from_pretrained(tmp_path / "out")  # whose own call knows 1000 classes alone
    alike(walked(again, begin, guided(again)), expected)


@pytest.mark.parametrize(("clean", "offset"), [(True, 0), (False, 1)], ids=["set_alpha_to_one", "noise left"])
def test_ddim_as_stable_diffusion_sets_it_up_draws_the_same_images_and_goes_out_as_it_came(
    cli: Cli, tmp_path: Path, clean: bool, offset: int
) -> None:
    """Their pipeline takes an offset of 1 whatever the file says."""
    options = {"clip_sample": False, "set_alpha_to_one": clean, "steps_offset": offset}
    folder = stable(tmp_path / "theirs", diffusers.DDIMScheduler(**options, **STABLE))
    imported = importing.load(folder, None)
    assert not imported.notes
    ours = importing.save(imported, tmp_path / "ours", folder)
    expected = drawn(folder, [5], (4, 8, 8), own=True, prompt=["a cat"], guidance_scale=7.5)
    alike(images(cli, ours, tmp_path / "x.npz", "--prompt", "a cat"), expected)
    out = export_diffusers(imported.preset, imported.tensors, None, tmp_path / "out")
    found = drawn(out, [5], (4, 8, 8), own=True, prompt=["a cat"], guidance_scale=7.5)
    assert np.array_equal(found, expected)


def test_the_scheduler_that_stable_diffusion_ships_with_draws_the_same_images_and_goes_out_as_it_came(
    pipeline: Path, ours: Path, cli: Cli, tmp_path: Path
) -> None:
    imported = importing.load(pipeline, None)
    assert not imported.notes
    sampler = imported.preset.sampler
    assert (sampler.kind, sampler.spacing, sampler.ends) == ("plms", "leading_1", "cleanest")
    call = {"own": True, "prompt": ["a cat"], "guidance_scale": 7.5}
    expected = drawn(pipeline, [5], (4, 8, 8), **call)
    alike(images(cli, ours, tmp_path / "x.npz", "--prompt", "a cat", "--sampler", "plms"), expected)
    out = export_diffusers(imported.preset, imported.tensors, None, tmp_path / "out")
    both = [diffusers.PNDMScheduler.from_pretrained(folder / "scheduler").config for folder in (pipeline, out)]
    for key in ("skip_prk_steps", "set_alpha_to_one", "timestep_spacing", "steps_offset", "prediction_type"):
        assert both[0][key] == both[1][key], key
    assert np.array_equal(drawn(out, [5], (4, 8, 8), **call), expected)


@pytest.mark.parametrize(
    ("scheduler", "named"),
    [
        (diffusers.EulerDiscreteScheduler(**STABLE), "timestep_spacing linspace as EulerDiscreteScheduler"),
        (diffusers.DDIMScheduler(clip_sample=False, steps_offset=3, **STABLE), None),
        (diffusers.LMSDiscreteScheduler(**STABLE), "_class_name LMSDiscreteScheduler"),
    ],
    ids=lambda value: str(value)[:12],
)
def test_a_walk_that_ours_cannot_take_is_noted_by_key(
    pipeline: Path, tmp_path: Path, scheduler: Any, named: str | None
) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "copy")
    scheduler.save_pretrained(folder / "scheduler")
    notes = importing.load(folder, None).notes
    assert (named in notes[0]) if named else not notes


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("unconditional", "learned"),
        ("dim", 8),
        ("encoder.padding", "masked"),
        ("encoder.layer", -2),
    ],
)
def test_what_that_pipeline_would_do_otherwise_is_refused_by_key(
    pipeline: Path, tmp_path: Path, key: str, value: object
) -> None:
    raw = importing.load(pipeline, None).preset.model_dump(mode="json")
    preset = presets.build(raw, "ours", [f"task.conditioners.0.{key}={value}"])
    with torch.device("meta"):
        tensors = preset.task.build(preset.specs).state_dict()
    with pytest.raises(UserError, match=rf"task\.conditioners\.0\.{key} is "):
        export_diffusers(preset, tensors, None, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_checkpoint_says_where_the_text_encoder_lies_and_which_it_was(pipeline: Path, ours: Path) -> None:
    record = checkpoint.read_record(ours)
    entry = record["encoders"]["task.conditioners.0"]
    assert entry["model"] == str(pipeline.absolute())
    model = load_model(ours, CPU)
    assert entry["sha256"] == model.task.conditioners[0].encoder.digest
    assert (model.preset.guidance, model.preset.sampler.kind) == (7.5, "plms")
    assert not any("text" in name for name in model.task.state_dict())
    assert model.preset.data.shape == (3, 16, 16)


def test_another_text_encoder_is_refused_and_one_that_moved_is_found(
    cli: Cli, ours: Path, pipeline: Path, tmp_path: Path
) -> None:
    other = tiny_text_tower(tmp_path / "other", seed=1)
    run = ["sample", "--ckpt", ours, "--prompt", "a cat", "--out", tmp_path / "x.png", "--steps", 2, "--n", 1]
    key = "task.conditioners.0.encoder.model"
    cli(*run, "--set", f"{key}={other}").refused(key, "whose weights are")
    moved = shutil.copytree(pipeline, tmp_path / "moved")
    assert cli(*run, "--set", f"{key}={moved}").code == 0


@torch.no_grad()
def test_every_part_gives_the_same_outputs(pipeline: Path) -> None:
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(pipeline)
    task = loaded(importing.load(pipeline, None))
    x, times = noise(2, 4, 8, 8), torch.tensor([0.0, 999.0])
    keep = torch.tensor([True, False])
    cond = task.condition({"text": TEXTS}, keep, x)
    tokens = theirs.encode_prompt(["a cat", ""], "cpu", 1, False)[0]
    close(cond.tokens, tokens)
    close(network(task)(x, times, cond), theirs.unet(x, times, tokens).sample)
    image = noise(2, 3, 16, 16)
    close(task.codec.encode(image), theirs.vae.encode(image).latent_dist.mode() * theirs.vae.config.scaling_factor)
    close(task.codec.decode(x), theirs.vae.decode(x / theirs.vae.config.scaling_factor).sample)


@pytest.mark.parametrize(
    ("scheduler", "expected"),
    [
        (diffusers.DDIMScheduler(clip_sample=False, prediction_type="v_prediction", **STABLE), ("v", "ddim")),
        (diffusers.EulerDiscreteScheduler(**STABLE), ("eps", "euler")),
        (diffusers.DPMSolverMultistepScheduler(**STABLE), ("eps", "dpmpp_2m")),
        (diffusers.PNDMScheduler(beta_schedule="scaled_linear", beta_start=0.0015, beta_end=0.0195), ("eps", "plms")),
    ],
    ids=lambda value: str(value)[:20],
)
def test_the_scheduler_becomes_target_schedule_and_sampler(
    pipeline: Path, scheduler: Any, expected: tuple[str, str], tmp_path: Path
) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "copy")
    scheduler.save_pretrained(folder / "scheduler")
    preset = importing.load(folder, None).preset
    assert (preset.task.target, preset.sampler.kind) == expected
    alpha = preset.task.schedule.alpha_sigma(torch.arange(1, 1001) / 1000)[0]
    torch.testing.assert_close(alpha.float(), scheduler.alphas_cumprod.sqrt(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("file", "changes", "words"),
    [
        ("unet/config.json", {"in_channels": 9}, ["in_channels is 9", "latents of 4 channels"]),
        ("text_encoder/config.json", {"hidden_size": 99}, ["hidden_size is 99", "cross_attention_dim 24"]),
        ("text_encoder/config.json", {"architectures": ["T5EncoderModel"]}, ["T5EncoderModel", "CLIPTextModel"]),
        ("vae/config.json", {"latent_channels": 3}, ["vae/diffusion_pytorch_model.safetensors", "wrongly shaped"]),
        ("vae/config.json", {"_class_name": "AutoencoderTiny"}, ["AutoencoderTiny", "AutoencoderKL"]),
        ("unet/config.json", {"_class_name": "UNet3DConditionModel"}, ["UNet3DConditionModel"]),
        ("vae/config.json", {"layers_per_block": 2}, ["vae/diffusion_pytorch_model.safetensors", "missing"]),
    ],
    ids=str,
)
def test_a_folder_whose_parts_disagree_is_refused_by_name_and_nothing_is_written(
    cli: Cli, pipeline: Path, tmp_path: Path, file: str, changes: dict[str, Any], words: list[str]
) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "copy")
    config_with(folder, file, **changes)
    cli("import", folder, "--out", tmp_path / "out").refused(*words)
    assert not (tmp_path / "out").exists()


def test_a_first_stage_of_another_model_is_refused(pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "copy")
    vae(latent_channels=3).save_pretrained(folder / "vae")
    with pytest.raises(
        UserError, match=r"unet/config\.json: in_channels is 4, but .*copy/vae has latents of 3 channels"
    ):
        importing.load(folder, None)


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder/config.json", "vae/config.json", "scheduler"])
def test_a_folder_that_lacks_a_part_is_refused_or_says_what_it_takes_for_granted(
    pipeline: Path, tmp_path: Path, part: str
) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "copy")
    (shutil.rmtree if (folder / part).is_dir() else Path.unlink)(folder / part)
    if part == "scheduler":
        assert "no scheduler" in importing.load(folder, None).notes[0]
        return
    with pytest.raises(UserError, match=part.partition("/")[0]):
        importing.load(folder, None)


def test_a_preset_beside_a_pipeline_may_guide_otherwise_but_not_diffuse_otherwise(pipeline: Path) -> None:
    raw = importing.load(pipeline, None).preset.model_dump(mode="json")
    assert importing.load(pipeline, presets.build(raw, "mine", ["guidance=3"])).preset.guidance == 3
    with pytest.raises(UserError, match=r"task\.target 'eps', but --as .* has 'v'"):
        importing.load(pipeline, presets.build(raw, "mine", ["task.target=v"]))


@pytest.mark.parametrize("quantised", [True, False], ids=["3 channels", "4 channels"])
def test_an_unconditional_pipeline_of_latents_without_a_scheduler_is_not_clipped(
    quantised: bool, tmp_path: Path
) -> None:
    folder = unconditional(tmp_path / "theirs", quantised)
    shutil.rmtree(folder / "scheduler")
    imported = importing.load(folder, None)
    assert "no scheduler" in imported.notes[0]
    assert loaded(imported).codec.bounds is None


def test_latents_that_the_scheduler_clips_are_refused(pipeline: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(pipeline, tmp_path / "copy")
    diffusers.DDIMScheduler(**STABLE).save_pretrained(folder / "scheduler")
    with pytest.raises(UserError, match=r"clip_sample true.*\n.*scheduler_config\.json"):
        importing.load(folder, None)


def test_a_network_of_texts_alone_needs_the_pipeline(pipeline: Path) -> None:
    with pytest.raises(UserError, match=r"attends to the tokens.*\n.*whole pipeline"):
        importing.load(pipeline / "unet", None)


def test_a_negative_prompt_of_a_model_without_texts_is_refused(cli: Cli, trained: Path, tmp_path: Path) -> None:
    done = cli("sample", "--ckpt", trained, "--negative-prompt", "x", "--out", tmp_path / "x.png")
    done.refused("--negative-prompt 'x'", "not trained on texts")

"""Files of weights as people have them: prefixes of wrappers, shards, half precision, what a training script saved."""

import argparse
import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffcli.config import UserError
from diffcli.interop import importing
from diffcli.interop.weight_files import read_tensors, read_with_arguments
from tests.interop.making import condition, loaded, network, noise
from tests.interop.pipes import stable
from tests.interop.test_diffusers import SIZE, TIMES, pipeline, unet
from tests.interop.test_dit import CLASSES, reference, save_pt

STATE = {"input.weight": torch.arange(6.0).view(2, 3), "out.bias": torch.ones(2)}


def same(found: dict[str, Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in STATE.items())


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.model.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off_in_every_kind_of_file(prefix: str, suffix: str, tmp_path: Path):
    path, state = tmp_path / f"x{suffix}", {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    same(read_tensors(path))


def test_the_names_of_compvis_are_no_wrapper(tmp_path: Path):
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in STATE.items()}, tmp_path / "x.safetensors")
    assert all(name.startswith("model.diffusion_model.") for name in read_tensors(tmp_path / "x.safetensors"))


@torch.no_grad()
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", ["1KB", "10GB"], ids=["shards", "whole"])
def test_shards_and_half_precision_are_the_same_model(size: str, half: bool, tmp_path: Path):
    theirs = unet()
    saved = unet().half() if half else theirs
    saved.save_pretrained(tmp_path, max_shard_size=size, variant="fp16" if half else None)
    assert len(list(tmp_path.glob("*.safetensors"))) > (5 if size == "1KB" else 0)
    imported = importing.load(tmp_path, None)
    assert any("half precision" in note for note in imported.notes) == half
    task, x = loaded(imported), noise(4, 3, SIZE, SIZE)
    found, expected = network(task)(x, TIMES, condition(task, None, x)), theirs(x, TIMES).sample
    torch.testing.assert_close(found, expected, rtol=0, atol=3e-2 if half else 1e-5)
    assert all(tensor.dtype == torch.float32 for tensor in imported.tensors.values())


def test_full_precision_is_preferred(tmp_path: Path):
    _, folder = pipeline(tmp_path)
    unet().half().save_pretrained(folder / "unet", variant="fp16")
    assert not any("half precision" in note for note in importing.load(folder, None).notes)


@pytest.mark.parametrize(
    ("index", "named"),
    [
        ({"weight_map": {"a": "gone.safetensors"}}, "gone.safetensors"),
        ({"weight_map": {"a": "../x.safetensors"}}, r"\.\./x"),
        ({"weight_map": {}}, "no file"),
        ({}, "no index"),
    ],
    ids=str,
)
def test_an_index_that_names_no_files_beside_it_is_refused(index: dict[str, Any], named: str, tmp_path: Path):
    folder = tmp_path / "model"
    folder.mkdir()
    save_file(STATE, tmp_path / "x.safetensors")
    path = folder / "x.safetensors.index.json"
    path.write_text(json.dumps(index))
    with pytest.raises(UserError, match=named):
        read_tensors(path)


class Own:
    """A class that a pickle must not make."""


def test_of_a_training_checkpoint_the_arguments_are_read_and_other_classes_refused(tmp_path: Path):
    told = argparse.Namespace(model="DiT-S/2", num_classes=7)
    torch.save({"model": {}, "ema": STATE, "opt": {}, "args": told}, tmp_path / "x.pt")
    tensors, arguments = read_with_arguments(tmp_path / "x.pt")
    same(tensors)
    assert arguments == {"model": "DiT-S/2", "num_classes": 7}
    torch.save({"ema": STATE, "args": Own()}, tmp_path / "y.pt")
    with pytest.raises(UserError, match="can run code"):
        read_tensors(tmp_path / "y.pt")


def test_the_arguments_of_a_training_tell_a_sit_and_its_classes(tmp_path: Path):
    told = argparse.Namespace(num_classes=CLASSES + 1, path_type="Linear", prediction="velocity")
    path = save_pt(reference(4, velocity=True), tmp_path / "x.pt", args=told)
    imported = importing.load(path, None)
    preset = imported.preset
    assert not imported.notes
    assert (preset.task.target, preset.task.network.time_scale) == ("flow", 0.001)
    assert (preset.task.conditioners[0].num_classes, preset.task.drop_condition) == (CLASSES + 1, 0)
    told = argparse.Namespace(num_classes=CLASSES, path_type="GVP", prediction="velocity")
    with pytest.raises(UserError, match=r"path_type 'GVP'.*\n.*Linear"):
        importing.load(save_pt(reference(4, velocity=True), tmp_path / "y.pt", args=told), None)


@torch.no_grad()
def test_a_dit_of_a_round_number_of_rows_has_none_for_no_class(tmp_path: Path):
    theirs = reference(3)
    theirs.y_embedder.embedding_table = torch.nn.Embedding(10, theirs.y_embedder.embedding_table.weight.shape[1])
    imported = importing.load(save_pt(theirs, tmp_path / "x.pt"), None)
    assert any("10 rows of classes" in note for note in imported.notes)
    assert imported.preset.task.conditioners[0].num_classes == 10
    assert imported.preset.task.drop_condition == 0
    assert imported.preset.guidance == 1
    task, x = loaded(imported), noise(4, 3, 8, 8)
    labels = torch.tensor([0, 9, 4, 2])
    expected = theirs(x, TIMES, labels)
    torch.testing.assert_close(network(task)(x, TIMES, condition(task, labels, x)), expected, rtol=1e-4, atol=1e-4)


def test_the_guidance_of_a_published_dit_of_latents_is_that_of_its_authors(tmp_path: Path):
    preset = importing.load(save_pt(reference(4), tmp_path / "x.pt"), None).preset
    assert (preset.guidance, preset.guide.channels) == (4, 3)
    assert (preset.sampler.kind, preset.sampler.spacing) == ("ddpm", "linspace")


@torch.no_grad()
def test_a_whole_pipeline_of_half_precision_is_read_its_text_encoder_too(tmp_path: Path):
    whole = stable(tmp_path / "whole")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(whole).to(dtype=torch.float16)
    pipe.save_pretrained(tmp_path / "half", variant="fp16")
    imported = importing.load(tmp_path / "half", None)
    assert [note.split(":")[0].rpartition("/half/")[2] for note in imported.notes if "half precision" in note] == [
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    x, keep = noise(1, 4, 8, 8), torch.tensor([True])
    tokens = [
        loaded(each).condition({"text": ["a cat"]}, keep, x).tokens for each in (imported, importing.load(whole, None))
    ]
    assert tokens[0].dtype == torch.float32
    torch.testing.assert_close(tokens[0], tokens[1], rtol=0, atol=2e-2)

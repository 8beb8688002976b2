"""Frozen encoders against the libraries' own features, on random weights."""

import copy
import json
import re
import shutil
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from diffcli.config import Note, UserError
from diffcli.encoders.encoder import T5_LENGTH, EncoderConfig
from tests.encoders.making import LIMIT, POOLED, T5_WIDTH, WIDTH, tiny_clip, tiny_open_clip, tiny_t5

TEXTS = ["a cat", "two cats", "", "a cat", "z"]
LONG = "there are far more letters here than the model reads"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("encoders")
    return {
        "clip": tiny_clip(root / "clip"),
        "legacy": tiny_clip(root / "legacy", legacy_eos=True),
        "open_clip": tiny_open_clip(root / "open_clip"),
        "t5": tiny_t5(root / "t5"),
    }


def built(folder: Path, **keys):
    return EncoderConfig(model=str(folder), **keys).build()


def theirs(folder: Path, texts):
    """transformers' own pooled features and last hidden states."""
    import transformers

    model = transformers.CLIPModel.from_pretrained(folder).eval()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    ids = tokenizer(texts, padding="max_length", max_length=LIMIT, truncation=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model.get_text_features(**ids)
        last = model.text_model(**ids).last_hidden_state
    return getattr(pooled, "pooler_output", pooled), last, ids["attention_mask"].bool()


@pytest.mark.parametrize("name", ["clip", "legacy"])
def test_pooled_and_tokens_of_clip_are_those_of_transformers(folders, name):
    pooled, last, mask = theirs(folders[name], [*TEXTS, LONG])
    encoder = built(folders[name])
    with pytest.warns(Note, match=rf"{len(LONG.replace(' ', '')) + 2} tokens long.*beyond the {LIMIT} of"):
        found = encoder.texts([*TEXTS, LONG])
    assert found.pooled is not None
    assert found.tokens.shape == (6, LIMIT, WIDTH)
    assert found.pooled.shape == (6, POOLED)
    assert torch.equal(found.mask, mask)
    torch.testing.assert_close(found.pooled, pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.tokens[mask], last[mask], atol=1e-5, rtol=0)
    assert not found.tokens[~mask].any()


def test_pooled_is_the_projected_feature_at_the_end_mark(folders):
    encoder = built(folders["clip"])
    found = encoder.texts(TEXTS)
    ends = found.tokens[torch.arange(len(TEXTS)), found.mask.sum(1) - 1]
    torch.testing.assert_close(encoder.towers.clip.text_projection(ends), found.pooled)
    assert found.mask.sum(1).tolist() == [6, 9, 2, 6, 3]


def test_pooled_and_tokens_of_open_clip_are_its_own(folders):
    import open_clip

    name = f"local-dir:{folders['open_clip']}"
    model, tokenizer = open_clip.create_model(name), open_clip.get_tokenizer(name)
    with torch.no_grad():
        ids = tokenizer([*TEXTS, LONG], context_length=LIMIT)
        pooled = model.encode_text(ids)
        h = model.transformer(model.token_embedding(ids) + model.positional_embedding, attn_mask=model.attn_mask)
        last, image = model.ln_final(h), model.encode_image(torch.ones(2, 3, 32, 32))
    encoder = built(folders["open_clip"], library="open_clip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Note)
        found = encoder.texts([*TEXTS, LONG])
    torch.testing.assert_close(found.pooled, pooled, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.tokens[found.mask], last[found.mask], atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.image_features(torch.ones(2, 3, 32, 32)), image)
    view = encoder.towers.view
    assert (view.size, tuple(view.mean), tuple(view.std)) == (32, (0.5, 0.4, 0.3), (0.3, 0.2, 0.1))


@pytest.mark.parametrize(("name", "library"), [("clip", "transformers"), ("open_clip", "open_clip")])
def test_the_layer_before_the_last_passes_the_final_norm(folders, name, library):
    """As Stable Diffusion 2 reads them: the last layer then is not asked at all."""
    encoder, last = (built(folders[name], library=library, layer=layer) for layer in (-2, -1))
    tower = encoder.towers.clip.text_model if name == "clip" else encoder.towers.clip
    layers = tower.encoder.layers if name == "clip" else tower.transformer.resblocks
    before, whole = encoder.texts(TEXTS), last.texts(TEXTS)
    torch.testing.assert_close(before.pooled, whole.pooled)
    assert not torch.allclose(before.tokens, whole.tokens)
    kept = copy.deepcopy(layers[-1].state_dict())
    with torch.no_grad():
        for parameter in layers[-1].parameters():
            parameter.zero_()  # its residual branches then add nothing
    torch.testing.assert_close(before.tokens, last.texts(TEXTS).tokens)
    layers[-1].load_state_dict(kept)


def test_t5_gives_tokens_and_a_mask_and_nothing_pooled(folders):
    import transformers

    model = transformers.T5EncoderModel.from_pretrained(folders["t5"]).eval()
    ids = transformers.AutoTokenizer.from_pretrained(folders["t5"])(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        last = model(**ids).last_hidden_state
    found = built(folders["t5"], kind="t5").texts(TEXTS)
    mask = ids["attention_mask"].bool()
    assert found.pooled is None
    assert found.tokens.shape == (len(TEXTS), T5_LENGTH, T5_WIDTH)
    assert torch.equal(found.mask[:, : mask.shape[1]], mask)
    torch.testing.assert_close(found.tokens[:, : mask.shape[1]][mask], last[mask], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "keys"), [("clip", {}), ("open_clip", {"library": "open_clip"}), ("t5", {"kind": "t5", "length": 16})]
)
def test_a_text_does_not_depend_on_its_neighbours(folders, name, keys):
    encoder = built(folders[name], **keys)
    together = encoder.texts(TEXTS)
    for i, text in enumerate(TEXTS):
        alone = encoder.texts([text])
        torch.testing.assert_close(alone.tokens[0], together.tokens[i], atol=1e-5, rtol=0)
        if alone.pooled is not None:
            torch.testing.assert_close(alone.pooled[0], together.pooled[i], atol=1e-5, rtol=0)


def test_a_shorter_limit_cuts_tokens_and_keeps_the_end_mark(folders):
    encoder = built(folders["clip"], length=4)
    with pytest.warns(Note, match="9 tokens long.*beyond the 4 of"):
        found = encoder.texts(["two cats", "twig"])
    start, t, w, *_, end = encoder.towers.ids(["two"])[0]
    last = encoder.towers.clip.text_model(input_ids=torch.tensor([[start, t, w, end]])).last_hidden_state
    assert found.tokens.shape[1] == 4
    torch.testing.assert_close(found.tokens, last.expand(2, -1, -1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.pooled, encoder.towers.clip.text_projection(last[:, -1]).expand(2, -1))
    with pytest.raises(UserError, match=f"reads {LIMIT} tokens at most, but length is 99"):
        built(folders["clip"], length=99).texts(["a"])


@pytest.mark.parametrize("sides", [(32, 32), (57, 40), (33, 90), (20, 24)])
def test_images_are_seen_as_the_processor_of_transformers_sees_them(folders, sides):
    """Within two grey levels where they are resized: Pillow rounds to bytes after each direction. Features follow."""
    import transformers

    noise = np.random.default_rng(0).integers(20, 236, (8, 8, 3), dtype=np.uint8)  # no overshoot that Pillow would clip
    image = Image.fromarray(noise).resize((sides[1], sides[0]), Image.Resampling.BILINEAR)
    processor = transformers.CLIPImageProcessorPil.from_pretrained(folders["clip"])
    pixels = processor(images=image, return_tensors="pt")["pixel_values"]
    encoder = built(folders["clip"])
    x = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 127.5 - 1
    ours = encoder.pixels(x)
    assert ours.shape == pixels.shape
    assert (ours - pixels).abs().max() < (2 / 255) / min(encoder.towers.view.std)
    model = transformers.CLIPModel.from_pretrained(folders["clip"]).eval()
    with torch.no_grad():
        features = model.get_image_features(pixels)
    features = getattr(features, "pooler_output", features)
    torch.testing.assert_close(encoder.image_features(pixels), features, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.images(x), features, atol=0.02, rtol=0.02)


def test_grey_images_count_as_rgb(folders):
    encoder = built(folders["clip"])
    grey = torch.rand(2, 1, 32, 32) * 2 - 1
    assert torch.equal(encoder.images(grey), encoder.images(grey.expand(-1, 3, -1, -1)))


def test_the_digest_is_that_of_the_weights_however_they_are_stored(folders, tmp_path):
    """Saved again, in shards; another encoder has another."""
    import transformers

    model = transformers.CLIPModel.from_pretrained(folders["clip"])
    again = tmp_path / "again"
    shutil.copytree(folders["clip"], again)
    (again / "model.safetensors").unlink()
    model.save_pretrained(again, max_shard_size="20KB")
    assert len(list(again.glob("*.safetensors"))) > 1
    digest = built(folders["clip"]).digest
    assert built(again).digest == digest
    assert built(tiny_clip(tmp_path / "other", seed=1)).digest != digest


def test_encoders_of_one_name_share_their_weights_and_copies_do_too(folders):
    one, two = built(folders["clip"]), built(folders["clip"], layer=-2)
    assert one.towers is two.towers
    assert copy.deepcopy(one) is one
    assert not any(parameter.requires_grad for parameter in one.towers.model.parameters())
    assert not one.towers.model.training


def test_loading_leaves_the_global_generator_alone(folders):
    before = torch.random.get_rng_state()
    built(folders["t5"], kind="t5").texts(["a"])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_features_stay_float32_under_autocast(folders):
    for name, kind in (("clip", "clip"), ("t5", "t5")):
        encoder = built(folders[name], kind=kind)
        exact = encoder.texts(TEXTS).tokens
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder.texts(TEXTS).tokens
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, exact, atol=0.1, rtol=0.1)


def test_t5_is_not_run_in_float16_where_it_overflows(folders):
    encoder = built(folders["t5"], kind="t5")
    exact = encoder.texts(TEXTS).tokens
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(encoder.texts(TEXTS).tokens, exact)


def test_other_weights_than_promised_are_refused(folders):
    encoder = built(folders["clip"])
    encoder.promise("0" * 64, "the run")
    with pytest.raises(UserError, match=r"whose weights are .*, but the run used 000000000000"):
        encoder.texts(["a"])
    loaded = built(folders["clip"])
    loaded.promise(loaded.digest, "the run")
    with pytest.raises(UserError, match="but the set 'x' used 0000"):
        loaded.promise("0" * 64, "the set 'x'")


def test_a_pickle_is_refused(folders, tmp_path):
    folder = tmp_path / "pickled"
    shutil.copytree(folders["clip"], folder)
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"as a pickle \(pytorch_model.bin\), which is never loaded"):
        built(folder).texts(["a"])


def test_a_part_of_a_model_is_refused(folders, tmp_path):
    """transformers would draw the missing weights at random."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "part"
    shutil.copytree(folders["clip"], folder)
    weights = load_file(folder / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lacks weights of a clip \(text_projection.weight"):
        built(folder).texts(["a"])


@pytest.mark.parametrize("kind", ["clip", "t5"])
def test_a_model_without_its_tokenizer_is_refused(folders, tmp_path, kind):
    """transformers would take an empty one, to which every word is unknown, and not say so."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(folders[kind] / name, tmp_path / name)
    with pytest.raises(UserError, match=r"whose tokenizer has \d+ tokens, the model \d+\n.*own tokenizer"):
        built(tmp_path, kind=kind).texts(["a"])


@pytest.mark.parametrize(
    ("name", "library"), [("clip", "transformers"), ("t5", "transformers"), ("open_clip", "open_clip")]
)
def test_a_download_that_was_cut_short_is_told(folders, tmp_path, name, library):
    folder = tmp_path / "cut"
    shutil.copytree(folders[name], folder)
    (weights,) = folder.glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:2000])
    kind = "t5" if name == "t5" else "clip"
    with pytest.raises(UserError, match="which cannot be loaded"):
        built(folder, library=library, kind=kind).texts(["a"])


@pytest.mark.parametrize(
    ("model", "library", "words"),
    [
        ("nobody/no-such-model", "transformers", "'nobody/no-such-model', which cannot be loaded"),
        ("nobody/no-such-model", "open_clip", "'nobody/no-such-model', which cannot be loaded"),
        ("/no/such/folder", "transformers", "no such folder"),
        ("ViT-B-32", "open_clip", "without the tag of its weights"),
    ],
)
def test_what_cannot_be_loaded_is_named(monkeypatch, model, library, words):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    encoder = EncoderConfig(model=model, library=library).build()
    encoder.key = "task.conditioners.0.encoder.model"
    with pytest.raises(UserError, match=words) as caught:
        encoder.texts(["a"])
    assert "task.conditioners.0.encoder" in caught.value.problem + caught.value.hint
    if "cannot be loaded" in words:
        command = re.search(r"download it first: (\S+) download", caught.value.hint)
        assert command
        assert shutil.which(command[1], path=str(Path(sys.executable).parent)), "the hint names no command"


@pytest.mark.parametrize("library", ["transformers", "open_clip"])
def test_a_missing_package_names_the_extra(folders, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UserError) as caught:
        EncoderConfig(model=str(folders["clip"]) + "/.", library=library).build().texts(["a"])
    assert caught.value.hint == "pip install 'diffcli[text]'"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"kind": "t5", "library": "open_clip"}, "has no t5"),
        ({"kind": "t5", "layer": -2}, "set layer to -1"),
        ({"pretrained": "openai"}, "leave pretrained out"),
    ],
)
def test_contradictions_are_refused(keys, words):
    with pytest.raises(ValidationError, match=words):
        EncoderConfig(model="x", **keys)


def test_a_config_survives_json():
    config = EncoderConfig(model="ViT-B-32", library="open_clip", pretrained="openai", length=20)
    assert EncoderConfig.model_validate(json.loads(config.model_dump_json())) == config

"""The text tower of a pipeline of diffusers: its own features, tokens behind the end, and what an empty text stands for."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pydantic import ValidationError

from diffcli.config import UserError
from diffcli.encoders.encoder import EncoderConfig
from diffcli.tasks.conditioners.pretrained import PretrainedConditionerConfig
from tests.encoders.making import LIMIT, WIDTH, tiny_clip, tiny_text_tower

TEXTS = ["a cat", "two cats", ""]
KEEP, LIKE = torch.tensor([True, False, True]), torch.zeros(3, 4, 8, 8)


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_text_tower(tmp_path_factory.mktemp("tower"), pad="a")


def encoder(folder: Path, **keys: object) -> EncoderConfig:
    return EncoderConfig.model_validate({"model": str(folder), **keys})


def published(folder: Path) -> PretrainedConditionerConfig:
    """As Stable Diffusion is told of texts."""
    return PretrainedConditionerConfig(encoder=encoder(folder, padding="read"), width=WIDTH, unconditional="empty")


def theirs(folder: Path, texts: list[str]) -> torch.Tensor:
    """What StableDiffusionPipeline makes of texts: whole rows, without a mask."""
    import transformers

    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer")
    model = transformers.CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    ids = tokenizer(texts, padding="max_length", max_length=LIMIT, truncation=True, return_tensors="pt").input_ids
    with torch.no_grad():
        return model(ids)[0]


def test_tokens_behind_the_end_are_read_as_the_pipeline_reads_them(tower: Path):
    found = encoder(tower, padding="read").build().texts(TEXTS)
    torch.testing.assert_close(found.tokens, theirs(tower, TEXTS), atol=1e-5, rtol=0)
    assert found.mask.all()
    assert found.pooled is None
    masked = encoder(tower).build().texts(TEXTS)
    assert masked.mask.sum(1).tolist() == [6, 9, 2]
    assert torch.equal(masked.tokens, found.tokens * masked.mask[..., None])


def test_the_tower_alone_has_the_tokens_of_the_whole_model(tmp_path: Path):
    whole, alone = tiny_clip(tmp_path / "whole"), tiny_text_tower(tmp_path / "alone")
    first, second = (encoder(folder, layer=layer).build().texts(TEXTS) for folder, layer in ((whole, -2), (alone, -2)))
    torch.testing.assert_close(first.tokens, second.tokens)


def test_the_digest_knows_names_and_values_but_no_prefix(tower: Path, tmp_path: Path):
    towers = encoder(tower).build().towers
    other = tiny_text_tower(tmp_path, seed=1)
    assert towers.digest != encoder(other).build().towers.digest
    state = {
        f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in towers.model.state_dict().items()
    }
    prefixed = type(towers).__new__(type(towers))
    prefixed.model = SimpleNamespace(state_dict=lambda: state)  # as other versions of the library name them
    assert prefixed.digest == towers.digest


@torch.no_grad()
def test_rows_without_a_condition_are_told_the_empty_text(tower: Path):
    conditioner = published(tower).build()
    found = conditioner({"text": TEXTS}, KEEP, LIKE)
    torch.testing.assert_close(found.tokens, theirs(tower, ["a cat", "", ""]), atol=1e-5, rtol=0)
    assert found.mask is not None
    assert found.mask.all()
    assert list(conditioner.parameters()) == []


def test_a_vector_of_a_tower_that_has_none_is_refused(tower: Path):
    conditioner = PretrainedConditionerConfig(encoder=encoder(tower), gives="both", width=WIDTH).build()
    with pytest.raises(UserError, match=r"gives tokens and no vector\n.*gives of its conditioner to tokens"):
        conditioner({"text": TEXTS}, KEEP, LIKE)


def test_a_pipeline_without_its_tokenizer_or_with_pickled_weights_is_refused(tower: Path, tmp_path: Path):
    copied = shutil.copytree(tower, tmp_path / "copy")
    (copied / "text_encoder/model.safetensors").rename(copied / "text_encoder/pytorch_model.bin")
    with pytest.raises(UserError, match=r"text_encoder', which holds its weights as a pickle \(pytorch_model\.bin\)"):
        encoder(copied).build().texts(TEXTS)
    (copied / "text_encoder/pytorch_model.bin").rename(copied / "text_encoder/model.safetensors")
    shutil.rmtree(copied / "tokenizer")
    with pytest.raises(UserError, match=str(copied)):
        encoder(copied).build().texts(TEXTS)


def test_padding_of_t5_cannot_be_read():
    with pytest.raises(ValidationError, match="padding is 'read', but t5"):
        EncoderConfig(kind="t5", model="t5", padding="read")

"""Conditioners of pretrained features: what they give, their nulls, what they refuse, and that no encoder is a part of them."""

import copy

import pytest
import torch
from pydantic import ValidationError

from diffcli.config import UserError
from diffcli.encoders.encoder import EncoderConfig
from diffcli.fields import FieldSpec
from diffcli.tasks.conditioners.pretrained import PretrainedConditionerConfig
from diffcli.tasks.conditioners.slots import unit_variance
from diffcli.tasks.conditioners.stored import EmbeddingConditionerConfig
from tests.encoders.making import LIMIT, POOLED, T5_WIDTH, WIDTH, tiny_clip, tiny_t5

KEEP = torch.tensor([True, False, True])
LIKE = torch.zeros(3, 1, 8, 8)
TEXTS = ["a cat", "two cats", ""]
KEY = "task.conditioners.0"


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return EncoderConfig(model=str(tiny_clip(tmp_path_factory.mktemp("encoders") / "clip")))


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return EncoderConfig(kind="t5", model=str(tiny_t5(tmp_path_factory.mktemp("encoders") / "t5")), length=16)


def pretrained(encoder, **keys):
    return PretrainedConditionerConfig(encoder=encoder, **keys).build()


def embedding(**keys):
    return EmbeddingConditionerConfig(**({"width": POOLED} | keys)).build()


def test_pretrained_gives_the_features_of_the_encoder_as_they_are(clip):
    conditioner = pretrained(clip, gives="both", width=WIDTH, pooled_width=POOLED)
    encoded = clip.build().texts(TEXTS)
    told = conditioner({"text": TEXTS}, torch.ones(3, dtype=torch.bool), LIKE)
    assert conditioner.shape == (POOLED, WIDTH, 0)
    assert torch.equal(told.vector, encoded.pooled)
    assert torch.equal(told.tokens, encoded.tokens)
    assert torch.equal(told.mask, encoded.mask)


@pytest.mark.parametrize("gives", ["tokens", "vector", "both"])
def test_pretrained_gives_what_it_is_asked_for_projected(clip, gives):
    conditioner = pretrained(clip, gives=gives, width=WIDTH, pooled_width=POOLED, dim=10)
    told = conditioner({"text": TEXTS}, KEEP, LIKE)
    assert conditioner.shape == (10 if gives != "tokens" else 0, 10 if gives != "vector" else 0, 0)
    assert (told.vector is None) == (gives == "tokens")
    assert (told.tokens is None) == (gives == "vector")
    assert told.tokens is None or told.tokens.shape == (3, LIMIT, 10)


@pytest.mark.parametrize("unconditional", ["learned", "empty"])
@pytest.mark.parametrize("padding", ["masked", "read"])
def test_stored_features_act_as_those_of_the_encoder_in_every_step_do(clip, unconditional, padding, monkeypatch):
    """Rows without a condition, too, of which the data hold what the encoder makes of a text without a word."""
    encoder = clip.model_copy(update={"padding": padding})
    keys = {"gives": "both", "width": WIDTH, "pooled_width": POOLED, "dim": 10, "unconditional": unconditional}
    live, cached = pretrained(encoder, **keys), pretrained(encoder, cached=True, **keys)
    cached.load_state_dict(live.state_dict())
    of, nothing = encoder.build().texts(TEXTS), encoder.build().texts([""])
    cached.know({"clip_tokens": nothing.tokens[0], "clip_text": nothing.pooled[0]}, torch.device("cpu"))
    monkeypatch.setattr(cached.encoder, "texts", lambda *_: pytest.fail("the encoder runs"))
    wanted = live({"text": TEXTS}, KEEP, LIKE)
    found = cached({"clip_tokens": of.tokens, "clip_text": of.pooled}, KEEP, LIKE)
    assert torch.equal(found.mask, wanted.mask)
    assert torch.allclose(found.tokens[found.mask], wanted.tokens[wanted.mask], atol=1e-6)
    assert torch.allclose(found.vector, wanted.vector, atol=1e-6)


def test_t5_fits_where_clip_fits(t5):
    told = pretrained(t5, width=T5_WIDTH, dim=10)({"text": TEXTS}, KEEP, LIKE)
    assert told.tokens.shape == (3, 16, 10)
    assert told.mask.sum(1).tolist() == [6, 1, 1]
    with pytest.raises(ValidationError, match="t5 has no pooled feature; set gives to tokens"):
        PretrainedConditionerConfig(encoder=t5, gives="both")


def test_a_row_without_a_condition_is_the_null_whatever_its_text(clip):
    conditioner = pretrained(clip, gives="both", width=WIDTH, pooled_width=POOLED, dim=10)
    one = conditioner({"text": ["a", "b", "c"]}, KEEP, LIKE)
    two = conditioner({"text": ["a", "zz z", "c"]}, KEEP, LIKE)
    assert torch.equal(one.vector[1], two.vector[1])
    assert torch.equal(one.tokens[1][one.mask[1]], two.tokens[1][two.mask[1]])
    assert one.mask[1].tolist() == [True] + [False] * (LIMIT - 1)
    assert not torch.equal(one.vector[0], one.vector[1])


def test_an_encoder_is_no_part_of_the_module_that_it_serves(clip):
    """Neither of its weights, nor of what is moved and trained; copies share it."""
    conditioner = pretrained(clip, gives="both", width=WIDTH, pooled_width=POOLED)
    conditioner({"text": TEXTS}, KEEP, LIKE)
    assert sorted(conditioner.state_dict()) == ["tokens.null", "vector.null"]
    assert len(list(conditioner.modules())) == 5
    assert copy.deepcopy(conditioner).encoder is conditioner.encoder


def test_every_weight_of_a_projection_gets_a_gradient_and_the_encoder_none(clip):
    conditioner = pretrained(clip, gives="both", width=WIDTH, pooled_width=POOLED, dim=10)
    told = conditioner({"text": TEXTS}, KEEP, LIKE)
    (told.vector.square().sum() + told.tokens.square().sum()).backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in conditioner.parameters())
    assert all(parameter.grad is None for parameter in conditioner.encoder.towers.model.parameters())


def test_it_builds_without_loading_anything():
    config = EncoderConfig(model="nobody/no-such-model")
    with torch.device("meta"):
        assert pretrained(config, width=WIDTH).shape == (0, WIDTH, 0)
        assert embedding(encoder=config).shape == (POOLED, 0, 0)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"width": 99}, r"features are 24 wide, not 99.*\n.*set width of its conditioner to 24"),
        ({"width": WIDTH, "gives": "vector"}, r"features are 16 wide, not 24.*\n.*set pooled_width .* to 16"),
    ],
)
def test_another_width_than_the_encoders_is_refused(clip, keys, words):
    with pytest.raises(UserError, match=words):
        pretrained(clip, **keys)({"text": TEXTS}, KEEP, LIKE)


def test_unit_variance_keeps_the_direction():
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 37
    scaled = unit_variance(x)
    torch.testing.assert_close(scaled.square().mean(-1), torch.ones(5))
    torch.testing.assert_close(torch.cosine_similarity(scaled, x.float(), dim=-1), torch.ones(5))


def test_stored_embeddings_are_scaled_or_left():
    value = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 2.0]])
    keep = torch.ones(3, dtype=torch.bool)
    scaled = embedding(width=2)({"clip_image": value}, keep, LIKE).vector
    torch.testing.assert_close(scaled, value / value.norm(dim=1, keepdim=True) * 2**0.5)
    assert torch.equal(embedding(width=2, normalize=False)({"clip_image": value}, keep, LIKE).vector, value)


def test_a_stored_vector_becomes_a_vector_and_tokens_as_in_unclip():
    conditioner = embedding(gives="both", tokens=4, dim=10)
    value = torch.randn(3, POOLED, generator=torch.Generator().manual_seed(0))
    told = conditioner({"clip_image": value}, KEEP, LIKE)
    assert conditioner.shape == (10, 10, 0)
    assert told.vector.shape == (3, 10)
    assert told.tokens.shape == (3, 4, 10)
    assert told.mask is None
    other = conditioner({"clip_image": value.flip(0)}, KEEP, LIKE)
    assert torch.equal(told.tokens[1], other.tokens[1])
    assert torch.equal(told.vector[1], other.vector[1])
    assert not torch.equal(told.tokens[0], other.tokens[0])


def test_a_stored_sequence_tells_its_padding_by_zeros(clip):
    conditioner = embedding(field="clip_tokens", stored="sequence", gives="tokens", width=WIDTH, encoder=clip)
    value = conditioner.embed(TEXTS)
    told = conditioner({"clip_tokens": value}, KEEP, LIKE)
    live = pretrained(clip, width=WIDTH)({"text": TEXTS}, KEEP, LIKE)
    assert torch.equal(told.mask, live.mask)
    assert torch.equal(told.tokens[KEEP], live.tokens[KEEP])
    nothing = conditioner({"clip_tokens": torch.zeros(3, LIMIT, WIDTH)}, KEEP, LIKE)
    assert nothing.mask.sum(1).tolist() == [1, 1, 1]
    assert (nothing.tokens == conditioner.tokens.null).all()


def test_prompts_are_embedded_as_the_set_was(clip):
    conditioner = embedding(field="clip_text", encoder=clip)
    assert torch.equal(conditioner.embed(TEXTS), clip.build().texts(TEXTS).pooled)
    with pytest.raises(UserError, match="features are 16 wide, not 5"):
        embedding(field="clip_text", encoder=clip, width=5).embed(TEXTS)
    with pytest.raises(UserError, match="'clip_text' names none"):
        embedding(field="clip_text").embed(TEXTS)


def test_missing_fields_and_other_widths_are_told_before_training():
    with pytest.raises(UserError, match=r"'clip_image', but the data has only: image\n.*--embed clip --encoder"):
        embedding().check({"image": FieldSpec("image", (3, 8, 8))}, KEY)
    with pytest.raises(
        UserError, match=r"task\.conditioners\.0 \(embedding\) reads .*but the data's is 7 wide"
    ) as caught:
        embedding().check({"clip_image": FieldSpec("vector", (7,))}, KEY)
    assert caught.value.hint == "use --set task.conditioners.0.width=7"
    embedding().check({"clip_image": FieldSpec("vector", (None,))}, KEY)


@pytest.mark.parametrize("stored", ["vector", "sequence"])
def test_vectors_taken_for_sequences_and_the_reverse_are_told_before_training(stored):
    vector, tokens = FieldSpec("vector", (POOLED,)), FieldSpec("tokens", (None, POOLED))
    right, wrong = (vector, tokens) if stored == "vector" else (tokens, vector)
    conditioner = embedding(stored=stored, gives="tokens")
    conditioner.check({"clip_image": right}, KEY)
    with pytest.raises(UserError, match=f"as {right.kind}, but the data's is of kind {wrong.kind}") as caught:
        conditioner.check({"clip_image": wrong}, KEY)
    assert f"--set {KEY}.stored={'sequence' if stored == 'vector' else 'vector'}" in caught.value.hint


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"stored": "sequence"}, "a stored sequence is read as tokens; set gives to tokens"),
        ({"encoder": {"kind": "t5", "model": "x"}}, "t5, which has no pooled feature; set stored to sequence"),
    ],
)
def test_contradictions_are_refused(keys, words):
    with pytest.raises(ValidationError, match=words):
        EmbeddingConditionerConfig(**keys)

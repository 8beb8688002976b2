"""A new word of a frozen pretrained encoder: one vector, learned through the encoder, in files that diffusers reads."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.encoders.encoder import EncoderConfig
from diffcli.encoders.learned_words import LearnedWords, token_table
from diffcli.engine.model import load_model
from diffcli.engine.run.plan import plan
from diffcli.engine.words.word_training import word_readers
from tests.conftest import Cli
from tests.encoders.making import WIDTH, tiny_clip
from tests.engine.run.personal.personal_runs import last, of_texts, part, personal_tree, thing, trained_to

TOKEN, KEY = "<own>", "conditioners.0.words.vectors.0"
WORD: dict[str, Any] = {
    "data__token": TOKEN,
    "data__prompts": [f"a {TOKEN}"],
    "train__embedding": {"token": TOKEN, "init": "b"},
}


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The conditioner of a model that reads a tiny CLIP."""
    clip = tiny_clip(tmp_path_factory.mktemp("clip") / "clip")
    conditioner = {"kind": "pretrained", "encoder": {"model": str(clip)}, "width": WIDTH, "unconditional": "empty"}
    return {"task__conditioners": [conditioner]}


@pytest.fixture(scope="module")
def base(keys: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts that CLIP reads. Do not change it."""
    names = [[letter] for letter in "cdefghijkl"]
    captions = {"templates": ["a {name}"], "names": names}
    return of_texts(tmp_path_factory.mktemp("texts") / "base", data__captions=captions, train__steps=2, **keys)


@pytest.fixture(scope="module")
def own(base: Path) -> Path:
    return thing(base.parent / "own")


@pytest.fixture(scope="module")
def learned(base: Path, own: Path, keys: dict[str, Any]) -> Path:
    return trained_to(base.parent / "learned", personal_tree(base, own, **WORD, **keys))


def test_one_vector_is_learned_from_that_of_a_known_word(base: Path, learned: Path) -> None:
    assert part(learned, "task").keys() == {KEY}
    (reader,) = word_readers(load_model(base, torch.device("cpu")).task).values()
    assert reader.encoder is not None
    towers = reader.encoder.towers
    first = token_table(towers).weight[towers.ids(["b"])[0][1:-1]]
    found = part(learned, "task")[KEY]
    assert found.shape == (1, WIDTH)
    assert not found.equal(first)
    torch.testing.assert_close(found, first, atol=0.05, rtol=0)
    assert checkpoint.read_record(last(learned))["base"]["step"] == 2


def test_it_is_drawn_and_exchanged(base: Path, learned: Path, cli: Cli, tmp_path: Path) -> None:
    out = ("--n", 1, "--prompt", f"a {TOKEN}", "--out")
    assert cli("sample", learned, *out, tmp_path / "a.npz").code == 0
    assert cli("export", learned, "--to", "embedding", "--out", tmp_path / "word").code == 0
    file = tmp_path / "word" / "learned_embeds.safetensors"
    assert {name: tuple(tensor.shape) for name, tensor in load_file(file).items()} == {TOKEN: (1, WIDTH)}
    assert cli("sample", base, *out, tmp_path / "b.npz", "--embedding", file).code == 0
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_diffusers_loads_the_file_and_reads_the_same(learned: Path, cli: Cli, tmp_path: Path) -> None:
    import diffusers

    from tests.interop.pipes import stable

    assert cli("export", learned, "--to", "embedding", "--out", tmp_path / "word").code == 0
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(stable(tmp_path / "pipeline"))
    pipe.load_textual_inversion(str(tmp_path / "word"))
    encoder = EncoderConfig(model=str(tmp_path / "pipeline"), padding="read").build()
    words = LearnedWords()
    words.add(TOKEN, part(learned, "ema")[KEY])
    with torch.no_grad():
        theirs = pipe.encode_prompt(f"my {TOKEN} b", "cpu", 1, False)[0]
    torch.testing.assert_close(encoder.texts([f"my {TOKEN} b"], words=words.requires_grad_(False)).tokens, theirs)


def test_a_word_of_another_encoder_is_refused(learned: Path, cli: Cli, keys: dict[str, Any], tmp_path: Path) -> None:
    clip = tiny_clip(tmp_path / "clip", seed=7)
    conditioner = {**keys["task__conditioners"][0], "encoder": {"model": str(clip)}}
    other = of_texts(tmp_path / "other", task__conditioners=[conditioner], train__steps=1)
    done = cli("sample", other, "--n", 1, "--prompt", TOKEN, "--out", tmp_path / "x.npz", "--embedding", learned)
    done.refused("--embedding", TOKEN, "encoder")


def test_a_plan_counts_a_step_without_the_encoder(base: Path, own: Path, keys: dict[str, Any], tmp_path: Path) -> None:
    facts = plan(presets.build(personal_tree(base, own, **WORD, **keys), "tiny.yaml"), tmp_path, 1)
    assert f"conditioners.0.words {WIDTH}" in facts["parts"]


@pytest.mark.parametrize(
    ("word", "problem", "remedy"),
    [
        ({"token": TOKEN, "init": "toy"}, "3 tokens", "train.embedding.init"),
        ({"token": "q", "init": "b"}, "knows already", "<q-1>"),
    ],
)
def test_words_that_the_tokenizer_splits_or_knows_are_refused(
    word: dict[str, str], problem: str, remedy: str, base: Path, own: Path, keys: dict[str, Any], tmp_path: Path
) -> None:
    given = {"data__token": word["token"], "data__prompts": [f"a {word['token']}"], "train__embedding": word}
    with pytest.raises(UserError) as told:
        trained_to(tmp_path / "run", personal_tree(base, own, **given, **keys))
    assert problem in told.value.problem
    assert remedy in told.value.hint
    assert not (tmp_path / "run" / "checkpoints").exists()

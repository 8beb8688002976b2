"""Words of elsewhere: of a run beside another model, of a file of other tools and back, and those that do not fit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import diffcli
from diffcli.config import Note, UserError
from diffcli.engine.model import load_model
from diffcli.engine.words.word_training import word_readers
from diffcli.tasks.conditioners.text import TextConditioner
from tests.conftest import Cli
from tests.engine.run.personal.personal_runs import of_texts, part, personal_tree, thing, trained_to
from tests.engine.words.test_word_training import KEY, TOKEN, WORD

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts. Do not change it."""
    return of_texts(tmp_path_factory.mktemp("texts") / "base")


@pytest.fixture(scope="module")
def learned(base: Path) -> Path:
    """A run of a new word. Do not change it."""
    return trained_to(base.parent / "learned", personal_tree(base, thing(base.parent / "own"), **WORD, train__steps=2))


def vectors(path: Path, *embeddings: Path) -> dict[str, Tensor]:
    (reader,) = word_readers(load_model(path, CPU, embeddings=embeddings, precision="fp32").task).values()
    assert isinstance(reader, TextConditioner)
    assert reader.words is not None
    return {name: each.detach() for name, each in zip(reader.words.names, reader.words.vectors, strict=True)}


def written(folder: Path, tensors: dict[str, Tensor], name: str = "word.safetensors") -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / name)
    return folder / name


def test_a_word_beside_its_base_draws_as_its_run(base: Path, learned: Path, cli: Cli, tmp_path: Path) -> None:
    given = ("--n", 2, "--prompt", f"the {TOKEN}", "--out")
    assert cli("sample", learned, *given, tmp_path / "run.npz").code == 0
    assert cli("sample", base, *given, tmp_path / "beside.npz", "--embedding", learned).code == 0
    drawn = [np.load(tmp_path / f"{name}.npz")["arr_0"] for name in ("run", "beside")]
    assert np.array_equal(*drawn)
    told = json.loads((tmp_path / "beside.npz.json").read_text())["embeddings"]
    assert [(each["path"], each["token"]) for each in told] == [(str(learned), TOKEN)]
    assert cli("sample", "--like", tmp_path / "beside.npz", "--out", tmp_path / "again.npz").code == 0
    assert np.array_equal(np.load(tmp_path / "again.npz")["arr_0"], drawn[0])


def test_a_word_comes_back_from_its_file(base: Path, learned: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("export", learned, "--to", "embedding", "--out", tmp_path / "out").code == 0
    file = tmp_path / "out" / "learned_embeds.safetensors"
    assert load_file(file).keys() == {TOKEN}
    assert load_file(file)[TOKEN].equal(part(learned, "ema")[KEY])
    assert vectors(base, file)[TOKEN].equal(vectors(learned)[TOKEN])


def test_files_of_other_tools_have_one_vector_or_several_and_may_be_named_by_their_file(
    base: Path, tmp_path: Path
) -> None:
    one = written(tmp_path, {"<one>": torch.full((8,), 0.5)}, "one.safetensors")
    several = written(tmp_path, {"emb_params": torch.full((3, 8), 0.25, dtype=torch.float16)}, "easy.safetensors")
    found = vectors(base, one, several)
    assert {name: tuple(v.shape) for name, v in found.items()} == {"<one>": (1, 8), "easy": (3, 8)}
    assert found["easy"].dtype == torch.float32


def test_a_word_beside_another_model_is_noted(learned: Path, tmp_path: Path) -> None:
    other = of_texts(tmp_path / "other", seed=5)
    with pytest.warns(Note, match="another model"):
        assert vectors(other, learned)[TOKEN].shape == (5, 8)


def test_python_takes_words(base: Path, learned: Path) -> None:
    model = diffcli.load(base, device="cpu", embedding=learned)
    assert model.sample(1, prompt=f"a {TOKEN}").tensor.shape[0] == 1


def test_merged_a_word_needs_no_base(learned: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("export", learned, "--merge", "--out", tmp_path / "whole").code == 0
    assert vectors(tmp_path / "whole")[TOKEN].equal(vectors(learned)[TOKEN])


def test_info_names_the_word_and_its_base(base: Path, learned: Path, cli: Cli) -> None:
    told = cli("info", learned)
    assert told.code == 0
    assert TOKEN in told.out
    assert str(base) in told.out
    assert json.loads(cli("info", learned, "--json").out)["word"]["init"] == "seven"


def test_words_that_do_not_fit_are_refused(base: Path, learned: Path, trained: Path, cli: Cli, tmp_path: Path) -> None:
    out, wide = ("--n", 1, "--prompt", "a", "--out", tmp_path / "x.npz"), torch.zeros(1, 9)
    refused: list[tuple[Path, Path, tuple[str, ...]]] = [
        (base, tmp_path / "none", ("--embedding", "not there")),
        (base, base, ("--embedding", "learned no word")),
        (base, written(tmp_path, {"<wide>": wide}), ("--embedding", "9 wide", "8 wide")),
        (base, written(tmp_path, {"a": wide, "b": wide + 1}, "two.safetensors"), ("--embedding", "2 tensors")),
        (base, written(tmp_path, {"a": torch.zeros(1, 2, 3)}, "deep.safetensors"), ("--embedding", "[1, 2, 3]")),
        (learned, learned, ("--embedding", TOKEN, "already")),
    ]
    for ckpt, word, words in refused:
        cli("sample", ckpt, *out, "--embedding", word).refused(*words)
    pickled = tmp_path / "word.pt"
    torch.save({"<x>": torch.zeros(8)}, pickled)
    cli("sample", base, *out, "--embedding", pickled).refused("--embedding", "pickle")
    cli("sample", trained, "--n", 1, "--out", tmp_path / "x.npz", "--embedding", learned).refused(
        "--embedding", "no words"
    )
    cli("sample", base, *out, "--lora", learned).refused("--lora", "--embedding")
    cli("export", base, "--to", "embedding", "--out", tmp_path / "e").refused("learned no word")
    cli("export", learned, "--to", "peft", "--out", tmp_path / "e").refused("--to embedding")
    assert not (tmp_path / "x.npz").exists()


def test_two_sides_of_a_score_have_no_words(learned: Path, cli: Cli, tmp_path: Path) -> None:
    folder = thing(tmp_path / "own")
    cli("fid", folder, folder, "--embedding", learned).refused("--embedding")


def test_a_file_that_is_none_is_refused_by_name(tmp_path: Path) -> None:
    from diffcli.engine.words.word_files import read_word

    path = tmp_path / "word.safetensors"
    path.write_bytes(b"garbled")
    with pytest.raises(UserError, match=r"word\.safetensors"):
        read_word(path)
    whole: dict[str, Any] = {"numbers": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(UserError, match="int64"):
        read_word(written(tmp_path, whole, "int.safetensors"))

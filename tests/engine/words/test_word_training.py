"""Runs that learn a new word: one parameter, a small checkpoint that names its base, exact; and words that are refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.encoders.learned_words import of_word
from diffcli.engine.lora.lora_bases import digest_of
from diffcli.engine.model import load_model
from diffcli.engine.run.plan import plan
from diffcli.engine.run.state import build_state
from diffcli.engine.words.word_training import begin_word, word_readers
from diffcli.tasks.conditioners.text import TextConditioner
from tests.conftest import Cli, changed, in_subprocess
from tests.engine.run.personal.personal_runs import last, of_texts, part, personal_tree, thing, trained_to
from tests.engine.run.test_exact_resume import LINEAR, bytes_of

CPU = torch.device("cpu")
TOKEN, KEY = "<own>", "conditioners.0.words.vectors.0"
WORD: dict[str, Any] = {
    "data__token": TOKEN,
    "data__prompts": [f"a {TOKEN}", f"the {TOKEN}"],
    "train__embedding": {"token": TOKEN, "init": "seven"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts. Do not change it."""
    return of_texts(tmp_path_factory.mktemp("texts") / "base")


@pytest.fixture(scope="module")
def own(base: Path) -> Path:
    """Pictures of a thing. Do not change them."""
    return thing(base.parent / "own")


@pytest.fixture(scope="module")
def learned(base: Path, own: Path) -> Path:
    """A run of a new word, 4 steps, saved at 2 and 4. Do not change it."""
    return trained_to(base.parent / "learned", personal_tree(base, own, **WORD))


def reader_of(path: Path, **how: Any) -> TextConditioner:
    (reader,) = word_readers(load_model(path, CPU, precision="fp32", **how).task).values()
    assert isinstance(reader, TextConditioner)
    return reader


def test_a_checkpoint_holds_the_word_alone_and_names_its_base(base: Path, learned: Path) -> None:
    for name in ("ema", "task"):
        assert part(learned, name).keys() == {KEY}
        assert part(learned, name)[KEY].shape == (len("seven"), 8)
    moments = {
        key.partition("/")[2].rpartition(":")[0] for key in part(learned, "optimizer") if key.startswith("main/")
    }
    assert moments == {KEY}
    entry = checkpoint.read_record(last(learned))["base"]
    assert (entry["sha256"], entry["step"]) == (digest_of(part(base, "ema")), 4)


def test_the_word_is_learned_and_all_else_stays_to_the_bit(base: Path, learned: Path) -> None:
    found, before = load_model(learned, CPU, precision="fp32").task.state_dict(), part(base, "ema")
    assert {name: found[name].equal(tensor) for name, tensor in before.items()} == dict.fromkeys(before, True)
    assert found.keys() - before.keys() == {KEY}
    first = before["conditioners.0.embedding"][list(b"seven")]
    assert not found[KEY].equal(first)
    torch.testing.assert_close(found[KEY], first, atol=0.05, rtol=0)  # it began there


def test_the_new_rows_alone_get_a_gradient(base: Path, own: Path) -> None:
    task = build_state(presets.build(personal_tree(base, own, **WORD), "tiny.yaml"), CPU).task
    task.load_state_dict(part(base, "ema"), strict=False)
    generator, place = torch.Generator().manual_seed(0), torch.arange(4)
    batch = {"image": torch.randn(4, 1, 8, 8, generator=generator), "text": [f"a {TOKEN}"] * 4}
    task({**batch, "position": place, "stream": place + 7}, "main", 1)["loss"].backward()
    assert {name for name, p in task.named_parameters() if p.grad is not None} == {KEY}
    gradient = task.get_parameter(KEY).grad
    assert gradient is not None
    assert gradient.any(dim=1).all()


def test_before_its_first_step_the_new_word_means_what_the_known_one_means(base: Path, own: Path) -> None:
    preset = presets.build(personal_tree(base, own, **WORD), "tiny.yaml")
    task = build_state(preset, CPU).task
    assert preset.train.embedding is not None
    begin_word(task, preset.train.embedding)
    (reader,) = word_readers(task).values()
    keep, like = torch.ones(3, dtype=torch.bool), torch.zeros(3, 1)
    new, known = (
        reader({"text": [f"a {word}", f"{word} and {word}", "a nine"]}, keep, like) for word in (TOKEN, "seven")
    )
    for one, other in zip(new, known, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)  # type: ignore[arg-type]


def test_resumed_it_is_the_run_in_one_go_to_the_byte(base: Path, own: Path, learned: Path, tmp_path: Path) -> None:
    half = learned.parent / "half"  # beside its base as the other: records say where that lies
    trained_to(half, personal_tree(base, own, **WORD, train__steps=2))
    trained_to(half, personal_tree(base, own, **WORD))
    parted, straight = ({n: b for n, b in bytes_of(run).items() if "step-00000004" in n} for run in (half, learned))
    assert len(parted) == 4
    assert parted == straight


def test_drawing_reads_the_word(base: Path, learned: Path, cli: Cli, tmp_path: Path) -> None:
    def drawn(path: Path, text: str) -> np.ndarray:
        out = tmp_path / "x.npz"
        assert cli("sample", path, "--n", 2, "--prompt", text, "--out", out).code == 0
        return np.load(out)["arr_0"]

    assert np.array_equal(drawn(learned, "a seven"), drawn(base, "a seven"))
    assert not np.array_equal(drawn(learned, f"a {TOKEN}"), drawn(base, "a seven"))
    assert not np.array_equal(drawn(learned, f"a {TOKEN}"), drawn(base, f"a {TOKEN}"))


def test_a_word_and_low_rank_changes_are_learned_together(base: Path, own: Path, tmp_path: Path) -> None:
    lora = {"rank": 2, "targets": ["attention"]}
    run = trained_to(tmp_path / "run", personal_tree(base, own, **WORD, train__lora=lora))
    assert KEY in part(run, "task")
    assert len(part(run, "task")) > 1
    load_model(run, CPU)


def test_a_long_text_is_cut_at_whole_words(learned: Path) -> None:
    reader = reader_of(learned)
    with pytest.warns(UserWarning, match="tokens long"):
        ids, ends = reader.tokenise([f"a {TOKEN} " * 6])
    row = ids[0, 1 : ends[0]].tolist()
    assert ends[0] < reader.length
    assert max(row) == 256 + 4
    assert row.count(256) == row.count(260)  # no word is cut


def test_a_plan_counts_the_word_alone_as_trained(base: Path, own: Path, tmp_path: Path) -> None:
    facts = plan(presets.build(personal_tree(base, own, **WORD), "tiny.yaml"), tmp_path, 1)
    assert "words" in facts["parts"]
    trained = presets.build(personal_tree(base, own, **WORD), "tiny.yaml")
    state = build_state(trained, CPU)
    assert {name for name, p in state.task.named_parameters() if p.requires_grad} == {KEY}
    assert all(of_word(name) for name, p in state.task.named_parameters() if p.requires_grad)


@pytest.mark.parametrize(
    ("keys", "problem", "remedy"),
    [
        ({"train__embedding__token": "own"}, "train.embedding.token is 'own'", "<own>"),
        ({"train__embedding__token": "<other>"}, "<other>", "prompts"),
        ({"task__conditioners": [], "task__drop_condition": 0, "guidance": 1, "task__network__middle": ["res"]},
         "reads no texts", "train.embedding=null"),
    ],
)  # fmt: skip
def test_words_that_cannot_be_learned_are_refused_before_anything_is_written(
    keys: dict[str, Any], problem: str, remedy: str, base: Path, own: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError) as told:
        trained_to(tmp_path / "run", personal_tree(base, own, **{**WORD, **keys}))
    assert problem in told.value.problem
    assert remedy in told.value.hint
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "preset.yaml").exists()


def test_a_word_needs_a_model_to_begin_from(own: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as told:
        trained_to(tmp_path / "run", personal_tree(None, own, **WORD))
    assert "train.embedding" in told.value.problem
    assert "--from" in told.value.hint


def test_captions_in_files_may_hold_the_word(base: Path, tmp_path: Path) -> None:
    own = thing(tmp_path / "own")
    (own / "2.txt").write_text("nothing of it\nthis is <own>\n")
    folder = {"kind": "folder", "root": str(own), "size": 8, "channels": 1}
    tree = changed(personal_tree(base, own), data=folder, train__embedding={"token": TOKEN, "init": "one"})
    assert part(trained_to(tmp_path / "run", tree), "task").keys() == {KEY}
    (own / "2.txt").write_text("nothing of it\nthis is <owner>\n")
    with pytest.raises(UserError, match="stands in no caption"):
        trained_to(tmp_path / "other", tree)


def test_a_resumed_run_keeps_its_word(learned: Path, cli: Cli) -> None:
    cli("resume", learned, "--steps", 6, "--set", "train.embedding.token=<x>").refused("train.embedding.token")


@pytest.mark.slow
def test_two_processes_are_one(base: Path, own: Path, tmp_path: Path, cli: Cli) -> None:
    preset = tmp_path / "word.yaml"
    preset.write_text("# word - for tests\n" + yaml.safe_dump(personal_tree(base, own, **WORD, **LINEAR)))
    one, two = tmp_path / "one", tmp_path / "two"
    assert cli("train", "--preset", preset, "--run-dir", one).code == 0
    done = in_subprocess("train", "--preset", preset, "--run-dir", two, "--nproc", 2)
    assert done.code == 0, done.err
    torch.testing.assert_close(part(one, "task")[KEY], part(two, "task")[KEY], atol=1e-5, rtol=0)

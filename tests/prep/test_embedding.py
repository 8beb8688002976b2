"""prep-data --embed: what is stored is what the encoder says, and a killed run is finished by the next."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diffcli.config import UserError
from diffcli.data.listing import Split
from diffcli.data.prepared import Shards
from diffcli.data.shards import Index, ShardFiles, open_shards
from diffcli.encoders.encoder import Encoder, EncoderConfig
from diffcli.prep import embedding
from diffcli.prep.embedding import embed
from diffcli.prep.shard import write_whole
from tests.data import making
from tests.data.making import contents, run
from tests.encoders.making import LIMIT, POOLED, T5_WIDTH, WIDTH, tiny_clip, tiny_t5

CPU = torch.device("cpu")
CAPTIONS = ["a cat", "two cats\na dog", "one", "cat and dog\nz\nq", "", "six cats"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return EncoderConfig(model=str(tiny_clip(tmp_path_factory.mktemp("encoders") / "clip"))).build()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Photographs of several sizes with captions beside them; one has none."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    for i, caption in enumerate(CAPTIONS):
        pixels = making.pixels(1, 3, 30 + 3 * i, 40)[0].transpose(1, 2, 0)
        Image.fromarray(pixels).resize((40 + i, 50)).save(folder / f"{i}.jpg", quality=95)
        if caption:
            (folder / f"{i}.txt").write_text(caption)
    return folder


def done(out: Path, what: embedding.What, encoder: Encoder, **more: object) -> None:
    *_, last = embed(out, what, encoder, CPU, **more)
    assert last.written == last.total


def stored(out: Path, field: str, split: Split = "train") -> list[np.ndarray]:
    files = ShardFiles(out, open_shards(out, "x"), split).field(field)
    return [np.load(making.io.BytesIO(files.read(i)), allow_pickle=False) for i in range(len(files))]


def half(values: torch.Tensor) -> np.ndarray:
    return values.numpy().astype(np.float16)


def close(found: np.ndarray, wanted: np.ndarray) -> None:
    """To a unit in the last place of float16: sums in batches of other sizes differ in the last bit of float32."""
    assert found.dtype == np.float16
    assert found.shape == wanted.shape
    np.testing.assert_allclose(found.astype(np.float32), wanted.astype(np.float32), rtol=2e-3, atol=1e-5)


def test_what_is_stored_is_what_the_encoder_says(tmp_path: Path, source: Path, clip: Encoder):
    out = tmp_path / "out"
    run("folder", source, out, images_per_shard=4)
    before = [ShardFiles(out, open_shards(out, "x"), "train").read(i) for i in range(6)]
    done(out, "clip", clip, workers=2)
    prepared = open_shards(out, "x")
    files = ShardFiles(out, prepared, "train")
    files.verify()
    assert [files.read(i) for i in range(6)] == before
    for field in ("clip_image", "clip_text"):
        note = prepared.fields[field]
        assert (note.kind, note.width, note.encoder) == ("vector", POOLED, clip.config.model)
        assert note.sha256 == clip.digest
    for i, (image, text) in enumerate(zip(stored(out, "clip_image"), stored(out, "clip_text"), strict=True)):
        pixels = torch.from_numpy(np.array(Image.open(making.io.BytesIO(before[i])))).permute(2, 0, 1)[None]
        close(image, half(clip.images(pixels / 127.5 - 1))[0])
        close(text, half(clip.texts(CAPTIONS[i].split("\n")).pooled))
    assert not (out / embedding.WORK).exists()


def test_an_epoch_draws_the_embedding_of_the_caption_that_it_draws(tmp_path: Path, source: Path, clip: Encoder):
    run("folder", source, tmp_path / "out")
    done(tmp_path / "out", "clip", clip)
    data = Shards(root=tmp_path / "out", size=16).build("train")
    for draw in range(0, 12, 2):
        fields = data.read(torch.arange(6), torch.full((6,), draw))
        assert fields["clip_text"].dtype == torch.float32
        close(half(fields["clip_text"]), half(clip.texts(fields["text"]).pooled))


def test_sequences_are_stored_for_each_caption(tmp_path: Path, source: Path, clip: Encoder):
    t5 = EncoderConfig(kind="t5", model=str(tiny_t5(tmp_path / "t5")), length=20).build()
    run("folder", source, tmp_path / "out")
    done(tmp_path / "out", "clip-tokens", clip)
    done(tmp_path / "out", "t5", t5)
    assert open_shards(tmp_path / "out", "x").fields.keys() == {"text", "clip_tokens", "t5_tokens"}
    for field, encoder, shape in (("clip_tokens", clip, (LIMIT, WIDTH)), ("t5_tokens", t5, (20, T5_WIDTH))):
        found = stored(tmp_path / "out", field)
        assert found[3].shape == (3, *shape)
        close(found[3], half(encoder.texts(CAPTIONS[3].split("\n")).tokens))
        read = Shards(root=tmp_path / "out", size=16).build("train").select({field}).read(torch.arange(2))
        assert read[field].shape == (2, *shape)


@pytest.mark.parametrize(
    "keys", [{}, {"padding": "read", "layer": -2}, {"length": 5}], ids=["as it is", "as in SD 2", "short"]
)
def test_a_text_without_a_word_is_stored_once_and_the_set_says_how_texts_were_read(
    tmp_path: Path, source: Path, clip: Encoder, keys: dict
) -> None:
    encoder = clip.config.model_copy(update=keys).build()
    run("folder", source, tmp_path / "out")
    done(tmp_path / "out", "clip-tokens", encoder)
    data = Shards(root=tmp_path / "out", size=16).build("train")
    found = data.columns["clip_tokens"].empty("clip_tokens")
    close(half(found), half(encoder.texts([""]).tokens[0]))
    note = open_shards(tmp_path / "out", "x").fields["clip_tokens"]
    assert note.reads() == (keys.get("layer", -1), keys.get("padding", "masked"), keys.get("length"))
    if keys:
        with pytest.raises(UserError, match="layer -1, padding masked, length None"):
            done(tmp_path / "out", "clip-tokens", clip)
    np.save(tmp_path / "out/clip_tokens.empty.npy", np.zeros((LIMIT, WIDTH)))
    with pytest.raises(UserError, match=r"clip_tokens\.empty\.npy"):
        data.columns["clip_tokens"].empty("clip_tokens")


def test_a_set_of_an_earlier_version_learns_what_it_lacks_without_being_embedded_again(
    tmp_path: Path, source: Path, clip: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose notes said nothing of how texts were read."""
    run("folder", source, tmp_path / "out", images_per_shard=4)
    with monkeypatch.context() as earlier:
        earlier.setattr(embedding, "_empties", lambda *_: {})
        done(tmp_path / "out", "clip-tokens", clip)
    assert "empty" not in json.loads((tmp_path / "out/dataset.json").read_text())["fields"]["clip_tokens"]
    tars = {name: data for name, data in contents(tmp_path / "out").items() if name.endswith(".tar")}
    done(tmp_path / "out", "clip-tokens", clip)
    column = Shards(root=tmp_path / "out", size=16).build("train").columns["clip_tokens"]
    close(half(column.empty("clip_tokens")), half(clip.texts([""]).tokens[0]))
    assert {name: data for name, data in contents(tmp_path / "out").items() if name.endswith(".tar")} == tars


def test_a_set_without_captions_gets_embeddings_of_its_images(tmp_path: Path, clip: Encoder):
    making.mnist(tmp_path / "mnist")
    run("mnist", tmp_path / "mnist", tmp_path / "out")
    done(tmp_path / "out", "clip", clip)
    prepared = open_shards(tmp_path / "out", "x")
    assert prepared.fields.keys() == {"clip_image"}
    assert len(stored(tmp_path / "out", "clip_image", "test")) == 10
    labels = ShardFiles(tmp_path / "out", prepared, "train").labels
    assert labels is not None
    assert len(labels) == 20
    with pytest.raises(UserError, match="has no captions"):
        done(tmp_path / "out", "clip-tokens", clip)


def test_running_again_changes_nothing_and_other_weights_are_refused(tmp_path: Path, source: Path, clip: Encoder):
    out = tmp_path / "out"
    run("folder", source, out, images_per_shard=4)
    done(out, "clip", clip)
    whole = contents(out)
    done(out, "clip", clip)
    assert contents(out) == whole
    run("folder", source, out, images_per_shard=4)  # prep-data without --embed keeps what is there
    assert contents(out) == whole
    other = EncoderConfig(model=str(tiny_clip(tmp_path / "other", seed=1))).build()
    with pytest.raises(UserError, match=r"'clip_image' by .*, of other weights"):
        done(out, "clip", other)
    assert contents(out) == whole


def test_a_shard_that_was_lost_is_prepared_and_embedded_again(tmp_path: Path, source: Path, clip: Encoder):
    out = tmp_path / "out"
    run("folder", source, out, images_per_shard=4)
    done(out, "clip", clip)
    whole = contents(out)
    (out / "train-000001.tar").unlink()
    run("folder", source, out, images_per_shard=4)
    assert open_shards(out, "x").fields.keys() == {"text"}
    done(out, "clip", clip)
    assert contents(out) == whole


@pytest.mark.parametrize("renames", range(1, 7))
def test_a_run_killed_between_any_two_files_is_finished_by_the_next(
    tmp_path: Path, source: Path, clip: Encoder, monkeypatch: pytest.MonkeyPatch, renames: int
):
    """Of two shards: each takes three renames, and only what the kill cannot undo is there afterwards."""
    whole, out = tmp_path / "whole", tmp_path / "out"
    for folder in (whole, out):
        run("folder", source, folder, images_per_shard=4)
    done(whole, "clip", clip)
    left, replace = [renames], Path.replace

    def killed(path: Path, target: Path) -> Path:
        if not left[0]:
            raise SystemExit
        left[0] -= 1
        return replace(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        patched.setattr(embedding, "_describe", lambda *_: write_whole(out / "unreached", b"", out / embedding.WORK))
        with pytest.raises(SystemExit):
            done(out, "clip", clip)
    seen, plain = [], clip.image_features
    monkeypatch.setattr(clip, "image_features", lambda pixels: seen.append(len(pixels)) or plain(pixels))
    done(out, "clip", clip)
    assert contents(out) == contents(whole)
    assert sum(seen) == {1: 6, 2: 2, 3: 2, 4: 2, 5: 0, 6: 0}[renames]


def test_a_run_that_is_stopped_leaves_a_set_that_can_be_read(
    tmp_path: Path, source: Path, clip: Encoder, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "out"
    run("folder", source, out, images_per_shard=2)
    monkeypatch.setattr(embedding, "BATCH", 1)
    reports = embed(out, "clip", clip, CPU)
    for _ in range(5):  # the start, a shard, and one of the two images of the next
        next(reports)
    reports.close()
    prepared = open_shards(out, "x")
    assert "clip_image" not in prepared.fields
    ShardFiles(out, prepared, "train").verify()
    notes = [
        Index.model_validate_json((out / shard.index).read_bytes()).notes for shard in prepared.splits["train"].shards
    ]
    assert [bool(note) for note in notes] == [True, False, False]
    done(out, "clip", clip)
    assert "clip_image" in open_shards(out, "x").fields


def test_joined_sets_of_other_weights_are_no_one_set(tmp_path: Path, source: Path, clip: Encoder):
    other = EncoderConfig(model=str(tiny_clip(tmp_path / "other", seed=1))).build()
    for name, encoder in (("a", clip), ("b", other)):
        run("folder", source, tmp_path / name)
        done(tmp_path / name, "clip", encoder)
    with pytest.raises(UserError, match="cannot be one set: the field clip_"):
        Shards(root=tmp_path / "a", more=(tmp_path / "b",), size=16).build("train")


def test_the_command_prepares_and_embeds(cli, tmp_path: Path, source: Path, clip: Encoder):
    """Also where an image is broken, which it still tells in the end."""
    out = tmp_path / "out"
    (source / "7.jpg").write_bytes(b"no image")
    flags = ("--embed", "clip", "--encoder", clip.config.model, "--device", "cpu", "--workers", 1)
    done_once = cli("prep-data", "folder", source, "--out", out, *flags)
    assert done_once.code == 0, done_once.err
    assert done_once.out.strip().endswith(f": 6 images, 1 skipped (see {out / 'skipped.jsonl'})")
    assert "1  not an image" in done_once.err
    whole = contents(out)
    assert cli("prep-data", "folder", source, "--out", out, *flags).code == 0
    assert cli("prep-data", "shards", "--out", out, *flags).code == 0
    assert contents(out) == whole
    assert json.loads(whole["dataset.json"])["fields"]["clip_text"]["sha256"] == clip.digest


def test_flags_that_do_not_fit_are_refused_before_anything_is_prepared(
    cli, tmp_path: Path, source: Path, clip: Encoder
):
    out, model = tmp_path / "out", clip.config.model
    prepare = ("prep-data", "folder", source, "--out", out)
    cli(*prepare, "--embed", "clip").refused("--embed clip needs an encoder", "--encoder openai/clip-vit-large-patch14")
    cli(*prepare, "--encoder", model).refused("nothing is embedded", "--embed clip")
    cli(*prepare, "--embed", "t5", "--encoder", model, "--encoder-library", "open_clip").refused("has no t5")
    cli(*prepare, "--embed", "clip", "--encoder", "/no/such").refused("no such folder", "--encoder FOLDER")
    cli("prep-data", "shards", "--out", out).refused("--embed clip --encoder MODEL")
    cli("prep-data", "shards", "--embed", "clip", "--encoder", model).refused("--out SET")
    assert not out.exists()

"""prep-data --embed: adds embeddings of images and captions by a pretrained encoder to a prepared set, shard by shard.

A shard is written beside the old one and then replaces it: first its tar, then its index; dataset.json gets the new digests at
the end. An index in the work folder may belong to a tar that was renamed already, so the next run can repair what a kill left,
and embeds only the remaining shards. dataset.json names a field once every shard has it.
"""

import hashlib
import io
import os
import shutil
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby, islice
from pathlib import Path
from typing import IO, Literal, NamedTuple, assert_never

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from webdataset.writer import TarWriter

from diffcli.config import UserError
from diffcli.data import captions
from diffcli.data.field_notes import TOKENS, FieldNote, empty_file
from diffcli.data.pixels import open_image
from diffcli.data.set_folder import DATASET
from diffcli.data.shards import Index, PreparedSet, Shard, index_json, open_shards
from diffcli.digest import sha256
from diffcli.encoders.encoder import Encoder, EncoderConfig
from diffcli.prep.prepare import alone
from diffcli.prep.progress import PrepReport
from diffcli.prep.shard import Spans, fields_of, in_all, record_of, settle, write_sample, write_whole

What = Literal["clip", "clip-tokens", "t5"]
BATCH = 64  # images at once
WORK = ".work"
IMAGES = ("png", "jpg")
HALF = float(np.finfo(np.float16).max)

EmbeddedSample = dict[str, bytes]  # what the tar holds of an image, by extension


class Adding(NamedTuple):
    """The fields to add: notes by field, and a function that computes them."""

    encoder: Encoder
    notes: dict[str, FieldNote]
    device: torch.device

    def empties(self) -> dict[str, bytes]:
        """The .npy of a text without a word, by field that is made of texts."""
        return _empties(self.encoder, self.notes, self.device)


def named(what: What, model: str, library: str, pretrained: str | None) -> Encoder:
    """The encoder that the flags of prep-data name, see `loaded`."""
    try:
        given = {"kind": kind_of(what), "model": model, "library": library, "pretrained": pretrained}
        config = EncoderConfig.model_validate(given)
    except ValidationError as error:
        message, _, remedy = str(error.errors()[0]["ctx"]["error"]).partition("; ")
        raise UserError(f"--embed {what} --encoder {model}: {message}", remedy) from None
    return loaded(config.resolved().build())


def loaded(encoder: Encoder) -> Encoder:
    """The encoder, with its weights, so that mistakes are reported before anything is prepared."""
    encoder.key = "--encoder"
    encoder.digest  # noqa: B018  loads it
    return encoder


def kind_of(what: What) -> Literal["clip", "t5"]:
    """The kind of encoder that makes these fields."""
    return "t5" if what == "t5" else "clip"


def after(
    reports: Iterator[PrepReport], out: Path, what: What, encoder: Encoder, device: torch.device, workers: int
) -> Iterator[PrepReport]:
    """A preparation and then the embedding of its set; the reports of the embedding keep the notes of the preparation."""
    last = None
    for last in reports:
        yield last
    for report in embed(out, what, encoder, device, workers):
        yield report if last is None else report._replace(notes=last.notes, reasons=last.reasons)


def embed(out: Path, what: What, encoder: Encoder, device: torch.device, workers: int = 1) -> Iterator[PrepReport]:
    """Embeds the prepared set in `out`, yielding a report at the start and after every batch; the last one is final.

    what: clip adds clip_image (D,) and, of K captions, clip_text (K, D); clip-tokens and t5 add clip_tokens and t5_tokens
    (K, L, D), 0 where there is no token; all float16. Beside the set stands what the encoder makes of a text without a word,
    for training without a condition. workers: threads that decode images. Raises UserError where the set
    was embedded by another encoder, has no captions that are needed, or cannot be written.
    """
    prepared, work = open_shards(out, "--out"), out / WORK
    adding = Adding(encoder, _notes(what, encoder, prepared, out, device), device)
    try:
        with alone(out):
            _tidy(out, work, prepared)
            report = PrepReport(prepared.kind, out, prepared.count, skipped=prepared.skipped, what="embedding")
            todo = [shard for shard in shards_of(prepared) if not _embedded(out, shard, adding)]
            report = report._replace(written=prepared.count - sum(shard.count for shard in todo))
            yield report
            try:
                for shard in shards_of(prepared):
                    _renote(out, work, shard, adding)
                for shard in todo:
                    for count in _embed_shard(out, work, shard, adding, workers):
                        report = report._replace(written=report.written + count)
                        yield report
            finally:  # a set that is embedded in part can be read as it was before
                for field, data in adding.empties().items():
                    write_whole(out / empty_file(field), data, work)
                _describe(out, work)
            shutil.rmtree(work)
    except OSError as error:
        hint = "make room or mend the permissions, then run the same command again: it continues where it stopped"
        raise UserError(f"--out '{out}' cannot be written: {error}", hint) from error


def shards_of(prepared: PreparedSet) -> Iterator[Shard]:
    """The shards of all splits."""
    for split in prepared.splits.values():
        yield from split.shards


def vectors(
    samples: list[EmbeddedSample], fields: Iterable[str], adding: Adding, pool: ThreadPoolExecutor
) -> list[EmbeddedSample]:
    """The added members of each sample: .npy bytes by extension."""
    added: list[EmbeddedSample] = [{} for _ in samples]
    encoder, device = adding.encoder, adding.device
    if "clip_image" in fields:
        pixels = torch.cat(list(pool.map(lambda sample: encoder.pixels(_image(sample)), samples)))
        for sample, row in zip(added, encoder.image_features(pixels.to(device)), strict=True):
            sample["clip_image.npy"] = _npy(row)
    texts = [captions.from_bytes(sample.get("txt", b"")) for sample in samples]
    of_texts = [field for field in fields if field != "clip_image"]
    if of_texts:
        encoded = encoder.texts([text for each in texts for text in each], device)
        for field in of_texts:
            rows = encoded.pooled if field == "clip_text" else encoded.tokens
            assert rows is not None
            for sample, part in zip(added, rows.split([len(each) for each in texts]), strict=True):
                sample[f"{field}.npy"] = _npy(part)
    return added


def _notes(
    what: What, encoder: Encoder, prepared: PreparedSet, out: Path, device: torch.device
) -> dict[str, FieldNote]:
    """The fields that are added. Raises UserError where the set has them of another encoder, or has no captions."""
    if prepared.latents and what == "clip":
        raise UserError(
            f"--embed clip: '{out}' holds latents, no images", "embed the set that they were made of before"
        )
    towers = encoder.towers
    match what:
        case "clip":
            widths = {"clip_image": towers.pooled_width} | (
                {"clip_text": towers.pooled_width} if _told(prepared) else {}
            )
        case "clip-tokens":
            widths = {"clip_tokens": towers.width}
        case "t5":
            widths = {"t5_tokens": towers.width}
        case never:
            assert_never(never)
    if what != "clip" and not _told(prepared):
        raise UserError(f"--embed {what}: '{out}' has no captions", "prepare it with captions, or use --embed clip")
    made = {
        field: FieldNote(
            kind="tokens" if field in TOKENS else "vector",
            width=width,
            encoder=encoder.config.name,
            sha256=encoder.digest,
        )
        for field, width in widths.items()
    }
    for field, data in _empties(encoder, made, device).items():
        reading = {"length": encoder.config.length, "empty": hashlib.sha256(data).hexdigest()}
        if field in TOKENS:
            reading |= {"layer": encoder.config.layer, "padding": encoder.config.padding}
        made[field] = made[field].model_copy(update=reading)
    for field, note in made.items():
        _check_same(out, field, prepared.fields.get(field, note), note)
    return made


def _empties(encoder: Encoder, fields: Iterable[str], device: torch.device) -> dict[str, bytes]:
    encoded = encoder.texts([""], device)
    rows = {
        field: encoded.pooled if field == "clip_text" else encoded.tokens for field in fields if field != "clip_image"
    }
    return {field: _npy(row[0]) for field, row in rows.items() if row is not None}


def _check_same(out: Path, field: str, there: FieldNote, note: FieldNote) -> None:
    if there.sha256 != note.sha256:
        raise UserError(
            f"--encoder {note.encoder}: '{out}' has '{field}' by {there.encoder}, of other weights",
            "name that encoder, or prepare another set",
        )
    if there.reads() != note.reads():
        raise UserError(
            f"--encoder {note.encoder}: '{out}' has '{field}' by it with {there.reading}, and this one reads with {note.reading}",
            "name what made the others, or prepare another set",
        )


def _told(prepared: PreparedSet) -> bool:
    return "text" in prepared.fields


def _embedded(out: Path, shard: Shard, adding: Adding) -> bool:
    """Whether a shard has all fields. Raises UserError if it has one of another encoder."""
    index = _index(out, shard)
    for field, note in adding.notes.items():
        _check_same(out, field, index.notes.get(field, note), note)
    return not index.members or adding.notes.keys() <= index.notes.keys()


def _renote(out: Path, work: Path, shard: Shard, adding: Adding) -> None:
    """Gives the index of a shard what an earlier version did not note of fields that the shard has."""
    index = _index(out, shard)
    found = {field: note for field, note in adding.notes.items() if index.notes.get(field, note) != note}
    if found:
        changed = index.model_copy(update={"notes": {**index.notes, **found}})
        write_whole(out / shard.index, index_json(changed), work)


def _embed_shard(out: Path, work: Path, shard: Shard, adding: Adding, workers: int) -> Iterator[int]:
    """Rewrites a shard with the fields that it lacks, yielding how many images are done."""
    index, stem = _index(out, shard), shard.tar.removesuffix(".tar")
    fields = [field for field in adding.notes if field not in index.notes]
    temporary = work / f"{stem}.{os.getpid()}.tar"
    spans: list[Spans] = []
    try:
        with ThreadPoolExecutor(workers) as pool, (out / shard.tar).open("rb") as old, temporary.open("wb") as new:
            position, samples = 0, read_samples(old)
            with TarWriter(new, user="", group="", mode=0o644, encoder=False, mtime=0) as tar:
                while batch := list(islice(samples, BATCH)):
                    added = vectors([sample for _, sample in batch], fields, adding, pool)
                    for (key, sample), more in zip(batch, added, strict=True):
                        where, position = write_sample(tar, key, sample | more, position)
                        spans.append(where)
                    yield len(batch)
            new.flush()
            os.fsync(new.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    changed = _moved(index, spans, adding.notes | index.notes, temporary)
    waiting = work / shard.index
    write_whole(waiting, index_json(changed), work)
    temporary.replace(out / shard.tar)
    waiting.replace(out / shard.index)


def read_samples(file: IO[bytes]) -> Iterator[tuple[str, EmbeddedSample]]:
    """(key, members by extension) of each sample of a shard, in order."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for key, members in groupby(tar, key=lambda member: member.name.partition(".")[0]):
            sample = {}
            for member in members:
                opened = tar.extractfile(member)
                assert opened is not None  # prep-data writes files alone
                sample[member.name.partition(".")[2]] = opened.read()
            tar.members = []  # type: ignore[attr-defined]  # else it remembers every header
            yield key, sample


def _moved(index: Index, spans: list[Spans], notes: Mapping[str, FieldNote], tar: Path) -> Index:
    """The index of a shard whose members lie where `spans` say."""
    if len(spans) != len(index.members):
        raise UserError(
            f"{tar.name}: holds {len(spans)} images, its index {len(index.members)}", "prepare the set again"
        )
    images = [where[name.partition(".")[2]] for where, name in zip(spans, index.members, strict=True)]
    return index.model_copy(
        update={
            "offset": [offset for offset, _ in images],
            "size": [size for _, size in images],
            "fields": fields_of(spans),
            "notes": dict(notes),
            "bytes": tar.stat().st_size,
            "sha256": sha256(tar),
        }
    )


def _describe(out: Path, work: Path) -> None:
    """dataset.json with the digests of the shards as they are now, and with the embeddings that all of them have."""
    prepared = open_shards(out, "--out")
    notes, splits = [], {}
    for name, split in prepared.splits.items():
        shards = []
        for shard in split.shards:
            index, digest = _index(out, shard), sha256(out / shard.index)
            notes += [index.notes] if index.members else []
            update = {"bytes": index.bytes, "sha256": index.sha256, "index_sha256": digest}
            shards.append(shard.model_copy(update=update))
        splits[name] = split.model_copy(update={"shards": shards})
    changed = prepared.model_copy(update={"splits": splits, "fields": prepared.fields | in_all(notes)})
    write_whole(out / DATASET, record_of(changed), work)


def _tidy(out: Path, work: Path, prepared: PreparedSet) -> None:
    """Makes the work folder, or repairs and removes what a killed run left in it."""
    work.mkdir(exist_ok=True)
    for shard in shards_of(prepared):
        settle(out, work, shard.tar.removesuffix(".tar"))
    for left in work.glob("*.tar"):
        left.unlink()


def _index(out: Path, shard: Shard) -> Index:
    return Index.model_validate_json((out / shard.index).read_bytes())


def _image(sample: EmbeddedSample) -> Tensor:
    """The image of a sample, (1, C, H, W) float32 in [-1, 1]."""
    name = next(extension for extension in IMAGES if extension in sample)
    pixels = np.array(open_image(sample[name], f"of extension {name}"))
    return torch.from_numpy(np.atleast_3d(pixels)).permute(2, 0, 1)[None].float() / 127.5 - 1


def _npy(values: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, values.clamp(-HALF, HALF).cpu().numpy().astype(np.float16))
    return file.getvalue()

"""Words of elsewhere: those of a run beside another model, and the files that diffusers and AUTOMATIC1111's web UI share.

Such a file holds one tensor, named by the word: (D,), or (n, D) where a word has several vectors. Source of the names:
diffusers' `load_textual_inversion`; `emb_params` is the web UI's, whose word is the name of the file.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file
from torch import Tensor

from diffcli import checkpoint, tensor_file
from diffcli.config import UserError, quoted
from diffcli.digest import sha256
from diffcli.engine.lora import lora_bases
from diffcli.engine.lora.lora_weights import BaseIdentity, ours
from diffcli.engine.words.word_training import WordReader, give_word, width_of, word_readers
from diffcli.interop.adapters.lora_names import inside
from diffcli.interop.importing import check_empty
from diffcli.networks.weightless import weightless
from diffcli.tasks.conditioners.text import TextConditioner
from diffcli.tasks.task import Task

FLAG = "--embedding"
FILE = "learned_embeds.safetensors"
UNNAMED = "emb_params"  # of a file that does not name its word
HINT = "give a run with train.embedding, or a .safetensors file with one tensor, named by its word"


class FoundWord(NamedTuple):
    """A word as a path has it. vectors: (n, D) by the key of the conditioner that learned them; "": of any.

    encoders: digests of pretrained encoders by such keys. base: digest of the model that it was learned with.
    """

    name: str
    vectors: dict[str, Tensor]
    sha256: str
    encoders: Mapping[str, str] = {}
    base: str | None = None


def read_word(path: Path) -> FoundWord:
    """The word at a path. Raises UserError where there is none."""
    if not path.exists():
        raise UserError(f"{FLAG} {path}: is not there", HINT)
    return _of_run(path) if ours(path) else _of_file(inside(path))


def _of_run(path: Path) -> FoundWord:
    found = checkpoint.locate(path)
    record = checkpoint.read_record(found)
    word = (record.get("preset") or {}).get("train", {}).get("embedding")
    if word is None:
        raise UserError(f"{FLAG} {path}: has learned no word", f"{HINT}; of a LoRA run: --lora {quoted(path)}")
    contents = checkpoint.read_contents(found, "ema", record)
    vectors = {
        f"task.conditioners.{name.split('.')[1]}": tensor
        for name, tensor in contents.tensors.items()
        if name.startswith("conditioners.") and name.endswith(".words.vectors.0")
    }
    encoders = {key: entry["sha256"] for key, entry in record.get("encoders", {}).items()}
    base = lora_bases.named(record)
    return FoundWord(word["token"], vectors, contents.sha256, encoders, None if base is None else base["sha256"])


def _of_file(path: Path) -> FoundWord:
    try:
        tensors = tensor_file.read(path).tensors
    except (OSError, ValueError) as error:
        pickled = path.suffix in (".pt", ".bin", ".pth")
        raise UserError(
            f"{FLAG} {path}: cannot be read as a file of tensors ({str(error) or type(error).__name__})",
            "it is a pickle, which is never loaded: save its tensor by safetensors" if pickled else HINT,
        ) from error
    if len(tensors) != 1:
        raise UserError(f"{FLAG} {path}: holds {len(tensors)} tensors ({', '.join([*tensors][:3])}, ...)", HINT)
    ((name, tensor),) = tensors.items()
    if tensor.ndim not in (1, 2) or not tensor.numel() or not tensor.is_floating_point():
        raise UserError(
            f"{FLAG} {path}: '{name}' is {list(tensor.shape)} of {tensor.dtype}, no vectors of a word", HINT
        )
    word = path.stem if name == UNNAMED else name
    return FoundWord(word, {"": tensor.float().view(-1, tensor.shape[-1])}, sha256(path))


def add_words(
    task: Task, tensors: dict[str, Tensor], paths: Sequence[Path], record: Mapping[str, Any], identity: BaseIdentity
) -> tuple[dict[str, Tensor], list[dict[str, Any]], list[str]]:
    """The tensors of a task on the meta device with words added, what a record says of each, and notes.

    record: of the checkpoint. Raises UserError where a word does not fit its encoders, or is there already.
    """
    told, notes = [], []
    for path in paths:
        word, readers = read_word(path.expanduser()), word_readers(task)
        if not readers:
            raise UserError(
                f"{FLAG} {path}: the model reads no texts as they are, so that it has no words", "leave it out"
            )
        for key, reader in readers.items():
            vectors = _fitting(word, key, reader, len(readers), path, record)
            if reader.words is not None and word.name in reader.words.names:
                raise UserError(f"{FLAG} {path}: the word '{word.name}' is there already", "give each word once")
            with weightless():
                give_word(reader, word.name, vectors.to("meta"))
            assert reader.words is not None
            place = next(name for name, module in task.named_modules() if module is reader.words)
            tensors = {**tensors, f"{place}.vectors.{len(reader.words.names) - 1}": vectors}
            if isinstance(reader, TextConditioner) and word.base is not None and word.base != identity.digest:
                notes.append(
                    f"{FLAG} {path}: the word was learned with another model, {word.base[: lora_bases.SHOWN]}..., than "
                    f"{identity.digest[: lora_bases.SHOWN]}...: it means the same where the encoder of texts is the same"
                )
        told.append({"path": str(path), "token": word.name, "sha256": word.sha256})
    return tensors, told, notes


def _fitting(
    word: FoundWord, key: str, reader: WordReader, count: int, path: Path, record: Mapping[str, Any]
) -> Tensor:
    """The vectors of a word for one of `count` conditioners. Raises UserError where there are none of this width."""
    vectors = word.vectors.get(key, word.vectors.get("") if count == 1 else None)
    if vectors is None or vectors.shape[1] != width_of(reader):
        has = ", ".join(f"{k or 'one encoder'} {v.shape[1]} wide" for k, v in word.vectors.items())
        raise UserError(
            f"{FLAG} {path}: '{word.name}' is for {has}, but {key} of the model reads words {width_of(reader)} wide",
            "give a word that was learned with this model, or with another of the same encoder",
        )
    here = record.get("encoders", {}).get(key, {}).get("sha256")
    if word.encoders.get(key, here) != here:
        raise UserError(
            f"{FLAG} {path}: '{word.name}' was learned with an encoder {word.encoders[key][: lora_bases.SHOWN]}..., but "
            f"that of the model is {str(here)[: lora_bases.SHOWN]}...",
            "give a word that was learned with the same encoder",
        )
    return vectors


def export_word(ckpt: Path, out: Path) -> Path:
    """Writes the word of a run as OUT/learned_embeds.safetensors; returns the file. Raises UserError where it has none."""
    check_empty(out)
    word = read_word(ckpt)
    if len(word.vectors) != 1:
        raise UserError(
            f"--to embedding: '{word.name}' has vectors for {len(word.vectors)} encoders, and such a file is for one",
            f"use the run itself: diffcli sample MODEL {FLAG} {quoted(ckpt)}",
        )
    (vectors,) = word.vectors.values()
    file = out / FILE
    try:
        out.mkdir(parents=True, exist_ok=True)
        save_file({word.name: vectors.contiguous()}, file, metadata={"format": "pt"})
    except OSError as error:
        raise UserError(
            f"--out {out}: cannot be written ({error.strerror})", "free some space, or give another place"
        ) from error
    return file

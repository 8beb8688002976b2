"""A run that learns a new word: which conditioners get it, what it begins as, and what is refused before the first step.

The vectors of the word are the only parameter that is trained. With the encoder of bytes a word has as many vectors as the word
that it begins as has bytes, with encoders of tokens one; so before the first step both words mean the same, to the bit.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.data.images import ImageData
from diffcli.data.order import epoch_draws
from diffcli.data.personal import holds_word
from diffcli.data.stream.stream_data import StreamData
from diffcli.encoders.encoder import Encoder
from diffcli.encoders.learned_words import LearnedWords, WordConfig, token_table
from diffcli.fields import Specs
from diffcli.preset import Preset, TrainConfig
from diffcli.tasks.conditioners.pretrained import PretrainedConditioner
from diffcli.tasks.conditioners.text import TextConditioner, as_bytes
from diffcli.tasks.task import Task

KEY = "train.embedding"
LOOKED_AT = 2000  # rows whose texts are searched for the word,
EPOCHS = 8  # in as many epochs, as each may choose another text

WordReader = TextConditioner | PretrainedConditioner


def word_readers(task: Task) -> dict[str, WordReader]:
    """The conditioners of a task that read texts, and no stored embeddings of them, by their keys."""
    kinds = TextConditioner | PretrainedConditioner
    return {key: c for key, c in task.named_conditioners.items() if isinstance(c, kinds) and "text" in c.reads}


def width_of(reader: WordReader) -> int:
    """Of an embedding, as far as the preset tells."""
    return reader.embedding.shape[1] if isinstance(reader, TextConditioner) else reader.config.width


def give_word(reader: WordReader, name: str, vectors: Tensor) -> None:
    """Adds a word to a conditioner."""
    if reader.words is None:
        reader.words = LearnedWords()
    reader.words.add(name, vectors)


def prepared(task: Task, cfg: TrainConfig) -> Task:
    """The task with room for the word of a run, where it has one, all of 0. Raises UserError where no word can be learned."""
    word = cfg.embedding
    if word is None:
        return task
    readers = word_readers(task)
    if not readers:
        raise UserError(
            f"{KEY} is set, but the model reads no texts as they are, so that it has no words",
            f"leave it out: --set {KEY}=null; name a model of texts: --from RUN; or of stored texts set cached to false",
        )
    for reader in readers.values():
        count = len(as_bytes(word.init)) if isinstance(reader, TextConditioner) else 1
        give_word(reader, word.token, torch.zeros(count, width_of(reader)))
        if isinstance(reader, TextConditioner) and word.token.isalnum():
            raise UserError(
                f"{KEY}.token is '{word.token}', but an encoder of bytes reads every word of letters already",
                f"mark the new one, as --set '{KEY}.token=<{word.token}>'",
            )
    return task


def built(preset: Preset, specs: Specs) -> Task:
    """The task of a preset as its checkpoints are used: with the word that its run has learned."""
    return prepared(preset.task.build(specs), preset.train)


@torch.no_grad()
def begin_word(task: Task, word: WordConfig) -> None:
    """Gives a word its first vectors, those of a known word. Raises UserError where it is known already, or `init` is none."""
    for key, reader in word_readers(task).items():
        assert reader.words is not None
        vectors = reader.words.vectors[reader.words.names.index(word.token)]
        vectors.copy_(first_vectors(reader, word, key).to(vectors))


def first_vectors(reader: WordReader, word: WordConfig, key: str) -> Tensor:
    """(n, D): the embeddings of `init`."""
    if isinstance(reader, TextConditioner):
        return reader.embedding[list(as_bytes(word.init))]
    encoder = reader.encoder
    table = token_table(encoder.towers)
    if table.embedding_dim != width_of(reader):
        raise UserError(
            f"{key}.width is {width_of(reader)}, but the embeddings of {encoder.config.model} are {table.embedding_dim} wide",
            f"set it to that: --set {key}.width={table.embedding_dim}",
        )
    if len(tokens_of(encoder, word.token)) == 1:
        raise UserError(
            f"{KEY}.token is '{word.token}', which {encoder.config.model} knows already",
            f"choose another, as --set '{KEY}.token=<{word.token.strip('<>')}-1>'",
        )
    known = tokens_of(encoder, word.init)
    if len(known) != 1:
        raise UserError(
            f"{KEY}.init is '{word.init}', which {encoder.config.model} reads as {len(known)} tokens, and a word begins as one",
            f"choose a simpler word, as --set {KEY}.init=toy",
        )
    return table.weight[known]


def tokens_of(encoder: Encoder, text: str) -> list[int]:
    """The tokens of a text without marks; a single unknown one is none."""
    towers = encoder.towers
    begin = len(towers.ids([""])[0]) - 1
    found = towers.ids([text])[0][begin:-1]
    unknown = getattr(getattr(towers, "tokenizer", None), "unk_token_id", None)
    return [] if found == [unknown] else found


def check_told(data: ImageData, word: WordConfig) -> None:
    """Raises UserError where no text of the data has the word, as far as a look at many of them tells."""
    if isinstance(data, StreamData) or "text" not in data.specs:
        return
    texts = data.select({"text"})
    rows = torch.arange(min(len(data), LOOKED_AT)) * len(data) // min(len(data), LOOKED_AT)
    for epoch in range(EPOCHS):
        found: Mapping[str, list[str]] = texts.read(rows, epoch_draws(0, epoch, rows))
        if any(holds_word(text, word.token) for text in found["text"]):
            return
    raise UserError(
        f"{KEY}.token is '{word.token}', which stands in no caption of the data",
        f"write it into them, or use data.kind personal with prompts such as 'a photo of {word.token}'",
    )

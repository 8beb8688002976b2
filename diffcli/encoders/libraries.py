"""CLIP and T5 as two libraries load them, behind one contract; the libraries are imported when a model is loaded.

Weights come from safetensors files, or, where open_clip brings others, through torch's loader of plain tensors: no pickle runs.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from diffcli.config import UserError

# of the data that CLIP was trained on. Source: Radford et al. 2021, arXiv 2103.00020
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
EXTRA = "pip install 'diffcli[text]'"
HALF = "fp16"  # what transformers calls weights of half precision
PIPELINE, TEXT_ENCODER, TOKENIZER = "model_index.json", "text_encoder", "tokenizer"  # of a pipeline of diffusers
UNREADABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, SafetensorError, UnpicklingError)


class Origin(NamedTuple):
    """The origin of an encoder: everything that its weights depend on."""

    kind: str
    library: str
    model: str
    pretrained: str | None

    @property
    def folder(self) -> Path | None:
        path = Path(self.model).expanduser()
        return path if path.is_dir() else None


class View(NamedTuple):
    """The input of an image tower: edge in pixels, and mean and standard deviation of the channels in [0, 1]."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


class Towers(ABC):
    """A loaded model. limit: tokens at most, None without a limit; pad: what fills rows up; view: None without images."""

    limit: int | None
    pad: int
    width: int  # of tokens
    pooled_width: int | None
    view: View | None
    prefix = ""  # before the names of all weights, in some versions of a library

    def __init__(self, model: nn.Module) -> None:
        self.model = model.float().eval().requires_grad_(False)
        self.text_parts: list[nn.Module] = [model]
        self.image_parts: list[nn.Module] = [model]

    def move_text(self, device: torch.device) -> None:
        for part in self.text_parts:
            part.to(device)

    def move_images(self, device: torch.device) -> None:
        for part in self.image_parts:
            part.to(device)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over name, shape and float32 values of all weights by name: the same for every file that holds them.

        Each library has its own names, so its own digests. Buffers of integers are left out: versions of the libraries differ
        in which of them they store.
        """
        found = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            if tensor.is_floating_point():
                found.update(f"{name.removeprefix(self.prefix)} {tuple(tensor.shape)}\n".encode())
                found.update(tensor.detach().float().cpu().contiguous().numpy().data)
        return found.hexdigest()

    @abstractmethod
    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of each text, whole, with the marks of its begin and end."""

    @abstractmethod
    def text(self, ids: Tensor, mask: Tensor, layer: int) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, L, D) of a layer after the final norm, and pooled (B, P); ids, mask: (B, L), the end is the last."""

    def save_text(self, folder: Path, tokenizer: Path) -> None:
        """Writes the text tower and its tokenizer as pipelines of diffusers load them. Raises UserError where it is no CLIP."""
        raise UserError(f"a {type(self).__name__} is no text encoder of such pipelines", "use a CLIP of transformers")

    def images(self, pixels: Tensor) -> Tensor:
        """Features (B, P) of pixels as `view` says. Raises UserError for an encoder that has no view."""
        raise UserError(f"a {type(self).__name__} reads no images", "use a CLIP")


class TransformersClip(Towers):
    """transformers' CLIPModel. Its pooled feature is taken at the end mark itself, not at the token of the highest number."""

    def __init__(self, origin: Origin, key: str) -> None:
        transformers = _library("transformers", key)
        with _loading(origin, key):
            model = _from_pretrained(transformers.CLIPModel, origin, key)
            self.tokenizer = _tokenizer(transformers, origin, key, model.config.text_config.vocab_size)
            self.view = _transformers_view(transformers, origin, model.config.vision_config.image_size)
        super().__init__(model)
        config = model.config
        self.limit, self.pad = config.text_config.max_position_embeddings, self.tokenizer.pad_token_id or 0
        self.width, self.pooled_width = config.text_config.hidden_size, config.projection_dim
        self.clip: Any = model
        self.text_parts = [model.text_model, model.text_projection]
        self.image_parts = [model.vision_model, model.visual_projection]

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return _ids(self.tokenizer, texts)

    def text(self, ids: Tensor, mask: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        tower = self.clip.text_model
        out = tower(
            input_ids=ids, output_hidden_states=True
        )  # causal: padding behind the end changes nothing before it
        last = out.last_hidden_state
        ends = last[torch.arange(len(ids), device=ids.device), mask.sum(1) - 1]
        tokens = last if layer == -1 else tower.final_layer_norm(out.hidden_states[layer])
        return tokens, self.clip.text_projection(ends)

    def save_text(self, folder: Path, tokenizer: Path) -> None:
        transformers: Any = import_module("transformers")
        alone = transformers.CLIPTextModel(self.clip.config.text_config)
        getattr(alone, "text_model", alone).load_state_dict(self.clip.text_model.state_dict())
        alone.save_pretrained(folder)
        self.tokenizer.save_pretrained(tokenizer)

    def images(self, pixels: Tensor) -> Tensor:
        return self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).pooler_output)


class TransformersClipText(Towers):
    """transformers' CLIPTextModel, the text tower alone, as pipelines of diffusers hold it: nothing is projected."""

    pooled_width, view, prefix = None, None, "text_model."

    def __init__(self, origin: Origin, key: str) -> None:
        transformers = _library("transformers", key)
        with _loading(origin, key):
            model = _from_pretrained(transformers.CLIPTextModel, origin, key)
            self.tokenizer = _tokenizer(transformers, origin, key, model.config.vocab_size)
        super().__init__(model)
        self.limit, self.pad = model.config.max_position_embeddings, self.tokenizer.pad_token_id or 0
        self.width = model.config.hidden_size
        self.whole: Any = model
        self.tower: Any = getattr(model, "text_model", model)  # versions of the library differ

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return _ids(self.tokenizer, texts)

    def text(self, ids: Tensor, mask: Tensor, layer: int) -> tuple[Tensor, None]:
        out = self.tower(input_ids=ids, output_hidden_states=True)
        return out.last_hidden_state if layer == -1 else self.tower.final_layer_norm(out.hidden_states[layer]), None

    def save_text(self, folder: Path, tokenizer: Path) -> None:
        self.whole.save_pretrained(folder)
        self.tokenizer.save_pretrained(tokenizer)


def transformers_clip(origin: Origin, key: str) -> Towers:
    """A whole CLIP, or its text tower alone, whichever lies there."""
    transformers = _library("transformers", key)
    with _loading(origin, key):
        kind = transformers.AutoConfig.from_pretrained(_place(origin, TEXT_ENCODER)).model_type
    return (TransformersClipText if kind == "clip_text_model" else TransformersClip)(origin, key)


class TransformersT5(Towers):
    """The encoder of T5. It has no pooled feature: nothing in its training made one vector speak for a text."""

    limit, pooled_width, view = None, None, None

    def __init__(self, origin: Origin, key: str) -> None:
        transformers = _library("transformers", key)
        with _loading(origin, key):
            model = _from_pretrained(transformers.T5EncoderModel, origin, key)
            self.tokenizer = _tokenizer(transformers, origin, key, model.config.vocab_size)
        super().__init__(model)
        self.pad, self.width = self.tokenizer.pad_token_id or 0, model.config.d_model

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        return _ids(self.tokenizer, texts)

    def text(self, ids: Tensor, mask: Tensor, layer: int) -> tuple[Tensor, None]:
        return self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state, None


class OpenClip(Towers):
    """open_clip's CLIP with its own tokenizer."""

    def __init__(self, origin: Origin, key: str) -> None:
        open_clip = _library("open_clip", key)
        name = f"local-dir:{origin.folder}" if origin.folder else origin.model
        if "/" in origin.model and not origin.folder:
            name = origin.model if origin.model.startswith("hf-hub:") else f"hf-hub:{origin.model}"
        if ":" not in name and origin.pretrained is None:
            tags = open_clip.list_pretrained_tags_by_model(origin.model)
            hint = "give it as pretrained (prep-data: --encoder-pretrained): " + (
                ", ".join(tags) or "a file of weights"
            )
            raise UserError(f"{key} is '{origin.model}' of open_clip, without the tag of its weights", hint)
        with _loading(origin, key):
            model = open_clip.create_model(name, origin.pretrained, require_pretrained=True)
            self.tokenizer = open_clip.get_tokenizer(name)
        tower = getattr(model, "text", model)
        if not hasattr(tower, "ln_final") or not hasattr(self.tokenizer, "sot_token_id"):
            raise UserError(f"{key} is '{origin.model}', which is not a CLIP with its own text tower", "choose a ViT-*")
        super().__init__(model)
        self.clip: Any = model
        self.tower: Any = tower
        self.limit, self.pad = int(model.context_length), 0  # 0, as its tokenizer does
        self.width, self.pooled_width = tower.ln_final.weight.shape[0], model.visual.output_dim
        size = model.visual.image_size
        self.view = View(size[0] if isinstance(size, tuple) else size, model.visual.image_mean, model.visual.image_std)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        marks = self.tokenizer
        return [[marks.sot_token_id, *marks.encode(text), marks.eot_token_id] for text in texts]

    def text(self, ids: Tensor, mask: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        kept: list[Tensor] = []
        ids = nn.functional.pad(ids, (0, self.clip.context_length - ids.shape[1]))  # its positions want whole rows
        watched = self.tower.ln_final if layer == -1 else self.tower.transformer.resblocks[layer]
        handle = watched.register_forward_hook(lambda module, args, out: kept.append(out))
        try:
            pooled = self.clip.encode_text(ids)
        finally:
            handle.remove()
        tokens = kept[0]
        if layer != -1:
            batch_first = getattr(self.tower.transformer, "batch_first", True)
            tokens = self.tower.ln_final(tokens if batch_first else tokens.transpose(0, 1))
        return tokens[:, : mask.shape[1]], pooled

    def images(self, pixels: Tensor) -> Tensor:
        return self.clip.encode_image(pixels)


LOADERS: dict[tuple[str, str], Callable[[Origin, str], Towers]] = {
    ("transformers", "clip"): transformers_clip,
    ("transformers", "t5"): TransformersT5,
    ("open_clip", "clip"): OpenClip,
}


def typed(key: str) -> str:
    """What to type to name another folder for the model of a preset's key or a flag."""
    return f"{key} FOLDER" if key.startswith("--") else f"--set {key}=FOLDER"


def _library(name: str, key: str) -> Any:
    try:
        import_module("diffcli.torchvision_compat")  # both libraries import torchvision
        library: Any = import_module(name)
    except ImportError as error:
        raise UserError(f"{key} needs the package {name}, which is not installed ({error})", EXTRA) from error
    if name == "transformers":  # it reports on every file and every weight that a part of a model does without
        library.utils.logging.disable_progress_bar()
        library.utils.logging.set_verbosity_error()
    return library


def _place(origin: Origin, part: str) -> str:
    """The place of a part of a model: a folder of its own if the folder is a pipeline of diffusers."""
    folder = origin.folder
    if folder is not None and (folder / PIPELINE).is_file():
        return str(folder / part)
    return str(folder or origin.model)


def _from_pretrained(model: Any, origin: Origin, key: str) -> Any:
    """The model with its weights, all of them there, from safetensors alone."""
    folder = None if origin.folder is None else Path(_place(origin, TEXT_ENCODER))
    if folder is not None and not list(folder.glob("*.safetensors")):
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        has = f"holds its weights as a pickle ({pickles[0]}), which is never loaded" if pickles else "holds no weights"
        raise UserError(f"{key} is '{folder}', which {has}", "save the model as safetensors (save_pretrained) there")
    variant = _variant(folder)
    options = {"use_safetensors": True, "output_loading_info": True, **({"variant": variant} if variant else {})}
    loaded, info = model.from_pretrained(_place(origin, TEXT_ENCODER), **options)
    if info["missing_keys"]:
        lacking = sorted(info["missing_keys"])[0]
        hint = "give the folder of the whole CLIP" if origin.kind == "clip" else "give the folder of a T5"
        raise UserError(f"{key} is '{origin.model}', which lacks weights of a {origin.kind} ({lacking}, ...)", hint)
    return loaded


def _variant(folder: Path | None) -> str | None:
    """fp16 where a folder holds no weights but those, as pipelines of half precision do."""
    if folder is None or list(folder.glob("model.safetensors")) or list(folder.glob("model.safetensors.index.json")):
        return None
    return HALF if list(folder.glob(f"model*.{HALF}.*")) else None


def _tokenizer(transformers: Any, origin: Origin, key: str, vocabulary: int) -> Any:
    """The tokenizer of a model that knows so many tokens.

    Where its files are not there, transformers gives an empty one, to which every word is unknown: told by its size. A model
    may have room for a few tokens more, never for fewer.
    """
    tokenizer = transformers.AutoTokenizer.from_pretrained(_place(origin, TOKENIZER), trust_remote_code=False)
    if not vocabulary / 2 <= len(tokenizer) <= vocabulary:
        raise UserError(
            f"{key} is '{origin.model}', whose tokenizer has {len(tokenizer)} tokens, the model {vocabulary}",
            "copy the files of its own tokenizer beside the model, too: tokenizer.json, vocab.json, merges.txt, spiece.model",
        )
    return tokenizer


def _transformers_view(transformers: Any, origin: Origin, size: int) -> View:
    """The view from preprocessor_config.json; without one, that of CLIP's training."""
    try:
        processor = transformers.CLIPImageProcessor.from_pretrained(_place(origin, ""))
    except (OSError, ValueError):
        return View(size, MEAN, STD)
    return View(size, tuple(processor.image_mean), tuple(processor.image_std))


def _ids(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    return [list(row) for row in tokenizer(list(texts), add_special_tokens=True, verbose=False)["input_ids"]]


@contextmanager
def _loading(origin: Origin, key: str) -> Iterator[None]:
    """Context that turns failures of a library to find, read or download into a UserError."""
    if origin.folder is None and (origin.model.startswith(("/", "./", "../", "~")) or origin.model.count("/") > 1):
        raise UserError(f"{key} is '{origin.model}', and there is no such folder", f"{typed(key)}, where it lies")
    try:
        yield
    except UNREADABLE as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{key} is '{origin.model}', which cannot be loaded: {reason}",
            "give the folder of a model, or download it first: hf download NAME --local-dir FOLDER",
        ) from error

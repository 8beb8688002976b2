"""Tiny encoders of random weights, saved to folders as published ones are; no download."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

import diffcli.torchvision_compat  # noqa: F401  before anything that imports torchvision

WIDTH, POOLED, LIMIT = 24, 16, 12  # of the tiny CLIPs: tokens, pooled feature, tokens a text
T5_WIDTH = 20
IMAGE = 32
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def tiny_clip(folder: Path, seed: int = 0, legacy_eos: bool = False) -> Path:
    """A CLIPModel of transformers with its tokenizer and image processor, in a folder.

    legacy_eos: as the first published ones, whose config says that the end mark is 2, which it is not.
    """
    import transformers

    vocabulary = {letter: i for i, letter in enumerate([*LETTERS, *(f"{letter}</w>" for letter in LETTERS)])}
    start, end = len(vocabulary), len(vocabulary) + 1
    vocabulary |= {"<|startoftext|>": start, "<|endoftext|>": end}
    shared: dict[str, Any] = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 32}
    text = shared | {
        "hidden_size": WIDTH,
        "vocab_size": len(vocabulary),
        "max_position_embeddings": LIMIT,
        "eos_token_id": 2 if legacy_eos else end,
        "bos_token_id": start,
        "pad_token_id": end,
    }
    vision = shared | {"hidden_size": 16, "image_size": IMAGE, "patch_size": 8}
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=POOLED)
    model = _random(transformers.CLIPModel, config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(folder)
    size = {"shortest_edge": IMAGE}
    processor = transformers.CLIPImageProcessor(size=size, crop_size={"height": IMAGE, "width": IMAGE})
    for part in (model, tokenizer, processor):
        part.save_pretrained(folder)
    return folder


def tiny_text_tower(folder: Path, seed: int = 0, pad: str | None = None) -> Path:
    """The text tower and the tokenizer of `tiny_clip`, in the folder of a diffusers pipeline; pad: its token for filling up."""
    import transformers

    whole = tiny_clip(folder / "whole", seed)
    transformers.CLIPTextModel.from_pretrained(whole).save_pretrained(folder / "text_encoder")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(whole, model_max_length=LIMIT)
    if pad is not None:
        tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder / "tokenizer")
    shutil.rmtree(whole)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    return folder


def tiny_t5(folder: Path, seed: int = 0) -> Path:
    """A T5EncoderModel of transformers with a tokenizer of letters, in a folder."""
    import tokenizers
    import transformers

    vocabulary = {"<pad>": 0, "</s>": 1, "<unk>": 2} | {letter: 3 + i for i, letter in enumerate(LETTERS)}
    letters = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    letters.pre_tokenizer = tokenizers.pre_tokenizers.Split("", "isolated")
    letters.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=letters, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    config = transformers.T5Config(
        vocab_size=len(vocabulary), d_model=T5_WIDTH, d_kv=5, d_ff=32, num_layers=2, num_heads=4
    )
    for part in (_random(transformers.T5EncoderModel, config, seed), tokenizer):
        part.save_pretrained(folder)
    return folder


def tiny_open_clip(folder: Path, seed: int = 0) -> Path:
    """An open_clip CLIP, in a folder as open_clip publishes them; its tokenizer comes with the package."""
    import open_clip
    from safetensors.torch import save_file

    shared = {"width": WIDTH, "layers": 2}
    config = {
        "embed_dim": POOLED,
        "vision_cfg": {"image_size": IMAGE, "patch_size": 8, "head_width": 6, **shared},
        "text_cfg": {"context_length": LIMIT, "vocab_size": 49408, "heads": 4, **shared},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_clip.CLIP(**config)
    folder.mkdir(parents=True, exist_ok=True)
    preprocess = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.2, 0.1]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        folder / "open_clip_model.safetensors",
    )
    return folder


def _random(model: Any, config: Any, seed: int) -> Any:
    """A model of random weights, larger than those it is initialised with, so that features differ visibly."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        built = model(config).eval()
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return built

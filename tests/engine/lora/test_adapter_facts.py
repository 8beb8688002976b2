"""What `diffcli info` says of files that libraries share beside whole models."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffcli.config import UserError
from diffcli.engine.about import about, lines
from diffcli.interop.adapters import lora_names
from diffcli.networks.lora import LowRank
from tests.conftest import Cli


def changes(*names: str, rank: int = 2, alpha: float = 3.0) -> dict[str, LowRank]:
    return {name: LowRank(torch.zeros(rank, 8), torch.zeros(8, rank), alpha) for name in names}


BLOCK = "down_blocks.0.attentions.0.transformer_blocks.0"
SOME = changes(f"{BLOCK}.attn1.to_q", f"{BLOCK}.attn2.to_q", f"{BLOCK}.attn1.to_out.0")


@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_a_lora_of_others_tells_rank_alpha_and_layers(form: str, cli: Cli, tmp_path: Path) -> None:
    tensors, header = lora_names.of_kohya(SOME) if form == "kohya" else lora_names.of_peft(SOME, "unet")
    (tmp_path / "lora").mkdir()
    save_file(tensors, tmp_path / "lora" / "mine.safetensors", metadata=header)
    for path in (tmp_path / "lora", tmp_path / "lora" / "mine.safetensors"):
        done = cli("info", path, "--json")
        assert done.code == 0, done.err
        found = json.loads(done.out)
        assert (found["kind"], found["library"]) == ("lora", form)
        assert (found["rank"], found["alpha"], found["weights"]) == ([2, 2], [3, 3], 3 * 2 * 16)
        assert sorted(found["layers"].values()) == [1, 2]
        assert found["layers"]["to_q"] == 2
        assert found["says_base"] is None
        told = cli("info", path).out
        assert f"--lora {path}" in told
        assert "not named" in told


def test_ranks_that_differ_the_base_that_is_named_and_texts_are_told(tmp_path: Path) -> None:
    of_peft = lora_names.of_peft(SOME | changes("mid_block.attentions.0.to_k", rank=4, alpha=1.0), "unet")[0]
    wrapped = {name.replace("unet.", lora_names.WRAPPED): tensor for name, tensor in of_peft.items()}
    text = {f"text_encoder.layers.0.q_proj.lora_{side}.weight": torch.zeros(2, 2) for side in "AB"}
    save_file(wrapped | text, tmp_path / "adapter_model.safetensors")
    settings = {"r": 2, "lora_alpha": 6, "alpha_pattern": {"to_k": 1}, "base_model_name_or_path": "someone/model"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    found = about(tmp_path)
    assert (found["rank"], found["alpha"], found["texts"]) == ([2, 4], [1, 6], 1)
    assert found["says_base"] == "someone/model"
    assert "2 to 4" in lines(found)["changes"]
    assert "someone/model" in lines(found)["base"]
    assert "left out" in lines(found)


def test_a_file_of_another_method_is_refused_by_its_name(tmp_path: Path) -> None:
    save_file({"lora_unet_mid.hada_w1_a": torch.zeros(2, 2)}, tmp_path / "loha.safetensors")
    with pytest.raises(UserError, match="LoHa"):
        about(tmp_path / "loha.safetensors")


def test_a_word_tells_its_vectors(tmp_path: Path) -> None:
    save_file({"<mine>": torch.zeros(2, 8)}, tmp_path / "learned_embeds.safetensors")
    for path in (tmp_path, tmp_path / "learned_embeds.safetensors"):
        found = about(path)
        assert (found["kind"], found["token"], found["vectors"], found["width"]) == ("word", "<mine>", 2, 8)
        assert "--embedding" in lines(found)["next"]


def test_weights_of_neither_are_refused_as_before(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2), "b": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights\.safetensors"):
        about(tmp_path / "weights.safetensors")

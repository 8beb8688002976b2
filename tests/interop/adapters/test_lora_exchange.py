"""Low-rank changes of diffusers, peft and kohya: the same predictions there and here, alpha and rank included."""

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.interop import importing
from diffcli.interop.adapters import lora_names
from diffcli.interop.adapters.lora_exchange import ImportedLora, read_lora, write_lora
from diffcli.interop.adapters.lora_places import layer_places
from diffcli.interop.imported import Imported
from diffcli.networks.conditioning import Conditioning
from diffcli.networks.lora import LowRank, merged
from tests.interop.making import noise
from tests.interop.pipes import stable, transformer, unconditional

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
    pytest.mark.xdist_group("exchange"),  # three models serve all of them
]
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "proj_in")
TIME = torch.tensor([7, 420])


class Theirs:
    """A pipeline of theirs, and the same as ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ours: Imported = importing.load(folder, None)

    def network(self) -> Any:
        pipe = diffusers.DiffusionPipeline.from_pretrained(self.folder)
        return getattr(pipe, "unet", None) or pipe.transformer


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    """A StableDiffusionPipeline: queries, keys and values apart, here as there."""
    return Theirs(stable(tmp_path_factory.mktemp("lora") / "texts"))


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    """An LDMPipeline, whose attention is one layer here and three there."""
    return Theirs(unconditional(tmp_path_factory.mktemp("lora") / "fused"))


@pytest.fixture(scope="module")
def dit(tmp_path_factory: pytest.TempPathFactory) -> Theirs:
    return Theirs(transformer(tmp_path_factory.mktemp("lora") / "dit"))


def layers(network: nn.Module, *endings: str) -> dict[str, nn.Module]:
    found = {name: module for name, module in network.named_modules() if name.endswith(endings)}
    assert found
    return found


def drawn(network: nn.Module, *endings: str, alpha: float = 3.0, ranks: tuple[int, ...] = (2,)) -> dict[str, LowRank]:
    """Random changes of the layers of theirs whose names end so."""
    found = {}
    for i, (name, layer) in enumerate(layers(network, *endings).items()):
        weight, rank = layer.weight, ranks[i % len(ranks)]
        down = noise(rank, *weight.shape[1:], seed=2 * i) * 0.3
        up = noise(weight.shape[0], rank, *[1] * (weight.ndim - 2), seed=2 * i + 1) * 0.3
        found[name] = LowRank(down, up, alpha)
    return found


def write(file: Path, changes: dict[str, LowRank], form: str) -> Path:
    if form == "kohya":
        tensors, header = lora_names.of_kohya(changes)
    elif form == "peft":
        tensors, header = lora_names.of_peft(changes, "unet")
    else:  # as diffusers wrote them before it knew peft, without any alpha
        names = {"diffusers": ("unet.{}.lora.down.weight", "unet.{}.lora.up.weight")}
        tensors, header = {}, {}
        for name, change in changes.items():
            down, up = names.get(form, ("", ""))
            if form == "processor":
                block, _, layer = name.removesuffix(".0").rpartition(".")
                down, up = (f"unet.{block}.processor.{layer}_lora.{way}.weight" for way in ("down", "up"))
            tensors |= {down.format(name): change.down, up.format(name): change.up}
    save_file({key: value.contiguous() for key, value in tensors.items()}, file, metadata=header or None)
    return file


def ours(model: Theirs, found: ImportedLora | None = None) -> Any:
    """Our network with its weights, the changes merged into them; f(x) predicts at TIME."""
    task = model.ours.preset.task.build(model.ours.preset.specs)
    tensors = model.ours.tensors
    task.load_state_dict(tensors if found is None else merged(tensors, found.changes))
    return task.denoiser.network.eval()


@torch.no_grad()
def equal(model: Theirs, network: Any, found: ImportedLora | None) -> None:
    """Their network and ours predict the same noise, and another one than the base does."""
    x, tokens = noise(2, network.config.in_channels, 8, 8), None
    if isinstance(network, diffusers.UNet2DConditionModel):
        tokens = noise(2, 5, network.config.cross_attention_dim, seed=1)
        expected = network(x, TIME, tokens).sample
        cond = Conditioning(tokens=tokens, mask=torch.ones(2, 5, dtype=torch.bool))
    elif isinstance(network, diffusers.UNet2DModel):
        expected, cond = network(x, TIME).sample, Conditioning()
    else:
        labels = torch.tensor([1, 3])
        expected = network(x, timestep=TIME, class_labels=labels).sample
        cond = Conditioning(vector=model.ours.tensors["conditioners.0.embedding.weight"][labels])
    times = TIME.float()
    torch.testing.assert_close(ours(model, found)(x, times, cond), expected, rtol=0, atol=1e-5)
    assert (ours(model)(x, times, cond) - expected).abs().max() > 1e-3


def added(network: Any, changes: dict[str, LowRank]) -> Any:
    """Their network, the products added to its weights by hand."""
    with torch.no_grad():
        for name, change in changes.items():
            weight = network.get_submodule(name).weight
            product = change.up.flatten(1) @ change.down.flatten(1)
            weight += (change.alpha / len(change.down) * product).view(weight.shape)
    return network.eval()


ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@pytest.mark.parametrize("form", ["peft", "kohya", "diffusers", "processor"])
def test_every_form_of_names_gives_their_predictions(texts: Theirs, tmp_path: Path, form: str) -> None:
    network = texts.network()
    told = form in ("peft", "kohya")
    endings = (*ATTENTION, *CONVOLUTIONS, "ff.net.0.proj") if told else ATTENTION
    changes = drawn(network, *endings, alpha=3.0 if told else 2.0)
    found = read_lora(write(tmp_path / "lora.safetensors", changes, form), texts.ours.preset)
    assert {change.rank for change in found.changes.values()} == {2}
    assert {change.alpha for change in found.changes.values()} == {3.0 if told else 2.0}
    equal(texts, added(network, changes), found)


@pytest.mark.parametrize(
    ("name", "endings"),
    [
        ("fused", ("to_q", "to_k", "to_v")),
        ("fused", ("to_q", "to_v")),
        ("dit", ("to_q", "to_k", "to_v")),
        ("dit", ("to_k",)),
    ],
)
def test_three_layers_of_theirs_become_one_of_ours_exactly_and_back(
    name: str, endings: tuple[str, ...], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model: Theirs = request.getfixturevalue(name)
    network = model.network()
    changes = drawn(network, *endings, alpha=1.5, ranks=(2, 3, 1))
    found = read_lora(write(tmp_path / "lora.safetensors", changes, "kohya"), model.ours.preset)
    equal(model, added(network, changes), found)
    back: dict[str, LowRank] = {}
    for layer, change in found.changes.items():
        back |= layer_places(model.ours.preset)[layer].split(change)
    assert back.keys() == changes.keys()
    for layer, change in changes.items():
        assert back[layer].rank == change.rank
        torch.testing.assert_close(back[layer].change(), change.change())


def test_equal_scales_of_three_layers_come_back_as_they_were(fused: Theirs, tmp_path: Path) -> None:
    """Ranks and alphas to the digit, matrices to the bit."""
    changes = drawn(fused.network(), "to_q", "to_k", "to_v", alpha=4.0, ranks=(2,))
    found = read_lora(write(tmp_path / "lora.safetensors", changes, "peft"), fused.ours.preset)
    again = load_file(write_lora(fused.ours.preset, found.changes, tmp_path / "out", "kohya"))
    for name, change in changes.items():
        place = "lora_unet_" + name.replace(".", "_")
        assert again[f"{place}.lora_down.weight"].equal(change.down)
        assert again[f"{place}.lora_up.weight"].equal(change.up)
        assert float(again[f"{place}.alpha"]) == change.alpha


@pytest.mark.parametrize("form", ["peft", "kohya"])
def test_diffusers_loads_what_goes_out(texts: Theirs, tmp_path: Path, form: str) -> None:
    pytest.importorskip("peft", reason="diffusers loads a LoRA with peft: pip install peft")
    network = texts.network()
    endings = (*ATTENTION, "conv1", "conv_shortcut", "ff.net.2")
    made = drawn(network, *endings, alpha=3.0, ranks=(2, 4))
    first = read_lora(write(tmp_path / "lora.safetensors", made, "kohya"), texts.ours.preset)
    file = write_lora(texts.ours.preset, first.changes, tmp_path / "out", form)  # type: ignore[arg-type]
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(texts.folder)
    pipe.load_lora_weights(file.parent, weight_name=file.name)
    equal(texts, pipe.unet, first)


def test_what_diffusers_saves_comes_in(texts: Theirs, tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="diffusers trains a LoRA with peft: pip install peft")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(texts.folder)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=5, target_modules=["to_q", "to_v", "to_out.0"]))
    with torch.no_grad():
        for i, (name, parameter) in enumerate(pipe.unet.named_parameters()):
            if "lora_B" in name:
                parameter.copy_(noise(*parameter.shape, seed=i) * 0.3)
    tensors = peft.get_peft_model_state_dict(pipe.unet)
    metadata = {"r": 2, "lora_alpha": 5, "target_modules": ["to_q", "to_v", "to_out.0"]}
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=tensors, unet_lora_adapter_metadata=metadata
    )
    found = read_lora(tmp_path, texts.ours.preset)
    assert {change.alpha for change in found.changes.values()} == {5.0}
    equal(texts, pipe.unet, found)


def test_a_folder_of_peft_tells_alpha_in_its_settings(texts: Theirs, tmp_path: Path) -> None:
    """By layer, and with the square root of the rank where it says so."""
    changes = drawn(texts.network(), "to_q", "to_k", alpha=1.0)
    tensors = {}
    for name, change in changes.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = change.down
        tensors[f"base_model.model.{name}.lora_B.weight"] = change.up
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    told: dict[str, Any] = {"r": 2, "lora_alpha": 6, "alpha_pattern": {"attn1.to_k": 8}, "use_rslora": True}
    (tmp_path / "adapter_config.json").write_text(json.dumps(told))
    found = read_lora(tmp_path, texts.ours.preset).changes
    scales = {name.rpartition("attention.")[2]: c.alpha / c.rank for name, c in found.items() if ".attention." in name}
    assert scales == pytest.approx({"query": 6 / 2**0.5, "key": 8 / 2**0.5})


def test_changes_of_text_encoders_are_left_out_and_told(texts: Theirs, tmp_path: Path) -> None:
    tensors, _ = lora_names.of_kohya(drawn(texts.network(), "to_q"))
    extra = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(2, 4)}
    extra |= {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": torch.ones(4, 2)}
    save_file(tensors | extra, tmp_path / "lora.safetensors")
    found = read_lora(tmp_path / "lora.safetensors", texts.ours.preset)
    assert "1 changes of a text encoder" in found.notes[0]


def spoiled(tensors: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    first = next(iter(tensors)).partition(".")[0]
    match fault:
        case "method":
            return tensors | {f"{first}.hada_w1_a": torch.ones(2, 2)}
        case "half":
            return {name: tensor for name, tensor in tensors.items() if name != f"{first}.lora_up.weight"}
        case "elsewhere":
            return {name.replace("attn1", "attn7"): tensor for name, tensor in tensors.items()}
        case "wide":
            return {n: torch.cat([t, t], 1) if "lora_down" in n else t for n, t in tensors.items()}
        case _:
            return {"weight": torch.ones(2)}


@pytest.mark.parametrize(
    ("fault", "word"),
    [("method", "hada_w1_a"), ("half", "not whole"), ("elsewhere", "attn7"), ("wide", "its change"), ("", "weight")],
)
def test_what_does_not_fit_is_refused_by_name(texts: Theirs, tmp_path: Path, fault: str, word: str) -> None:
    tensors, header = lora_names.of_kohya(drawn(texts.network(), "attn1.to_q"))
    save_file(spoiled(tensors, fault), tmp_path / "lora.safetensors", metadata=header)
    with pytest.raises(UserError, match=word) as error:
        read_lora(tmp_path / "lora.safetensors", texts.ours.preset)
    assert "lora.safetensors" in error.value.problem
    assert error.value.hint


def test_what_has_no_name_there_cannot_go_out(dit: Theirs, texts: Theirs, tmp_path: Path) -> None:
    change = LowRank(torch.ones(1, 32), torch.ones(32, 1), 1.0)
    with pytest.raises(UserError, match="nowhere") as error:
        write_lora(texts.ours.preset, {"denoiser.network.nowhere": change}, tmp_path / "out", "peft")
    assert "--merge" in error.value.hint
    layer = next(iter(layer_places(dit.ours.preset)))
    with pytest.raises(UserError, match="--to kohya") as error:
        write_lora(dit.ours.preset, {layer: change}, tmp_path / "out", "kohya")
    assert "--to peft" in error.value.hint
    assert not (tmp_path / "out").exists()


def test_a_u_net_of_blocks_that_only_we_have_is_refused(tmp_path: Path) -> None:
    preset = presets.load("digits", ["task.network.blocks=[convnext]", "task.network.attend_at=[]"])
    with pytest.raises(UserError, match="counterpart"):
        write_lora(
            preset, {"denoiser.network.stem": LowRank(torch.ones(1, 9), torch.ones(8, 1), 1.0)}, tmp_path / "x", "peft"
        )

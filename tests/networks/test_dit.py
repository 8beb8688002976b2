"""The diffusion transformer: any size and slot; identities of patches and positions; the published arithmetic."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffcli import preset as presets
from diffcli.config import ImageShape, UserError
from diffcli.engine.run.state import build_on_meta
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.dit import DiT, DiTConfig, SelfAttention, TokenReader
from diffcli.networks.patches import patchify, rotate, rotation, sincos, unpatchify
from tests.conftest import TINY, Cli, changed
from tests.counting import counting
from tests.networks.waking import CPU, normal, wake

SMALL = DiTConfig(patch=2, width=16, depth=2, heads=2)
SHAPE = ImageShape(3, 8, 8)
TIME = torch.tensor([0.0, 500.0])
POSITIONS = ["sincos", "rotary"]


def small(**changes: object) -> DiTConfig:
    return SMALL.model_copy(update=changes)


def run(network: nn.Module, x: Tensor, **slots: Tensor) -> Tensor:
    return network(x, torch.linspace(0, 999, len(x)), Conditioning(**slots))


@pytest.mark.parametrize(("patch", "size"), [(1, (3, 5)), (2, (4, 6)), (3, (9, 3)), (4, (28, 28))])
def test_unpatchify_is_the_exact_inverse_of_patchify(patch: int, size: tuple[int, int]) -> None:
    x = normal(2, 3, *size)
    tokens = patchify(x, patch)
    assert tokens.shape == (2, size[0] * size[1] // patch**2, patch**2 * 3)
    assert torch.equal(unpatchify(tokens, patch, size), x)
    last = tokens[0, -1].view(patch, patch, 3)
    assert torch.equal(last, x[0, :, -patch:, -patch:].permute(1, 2, 0))  # rows, columns, channels


def test_the_patch_embedding_is_the_convolution_whose_weight_it_keeps() -> None:
    network = wake(small(patch=4).build(SHAPE, 3, CondShape()))
    x = normal(2, 3, 8, 12)
    layer = network.x_embedder.proj
    convolved = torch.nn.functional.conv2d(x, layer.weight, layer.bias, stride=4).flatten(2).mT
    torch.testing.assert_close(network.x_embedder(x), convolved, atol=1e-6, rtol=1e-5)


def test_sincos_is_the_formula_of_the_paper_at_each_position() -> None:
    found = sincos((2, 3), 8, CPU)
    for row in range(2):
        for column in range(3):
            angles = [p * f for p in (column, row) for f in (1.0, 0.01)]  # 10000^(-i / 2)
            c1, c2, r1, r2 = torch.tensor(angles).double()
            expected = torch.stack([c1.sin(), c2.sin(), c1.cos(), c2.cos(), r1.sin(), r2.sin(), r1.cos(), r2.cos()])
            torch.testing.assert_close(found[row * 3 + column].double(), expected, atol=1e-6, rtol=0)


def test_rotary_products_depend_on_the_offset_in_rows_and_columns_alone() -> None:
    turn = rotation((5, 7), 8, CPU)
    q, k = normal(1, 8, seed=1), normal(1, 8, seed=2)
    products = (rotate(q.expand(35, 8), turn) @ rotate(k.expand(35, 8), turn).T).view(5, 7, 5, 7)
    torch.testing.assert_close(products[3, 5, 1, 2], products[4, 6, 2, 3], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(products[0, 0, 0, 0], (q @ k.T)[0, 0], atol=1e-5, rtol=1e-5)
    assert abs(products[3, 5, 1, 2] - products[3, 5, 2, 2]) > 1e-3
    assert abs(products[3, 5, 1, 2] - products[3, 5, 1, 3]) > 1e-3
    torch.testing.assert_close(rotate(q.expand(35, 8), turn).norm(dim=1), q.norm().expand(35))


@pytest.mark.parametrize("slots", [{}, {"vector": 6}, {"tokens": 5, "vector": 16}, {"spatial": 2}])
@pytest.mark.parametrize("positions", POSITIONS)
def test_the_untrained_network_returns_zero_and_its_blocks_are_the_identity(slots: dict, positions: str) -> None:
    network = small(positions=positions).build(SHAPE, 5, CondShape(**slots))
    told = conditions(2, (8, 8), slots)
    assert torch.equal(run(network, normal(2, 3, 8, 8), **told), torch.zeros(2, 5, 8, 8))
    kept: list[tuple[Tensor, Tensor]] = []
    for block in network.blocks:
        block.register_forward_hook(lambda _, before, after: kept.append((before[0], after)))
    run(network, normal(2, 3, 8, 8), **told)
    assert all(torch.equal(before, after) for before, after in kept)
    assert len(kept) == 2


def conditions(n: int, size: tuple[int, int], slots: dict[str, int]) -> dict[str, Tensor]:
    shapes = {"vector": (), "tokens": (7,), "spatial": ()}
    return {
        name: normal(n, width, *size, seed=9) if name == "spatial" else normal(n, *shapes[name], width, seed=9)
        for name, width in slots.items()
    }


SLOTS: list[dict[str, int]] = [{}, {"vector": 6}, {"tokens": 5}, {"vector": 16, "tokens": 5, "spatial": 2}]
KINDS = [*product(POSITIONS, [False, True])]


@pytest.mark.parametrize(
    ("kind", "slots"), [*((kind, SLOTS[-1]) for kind in KINDS), *((KINDS[-1], slots) for slots in SLOTS[:-1])]
)
@pytest.mark.parametrize(("channels", "patch", "size"), [(1, 2, (8, 8)), (3, 4, (4, 12)), (4, 3, (9, 3))])
def test_any_size_channels_and_slots_work_and_every_parameter_receives_a_gradient(
    kind: tuple[str, bool], slots: dict, channels: int, patch: int, size: tuple[int, int]
) -> None:
    positions, qk_norm = kind
    config = small(patch=patch, positions=positions, qk_norm=qk_norm)
    trained = ImageShape(channels, 4 * patch, 4 * patch)
    network = wake(config.build(trained, 2 * channels, CondShape(**slots)))
    out = run(network, normal(2, channels, *size), **conditions(2, size, slots))
    assert out.shape == (2, 2 * channels, *size)
    (out * normal(*out.shape, seed=2)).sum().backward()
    assert not [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]


@pytest.mark.parametrize("positions", POSITIONS)
def test_one_image_alone_gives_what_it_gives_in_a_batch(positions: str) -> None:
    slots = {"vector": 6, "tokens": 5}
    network = wake(small(positions=positions, qk_norm=True).build(SHAPE, 3, CondShape(**slots))).eval()
    x, time, told = normal(3, 3, 8, 8), torch.tensor([1.0, 500.0, 999.0]), conditions(3, (8, 8), slots)
    whole = network(x, time, Conditioning(**told))
    alone = network(x[1:2], time[1:2], Conditioning(**{name: value[1:2] for name, value in told.items()}))
    torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("positions", POSITIONS)
def test_without_positions_patches_could_change_places_and_with_them_they_cannot(positions: str) -> None:
    network = wake(small(positions=positions).build(SHAPE, 3, CondShape())).eval()
    x = normal(1, 3, 8, 8)
    moved = unpatchify(patchify(x, 2).flip(1), 2, (8, 8))
    back = unpatchify(patchify(network(moved, TIME[:1]), 2).flip(1), 2, (8, 8))
    assert not torch.allclose(back, network(x, TIME[:1]), atol=1e-3)


def test_the_output_depends_on_time_and_on_each_condition() -> None:
    slots = {"vector": 6, "tokens": 5, "spatial": 2}
    network = wake(SMALL.build(SHAPE, 3, CondShape(**slots)))
    x, told = normal(2, 3, 8, 8), conditions(2, (8, 8), slots)
    plain = network(x, TIME, Conditioning(**told))
    assert not torch.allclose(network(x, TIME + 300, Conditioning(**told)), plain)
    for name, value in told.items():
        assert not torch.allclose(network(x, TIME, Conditioning(**told | {name: -value})), plain), name


def test_masked_tokens_have_no_influence_and_no_gradient() -> None:
    network, x = wake(SMALL.build(SHAPE, 3, CondShape(tokens=5))), normal(2, 3, 8, 8)
    tokens = (30 * normal(2, 7, 5, seed=3)).requires_grad_()
    mask = torch.arange(7) < torch.tensor([[4], [4]])
    y = run(network, x, tokens=tokens, mask=mask)
    torch.testing.assert_close(y, run(network, x, tokens=tokens[:, :4]))
    (gradient,) = torch.autograd.grad((y * normal(*y.shape, seed=9)).sum(), tokens)
    assert not gradient[:, 4:].any()
    assert gradient[:, :4].any()


def test_tokens_may_come_in_any_order() -> None:
    network = wake(SMALL.build(SHAPE, 3, CondShape(tokens=5)))
    x, tokens = normal(2, 3, 8, 8), normal(2, 7, 5, seed=3)
    torch.testing.assert_close(run(network, x, tokens=tokens), run(network, x, tokens=tokens.flip(1)))


def test_qk_norm_makes_attention_blind_to_the_size_of_queries_and_keys() -> None:
    for qk_norm in (True, False):
        network = wake(small(qk_norm=qk_norm).build(SHAPE, 3, CondShape()))
        before = run(network, normal(2, 3, 8, 8))
        with torch.no_grad():
            for block in network.blocks:
                block.attn.qkv.weight[:32] *= 100
                block.attn.qkv.bias[:32] *= 100
        after = run(network, normal(2, 3, 8, 8))
        assert torch.allclose(before, after, atol=1e-3) == qk_norm


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("qk_norm", [False, True])
def test_bf16_autocast_stays_near_float32(positions: str, qk_norm: bool) -> None:
    network = wake(small(positions=positions, qk_norm=qk_norm).build(SHAPE, 3, CondShape(tokens=5)))
    x, tokens = normal(2, 3, 8, 8), normal(2, 7, 5, seed=3)
    full = run(network, x, tokens=tokens)
    with torch.autocast("cpu", torch.bfloat16):
        low = run(network, x, tokens=tokens)
    assert (low.float() - full).norm() < 0.03 * full.norm()


def test_dropout_follows_from_each_samples_seed() -> None:
    network = wake(small(dropout=0.3).build(SHAPE, 3, CondShape()))
    x, seeds = normal(1, 3, 8, 8).expand(3, -1, -1, -1), torch.tensor([7, 8, 7])
    out = network(x, torch.zeros(3), Conditioning(seeds=seeds))
    torch.testing.assert_close(out[0], out[2])
    assert not torch.allclose(out[0], out[1])
    quiet = network.eval()(x, torch.zeros(3))
    torch.testing.assert_close(quiet[0], quiet[1])


@pytest.mark.parametrize("positions", POSITIONS)
def test_a_state_dict_from_one_network_fills_another_built_on_meta(positions: str) -> None:
    config, x = small(positions=positions), normal(2, 3, 8, 8)
    network = wake(config.build(SHAPE, 3, CondShape()))
    with torch.device("meta"):
        empty = config.build(SHAPE, 3, CondShape())
    empty.load_state_dict(network.state_dict(), assign=True)
    assert torch.equal(empty(x, TIME), network(x, TIME))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"patch": 3}, ["task.network.patch", "3", "8x8", "1, 2, 4, 8"]),
        ({"heads": 3}, ["task.network.heads", "3", "width 16", "1, 2, 4, 8, 16"]),
        ({"width": 18}, ["task.network.positions", "sincos", "18", "multiple of 8"]),
        ({"heads": 8, "positions": "rotary"}, ["task.network.positions", "rotary", "width / heads is 2", "32"]),
    ],
)
def test_what_cannot_be_built_is_the_users_error(change: dict, words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        small(**change).build(SHAPE, 3, CondShape())
    told = f"{caught.value.problem}\n{caught.value.hint}"
    assert not [word for word in words if word not in told], told


def test_a_size_that_the_patch_does_not_divide_is_refused_at_run_time_too() -> None:
    with pytest.raises(UserError, match=r"9x8.*patch 2") as caught:
        run(SMALL.build(SHAPE, 3, CondShape()), normal(1, 3, 9, 8))
    assert "multiples of 2" in caught.value.hint


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"), [(384, 12, 6, 33), (768, 12, 12, 130), (1152, 28, 16, 675)]
)
def test_the_published_sizes_have_the_published_numbers_of_parameters(
    width: int, depth: int, heads: int, millions: int
) -> None:
    """Peebles & Xie 2022, table 4, patch 2 on 4x32x32 latents, learned variance; the class table is counted there too."""
    with torch.device("meta"):
        config = DiTConfig(patch=2, width=width, depth=depth, heads=heads)
        network = config.build(ImageShape(4, 32, 32), 8, CondShape(vector=width))
    count = sum(p.numel() for p in network.parameters()) + 1001 * width
    assert count / 1e6 == pytest.approx(millions, rel=0.01)


def test_the_layout_is_that_of_published_weights() -> None:
    with torch.device("meta"):
        names = set(DiTConfig(depth=1).build(ImageShape(4, 32, 32), 8, CondShape(vector=768)).state_dict())
    layers = ["x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "blocks.0.attn.qkv", "blocks.0.attn.proj"]
    layers += ["blocks.0.mlp.fc1", "blocks.0.mlp.fc2", "blocks.0.adaLN_modulation.1"]
    layers += ["final_layer.linear", "final_layer.adaLN_modulation.1"]
    assert names == {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}


@pytest.mark.parametrize("period", [10_000.0, 10_000 ** (128 / 127)])
def test_equal_to_diffusers_with_its_weights(period: float) -> None:
    """diffusers spaces the 128 frequencies to reach 1/10000 exactly, where the paper's code stops one step before: the same
    sinusoid with another period."""
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    wake(theirs).eval()
    if period == 10_000:
        for block in theirs.transformer_blocks:
            block.norm1.emb.time_proj.downscale_freq_shift = 0
    ours = small(max_period=period).build(ImageShape(4, 8, 8), 8, CondShape(vector=16)).eval()
    classes = adopt(ours, theirs)
    x, time, label = normal(3, 4, 8, 8), torch.tensor([3, 500, 999]), torch.tensor([0, 4, 10])  # 10: no class
    with torch.no_grad():
        expected = theirs(x, time, label).sample
        torch.testing.assert_close(ours(x, time, Conditioning(vector=classes[label])), expected, atol=1e-5, rtol=1e-5)
    assert expected.std() > 0.1


def adopt(ours: DiT, theirs: nn.Module) -> Tensor:
    """Copies every weight of a diffusers DiT; returns the table of its class embeddings. It gives each block the same
    embedder of time and class again: the first block's are those of the network."""
    embedder = theirs.transformer_blocks[0].norm1.emb
    for block in theirs.transformer_blocks:
        block.norm1.emb = embedder
    pairs = [
        (ours.x_embedder.proj, theirs.pos_embed.proj),
        (ours.t_embedder.mlp[0], embedder.timestep_embedder.linear_1),
        (ours.t_embedder.mlp[2], embedder.timestep_embedder.linear_2),
        (ours.final_layer.adaLN_modulation[1], theirs.proj_out_1),
        (ours.final_layer.linear, theirs.proj_out_2),
    ]
    for mine, other in zip(ours.blocks, theirs.transformer_blocks, strict=True):
        three, qkv = (other.attn1.to_q, other.attn1.to_k, other.attn1.to_v), nn.Linear(1, 1)
        for name in ("weight", "bias"):
            setattr(qkv, name, nn.Parameter(torch.cat([getattr(layer, name) for layer in three])))
        pairs += [
            (mine.attn.qkv, qkv),
            (mine.attn.proj, other.attn1.to_out[0]),
            (mine.mlp.fc1, other.ff.net[0].proj),
            (mine.mlp.fc2, other.ff.net[2]),
            (mine.adaLN_modulation[1], other.norm1.linear),
        ]
    with torch.no_grad():
        for layer, other in pairs:
            layer.load_state_dict(other.state_dict())
    return embedder.class_embedder.embedding_table.weight.detach()


def test_a_transformer_trains_and_samples_from_a_preset(cli: Cli, tiny, tmp_path: Path) -> None:
    network = {"kind": "dit", "patch": 2, "width": 8, "depth": 1, "heads": 2, "positions": "rotary", "qk_norm": True}
    run_dir, out = tmp_path / "run", tmp_path / "out.npz"
    preset = tiny(task__network=network, task__learn_variance=True)
    assert cli("train", "--preset", preset, "--run-dir", run_dir).code == 0
    assert cli("sample", "--ckpt", run_dir, "--n", 2, "--out", out).code == 0
    assert out.is_file()
    cli("train", "--preset", preset, "--run-dir", tmp_path / "no", "--set", "task.network.patch=3").refused(
        "task.network.patch is 3", "8x8", "1, 2, 4, 8"
    )
    assert not (tmp_path / "no").exists()


def test_a_transformer_is_chosen_by_one_override() -> None:
    preset = presets.build(changed(TINY), "tiny", ["task.network.kind=dit", "task.network.heads=4"])
    assert preset.task.network == DiTConfig(width=8, heads=4)
    with pytest.raises(UserError, match="does not divide the width 8"):
        build_on_meta(presets.build(changed(TINY), "tiny", ["task.network.kind=dit"]))


def test_a_size_is_written_as_the_width_depth_and_heads_that_it_stands_for() -> None:
    given = changed(TINY, task__network={"kind": "dit", "size": "B", "depth": 2})
    written = presets.build(given, "given").model_dump(mode="json")
    assert DiTConfig(**written["task"]["network"]) == DiTConfig(width=768, depth=2, heads=12)
    assert written["task"]["network"]["size"] is None
    assert presets.build(written, "written") == presets.build(given, "given")


def test_a_size_over_a_written_preset_of_another_size_is_refused_with_what_to_type() -> None:
    written = presets.build(changed(TINY, task__network={"kind": "dit", "size": "B"}), "given").model_dump(mode="json")
    with pytest.raises(
        UserError, match="size is 'XL', but width 768, depth 12 and heads 12 are those of 'B'"
    ) as caught:
        presets.build(written, "written", ["task.network.size=XL"])
    changes = [word for word in caught.value.hint.split() if word.startswith("task.")]
    network = presets.build(written, "written", changes).task.network
    assert (network.width, network.depth, network.heads) == (1152, 28, 16)


def test_a_checkpoint_that_has_both_a_size_and_what_it_stands_for_still_loads() -> None:
    """As they were written once."""
    whole = {"kind": "dit", "size": "B", "width": 512, "depth": 12, "heads": 12}
    for width in (768, 512):
        assert DiTConfig(**{**whole, "width": width}) == DiTConfig(width=width, depth=12, heads=12)


@pytest.mark.parametrize("tokens", [0, 6])
def test_attention_neither_copies_nor_transposes_what_it_attends_to(tokens: int) -> None:
    """Once it made its queries, keys and values contiguous and its result, too: four copies a block."""
    x = normal(2, 16, 32)
    module = TokenReader(32, 4, tokens) if tokens else SelfAttention(32, 4, False)
    given = (normal(2, 5, tokens), None) if tokens else (None,)
    with counting() as counts:
        module(x, *given)
    assert not {"clone", "copy_", "contiguous", "_to_copy"} & {*counts.operations}

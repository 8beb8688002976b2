"""The shipped presets, --set, and the errors of both."""

import subprocess
import sys
import zipfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcli import preset as presets
from diffcli.config import UserError
from diffcli.data.prepared import Shards
from diffcli.data.stream.stream_data import Stream
from diffcli.engine.model import Model
from diffcli.engine.run.origin.taking import matched
from diffcli.engine.run.plan import plan
from diffcli.engine.run.state import build_on_meta
from diffcli.engine.stage_reading import codec_of
from diffcli.optim import Adam, AdamW, Sgd
from tests.conftest import ROOT, TINY, changed

QUICK = (
    "digits",
    "digits-classifier",
    "mnist-dit",
    "mnist-vae",
    "mnist-latent",
    "cifar10-vqgan",
    "clip-prior",
)
loaded = cache(presets.load)  # presets are constants
SHIPPED = {p.stem: p for p in sorted((ROOT / "presets").glob("*.yaml"))}

# every key that the contract lets scripts override, with a value that fits the tiny preset
OVERRIDES = [
    "seed=7", "data.size=12", "train.steps=9", "train.batch_size=32", "train.accumulate=2", "train.precision=fp32",
    "train.precision=bf16", "train.precision=fp16", "train.clip=0.5", "train.clip=null", "train.ema=0.99",
    "train.optimizer.kind=adam", "train.optimizer.lr=1e-4", "train.curve.kind=constant", "train.curve.kind=linear",
    "train.curve.kind=cosine", "train.every.log=3", "train.every.preview=0", "train.every.save=5", "train.keep_last=4",
    "train.keep_every=50",
    "task.target=eps", "task.target=x0", "task.target=v", "task.target=flow", "task.learn_variance=true",
    "task.drop_condition=0.2", "task.schedule.kind=linear", "task.schedule.kind=scaled_linear",
    "task.schedule.kind=cosine", "task.schedule.kind=sigmoid", "task.schedule.kind=flow", "task.schedule.steps=100",
    "task.network.kind=unet", "task.network.width=16", "task.network.mult=[1, 2, 2]", "task.network.dropout=0.1",
    "sampler.kind=ddpm", "sampler.kind=ddim", "sampler.kind=heun", "sampler.kind=dpmpp_2m", "sampler.steps=25",
    "sampler.eta=0.5", "guidance=3",
]  # fmt: skip


def value_at(tree: object, key: str) -> object:
    for part in key.split("."):
        tree = tree[part]  # type: ignore[index]
    return tree


def test_the_presets_of_the_first_release_are_there() -> None:
    assert {"digits", "digits-classifier", "mnist", "cifar10", "cifar10-class", "imagenet64"} <= SHIPPED.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_loads_dumps_and_loads_again_to_the_same(name: str, tmp_path: Path) -> None:
    preset = loaded(name)
    assert preset.name == name
    again = tmp_path / "again.yaml"
    again.write_text(presets.dump(preset))
    assert presets.load(str(again)) == preset


OF_OTHERS = ("dreambooth-lora",)  # which train a published model, whose schedule leaves signal


def with_first_stage(preset: presets.Preset) -> presets.Preset:
    """The preset with the first stage that its `from` names, a run of another shipped preset, described as a run would tell.

    That of an imported model is the one of kl-f8-256, as in its paper. A run that it starts from is left out.
    """
    imported = preset.origin is not None and preset.origin.path.parts[0] == "imported"
    kept = preset.data.model_copy(update={"preserve": None}) if preset.data.kind == "personal" else preset.data
    preset = preset.model_copy(update={"origin": None, "data": kept})
    codec = codec_of(preset)
    if codec is None:
        return preset
    assert codec.source is not None
    stage = loaded("kl-f8-256" if imported else codec.source.name)
    with torch.device("meta"):
        described = stage.task.build(stage.specs).first_stage  # type: ignore[union-attr]
    codec = codec.model_copy(update={"first_stage": described})
    return preset.model_copy(update={"task": preset.task.model_copy(update={"codec": codec})})


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_builds_and_needs_no_advice(name: str) -> None:
    preset = with_first_stage(loaded(name))
    assert all(p.is_meta for p in build_on_meta(preset).parameters())
    schedule = ("task.schedule",) if name in OF_OTHERS else ()
    assert [advice for advice in preset.advice() if not advice.startswith(schedule)] == []


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SHIPPED]
)
def test_the_step_of_a_shipped_preset_can_be_counted_without_memory(name: str) -> None:
    preset = with_first_stage(loaded(name))
    facts = plan(preset, Path("runs"), 1)
    whole = facts["parameters"].partition(", of which")[0]
    assert int(whole.replace(",", "")) == sum(p.numel() for p in build_on_meta(preset).parameters())


def test_the_presets_of_text_to_image_are_there() -> None:
    assert {"captions-mnist", "cc3m-64", "cc3m-64-text", "clip-prior"} <= SHIPPED.keys()


LATENT = [
    name for name, path in SHIPPED.items() if "kind: latent" in path.read_text() and "imported/" not in path.read_text()
]


def test_the_presets_of_latent_diffusion_are_there() -> None:
    pixels_of = {"mnist-latent", "cifar10-latent", "celeba-256-latent", "cc3m-256-latent"}
    assert {*pixels_of, "imagenet256-dit-latent", "imagenet256-unet-latent"} <= {*LATENT}


@pytest.mark.parametrize("name", LATENT)
def test_a_latent_preset_has_images_that_its_first_stage_was_trained_on(name: str) -> None:
    preset = loaded(name)
    codec = codec_of(preset)
    assert codec is not None
    assert codec.source is not None
    stage = loaded(codec.source.name)
    assert str(codec.source) == f"runs/{stage.name}"
    assert stage.data.shape == preset.data.shape


@pytest.mark.parametrize("name", [name for name, path in SHIPPED.items() if "\nfrom: runs/" in path.read_text()])
def test_a_preset_that_starts_from_another_takes_every_weight_of_it(name: str) -> None:
    preset = loaded(name)
    assert preset.origin is not None
    source = loaded(preset.origin.path.name)
    assert str(preset.origin.path) == f"runs/{source.name}"
    model = Model(preset.origin.path, 1, source, build_on_meta(source), None, True, "")
    task = build_on_meta(preset)
    taken = matched(task, model, None, model.task.state_dict())
    assert taken.covers(model.task.state_dict()), "by the same names here"


def test_the_presets_of_personalisation_are_there() -> None:
    assert {"dreambooth-lora", "mnist-dreambooth", "mnist-word"} <= SHIPPED.keys()


@pytest.mark.slow
def test_one_key_makes_a_transformer_of_another_published_size() -> None:
    sizes = {}
    for size in ("B", "XL"):
        chosen = with_first_stage(presets.load("imagenet256-dit-latent", [f"task.network.size={size}"]))
        sizes[size] = sum(p.numel() for p in build_on_meta(chosen).denoiser.parameters())  # type: ignore[union-attr]
    assert sizes["B"] == pytest.approx(130e6, rel=0.02), "Peebles & Xie 2022, table 1"
    assert sizes["XL"] == pytest.approx(675e6, rel=0.02)


def test_weights_that_a_step_casts_do_not_count_for_every_sample() -> None:
    """A batch of 4096 vectors keeps little; the weights that it goes through, 100 million, are the same for all."""
    memory = plan(presets.load("clip-prior", ["train.precision=bf16"]), Path("runs"), 1)["memory"]
    assert float(memory.removeprefix("about ").partition(" GiB")[0]) < 20


def test_a_plan_needs_no_encoder_and_says_what_it_leaves_out() -> None:
    small = [
        *("task.network.width=32", "task.network.mult=[1, 1]", "task.network.attend_at=[32]"),
        "task.network.head_dim=32",
    ]
    blocks = {"cc3m-64-text": "[res, attention, cross_attention]", "cc3m-64": "[res, attention]"}
    facts = [
        plan(presets.load(name, [*small, f"task.network.blocks={chosen}"]), Path("runs"), 1)
        for name, chosen in blocks.items()
    ]
    assert "openai/clip-vit-large-patch14" in facts[0]["encoder"]
    assert "encoder" not in facts[1]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_preset_is_short_and_says_what_it_is(name: str) -> None:
    lines = SHIPPED[name].read_text().splitlines()
    assert lines[0].startswith(f"# {name} - ")
    assert len(lines[0]) > len(f"# {name} - ") + 20
    assert len(lines) < 45


WITH = {  # what a setting needs beside it
    "task.schedule.kind=flow": ["task.target=flow", "task.learn_variance=false"],
    "sampler.eta=0.5": ["sampler.kind=ddim"],
    "task.schedule.steps=100": ["sampler.steps=10"],
    "task.drop_condition=0.2": ["task.conditioners=[{kind: class, num_classes: 10}]"],
    "guidance=3": ["task.conditioners=[{kind: class, num_classes: 10}]", "task.drop_condition=0.2"],
}


def takes(preset: presets.Preset, setting: str) -> bool:
    key, _, value = setting.partition("=")
    found, wanted = value_at(preset.model_dump(mode="json"), key), yaml.safe_load(value)
    return found == wanted or float(found) == pytest.approx(float(wanted))  # type: ignore[arg-type]


@pytest.mark.parametrize("setting", OVERRIDES)
def test_a_key_that_scripts_override_takes_the_value(setting: str) -> None:
    """On the smallest preset, whose file leaves most sections out."""
    assert takes(presets.build(TINY, "tiny", [*WITH.get(setting, []), setting]), setting)


TOGETHER = (  # one value for each key that every kind of preset has
    *("seed=7", "train.steps=9", "train.batch_size=32", "train.accumulate=2", "train.precision=fp16", "train.clip=0.5"),
    *("train.ema=0.99", "train.optimizer.kind=adam", "train.optimizer.lr=1e-4", "train.curve.kind=linear"),
    *("train.every.log=3", "train.every.preview=0", "train.every.save=5", "train.keep_last=4", "train.keep_every=50"),
)
BESIDE = {  # those of a kind of task or network
    "diffusion": ("sampler.kind=heun", "sampler.steps=5"),
    "unet": ("task.network.dropout=0.1",),
}


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_preset_takes_the_keys_that_scripts_override(name: str) -> None:
    """All of them at once: what each key means alone is a matter of the key, not of the file."""
    raw = presets.read(SHIPPED[name])
    task = loaded(name).task
    kinds = {task.kind, getattr(getattr(task, "network", None), "kind", "")}
    settings = [*TOGETHER, *(each for kind in kinds for each in BESIDE.get(kind, ()))]
    preset = presets.build(raw, name, settings)
    assert [setting for setting in settings if not takes(preset, setting)] == []


def test_another_kind_keeps_what_both_kinds_know() -> None:
    def build(*overrides: str) -> presets.Preset:
        return presets.build(TINY, "tiny.yaml", overrides)

    assert build("train.optimizer.kind=adam").train.optimizer == Adam(lr=2e-3)
    assert build("sampler.kind=heun").sampler.steps == 3
    assert build("task.schedule.steps=400", "task.schedule.kind=linear").task.schedule.steps == 400
    assert build("task.schedule.kind=linear", "task.schedule.steps=400").task.schedule.steps == 400
    assert build("data.kind=folder").data.shape == (3, 8, 8)
    with pytest.raises(UserError, match=r"sampler\.eta is not a known key"):
        build("sampler.eta=0.5", "sampler.kind=heun")  # asked for by flag: never dropped in silence


def test_another_kind_of_data_keeps_what_is_made_of_the_images() -> None:
    tree = changed(TINY, data__derived=[{"kind": "edges"}], data__captions={"templates": ["a {name}"]})
    data = presets.build(tree, "tiny.yaml", ["data.kind=folder"]).data
    assert [each.kind for each in data.derived] == ["edges"]
    assert data.captions is not None
    with pytest.raises(UserError, match=r"task\.bottleneck|task\.network"):  # of the same name, but another thing
        presets.build(TINY, "tiny.yaml", ["task.kind=autoencoder"])


def test_a_key_of_prepared_data_can_be_overridden_beside_the_data_whatever_kind_the_file_names(tmp_path: Path) -> None:
    (tmp_path / "dataset.json").touch()
    asked = ["data.validation=held", "data.flip=true"]
    data = presets.build(changed(TINY, data__derived=[{"kind": "edges"}]), "tiny.yaml", asked, str(tmp_path)).data
    assert isinstance(data, Shards)
    assert (data.root, data.validation, data.flip) == (tmp_path, Path("held"), True)
    assert [each.kind for each in data.derived] == ["edges"]
    stream = presets.build(TINY, "tiny.yaml", ["data.lanes=3"], "https://host/a-{000..007}.tar").data
    assert isinstance(stream, Stream)
    assert stream.lanes == 3
    with pytest.raises(UserError, match=r"data\.validation"):
        presets.build(TINY, "tiny.yaml", asked)


def test_a_key_of_a_section_that_the_file_leaves_out_takes_the_default_kind() -> None:
    bare = changed(TINY, sampler=None, train__optimizer=None)
    preset = presets.build(bare, "bare", ["sampler.steps=7", "train.optimizer.lr=1e-5", "train.curve.warmup=3"])
    assert (preset.sampler.kind, preset.sampler.steps) == ("ddim", 7)
    assert preset.train.optimizer == AdamW(lr=1e-5)
    assert preset.train.curve.factor(1, 10) == pytest.approx(1 / 3)


def test_a_diffusion_preset_of_ones_own_predicts_v_and_every_shipped_one_says_what_it_predicts() -> None:
    assert presets.build(changed(TINY, task__target=None), "bare").task.target == "v"
    raw = {name: yaml.safe_load(path.read_text()) for name, path in SHIPPED.items()}
    left_out = [
        name for name, tree in raw.items() if tree["task"]["kind"] == "diffusion" and "target" not in tree["task"]
    ]
    assert left_out == []
    assert [name for name, tree in raw.items() if "lr" not in tree["train"]["optimizer"]] == []


def test_the_optimizer_of_a_phase_begins_as_that_of_the_whole() -> None:
    tree = changed(TINY, train__optimizer={"kind": "adam", "lr": 0.5, "eps": 1e-3, "weight_decay": 0.1})
    phase = presets.build(tree, "tiny", ["train.phases.main.optimizer.lr=0.25"]).train.phases["main"]
    assert phase.optimizer == Adam(lr=0.25, eps=1e-3, weight_decay=0.1)
    phase = presets.build(tree, "tiny", ["train.phases.main.optimizer.kind=adamw"]).train.phases["main"]
    assert phase.optimizer == AdamW(lr=0.5, eps=1e-3, weight_decay=0.1)
    phase = presets.build(tree, "tiny", ["train.phases.main.optimizer.kind=sgd"]).train.phases["main"]
    assert phase.optimizer == Sgd(lr=0.5, weight_decay=0.1)


def test_a_warm_up_longer_than_the_run_is_told_of_the_whole_and_of_a_phase() -> None:
    curve = {"kind": "linear", "warmup": 9}
    told = presets.build(changed(TINY, train__curve=curve, train__phases={"main": {"curve": curve}}), "tiny").advice()
    assert [note.partition(" is ")[0] for note in told] == ["train.curve.warmup", "train.phases.main.curve.warmup"]


def test_overrides_leave_the_tree_they_are_given_alone() -> None:
    tree = changed(TINY)
    presets.build(tree, "tiny", ["task.network.width=16", "task.conditioners.0.dim=4", "sampler.kind=heun"])
    assert tree == TINY


def test_learning_rates_may_be_written_as_yaml_reads_them() -> None:
    """YAML reads 3e-4 as a string."""
    assert presets.build(TINY, "tiny", ["train.optimizer.lr=3e-4"]).train.optimizer.lr == 3e-4


def test_a_schedule_that_leaves_signal_is_advised_against() -> None:
    preset = presets.build(TINY, "tiny", ["task.schedule={kind: scaled_linear, steps: 1000}"])
    (advice,) = preset.advice()
    assert "scaled_linear" in advice


KEYS = st.sampled_from(
    ["name", "seed", "data", "task", "train", "sampler", "guidance", "kind", "steps", "network", "width", "mult", "schedule",
     "conditioners", "0", "1", "²", "-1", "optimizer", "lr", "every", "save", "curve", "times", "codec", "", "a b", "batch_size"]
)  # fmt: skip
PATHS = st.lists(KEYS, min_size=1, max_size=5).map(".".join)
VALUES = st.one_of(
    st.text(max_size=30),
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["null", "[]", "{}", "[1, 2]", "{kind: heun}", "heun", "cosine", "flow", "true", "~", "2024-13-45",
                     "!!timestamp x", "!!python/object:os.system x", "&a [*a]", "1" * 5000, "[" * 400, "? [1]", "=", "'"]),
)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.tuples(PATHS, VALUES).map("=".join), st.text(max_size=20)), max_size=3))
def test_no_override_gives_anything_but_a_preset_or_a_users_error(overrides: list[str]) -> None:
    with suppress(UserError):
        preset = presets.build(TINY, "tiny.yaml", overrides)
        assert presets.build(yaml.safe_load(presets.dump(preset)), "dumped") == preset


def test_the_weights_of_a_seed_do_not_depend_on_what_was_drawn_before() -> None:
    from diffcli.engine.run.state import build_state

    preset = presets.build(TINY, "tiny")
    first = build_state(preset, torch.device("cpu")).task.state_dict()
    torch.rand(3)
    second = build_state(preset, torch.device("cpu")).task.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.slow
def test_the_wheel_holds_the_presets_and_the_digits(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", str(ROOT), "--no-deps", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        for name, path in SHIPPED.items():
            assert file.read(f"diffcli/presets/{name}.yaml") == path.read_bytes()
        assert "diffcli/data/digits/t10k-images-idx3-ubyte.gz" in names
        assert {"diffcli/cli/app.py", "diffcli/lookup/preset.schema.json"} <= names
        assert not any(name.startswith("tests") for name in names)
        entry = next(name for name in names if name.endswith("entry_points.txt"))
        assert b"diffcli = diffcli.cli.app:main" in file.read(entry)
        file.extractall(tmp_path / "installed")
    script = """from diffcli import preset
from diffcli.lookup import preset_files
print(preset.load("imagenet64").name, preset_files.available()["digits"])"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path / "installed")},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["imagenet64", str(tmp_path / "installed/diffcli/presets/digits.yaml")]

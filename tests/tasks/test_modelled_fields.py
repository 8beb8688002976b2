"""What is modelled is a key of the task: a mask, a picture beside the image or a clip, trained, sampled and previewed."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from diffcli import checkpoint
from diffcli.config import UserError
from diffcli.data.dataset import DataConfig
from diffcli.data.images import ImageData, MemoryImages
from diffcli.data.listing import Split
from diffcli.diffusion.samplers import Ddim, last
from diffcli.engine.distributed import join
from diffcli.engine.loading import place
from diffcli.engine.model import specs_of
from diffcli.engine.run.plan import plan
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import build_state
from diffcli.engine.run.train import train
from diffcli.fields import LATENT, FieldSpec
from diffcli.networks.conditioning import Conditioning, CondShape
from diffcli.networks.layers import zero
from diffcli.networks.network import NetworkConfig
from diffcli.preset import Preset
from diffcli.tasks.codecs.one_hot import OneHotCodec, OneHotCodecConfig
from diffcli.tasks.codecs.pixel import PixelCodecConfig
from diffcli.tasks.diffusion_config import DiffusionConfig
from tests.conftest import TINY, Cli, changed
from tests.data.making import pixels, png, run
from tests.data.test_specs import Clips
from tests.latents import stage_config

PAIRS = Path(__file__).parent.parent / "fixtures" / "format1" / "pairs-prepared"
CPU = torch.device("cpu")
ALONE = {"task__conditioners": [], "task__drop_condition": 0, "guidance": 1, "train__every__preview": 1}
MASKS = ALONE | {
    "data": {"kind": "shards", "root": str(PAIRS), "size": 8},
    "task__field": "mask",
    "task__codec": {"kind": "one_hot", "classes": 3},
    "task__schedule": {"kind": "cosine", "steps": 50},  # so many are evaluated for bits per dimension
    "train__steps": 2,
}


@pytest.mark.parametrize("classes", [2, 3, 7])
@pytest.mark.parametrize("shape", [(8, 8), (3, 4, 4)])
def test_classes_come_back_from_their_channels_as_evenly_spaced_levels(classes: int, shape: tuple[int, ...]):
    codec = OneHotCodec(classes)
    mask = torch.arange(2 * torch.Size(shape).numel()).remainder(classes).view(2, 1, *shape)
    z = codec.encode(mask)
    assert z.shape[1:] == codec.latent_shape((1, *shape))
    assert set(z.unique().tolist()) == {-1.0, 1.0}
    assert torch.allclose(codec.decode(z), mask * 2 / (classes - 1) - 1)
    assert torch.equal(codec.decode(z * 0.3), codec.decode(z)), "the largest channel is the class, however large"


def test_a_scaled_mask_is_smaller_in_diffusion_space_alone():
    mask = torch.arange(8).remainder(2).view(1, 1, 2, 4)
    plain, small = OneHotCodec(2), OneHotCodecConfig(classes=2, scale=0.25).build(FieldSpec("mask", (1, 2, 4), 2))
    assert torch.equal(small.encode(mask), plain.encode(mask) / 4)
    assert torch.equal(small.decode(small.encode(mask)), plain.decode(plain.encode(mask)))
    assert (small.bounds, small.length) == ((-0.25, 0.25), 0.25)


def test_a_number_that_is_no_class_is_in_no_channel():
    assert (OneHotCodec(3).encode(torch.full((1, 1, 2, 2), 255)) == -1).all()


@pytest.mark.parametrize(
    ("config", "spec", "words"),
    [
        (PixelCodecConfig(), FieldSpec("mask", (1, 8, 8), 5), ["names a mask", "kind=one_hot", "codec.classes=5"]),
        (OneHotCodecConfig(classes=3), FieldSpec("image", (1, 8, 8)), ["of kind image", "kind: pixels"]),
        (OneHotCodecConfig(classes=3), FieldSpec("mask", (1, 8, 8), 5), ["codec.classes is 3", "codec.classes=5"]),
    ],
)
def test_a_codec_refuses_a_field_that_it_is_not_for(config, spec, words):
    with pytest.raises(UserError, match=r"task\.codec") as caught:
        config.build(spec)
    for word in words:
        assert word in str(caught.value)


def test_a_mask_is_trained_sampled_and_previewed(tiny, cli: Cli, tmp_path: Path):
    preset, out = tiny(**MASKS), tmp_path / "run"
    done = cli("train", "--preset", preset, "--run-dir", out, "--device", "cpu")
    assert done.code == 0, done.err
    record = checkpoint.read_record(checkpoint.locate(out))
    assert record["fields"] == {"mask": {"kind": "mask", "shape": [1, 8, 8], "classes": None}}
    assert Image.open(out / "previews" / "step-00000002.png").mode == "L"
    drawn = cli("sample", "--ckpt", out, "--n", 5, "--out", tmp_path / "masks.npz", "--device", "cpu")
    assert drawn.code == 0, drawn.err
    images = np.load(tmp_path / "masks.npz")["arr_0"]
    assert images.shape == (5, 8, 8, 1)
    assert set(np.unique(images)) <= {0, 128, 255}
    told = cli("fid", "--ckpt", out, "--ref", f"{PAIRS}:train", "--metrics", "bpd", "--n", 2, "--device", "cpu")
    assert told.code == 0, told.err
    photographs = cli("fid", "--ckpt", out, "--ref", PAIRS, "--metrics", "fid", "--n", 2, "--device", "cpu")
    photographs.refused("draws the field 'mask'", "images of", "diffcli fid drawn FOLDER")
    refused = cli(
        "sample", "--ckpt", out, "--image", out / "previews" / "step-00000002.png", "--out", tmp_path / "x.png"
    )
    refused.refused("--image", "'mask' of kind mask", "leave --image out")


def test_a_picture_beside_the_image_is_trained_and_sampled_in_its_own_channels(tiny, cli: Cli, tmp_path: Path):
    for folder, channels in (("images", 3), ("sketches", 1)):
        (tmp_path / "in" / folder).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "in" / folder / f"{number}.png").write_bytes(png(pixels(1, channels, 8, 8, seed=number)[0]))
    run("pairs", tmp_path / "in", tmp_path / "set")
    data = {"kind": "shards", "root": str(tmp_path / "set"), "size": 8}
    preset = tiny(**(ALONE | {"data": data, "task__field": "sketch", "train__steps": 2}))
    done = cli("train", "--preset", preset, "--run-dir", tmp_path / "run", "--device", "cpu")
    assert done.code == 0, done.err
    drawn = cli("sample", "--ckpt", tmp_path / "run", "--n", 2, "--out", tmp_path / "x.npz", "--device", "cpu")
    assert drawn.code == 0, drawn.err
    assert np.load(tmp_path / "x.npz")["arr_0"].shape == (2, 8, 8, 1)
    picture = tmp_path / "in" / "images" / "0.png"
    redrawn = cli(
        "sample", "--ckpt", tmp_path / "run", "--image", picture, "--strength", 0.5, "--out", tmp_path / "y.npz"
    )
    assert redrawn.code == 0, redrawn.err
    assert np.load(tmp_path / "y.npz")["arr_0"].shape == (1, 8, 8, 1)


def test_a_plan_and_a_check_know_the_field_without_its_data(tiny, cli: Cli, tmp_path: Path):
    nowhere = {**MASKS, "data": {"kind": "shards", "root": str(tmp_path / "nowhere"), "size": 8}}
    assert cli("presets", "check", tiny(**nowhere)).code == 0
    planned = [cli("train", "--preset", tiny(**keys), "--dry-run") for keys in (MASKS, nowhere)]
    assert [done.code for done in planned] == [0, 0], planned[1].err
    flops = [next(line for line in (p.out + p.err).splitlines() if "GFLOP" in line) for p in planned]
    assert flops[0] == flops[1]


class VideoNet(nn.Module):
    """Two convolutions over space and time, and nothing else."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv3d(channels + 1, 6, 3, padding=1)
        self.head = zero(nn.Conv3d(6, out_channels, 3, padding=1))

    def forward(self, x: Tensor, time: Tensor, cond: Conditioning = Conditioning()) -> Tensor:
        told = (time / 1000).to(x).view(-1, 1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.head(torch.tanh(self.stem(torch.cat([x, told], dim=1))))


class VideoNetConfig(NetworkConfig):
    """Builds it."""

    kind: Literal["video"] = "video"
    axes = 3

    def build(self, shape: tuple[int, ...], out_channels: int, cond: CondShape) -> VideoNet:
        return VideoNet(shape[0], out_channels)


class ClipSet(DataConfig):
    """Five clips of three frames, made on the spot."""

    kind: Literal["clips"] = "clips"

    @property
    def specs(self) -> dict[str, FieldSpec]:
        return super().specs | {"clip": FieldSpec("clip", (self.channels, 3, *self.shape[1:]))}

    def build(self, split: Split) -> ImageData:
        clips = torch.from_numpy(pixels(5, 3 * self.channels, *self.shape[1:])).unflatten(1, (self.channels, 3))
        return MemoryImages(clips[:, :, 1], columns={"clip": Clips(clips)})


class ClipTask(DiffusionConfig):
    network: VideoNetConfig = VideoNetConfig()  # type: ignore[assignment]


class ClipPreset(Preset):
    """A preset of clips."""

    data: ClipSet  # type: ignore[assignment]
    task: ClipTask  # type: ignore[assignment]


def clips(**keys: Any) -> ClipPreset:
    tree = changed({**TINY, "task": {}, "data": {}}, **(ALONE | {"train__steps": 2, "data__flip": True} | keys))
    tree["data"] |= {"kind": "clips", "size": [4, 6], "channels": 1}
    task = {"kind": "diffusion", "field": "clip", "target": "v", "network": {"kind": "video"}}
    return ClipPreset.model_validate({**tree, "task": task | tree["task"]})


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_clip_is_trained_sampled_and_previewed(precision: str, tmp_path: Path):
    preset, out = clips(train__precision=precision), RunDir(tmp_path / "run")
    with join("cpu") as group:
        steps = list(train(preset, out, group))
    assert len(steps) == 2
    assert Image.open(out.path / "previews" / "step-00000002.png").mode == "L"
    for moving in (out.path / "previews" / "step-00000002.webp", out.path / "preview.webp"):
        assert Image.open(moving).n_frames == 3
    found = checkpoint.locate(out.path)
    record = checkpoint.read_record(found)
    assert record["fields"] == {"clip": {"kind": "clip", "shape": [1, 3, 4, 6], "classes": None}}
    task = preset.task.build(specs_of(record, preset, found))
    task.load_state_dict(checkpoint.read_part(found, "ema", record))
    with torch.no_grad():
        whole = task.decode(last(task.trajectory({}, [3, 4], Ddim(steps=2), 1.0)).x)
        alone = task.decode(last(task.trajectory({}, [4], Ddim(steps=2), 1.0)).x)
    assert whole.shape == (2, 1, 3, 4, 6)
    assert whole.std() > 0.1
    assert torch.allclose(whole[1:], alone, atol=1e-5)
    shown = task.preview({"clip": torch.zeros(2, 1, 3, 4, 6)}, Ddim(steps=2), 1.0)
    again = task.decode(last(task.trajectory({}, [0, 1], Ddim(steps=2), 1.0)).x)
    assert torch.equal(shown, again)


def test_a_plan_counts_the_arithmetic_of_a_clip(tmp_path: Path):
    facts = plan(clips(), tmp_path, 1)
    values = 3 * 4 * 6
    forward = 2 * values * 27 * (2 * 6 + 6 * 1)  # two convolutions of 27 weights a pair of channels
    backward = 2 * values * 27 * (2 * 6 + 2 * 6 * 1)  # the first needs no gradient of its input
    assert facts["flops"].startswith(f"{(forward + backward) / 1e9:.3g} GFLOP")


def test_weights_of_clips_keep_their_layout_where_those_of_pictures_change_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("diffcli.engine.loading.memory_format", lambda *_: torch.channels_last)
    task = build_state(clips(), CPU).task
    task.picture = nn.Conv2d(4, 4, 3)
    place(task, CPU, "bf16", training=True)
    assert task.picture.weight.is_contiguous(memory_format=torch.channels_last)
    assert task.denoiser.network.stem.weight.is_contiguous()


def test_a_network_of_pictures_refuses_a_clip():
    with pytest.raises(UserError, match=r"task\.network\.temporal is null.* 1x3x4x6") as caught:
        DiffusionConfig.model_validate({**TINY["task"], "field": "clip"}).build(clips().specs)
    assert "task.field" in caught.value.hint


def test_latents_of_another_shape_are_told_by_the_codec_and_mended_by_making_them_again() -> None:
    stored = FieldSpec("latent", (6, 4, 4))
    tree = {"kind": "latent", "first_stage": stage_config().model_dump()}
    task = DiffusionConfig.model_validate({"network": TINY["task"]["network"], "codec": tree}).build({LATENT: stored})
    for has in ({LATENT: FieldSpec("latent", (8, 4, 4))}, {"image": FieldSpec("image", (1, 8, 8))}):
        with pytest.raises(UserError, match=r"task\.codec \(diffusion\) reads .*'latent'") as error:
            task.check(has)
        assert "diffcli prep-data latents" in error.value.hint
    task.check({LATENT: stored})

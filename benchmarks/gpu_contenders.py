"""What gpu_check.py measures: a training step and sampling of three presets' shapes, ours and diffusers'.

Both networks have one configuration: ours as diffusers names it, by this project's exporter. Images and labels are noise.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import diffcli.torchvision_compat  # noqa: F401  before diffusers imports torchvision
from diffcli import checkpoint
from diffcli import preset as presets
from diffcli.data.images import MemoryImages
from diffcli.engine.distributed import Group
from diffcli.engine.draw.sample import SampleOptions, draw, request
from diffcli.engine.model import load_model
from diffcli.engine.run.loop import Loop
from diffcli.engine.run.runlog import RunDir
from diffcli.engine.run.state import build_state, resolved
from diffcli.engine.tuning import autocast, tune
from diffcli.preset import Preset
from diffcli.tasks.diffusion_config import DiffusionConfig

STEPS = 10  # of DDIM


class Shape(NamedTuple):
    """A preset, its batch on one GPU, and what makes it tiny."""

    batch: int
    tiny: tuple[str, ...]


SHAPES = {
    "cifar10": Shape(128, ("task.network.width=32", "task.network.mult=[1,2]", "task.network.head_dim=32", "data.size=16")),
    "imagenet64-adm": Shape(32, ("task.network.width=32", "task.network.head_dim=32", "task.network.mult=[1,2]",
                                 "task.network.blocks=[res,attention]", "task.network.attend_at=[8]", "data.size=16")),
    "imagenet64-dit": Shape(128, ("task.network.width=64", "task.network.depth=2", "task.network.heads=2", "data.size=16",
                                  "task.conditioners.0.dim=64")),
}  # fmt: skip


class Contender(NamedTuple):
    """Work that stands ready; one call handles so many images."""

    work: Callable[[], object]
    images: int
    parameters: int
    batch: int


def build(
    name: str, what: str, who: str, precision: str, compiled: bool, device: torch.device, tiny: bool
) -> Contender:
    """what: train or sample. who: diffcli or diffusers."""
    preset = shape_of(name, precision, compiled, tiny)
    makers = {
        ("diffcli", "train"): our_training,
        ("diffcli", "sample"): our_sampling,
        ("diffusers", "train"): their_training,
        ("diffusers", "sample"): their_sampling,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return makers[who, what](preset, device)


def shape_of(name: str, precision: str, compiled: bool, tiny: bool) -> Preset:
    shape = SHAPES[name]
    batch = 2 if tiny else shape.batch
    keys = [f"train.batch_size={batch}", f"train.precision={precision}", f"train.compile={str(compiled).lower()}"]
    keys += ["train.steps=1000000", "train.every={log: 0, preview: 0, save: 0, validate: 0}", "train.clip=1.0"]
    return presets.load(name, [*(shape.tiny if tiny else ()), *keys])


def classes_of(preset: Preset) -> int:
    """How many classes the model is conditioned on; 0: it is not."""
    return next((c.num_classes for c in config_of(preset).conditioners if c.kind == "class"), 0)


def config_of(preset: Preset) -> DiffusionConfig:
    return cast(DiffusionConfig, preset.task)


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def our_training(preset: Preset, device: torch.device) -> Contender:
    """The steps of `diffcli train`, as they are."""
    tune(device)
    group = Group(rank=0, world=1, device=device)
    preset = resolved(preset, device)
    batch, classes = preset.train.batch_size, classes_of(preset)
    n = 4 * batch
    labels = torch.arange(n) % classes if classes else None
    images = torch.randint(0, 256, (n, *preset.data.shape), dtype=torch.uint8)
    state = build_state(preset, device)
    run = RunDir(Path(tempfile.mkdtemp()))
    data = MemoryImages(images, labels, [str(i) for i in range(classes)] or None)
    steps = Loop(preset, run, group, state, data, {}).steps(0)
    return Contender(lambda: next(steps), batch, count(state.task), batch)


def our_sampling(preset: Preset, device: torch.device) -> Contender:
    """`diffcli sample --sampler ddim --guidance 1` of a checkpoint with random weights."""
    batch, classes = preset.train.batch_size, classes_of(preset)
    built = preset.task.build(preset.specs)
    record = {"preset": preset.model_dump(mode="json"), "step": 0, "classes": [str(i) for i in range(classes)] or None}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save_average(Path(folder) / "model", built.state_dict(), record)
        how: dict[str, Any] = {"precision": preset.train.precision, "compile": preset.train.compile}
        model = load_model(Path(folder) / "model", device, **how)
    options = SampleOptions(n=batch, batch_size=batch, sampler="ddim", steps=STEPS, guidance=1.0)
    req, group = request(model, options), Group(0, 1, device)
    return Contender(lambda: list(draw(req, group)), batch, count(built), batch)


def theirs(preset: Preset) -> nn.Module:
    """diffusers' network of the preset's configuration."""
    import diffusers

    from diffcli.interop import diffusers_config, published_dit
    from diffcli.networks.dit import DiT

    diffusers.utils.logging.set_verbosity_error()
    with torch.device("meta"):
        ours = preset.task.build(preset.specs).network_to_compile
    channels, side, _ = preset.data.shape
    task, classes = config_of(preset), classes_of(preset)
    common = {"sample_size": side, "in_channels": channels, "out_channels": channels * (1 + task.learn_variance)}
    if isinstance(ours, DiT):
        told = ours.config.model_copy(update={"max_period": published_dit.DIFFUSERS_PERIOD})
        config = published_dit.write_config(told)
        return diffusers.DiTTransformer2DModel(**common, **config, num_embeds_ada_norm=classes)
    config = diffusers_config.write_config(ours, preset.data.shape)
    return diffusers.UNet2DModel(**common, **config, num_class_embeds=classes or None)


def their_training(preset: Preset, device: torch.device) -> Contender:
    """The loop of their train_unconditional example, with labels where there are classes."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    network = theirs(preset).to(device).train()
    evaluate = torch.compile(network) if preset.train.compile else network
    batch, classes, shape = preset.train.batch_size, classes_of(preset), preset.data.shape
    scheduler = DDPMScheduler(num_train_timesteps=1000)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    ema = EMAModel(network.parameters(), decay=0.9999, use_ema_warmup=True)
    data = torch.randint(0, 256, (4 * batch, *shape), dtype=torch.uint8)

    def work() -> None:
        clean = data[torch.randint(len(data), (batch,))].to(device, non_blocking=True).float() / 127.5 - 1
        noise = torch.randn_like(clean)
        time = torch.randint(0, 1000, (batch,), device=device)
        labels = {"class_labels": torch.randint(0, classes, (batch,), device=device)} if classes else {}
        noisy = scheduler.add_noise(clean, noise, time)
        with autocast(device, preset.train.precision):
            predicted = evaluate(noisy, time, **labels).sample[:, : shape.channels]
        F.mse_loss(predicted.float(), noise).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())

    return Contender(work, batch, count(network), batch)


def their_sampling(preset: Preset, device: torch.device) -> Contender:
    """The loop of their DDIMPipeline, the network in the precision as a whole, as `torch_dtype` loads it."""
    from diffusers import DDIMScheduler

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(preset.train.precision, torch.float32)
    network = theirs(preset).to(device, dtype).eval().requires_grad_(False)
    evaluate = torch.compile(network) if preset.train.compile else network
    batch, classes, shape = preset.train.batch_size, classes_of(preset), preset.data.shape
    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    labels = {"class_labels": torch.arange(batch, device=device) % classes} if classes else {}

    @torch.no_grad()
    def work() -> Tensor:
        x = torch.randn(batch, *shape, device=device, dtype=dtype)
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            predicted = evaluate(x, t.to(device).expand(batch), **labels).sample[:, : shape.channels]
            x = scheduler.step(predicted, t, x).prev_sample
        return (x / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8).cpu()

    return Contender(work, batch, count(network), batch)

"""What makes a command of README or docs cheap without changing what it says: fewer steps and images, narrower networks."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from diffcli import preset as presets
from diffcli.ema import PowerEma
from diffcli.preset import Preset
from tests.documented.stand_ins import CLIP, TABLES
from tests.encoders.making import POOLED

FEW = {"--n": 4, "--steps": 2, "--batch-size": 4, "--interpolate": 3, "--mean-of": 2, "--threads": 4}
EDGE = 64  # of images, in pixels, at most
STEPS = 2  # of training


def small(words: Sequence[str]) -> list[str]:
    """The words of a command with what costs time replaced, and options for it added."""
    command, rest = words[0], [*words[1:]]
    for i, word in enumerate(rest[:-1]):
        if word in FEW:
            rest[i + 1] = str(min(int(rest[i + 1]), FEW[word]))
        elif word == "--size" and command != "train":
            rest[i + 1] = str(min(int(rest[i + 1]), EDGE))
    match command:
        case "train":
            rest = [f"train.steps={STEPS}" if word.startswith("train.steps=") else word for word in rest]
            rest += [word for setting in narrow(rest) for word in ("--set", setting)] + ["--steps", str(STEPS)]
        case "resume":  # a run that was stopped one step before its end
            rest = [*rest[:1], "--steps", str(int(max(Path(rest[0], "checkpoints").glob("step-*")).name[5:]) + 1)]
        case "fid" if "--n" not in rest and ("--ckpt" in rest or rest[0].startswith("runs/")):
            rest += ["--n", str(FEW["--n"])]
        case "prep-data" if len(rest) > 1:
            rest += ["--workers", "1", *(["--min-size", "30"] if {*TABLES} & {*rest} else [])]
    return [command, *rest]


def options(words: Sequence[str], name: str) -> list[str]:
    """The values of an option."""
    return [value for flag, value in pairwise(words) if flag == name]


def preset_of(words: Sequence[str]) -> Preset:
    """What `train` with these words trains."""
    (name,) = options(words, "--preset")
    return presets.load(name, options(words, "--set"), next(iter(options(words, "--data")), None))


def narrow(words: Sequence[str]) -> list[str]:
    """Settings that make what `train` with these words trains small."""
    preset = preset_of(words)
    tree = yaml.safe_load(presets.dump(preset))
    settings = ["train.batch_size=2", "train.workers=0", "train.every.preview=0", "train.curve.warmup=0"]
    large = (tree["data"].get("size") or 0) > EDGE
    settings += [f"data.size={EDGE // 2}"] if large else []
    settings += ["task.network.attend_at=[8]"] if large and (tree["task"].get("network") or {}).get("attend_at") else []
    settings += ["train.ema.every=1"] if isinstance(preset.train.ema, PowerEma) else []
    settings += ["data.preserve.count=2"] if tree["data"].get("preserve") else []
    settings += ["sampler.steps=2"] if tree.get("sampler") and preset.task.kind in ("diffusion", "prior") else []
    return [*settings, *_task(tree["task"])]


def _task(task: Mapping[str, Any]) -> list[str]:
    network = task.get("network") or {}
    settings = [f"task.network.{key}={value}" for key, value in _network(task["kind"], network).items()]
    settings += ["task.perceptual=null"] if task.get("perceptual") else []
    settings += ["task.bottleneck.codes=16"] if (task.get("bottleneck") or {}).get("kind") == "vq" else []
    settings += [f"task.dim={POOLED}"] if task["kind"] == "prior" else []
    for i, conditioner in enumerate(task.get("conditioners") or ()):
        if conditioner["kind"] == "embedding":
            settings += [f"task.conditioners.{i}.width={POOLED}"]
            settings += (
                [] if conditioner["encoder"]["model"] == "clip" else [f"task.conditioners.{i}.encoder.model={CLIP}"]
            )
    return settings


def _network(task: str, network: Mapping[str, Any]) -> dict[str, Any]:
    match task, network.get("kind"):
        case "prior", _:
            return {"width": 64, "depth": 1}
        case "autoencoder", _:
            return {"width": 8, "depth": 1, "groups": 4}
        case _, "unet":
            return {"width": 16, "head_dim": 16, "groups": 8} | ({"heads": "null"} if network.get("heads") else {})
        case _, "dit":
            return {"width": 32, "depth": 1, "heads": 2} | ({"size": "null"} if network.get("size") else {})
    return {}

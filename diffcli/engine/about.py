"""Describes a run, a checkpoint, an export or a prepared set, as one record of JSON values and as lines for people.

    {"schema": 1, "kind": "run" | "checkpoint" | "export" | "prepared set" | "lora" | "word", "path": ..., and what that kind has}

Weights and images are not read: everything comes from records, indexes and the headers of files. The small files of changes and
of words that libraries share are read.
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffcli import checkpoint
from diffcli.config import UserError, quoted
from diffcli.data.description import DataDescription, describe_set
from diffcli.data.set_folder import is_prepared
from diffcli.engine.data_records import recorded
from diffcli.engine.lora.adapter_facts import adapter, adapter_lines
from diffcli.engine.lora.lora_bases import present
from diffcli.engine.model import Model, without_weights
from diffcli.fields import listed
from diffcli.lookup.checkpoint_files import runs_inside
from diffcli.lookup.dependents import beside, dependents
from diffcli.lookup.given_paths import check_described
from diffcli.networks.lora import Lora

SCHEMA = 1
INDEX = "model_index.json"  # of a folder of diffusers
CONFIG = "config.json"  # of one of its parts alone
CLASS = "_class_name"
SHOWN_CLASSES = 10
SHOWN_CHECKPOINTS = 8
SHOWN_DIGITS = 12  # of a digest


def about(path: Path) -> dict[str, Any]:
    """Describes what is at `path`. Raises UserError if diffcli did not write it."""
    check_described(path)
    if path.is_dir() and is_prepared(path):
        return _headed("prepared set", path) | _described(describe_set(path, "the prepared set")) | _sizes(path)
    if path.is_dir() and ((path / INDEX).is_file() or _class_of(path / CONFIG)):
        return _headed("export", path) | _exported(path)
    kept = checkpoint.checkpoints(path / "checkpoints") if path.is_dir() else []
    if kept:
        return _headed("run", path) | _of_run(path, kept)
    if (shared := adapter(path)) is not None:
        return _headed(shared["kind"], path) | shared | _sizes(path)
    if path.is_file() or (path / checkpoint.RECORD).is_file() or checkpoint.checkpoints(path):
        return _headed("checkpoint", path) | _of_model(path)
    if (path / "preset.yaml").is_file():
        raise UserError(
            f"{path}: is a run that has saved no checkpoint yet",
            f"wait for its first one (train.every.save), or see {path / 'log.jsonl'}",
        )
    raise UserError(
        f"{path}: is no run, checkpoint, export, prepared set or LoRA",
        runs_inside(path)
        or f"give one that diffcli wrote; images become a set by `diffcli prep-data folder {quoted(path)} --out DIR`",
    )


def lines(found: Mapping[str, Any]) -> dict[str, str]:
    """The description for people, by topic."""
    facts = {str(found["kind"]): str(found["path"])}
    match found["kind"]:
        case "prepared set":
            holds = DataDescription.model_validate(found["data"])
            next_command = f"diffcli train --preset NAME --data {quoted(found['path'])}"
            return facts | _of_data(holds) | {"size": _bytes(found["bytes"]), "next": next_command}
        case "export":
            parts = {name: f"{part['class']}, {_bytes(part['bytes'])}" for name, part in found["parts"].items()}
            pipeline = {"pipeline": found["pipeline"]} if found["pipeline"] else {}
            return facts | pipeline | parts | {"next": f"diffcli import {quoted(found['path'])} --out DIR"}
        case "lora" | "word":
            return facts | {"size": _bytes(found["bytes"])} | adapter_lines(found)
        case _:
            return facts | dict(_lines_of_model(found))


def _lines_of_model(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if found["kind"] == "run":
        saved = [f"{step:,}" for step in found["checkpoints"]]
        shown = [*["..."] * (len(saved) > SHOWN_CHECKPOINTS), *saved[-SHOWN_CHECKPOINTS:]]
        yield "steps", f"{found['step']:,} of {found['steps']:,}; checkpoints {', '.join(shown)}"
        if best := found["best"]:
            yield "best", f"step {best['step']:,}, {best['score']:.4g} ({best['scored']}): {best['path']}"
        if logged := found["logged"]:
            values = {k: v for k, v in logged.items() if k.rpartition("/")[2] in ("loss", "val_loss", "score")}
            yield "log", f"step {logged['step']:,}: {', '.join(f'{k} {v:.4g}' for k, v in values.items())}"
    else:
        yield "step", f"{found['step']:,}"
    yield "model", f"{found['task']} of the preset {found['name']}, {found['parameters']:,} parameters"
    yield from ((f"  {name}", f"{count:,}") for name, count in found["networks"].items() if len(found["networks"]) > 1)
    if lora := found["lora"]:
        also = f", and whole {', '.join(lora['whole'])}" if lora["whole"] else ""
        yield (
            "lora",
            f"rank {lora['rank']}, alpha {lora['alpha']:g} on {', '.join(lora['targets'])} ({lora['layers']} layers){also}; "
            f"{lora['trained']:,} weights, {lora['share']:.2%} of the model",
        )
        yield from _line_of_base(lora["base"])
    if word := found["word"]:
        yield "word", f"{word['token']}, begun as {word['init']}"
        if not found["lora"]:
            yield from _line_of_base(word["base"])
    if found["image"]:
        channels, *sides = found["image"]
        colour = {1: "grey", 3: "RGB"}.get(channels, f"{channels} channels")
        frames = [f"{count} frame{'s' * (count != 1)} of " for count in sides[:-2]]  # of clips
        what = f"{'clips' if frames else 'images'} of {''.join(frames)}{listed(tuple(sides[-2:]))} (HxW), {colour}"
        yield "draws" if found["sampler"] else "reads", what
    if led := found["control"]:
        fields = ", ".join(led["fields"])
        yield (
            "control",
            f"{fields} lead the weights {str(led['sha256'])[:12]}... of {led['from']}, step {led['step']:,}",
        )
    if names := found["classes"]:
        more = ", ..." * (len(names) > SHOWN_CLASSES)
        yield "classes", f"{len(names)}: {', '.join(names[:SHOWN_CLASSES])}{more}"
    if found["sampler"]:
        yield (
            "sampler",
            f"{found['sampler']['kind']}, {found['sampler']['steps']} steps, guidance {found['guidance']:g}",
        )
    if origin := found["from"]:
        which = "averaged" if origin["weights"] == "ema" else "raw"
        yield "from", f"{origin['path']}, step {origin['step']:,}, {which} weights {origin['sha256'][:12]}..."
        yield from origin["taken"].items()
    if by := found.get("needed_by"):
        where = {each["checkpoint"]: f", {Path(each['checkpoint']).name}" * (found["kind"] == "run") for each in by}
        yield "needed by", "; ".join(f"{each['path']} ({each['role']}{where[each['checkpoint']]})" for each in by)
    if found["data"]:
        yield from _of_data(DataDescription.model_validate(found["data"])).items()
    yield "written", f"by diffcli {found['version']}, {_bytes(found['bytes'])}"
    if found["next"]:
        yield "next", f"diffcli {found['next']}"


def _of_data(holds: DataDescription) -> dict[str, str]:
    return {name: value for name, value in holds.facts.items() if (name, value) != ("classes", "none")}


def _headed(kind: str, path: Path) -> dict[str, Any]:
    return {"schema": SCHEMA, "kind": kind, "path": str(path)}


def _described(holds: DataDescription) -> dict[str, Any]:
    return {"data": holds.model_dump(mode="json")}


def _of_run(path: Path, kept: list[Path]) -> dict[str, Any]:
    found, record = _of_model(path), checkpoint.read_record(kept[-1])
    best = kept[-1].parent / "best"
    return found | {
        "checkpoints": [int(each.name[5:]) for each in kept],
        "steps": record["preset"]["train"]["steps"],
        "best": _best(best) if (best / checkpoint.RECORD).is_file() else None,
        "logged": _last_line(path / "log.jsonl"),
        "needed_by": _needed_by(beside(kept[-1])),
    }


def _best(path: Path) -> dict[str, Any]:
    record = checkpoint.read_record(path)
    return {"path": str(path), "step": record["step"], "score": record["score"], "scored": record["scored"]}


def _of_model(path: Path) -> dict[str, Any]:
    model = without_weights(path)
    record = checkpoint.read_record(model.path)
    networks = {n.name: count for n in model.task.networks if (count := sum(p.numel() for p in n.module.parameters()))}
    drawn = model.trained_on.get(model.preset.task.models or "image")
    holds = recorded(record)
    return {
        "checkpoint": str(model.path),
        "step": model.step,
        "name": model.preset.name,
        "task": model.preset.task.noun,
        "parameters": sum(p.numel() for p in model.task.parameters()),
        "networks": networks,
        "image": None if drawn is None or None in drawn.sides else list(drawn.sides),
        "control": record.get("control") and {**record["control"], "fields": list(model.preset.task.led_by)},
        "classes": None if model.classes is None else list(model.classes),
        "sampler": model.preset.sampler.model_dump(mode="json") if model.preset.task.kind == "diffusion" else None,
        "guidance": model.preset.guidance,
        "data": None if holds is None else holds.model_dump(mode="json"),
        "from": record.get("from"),
        "version": record.get("version"),
        "next": _next(model, path),
        "lora": _changes(model),
        "word": _word(model),
        "needed_by": _needed_by([model.path]),
    } | _sizes(model.path)


def _needed_by(checkpoints: Iterable[Path]) -> list[dict[str, str]]:
    """What goes on needing checkpoints: its place, the key of its preset that names one, and which."""
    return [
        {"path": str(each.path), "role": each.role, "checkpoint": str(path)}
        for path in checkpoints
        for each in dependents(path)
    ]


def _word(model: Model) -> dict[str, Any] | None:
    """Of a run of a new word: the word, what it began as, and the base that it was learned with."""
    word = model.preset.train.embedding
    return (
        None if word is None else {**word.model_dump(mode="json"), "base": model.base and _base(model.base, model.path)}
    )


def _base(entry: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The base of a located checkpoint. now: where it lies, as far as can be said without its weights; None: nowhere."""
    place = present(entry, path)
    return {**entry, "now": None if place is None else str(place)}


def _line_of_base(base: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """Nothing where it is merged into the checkpoint."""
    if base is not None:
        digest = f"{base['sha256'][:SHOWN_DIGITS]}..."
        moved = "" if base["now"] == base["path"] else f", now {base['now']}" if base["now"] else ", which is not there"
        yield "base", f"{base['path']}{moved}, step {base['step']:,}, {base['weights']} weights {digest}"


def _changes(model: Model) -> dict[str, Any] | None:
    """Of a checkpoint of low-rank changes: its base, what changes, and the share of the weights that it holds itself."""
    lora = model.preset.train.lora
    if model.base is None or lora is None:
        return None
    from diffcli.engine.run.state import build_on_meta

    task = build_on_meta(model.preset, model.fields)
    trained = sum(p.numel() for p in task.parameters() if p.requires_grad)
    return {
        "base": _base(model.base, model.path),
        **lora.model_dump(mode="json"),
        "alpha": lora.strength,
        "layers": sum(isinstance(module, Lora) for module in task.modules()),
        "trained": trained,
        "share": trained / sum(p.numel() for p in model.task.parameters()),
    }


def _next(model: Model, path: Path) -> str:
    from diffcli.engine.run.showing.run_facts import next_command

    return next_command(model.preset, path)


def _exported(path: Path) -> dict[str, Any]:
    index = _json(path / INDEX)
    folders = [each for each in sorted(path.iterdir()) if each.is_dir()] if index else []
    classes = {name: value[1] for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    parts = {each.name: classes.get(each.name) or _class_of(each / CONFIG) or "files" for each in folders}
    named = {name: {"class": kind, **_sizes(path / name)} for name, kind in parts.items()}
    if not index:
        named = {path.name: {"class": _class_of(path / CONFIG), **_sizes(path)}}
    return {"library": "diffusers", "pipeline": index.get(CLASS), "parts": named} | _sizes(path)


def _class_of(file: Path) -> str | None:
    found = _json(file).get(CLASS)
    return found if isinstance(found, str) else None


def _json(file: Path) -> dict[str, Any]:
    """A JSON object; an empty one where there is none."""
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _last_line(log: Path) -> dict[str, Any] | None:
    from diffcli.engine.run.runlog import read_log

    return next(iter(deque(read_log(log), maxlen=1)), None)


def _sizes(path: Path) -> dict[str, int]:
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return {"bytes": sum(each.stat().st_size for each in files)}


def _bytes(n: int) -> str:
    """A number of bytes with its unit: 1.2 MiB."""
    size, units = float(n), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while size >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.0f} {units[0]}" if units[0] == "bytes" else f"{size:.1f} {units[0]}"

"""What only a GPU can show, in about ten minutes: the `gpu` tests, then speed and memory of three presets beside diffusers.

    python benchmarks/gpu_check.py [--minutes 10] [--device cuda] [--tiny] [--json FILE]

Of the shapes of the presets cifar10, imagenet64-adm and imagenet64-dit it measures a training step (the loop of this project;
noise, loss, gradient, clipping, AdamW and average in the other) and sampling (DDIM without guidance, an evaluation a step). The
other is diffusers' network of the same configuration, in bf16 as ours, compiled and not. Nothing is downloaded; data are noise.
It prints a table and writes all of it, with machine, versions and command, as JSON. What does not fit into the time or the
memory, or needs a package that is missing, is named and left out. `--device cpu --tiny` goes the same way in a minute, to try it.
"""

import argparse
import contextlib
import gc
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch

from benchmarks import gpu_contenders

ROOT = Path(__file__).parent.parent
FEW = ["tests/engine/test_on_devices.py", "-k", "cpu and (convolutions or batch)"]  # for trying it without a GPU


class Row(NamedTuple):
    """One measurement."""

    preset: str
    what: str  # train or sample
    who: str
    precision: str
    compiled: bool
    images_per_s: float
    peak_mb: float | None  # of the device's memory
    parameters: int
    batch: int
    first_s: float  # until the first result: kernels chosen, or the network compiled


def versions() -> dict[str, str | None]:
    """Of what numbers depend on; None where it is missing."""
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in ("torch", "torchvision", "diffusers", "triton", "pytest"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def machine(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda":
        return {"device": "cpu", "threads": torch.get_num_threads(), "system": platform.platform()}
    about = torch.cuda.get_device_properties(device)
    return {"device": about.name, "count": torch.cuda.device_count(), "memory_mb": about.total_memory // 2**20,
            "capability": f"{about.major}.{about.minor}", "system": platform.platform()}  # fmt: skip


def run_tests(device: torch.device, seconds: float) -> dict[str, Any]:
    """The outcome of the `gpu` tests (on the CPU: of a few of the same ones) in a process of its own."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    command = [sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider"]
    command += ["--tb=short", "-rfE"]
    command += ["-m", "gpu", "tests"] if device.type == "cuda" else FEW
    start = time.perf_counter()
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    env = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired as late:
        shown = late.stdout.decode(errors="replace") if isinstance(late.stdout, bytes) else str(late.stdout or "")
        return {"command": command, "skipped": f"not done after {seconds:.0f} s", "output": shown[-4000:]}
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {
        "command": command,
        "seconds": round(time.perf_counter() - start, 1),
        "exit_code": done.returncode,
        "summary": lines[-1].strip("= ") if lines else done.stderr[-500:],
        "failures": failed,
        "output": "\n".join(lines[-60:]),
    }


def settle(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure(work: Callable[[], object], device: torch.device, turns: int) -> tuple[float, float, float | None]:
    """Seconds of the median turn, seconds of the first, and the peak of the device's memory in MB where it tells."""
    start = time.perf_counter()
    work()
    settle(device)
    first = time.perf_counter() - start
    work()
    settle(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times = []
    for _ in range(turns):
        start = time.perf_counter()
        work()
        settle(device)
        times.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None
    return statistics.median(times), first, peak


def plan(tiny: bool) -> list[tuple[str, str, str, str, bool]]:
    """(preset, what, who, precision, compiled) in the order of what is worth knowing first."""
    names = list(gpu_contenders.SHAPES)
    eager = [(n, w, who, "bf16", False) for n in names for w in ("train", "sample") for who in ("diffcli", "diffusers")]
    compiled = [
        (n, w, who, "bf16", True) for n in names for w in ("sample", "train") for who in ("diffcli", "diffusers")
    ]
    full = [(n, w, "diffcli", "fp32", False) for n in names for w in ("train", "sample")]
    if tiny:
        return [*eager, (names[-1], "sample", "diffcli", "fp32", True)]  # the one that is compiled soonest
    return [*eager, *compiled, *full]


def measurements(device: torch.device, tiny: bool, until: float, notes: list[str]) -> Iterator[Row]:
    """Every row there is time for; what was left out, and why, goes into notes."""
    for item in plan(tiny):
        name, what, who, precision, compiled = item
        label = f"{name} {what} {who} {precision}{' compiled' if compiled else ''}"
        if who == "diffusers" and importlib.util.find_spec("diffusers") is None:
            notes.append(f"{label}: diffusers is not installed")
            continue
        if time.monotonic() > until:
            notes.append(f"{label}: no time was left")
            continue
        try:
            contender = gpu_contenders.build(name, what, who, precision, compiled, device, tiny)
            seconds, first, peak = measure(contender.work, device, 2 if tiny else 5)
        except Exception as error:  # one that fails must not take the others' numbers with it
            notes.append(f"{label}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        else:
            yield Row(name, what, who, precision, compiled, contender.images / seconds, peak, contender.parameters,
                      contender.batch, round(first, 1))  # fmt: skip
        finally:
            contender = None
            gc.collect()
            if device.type == "cuda":
                torch.cuda.empty_cache()
            torch.compiler.reset()


def table(rows: list[Row]) -> Iterator[str]:
    """Lines for people; the ratio is ours over theirs in the same precision, compiled alike."""
    heads = f"{'preset':16s}{'':8s}{'who':11s}{'precision':11s}{'compiled':10s}"
    yield heads + f"{'images/s':>10s}{'ratio':>7s}{'peak MB':>9s}{'first s':>9s}"
    rates = {row[:5]: row.images_per_s for row in rows}
    for row in rows:
        other = rates.get((row.preset, row.what, "diffusers", row.precision, row.compiled))
        ratio = f"{row.images_per_s / other:.2f}" if other and row.who == "diffcli" else "-"
        peak = "-" if row.peak_mb is None else f"{row.peak_mb:.0f}"
        yield (f"{row.preset:16s}{row.what:8s}{row.who:11s}{row.precision:11s}{'yes' if row.compiled else 'no':10s}"
               f"{row.images_per_s:10.1f}{ratio:>7s}{peak:>9s}{row.first_s:9.1f}")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--minutes", type=float, default=10.0, help="for all of it; half of them at most for the tests")
    parser.add_argument("--tiny", action="store_true", help="small networks and batches, to try the script")
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="where everything is written")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: there is no CUDA device\nhint:  try the script with --device cpu --tiny", file=sys.stderr)
        return 2
    start, device = time.monotonic(), torch.device(args.device)
    report: dict[str, Any] = {"command": sys.argv, "machine": machine(device), "versions": versions()}
    print("  ".join(f"{k} {v}" for part in ("machine", "versions") for k, v in report[part].items()), flush=True)
    report["tests"] = run_tests(device, args.minutes * 30)
    told = {key: value for key, value in report["tests"].items() if key not in ("output", "command")}
    print("\ntests: " + ", ".join(f"{key} {value}" for key, value in told.items() if key != "failures"), flush=True)
    print("".join(f"  {line}\n" for line in report["tests"].get("failures", [])), end="")
    rows: list[Row] = []
    notes: list[str] = []
    with contextlib.suppress(KeyboardInterrupt):  # Ctrl-C ends the measurements; those there are get written
        for row in measurements(device, args.tiny, start + args.minutes * 60, notes):
            rows.append(row)
            print(f"  {' '.join(map(str, row[:5]))}: {row.images_per_s:.1f} images/s", file=sys.stderr, flush=True)
    print("\n" + "\n".join(table(rows)))
    print("".join(f"left out: {note}\n" for note in notes), end="")
    report |= {"rows": [row._asdict() for row in rows], "left_out": notes, "seconds": round(time.monotonic() - start)}
    args.json.write_text(json.dumps(report, indent=1) + "\n")
    print(args.json)
    return 0 if report["tests"].get("exit_code") == 0 and rows else 1  # what was left out is no success


if __name__ == "__main__":
    sys.exit(main())

"""Training speed beside other projects: images/s and median ratios on this machine.

    python benchmarks/train_speed.py [--rounds 5] [--steps 3] [--head-dim 64] [--only fp32]
        [--clock processor] [--json FILE]

Every contender (see peers.py) lives in a process of its own, so that no allocator setting leaks; one at a time works, and
they alternate, so that a slow minute of the machine meets all of them. A round's ratio compares neighbours in time; told
are the median and the extremes over the rounds. A turn is one step to warm the caches, then `--steps` timed ones, of which
the median counts.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from turns import CLOCKS, ROOT, Worker, add_clock

OURS, PEERS = "diffcli", ("diffusers", "denoising-diffusion-pytorch")
PRECISIONS = ("fp32", "bf16")
Rates = dict[tuple[str, str], list[float]]


def work(name: str, precision: str, head_dim: int, clock: str) -> None:
    """The worker's side: build, say what was built, then answer every line with a turn of so many steps."""
    from peers import BATCH, CONTENDERS

    contender, now = CONTENDERS[name](precision, head_dim), CLOCKS[clock]
    contender.step()
    about = contender._replace(step=None)._asdict()
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        contender.step()
        times = []
        for _ in range(int(line)):
            start = now()
            contender.step()
            times.append(now() - start)
        print(json.dumps({"rate": BATCH / statistics.median(times)}), flush=True)


def measure(
    rounds: int, steps: int, head_dim: int, precisions: Sequence[str], clock: str
) -> tuple[dict[str, Any], Rates]:
    """What every contender is, and its rate in every round."""
    same = "--head-dim", str(head_dim), "--clock", clock
    workers = {
        (name, p): Worker(__file__, "--worker", name, "--precision", p, *same)
        for p in precisions
        for name in (OURS, *PEERS)
    }
    rates: Rates = {key: [] for key in workers}
    try:
        for i in range(rounds):
            for key, worker in workers.items():
                rates[key].append(worker.turn(steps))
            told = ", ".join(f"{name} {p} {rates[name, p][-1]:.1f}" for name, p in workers)
            print(f"round {i + 1}/{rounds}: {told}", file=sys.stderr, flush=True)
    finally:
        for worker in workers.values():
            worker.close()
    return {name: workers[name, precisions[0]].about for name in (OURS, *PEERS)}, rates


def ratios(rates: Rates, chosen: str) -> dict[str, list[float]]:
    """Our rate over a peer's, round by round; `chosen` is the precision that we choose where none is asked for."""
    pairs = {f"{p}: {OURS} / {peer}": ((OURS, p), (peer, p)) for p in PRECISIONS for peer in PEERS}
    pairs |= {f"out of the box: {OURS} {chosen} / {peer} fp32": ((OURS, chosen), (peer, "fp32")) for peer in PEERS}
    measured = {name: pair for name, pair in pairs.items() if rates.keys() >= set(pair)}
    return {name: [a / b for a, b in zip(rates[x], rates[y], strict=True)] for name, (x, y) in measured.items()}


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import torch

    info = Path("/proc/cpuinfo")
    names = [line for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "cpu": names[0].partition(":")[2].strip() if names else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def chosen_precision() -> str:
    """What `train.precision: auto` is here."""
    import torch

    from diffcli.engine.tuning import auto_precision

    return auto_precision(torch.device("cpu"))


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):8.{digits}f}   ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=3, help="timed steps a turn (default 3)")
    parser.add_argument(
        "--head-dim", type=int, default=64, help="channels an attention head, in all three (default 64)"
    )
    parser.add_argument("--only", choices=PRECISIONS, help="one precision, where the processor has no bf16 of its own")
    add_clock(parser)
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--precision", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker, args.precision, args.head_dim, args.clock)
    sys.path.insert(0, str(ROOT))
    about, rates = measure(args.rounds, args.steps, args.head_dim, [args.only] if args.only else PRECISIONS, args.clock)
    found = ratios(rates, chosen_precision())
    print("  ".join(f"{key} {value}" for key, value in machine().items()))
    for name, side in about.items():
        print(f"{name} {side['version']}: {side['parameters']:,} parameters, attention heads: {side['heads']}")
    print(f"\nimages/s ({args.clock} time): median of {args.rounds} rounds (least to most)")
    for (name, precision), values in rates.items():
        print(f"  {f'{name} {precision}':44s}{spread(values, 1)}")
    print("\nratio: median of the rounds (least to most)")
    for name, values in found.items():
        print(f"  {name:60s}{spread(values, 2)}")
    if args.json:
        named = {f"{name} {precision}": values for (name, precision), values in rates.items()}
        args.json.write_text(
            json.dumps({"machine": machine(), "about": about, "rates": named, "ratios": found}, indent=1)
        )
    return None


if __name__ == "__main__":
    main()

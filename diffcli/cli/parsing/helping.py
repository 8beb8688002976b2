"""Help that is complete on a narrow terminal: what a command does, examples, and its options in groups.

Boxes would cut names and words that do not fit. Here a long name gets a line of its own, and texts are wrapped.
"""

from typing import Any

import typer.core

from diffcli.cli.parsing.empty_values import refuse_empty_values

WIDEST = 120  # columns of help
OPTIONS, RUN, DRAWING, CHANGING = "Options", "The run", "What to draw", "Changing pictures"
HOW, WHERE = "How to draw", "Where and how to compute"
MEMBERS = {
    DRAWING: ("n", "class", "prompt", "prompts", "negative-prompt", "prior", "seed", "size", "interpolate"),
    CHANGING: ("image", "mask", "strength", "restore", "degrade", "compare", "ensemble", "project"),
    HOW: ("sampler", "steps", "ddim-eta", "guidance", "fps", "frames", "show"),
    WHERE: (
        *("device", "nproc", "nnodes", "node-rank", "rdzv-endpoint"),
        *("batch-size", "precision", "compile", "ema", "workers"),
    ),
}
GROUPS = {f"--{name}": group for group, names in MEMBERS.items() for name in names}
EXAMPLES = {
    "train": (
        "diffcli train --preset digits",
        "diffcli train --preset digits --steps 300 --set train.optimizer.lr=1e-3 --run-dir runs/short",
        "diffcli train --preset mnist --data DIR --dry-run",
    ),
    "resume": ("diffcli resume runs/digits", "diffcli resume runs/digits --steps 2000"),
    "sample": (
        "diffcli sample runs/digits",
        "diffcli sample runs/digits --class 7 --n 16 --guidance 3 --out sevens.png",
        "diffcli sample runs/digits --n 1000 --steps 50 --out samples.npz",
    ),
    "gif": ("diffcli gif runs/digits --class all --show x0 --out denoise.gif",),
    "fid": (
        "diffcli fid runs/digits --n 1000 --features runs/digits-classifier --metrics fid,accuracy",
        "diffcli fid samples.npz digits:test --features runs/digits-classifier --metrics fid,kid --json",
    ),
    "ema": ("diffcli ema runs/power --std 0.05,0.1 --out averages",),
    "prep-data": (
        "diffcli prep-data folder PICTURES --out data/mine --size 64",
        "diffcli prep-data cifar10 cifar-10-binary.tar.gz --out data/cifar10",
    ),
    "import": ("diffcli import FOLDER_OF_DIFFUSERS --out imported",),
    "export": ("diffcli export runs/digits --to diffusers --out exported",),
    "presets show": ("diffcli presets show digits > mine.yaml",),
    "presets check": ("diffcli presets check mine.yaml",),
}


class HelpfulCommand(typer.core.TyperCommand):
    """A command whose help is wrapped text with examples and groups, and whose values are not empty."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:  # of a shell that completes words
            refuse_empty_values(self, ctx, args)
        return super().parse_args(ctx, args)

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        _text(self.help, formatter)
        name = ctx.command_path.partition(" ")[2]
        if name in EXAMPLES:
            with formatter.section("Examples"):
                for line in EXAMPLES[name]:
                    formatter.write(f"{'':{formatter.current_indent}}{line}\n")
        _parameters(self, ctx, formatter)


class HelpfulGroup(typer.core.TyperGroup):
    """A group of commands whose help is wrapped text."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        self.format_usage(ctx, formatter)
        _text(self.help, formatter)
        found = [(name, command) for name, command in self.commands.items() if not command.hidden]
        with formatter.section("Commands"):
            formatter.write_dl([(name, " ".join((command.help or "").split())) for name, command in found])
        _parameters(self, ctx, formatter)


def _text(text: str | None, formatter: Any) -> None:
    if text:
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text(" ".join(text.split()))


def _parameters(command: Any, ctx: Any, formatter: Any) -> None:
    """Arguments, then the options of each group, in the order in which the groups first occur."""
    groups: dict[str, list[tuple[str, str]]] = {"Arguments": [], OPTIONS: []}
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is None:
            continue
        known = next((GROUPS[name] for name in param.opts if name in GROUPS), OPTIONS)
        option = param.param_type_name == "option"
        group = (getattr(param, "rich_help_panel", None) or known) if option else "Arguments"
        groups.setdefault(group, []).append(record)
    groups = {OPTIONS: groups.pop(OPTIONS)} | groups if not groups["Arguments"] else groups
    for group, records in groups.items():
        if records:
            with formatter.section(group):
                formatter.write_dl(records)

"""The commands: parse, call the engine, print a UserError as two lines. Nothing heavy is imported before a command runs.

Exit codes: 0 done; 2 the user's mistake; 130 interrupted after saving; 1 anything else. Results go to stdout, all else to stderr.
"""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from diffcli import __version__
from diffcli.cli import door, session
from diffcli.cli.converting import export, import_weights
from diffcli.cli.drawing import gif, sample
from diffcli.cli.informing import info
from diffcli.cli.options import Device, DeviceOption, Nproc, ResumeSet, Set
from diffcli.cli.parsing import choices
from diffcli.cli.parsing.helping import RUN, WIDEST, HelpfulCommand, HelpfulGroup
from diffcli.cli.parsing.start_options import FromOption, FromWeightsOption
from diffcli.cli.parsing.weight_options import BaseModel
from diffcli.cli.preparing import prep_data
from diffcli.cli.presets import presets_app
from diffcli.cli.scoring import fid

app = typer.Typer(
    name="diffcli",
    help="Train, resume, sample, animate and score diffusion models.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDEST},
    cls=HelpfulGroup,
)
app.add_typer(presets_app, name="presets")


@app.command(cls=HelpfulCommand)
def train(
    preset: Annotated[
        str, typer.Option(help="A preset's name (see `presets list`) or a YAML file.", autocompletion=choices.presets)
    ],
    overrides: Set = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="PATH|URL",
            help="Sets data.root: files, or a set of prep-data; sets data.shards if it is a URL.",
            show_default="the preset's",
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Where to write.", show_default="runs/NAME", rich_help_panel=RUN)
    ] = None,
    start_from: FromOption = None,
    from_weights: FromWeightsOption = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="train.steps: updates.", show_default="the preset's", rich_help_panel=RUN),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="The run's seed.", show_default="the preset's", rich_help_panel=RUN),
    ] = None,
    device: DeviceOption = Device.auto,
    nproc: Nproc = 1,
    nnodes: Annotated[int, typer.Option(min=1, help="Machines.")] = 1,
    node_rank: Annotated[int, typer.Option(min=0, help="Number of this machine, from 0.")] = 0,
    rdzv_endpoint: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where machine 0 listens.")] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run/--no-dry-run", help="Print the plan; train nothing.")] = False,
) -> None:
    """Train a model from a preset into a run directory."""
    door.check_preset(preset, overrides or [], data)
    from diffcli.lookup.flags_and_settings import TRAINING, check_agreement

    flags = {"--steps": steps, "--seed": seed, "--from": start_from, "--from-weights": from_weights, "--data": data}
    check_agreement(overrides or (), TRAINING, flags)
    door.check_start(preset, overrides or [], start_from, from_weights)
    door.check_device(device)
    if not dry_run:  # which may be for another machine
        door.check_data(preset, data, overrides or [])
        door.check_new_run(preset, overrides or [], run_dir)
    from diffcli import preset as presets
    from diffcli.engine.distributed import Launch
    from diffcli.engine.run.origin.starting import starting_from
    from diffcli.engine.run.runlog import RunDir

    given = [f"{key}={value}" for key, value in (("train.steps", steps), ("seed", seed)) if value is not None]
    chosen = starting_from(presets.load(preset, [*(overrides or []), *given], data), start_from, from_weights)
    run = RunDir(run_dir or Path("runs") / chosen.name)
    run.check_apart(chosen.data.root)
    how = Launch(nproc, nnodes, node_rank, rdzv_endpoint)
    if dry_run:
        session.print_plan(chosen, run.path, device, how)
    else:
        session.run_training(chosen, run, None, device, how)


@app.command(cls=HelpfulCommand)
def resume(
    run_dir: Annotated[Path, typer.Argument(help="The directory of the run.")],
    from_step: Annotated[
        int | None,
        typer.Option("--from", help="Continue from this checkpoint.", show_default="newest", rich_help_panel=RUN),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="train.steps: updates in all.", show_default="the run's", rich_help_panel=RUN),
    ] = None,
    overrides: ResumeSet = None,
    base: BaseModel = None,
    device: DeviceOption = Device.auto,
    nproc: Nproc = 1,
) -> None:
    """Continue a run from its newest checkpoint, to the same result as without the interruption."""
    from diffcli.lookup.flags_and_settings import TRAINING, check_agreement

    door.check_run(run_dir)
    check_agreement(overrides or (), TRAINING, {"--steps": steps})
    settings = [*(overrides or []), *([] if steps is None else [f"train.steps={steps}"])]
    door.check_resumed(run_dir, from_step, settings)
    door.check_device(device)
    from diffcli.engine.distributed import Launch
    from diffcli.engine.run.resume import reopen

    chosen, run, start = reopen(run_dir, from_step, settings)
    session.run_training(chosen, run, start, device, Launch(nproc), base)


@app.command(cls=HelpfulCommand)
def ema(
    run_dir: Annotated[Path, typer.Argument(help="The directory of the run.")],
    out: Annotated[Path, typer.Option(help="Folder for the checkpoints, one for each average.")],
    std: Annotated[
        str,
        typer.Option(
            metavar="A,B,...", help="Widths in (0, 0.29), made from the snapshots that train.ema power stores."
        ),
    ] = "",
    rate: Annotated[
        str, typer.Option(metavar="A,B,...", help="Rates of train.ema that the newest checkpoint keeps.")
    ] = "",
) -> None:
    """Write averages of a run's weights as checkpoints that sample and fid take."""
    door.check_run(run_dir)
    widths, rates = numbers("--std", std), numbers("--rate", rate)
    from diffcli.lookup.widths import check_widths

    check_widths(widths)
    from diffcli.engine.run.averages import write_averages

    for written in write_averages(run_dir, widths, rates, out):
        print(written)


for command in (sample, gif, fid, info):
    app.command(command.__name__, cls=HelpfulCommand)(command)
app.command("import", cls=HelpfulCommand)(import_weights)
app.command("export", cls=HelpfulCommand)(export)
app.command("prep-data", cls=HelpfulCommand)(prep_data)


def numbers(flag: str, text: str) -> list[float]:
    """The numbers of a comma list, without repetitions."""
    from diffcli.config import UserError

    try:
        return list(dict.fromkeys(float(word) for word in text.split(","))) if text else []
    except ValueError:
        raise UserError(f"{flag} {text}: is not a list of numbers", f"write for example {flag} 0.05,0.1") from None


def version(show: bool) -> None:
    if show:
        print(f"diffcli {__version__}")
        raise typer.Exit


@app.callback()
def options(
    show_version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Runs a command and exits with the exit code of its outcome."""
    session.leave(session.run(app))

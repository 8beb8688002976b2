"""The command that scores: fid."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffcli.cli import door, session
from diffcli.cli.drawing import sampling
from diffcli.cli.options import (
    Augment,
    BatchSize,
    Class,
    Compile,
    Device,
    DeviceOption,
    Ensemble,
    Eta,
    ExactTiles,
    FirstSeed,
    Guidance,
    NoTile,
    Nproc,
    Overlap,
    PrecisionChoice,
    PrecisionOption,
    PriorOption,
    Project,
    SamplerOption,
    ScoreSet,
    Steps,
    Tile,
    UseEma,
)
from diffcli.cli.parsing import choices
from diffcli.cli.parsing.clip_options import ClipFps, Frames, GivenByReference, Window, WindowOverlap
from diffcli.cli.parsing.control_options import Control, ControlScale, named_scales, scaled_paths
from diffcli.cli.parsing.weight_options import BaseModel, Embedding, Lora

if TYPE_CHECKING:
    from diffcli.engine.distributed import Group


def fid(
    sides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[A B|CKPT]", help="Folder, .npz, prepared set or NAME:SPLIT; or the same as --ckpt."),
    ] = None,
    ckpt: Annotated[
        Path | None, typer.Option("--ckpt", help="Score samples of this checkpoint instead of A.", show_default="none")
    ] = None,
    ref: Annotated[
        str | None,
        typer.Option(help="The reference.", show_default="the run's own training data; for pairs its test data"),
    ] = None,
    n: Annotated[int, typer.Option(min=2, help="Number of samples.")] = 50000,
    metrics: Annotated[
        str,
        typer.Option(
            autocompletion=choices.metrics,
            help="Comma list of fid, kid, is, precision, recall, accuracy, bpd; for a first stage or a model conditioned on "
            "pictures also psnr, ssim, lpips, for the latter consistency, follows; for a prior cosine, mse, retrieval; "
            "for a model of masks dice, iou, ged, hm_iou, ece; for clips fvd, motion, kept, kept_class, frame_similarity.",
        ),
    ] = "fid",
    features: Annotated[
        str | None,
        typer.Option(
            help="inception, or the run directory of a diffcli classifier, the folder of a CLIP; for fvd r3d_18, the run of a "
            "classifier of clips, or a TorchScript file of an I3D.",
            show_default="inception",
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="File with the extractor's weights.", show_default="its cache")
    ] = None,
    floors: Annotated[
        bool,
        typer.Option(
            "--floors/--no-floors",
            help="Also print the psnr of simple codes as small as the latent, or of bicubic enlargement for an upscaler.",
        ),
    ] = True,
    mean_of: Annotated[
        int, typer.Option("--mean-of", min=1, help="For pairs: number of samples of each row whose mean is scored.")
    ] = 1,
    ensemble: Ensemble = None,
    as_json: Annotated[bool, typer.Option("--json/--no-json", help="Print one JSON object.")] = False,
    labels: Class = None,
    prior: PriorOption = None,
    seed: FirstSeed = 0,
    sampler: SamplerOption = None,
    steps: Steps = None,
    ddim_eta: Eta = None,
    guidance: Guidance = None,
    overrides: ScoreSet = None,
    frames: Frames = None,
    fps: ClipFps = None,
    given_frames: GivenByReference = None,
    window: Window = None,
    window_overlap: WindowOverlap = None,
    augment: Augment = None,
    tile: Tile = None,
    overlap: Overlap = None,
    exact_tiles: ExactTiles = False,
    no_tile: NoTile = False,
    control: Control = None,
    control_scale: ControlScale = None,
    project: Project = False,
    batch_size: BatchSize = 64,
    ema: UseEma = True,
    lora: Lora = None,
    embedding: Embedding = None,
    base: BaseModel = None,
    precision: PrecisionOption = PrecisionChoice.auto,
    compiled: Compile = False,
    device: DeviceOption = Device.auto,
    nproc: Nproc = 1,
) -> None:
    """Score images, or samples of a checkpoint, against a reference: FID, KID, IS, precision, recall, accuracy, bits."""
    from diffcli.engine.score.compared import apart, check_compared, check_modelled, check_sides, check_unused
    from diffcli.lookup.given_paths import check_features, check_weights

    door.check_metrics(metrics)
    door.check_sampler(sampler)
    door.check_settings(overrides or [])
    compared, model = apart(sides or (), ckpt)
    check_compared(compared, model, ref)
    if model is not None:
        door.check_checkpoint(model)
        drawing = [item for item in overrides or () if not item.startswith("metrics.")]
        door.check_drawn_by(model, labels, drawing, sampler, ddim_eta)
    how: dict[str, Any] = {"prior": prior, "precision": precision.value, "compile": compiled, "project": project}
    how |= {"augment": augment, "tile": tile, "overlap": overlap, "exact_tiles": exact_tiles, "whole": no_tile}
    how |= {"frames": frames, "fps": fps, "window": window, "window_overlap": window_overlap}
    how |= {
        "given_frames": given_frames,
        "loras": tuple(lora or ()),
        "base": base,
        "embeddings": tuple(embedding or ()),
    }
    how |= {"controls": scaled_paths(control, "--control"), "control_scale": named_scales(control_scale)}
    options = sampling(n, labels, seed, sampler, steps, ddim_eta, guidance, overrides, batch_size, **how)
    if model is None:
        check_modelled([name.strip().lower() for name in metrics.split(",")])
        check_unused(compared, options)
    check_sides([*compared, *([] if ref is None else [ref])])
    door.check_loras(lora or [])
    check_features(features)
    check_weights(weights, features)
    door.check_device(device)
    from diffcli.cli.console import counting, say
    from diffcli.engine.distributed import Launch
    from diffcli.engine.score import job

    scoring = job.Scoring(
        compared,
        model,
        ref,
        options,
        tuple(metrics.split(",")),
        features,
        weights,
        ema,
        floors,
        mean_of,
        ensemble,
    )
    scoring.check()

    def work(group: "Group") -> None:
        with counting() as show:
            report = scoring.run(group, show)
        if report is not None:
            for warning in report.warnings:
                say(f"note:  {warning}")
            print(json.dumps(report.as_dict()) if as_json else "\n".join(report.lines()))

    session.in_group(work, device, Launch(nproc))

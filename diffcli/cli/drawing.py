"""The commands that draw: sample and gif; fid shares their sampling options, which become one SampleOptions."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diffcli.cli import door, session
from diffcli.cli.instead import Like, repeat, segment, segments
from diffcli.cli.looks import Captions, Columns, Hold, Scale
from diffcli.cli.options import (
    Augment,
    BatchSize,
    Ckpt,
    Class,
    Compare,
    Compile,
    Degrade,
    Device,
    DeviceOption,
    Ensemble,
    Eta,
    ExactTiles,
    FewN,
    FieldFiles,
    Guidance,
    ImageFiles,
    Interpolate,
    Mask,
    N,
    Named,
    NegativePrompt,
    NoTile,
    Nproc,
    Out,
    Overlap,
    PrecisionChoice,
    PrecisionOption,
    PriorOption,
    Project,
    Prompt,
    PromptsFile,
    Restore,
    SamplerOption,
    SamplerSet,
    Seed,
    ShowChoice,
    Size,
    Steps,
    Strength,
    Then,
    Tile,
    UseEma,
    the_checkpoint,
)
from diffcli.cli.parsing.clip_options import ClipFps, Frames, GivenFrames, Window, WindowOverlap
from diffcli.cli.parsing.control_options import Control, ControlScale, named_scales, scaled_paths
from diffcli.cli.parsing.values import finite, named_files, sides
from diffcli.cli.parsing.weight_options import BaseModel, Embedding, Lora

if TYPE_CHECKING:
    from diffcli.engine.distributed import Group
    from diffcli.engine.draw.sample import SampleOptions
    from diffcli.engine.options.seeds import Seeds


def sampling(
    n: int | None,
    labels: str | None,
    seed: "Seeds",
    sampler: str | None,
    steps: int | None,
    eta: float | None,
    guidance: float | None,
    overrides: list[str] | None,
    batch_size: int,
    **edit: Any,
) -> "SampleOptions":
    """The sampling options, in the same order for all commands."""
    from diffcli.engine.options.sample_options import SampleOptions

    options = SampleOptions(
        n=n,
        labels=labels,
        seed=seed,
        sampler=sampler,
        steps=steps,
        eta=eta,
        guidance=guidance,
        batch_size=batch_size,
        overrides=tuple(overrides or ()),
        **edit,
    )
    options.check()
    return options


def sample(
    context: typer.Context,
    named: Named = None,
    ckpt: Ckpt = None,
    like: Like = None,
    out: Out = Path("samples.png"),
    n: N = None,
    labels: Class = None,
    prompt: Prompt = None,
    prompts: PromptsFile = None,
    negative_prompt: NegativePrompt = None,
    prior: PriorOption = None,
    seed: Seed = "0",
    size: Size = None,
    sampler: SamplerOption = None,
    steps: Steps = None,
    ddim_eta: Eta = None,
    guidance: Guidance = None,
    overrides: SamplerSet = None,
    image: ImageFiles = None,
    field: FieldFiles = None,
    frames: Frames = None,
    fps: ClipFps = None,
    given_frames: GivenFrames = None,
    window: Window = None,
    window_overlap: WindowOverlap = None,
    then: Then = None,
    augment: Augment = None,
    tile: Tile = None,
    overlap: Overlap = None,
    exact_tiles: ExactTiles = False,
    no_tile: NoTile = False,
    control: Control = None,
    control_scale: ControlScale = None,
    mask: Mask = None,
    strength: Strength = None,
    interpolate: Interpolate = None,
    restore: Restore = None,
    degrade: Degrade = False,
    project: Project = False,
    compare: Compare = False,
    ensemble: Ensemble = None,
    captions: Captions = False,
    scale: Scale = None,
    columns: Columns = None,
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
    """Draw images or clips, reconstruct or segment them: a grid (.png), one file each (a folder) or arrays (.npz).

    Clips also as .mp4, .webp or .gif.
    """
    if like is not None:
        repeat(context, like)
        return
    ckpt = the_checkpoint("sample", named, ckpt)
    seeds = door.seeds(seed, n, interpolate)
    kinds = (".png", ".npz", ".mp4", ".webp", ".gif")
    door.check_drawing(ckpt, out, kinds, True, sampler, overrides or [], lora or [])
    from diffcli.engine.options.prompt_files import read_prompts

    edit: dict[str, Any] = {"images": tuple(image or ()), "mask": mask, "strength": strength, "compare": compare}
    edit |= {"restore": restore, "degrade": degrade, "project": project}
    edit |= {"fields": named_files(field)}
    edit |= {"augment": augment, "tile": tile, "overlap": overlap, "exact_tiles": exact_tiles, "whole": no_tile}
    edit |= {"controls": scaled_paths(control, "--control"), "control_scale": named_scales(control_scale)}
    edit |= {"interpolate": interpolate, "prompts": read_prompts(prompt or (), prompts), "prior": prior}
    edit |= {"negative_prompt": negative_prompt, "precision": precision.value, "compile": compiled, "size": sides(size)}
    edit |= {"loras": tuple(lora or ()), "base": base, "embeddings": tuple(embedding or ())}
    edit |= {"frames": frames, "fps": fps, "given_frames": given_frames}
    edit |= {"window": window, "window_overlap": window_overlap}
    options = sampling(n, labels, seeds, sampler, steps, ddim_eta, guidance, overrides, batch_size, **edit)
    door.check_drawn_by(ckpt, labels, overrides or [], sampler, ddim_eta)
    texts = {"--prompt": next(iter(options.prompts), None), "--negative-prompt": negative_prompt}
    door.check_conditions(ckpt, texts, {"--frames": frames, "--fps": fps, "--window": window})
    door.check_pictures(image, mask, field)
    door.check_layout(out, {"--captions": captions, "--scale": scale, "--columns": columns})
    door.check_device(device)
    door.check_models(then, base, [path for path, _ in options.controls])
    from diffcli.cli.console import track
    from diffcli.engine.distributed import Launch
    from diffcli.engine.draw import output
    from diffcli.engine.draw.pictured.cascade import cascade
    from diffcli.engine.draw.sheets.arrangement import Arrangement

    output.check_apart(out, options)
    if segments(ckpt, options, ensemble, then):
        segment(ckpt, out, options, ensemble, ema, device, nproc)
        return

    def work(group: "Group") -> None:
        opened = session.opening(options, group, ema)
        for stage in cascade([ckpt, *(then or ())], options, group, opened):
            output.check_pictures(out, stage.req.shape, stage.req.model.path)
            output.check_sizes(out, stage.req)
            output.check_speed(out, stage.req.describe())
            place = out if stage.last else output.stage_path(out, stage.number)
            if stage.number == 1:  # what would be refused when the last stage is drawn
                output.check_kept(out, stage.req.n, output.suffix_of(stage.req.shape))
            words = stage.captions() if captions else None
            shown = Arrangement(scale, columns, words) if stage.last else Arrangement()
            if group.leads:
                output.write(place, track(stage.drawn(), stage.req.n, stage.title), stage.req.describe(), shown)
            else:
                list(stage.drawn())
        if group.leads:
            print(out)

    session.in_group(work, device, Launch(nproc))


def gif(
    context: typer.Context,
    named: Named = None,
    ckpt: Ckpt = None,
    like: Like = None,
    out: Out = Path("denoise.gif"),
    n: FewN = None,
    labels: Class = None,
    prompt: Prompt = None,
    prompts: PromptsFile = None,
    negative_prompt: NegativePrompt = None,
    prior: PriorOption = None,
    seed: Seed = "0",
    size: Size = None,
    sampler: SamplerOption = None,
    steps: Steps = None,
    ddim_eta: Eta = None,
    guidance: Guidance = None,
    overrides: SamplerSet = None,
    image: ImageFiles = None,
    field: FieldFiles = None,
    then: Then = None,
    augment: Augment = None,
    tile: Tile = None,
    overlap: Overlap = None,
    exact_tiles: ExactTiles = False,
    no_tile: NoTile = False,
    control: Control = None,
    control_scale: ControlScale = None,
    mask: Mask = None,
    strength: Strength = None,
    restore: Restore = None,
    degrade: Degrade = False,
    project: Project = False,
    batch_size: BatchSize = 64,
    ema: UseEma = True,
    lora: Lora = None,
    embedding: Embedding = None,
    base: BaseModel = None,
    precision: PrecisionOption = PrecisionChoice.auto,
    compiled: Compile = False,
    fps: Annotated[float, typer.Option(min=0.1, max=1000, help="Frames per second.", callback=finite)] = 10,
    frames: Annotated[
        int | None, typer.Option(min=1, help="Frames in all, evenly spread.", show_default="the noise, then one a step")
    ] = None,
    show: Annotated[ShowChoice, typer.Option(help="The noisy x, or the x0 predicted from it.")] = ShowChoice.x,
    captions: Captions = False,
    scale: Scale = None,
    columns: Columns = None,
    hold: Hold = 1,
    device: DeviceOption = Device.auto,
    nproc: Nproc = 1,
) -> None:
    """Animate the denoising of images (.gif, .mp4 or .webp)."""
    if like is not None:
        repeat(context, like)
        return
    ckpt = the_checkpoint("gif", named, ckpt)
    seeds = door.seeds(seed, n)
    door.check_drawing(ckpt, out, (".gif", ".mp4", ".webp"), False, sampler, overrides or [], lora or [])
    from diffcli.engine.options.prompt_files import read_prompts

    texts = read_prompts(prompt or (), prompts)
    asked = labels == "all" or image or field or texts or not isinstance(seeds, int)
    shown = n if n is not None or asked else 1
    edit: dict[str, Any] = {"images": tuple(image or ()), "mask": mask, "strength": strength}
    edit |= {"prompts": texts, "prior": prior, "restore": restore, "degrade": degrade, "project": project}
    edit |= {"fields": named_files(field), "augment": augment}
    edit |= {"tile": tile, "overlap": overlap, "exact_tiles": exact_tiles, "whole": no_tile}
    edit |= {"controls": scaled_paths(control, "--control"), "control_scale": named_scales(control_scale)}
    edit |= {"negative_prompt": negative_prompt, "precision": precision.value, "compile": compiled, "size": sides(size)}
    edit |= {"loras": tuple(lora or ()), "base": base, "embeddings": tuple(embedding or ())}
    options = sampling(shown, labels, seeds, sampler, steps, ddim_eta, guidance, overrides, batch_size, **edit)
    door.check_drawn_by(ckpt, labels, overrides or [], sampler, ddim_eta)
    door.check_pictures(image, mask, field)
    door.check_device(device)
    door.check_models(then, base, [path for path, _ in options.controls])
    from diffcli.cli.console import track
    from diffcli.engine.distributed import Launch
    from diffcli.engine.draw import output
    from diffcli.engine.draw import sample as engine
    from diffcli.engine.draw.pictured.cascade import cascade
    from diffcli.engine.draw.sheets.arrangement import Arrangement

    output.check_apart(out, options)

    def work(group: "Group") -> None:
        opened = session.opening(options, group, ema)
        for stage in cascade([ckpt, *(then or ())], options, group, opened, animated=True):
            output.check_sizes(out, stage.req)
            if not stage.last:
                list(track(stage.drawn(), stage.req.n, stage.title))
                continue
            req = stage.req
            assert isinstance(req, engine.Request)
            layout = Arrangement(scale, columns, stage.captions() if captions else None)
            total = engine.frame_count(req, show.value)
            drawn = engine.frames(req, show.value, group)
            if group.leads:
                shown = output.pick(track(drawn, total, "frames"), total, frames)
                output.write_animation(out, shown, fps, req.describe() | {"show": show.value}, layout, hold)
                print(out)
            else:
                list(drawn)

    session.in_group(work, device, Launch(nproc))

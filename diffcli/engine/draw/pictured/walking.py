"""Which models draw their images step by step, and what to type for those that do not."""

from diffcli.config import UserError, quoted
from diffcli.engine.model import Model
from diffcli.tasks.diffusion_config import DiffusionConfig


def check_steps_to_show(model: Model) -> None:
    """Raises UserError for a model that does not draw by diffusion."""
    task = model.preset.task
    if task.kind == "autoencoder":
        raise UserError(
            f"{model.path}: is a first stage, which encodes and decodes in one step, without conditions",
            f"use it by `diffcli sample --ckpt {quoted(model.path)} --image FILE`, or as the codec of a latent model",
        )
    if task.kind == "segmentation":
        drawn = f"segment images by `diffcli sample --ckpt {quoted(model.path)} --image FILE|DIR --out masks`"
        hint = f"{drawn}, score them by fid with --metrics dice,iou"
        raise UserError(
            f"{model.path}: was trained as {task.noun}, which predicts masks of images and draws none", hint
        )
    if task.kind == "super_resolution":
        drawn = f"enlarge pictures by `diffcli sample --ckpt {quoted(model.path)} --image FILE|DIR`"
        hint = f"{drawn}, score them by fid with --metrics psnr,ssim"
        raise UserError(f"{model.path}: was trained as {task.noun} in one step, so there are no steps to show", hint)
    if not isinstance(task, DiffusionConfig):
        raise UserError(
            f"{model.path}: was trained as {task.noun}, which draws no images",
            "give the checkpoint of a diffusion model; a classifier is used by `diffcli fid --features RUN`, a prior by "
            "`diffcli sample --prior RUN`, and scored by `diffcli fid --ckpt RUN --metrics cosine,mse,retrieval`",
        )

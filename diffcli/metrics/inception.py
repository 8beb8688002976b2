"""From images to features by the Inception network that FID is defined by.

The network and its resizing are torch-fidelity's, which agrees with the original TensorFlow one. Weights are never
downloaded unasked: they are a file of the user's or in torch hub's cache.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.fields import Specs
from diffcli.lookup.given_paths import INCEPTION_FILE, INCEPTION_URL, check_weights
from diffcli.metrics.extractor import IMAGES, Extracted, check_images


class InceptionFeatures:
    """Inception-v3 of 2015: 2048 pooled features and the 1008 logits without bias. Source: Szegedy et al. 2015."""

    layer = "pool3 (2048)"
    reads = IMAGES
    gives: Mapping[str, tuple[int, ...]] = {"features": (2048,), "logits": (1008,)}
    limit: int | None = None
    unit = "images"
    classes: tuple[str, ...] | None = None  # ImageNet's, in an order of their own: not the labels of any data set here

    def __init__(self, weights: Path | None = None, device: torch.device | str = "cpu") -> None:
        path = weights or hub_path()
        state, digest = read_weights(path, explicit=weights is not None)
        self.name = "inception-v3-fidelity" + (
            "" if INCEPTION_FILE.split("-")[-1][:8] == digest[:8] else f"-{digest[:8]}"
        )
        self.notes: list[str] = []
        if digest[:8] not in INCEPTION_FILE:
            self.notes.append(f"{path} is not {INCEPTION_FILE}: the scores do not compare with published ones")
        self.device = torch.device(device)
        self.network = _network(state, path).to(self.device)

    @torch.no_grad()
    def __call__(self, fields: Mapping[str, Any], rows: range) -> Extracted:
        """`features` (B, 2048) and `logits` (B, 1008); grey images are repeated to three channels."""
        images = fields["image"].to(self.device)
        features, logits = self.network(images if images.shape[1] == 3 else images.expand(-1, 3, -1, -1))
        return {"features": features, "logits": logits}

    def check(self, name: str, fields: Specs) -> None:
        check_images(name, fields, f"--features {self.name}")

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "layer": self.layer}


def hub_path() -> Path:
    """The place to which torch-fidelity (and torchmetrics) download the weights."""
    return Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE


def read_weights(path: Path, explicit: bool) -> tuple[dict[str, Tensor], str]:
    """State dict of a weights file and its SHA-256, read without running any code in it. Raises UserError."""
    where = f"--weights {path}" if explicit else str(path)
    hint = f"download {INCEPTION_URL} and put it at {hub_path()}, or name it with --weights FILE"
    if explicit:
        check_weights(path)
    if not path.is_file():
        problem = f"{where} is not there: the weights of --features inception are missing"
        raise UserError(problem, f"{hint}; or score with --features RUN, a classifier trained by diffcli")
    try:
        raw = path.read_bytes()
        state = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError(f"{where} cannot be read as weights ({str(error).splitlines()[0][:120]})", hint) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{where} holds no state dict", hint)
    return state, hashlib.sha256(raw).hexdigest()


def _network(state: dict[str, Tensor], path: Path) -> torch.nn.Module:
    import diffcli.torchvision_compat  # noqa: F401, I001 - before torch-fidelity, which imports torchvision
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    # its constructor unpickles whatever file it is given: it is given bytes that we wrote ourselves
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], buffer)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{path} holds other weights than Inception's ({reason} ...)", f"take {INCEPTION_URL}"
        ) from error

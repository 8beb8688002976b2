"""The spatial transformer of latent diffusion, which diffusers and CompVis name alike, as a table of renamings.

Source: Rombach et al. 2021, appendix E.2.1 (arXiv 2112.10752); the layout of both libraries.
"""

from collections.abc import Sequence

from torch import Tensor

from diffcli.interop.weight_files import Rule, layer, layers

LAYERS = {
    "norms.0": "norm1",
    "norms.1": "norm2",
    "norms.2": "norm3",
    "attention.out": "attn1.to_out.0",
    "cross.out": "attn2.to_out.0",
    "feed.inner": "ff.net.0.proj",
    "feed.out": "ff.net.2",
}
PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v"}  # without a bias
ATTENTIONS = {"attention": "attn1", "cross": "attn2"}


def transformer_rules(mine: str, theirs: str, linear: bool) -> list[Rule]:
    """The rules of one block, of depth 1. linear: whether theirs has linear layers at both ends, not 1x1 convolutions."""
    inside = f"{theirs}.transformer_blocks.0"
    rules = [*layer(f"{mine}.norm", f"{theirs}.norm"), *layers(mine, inside, LAYERS)]
    for ours, other in ATTENTIONS.items():
        for part, name in PROJECTIONS.items():
            rules.append(Rule((f"{mine}.{ours}.{part}.weight",), (f"{inside}.{other}.{name}.weight",)))
    for ours, other in (("enter", "proj_in"), ("leave", "proj_out")):
        weight, bias = (((f"{mine}.{ours}.{part}",), (f"{theirs}.{other}.{part}",)) for part in ("weight", "bias"))
        rules += [Rule(*weight, add_axes, drop_axes) if linear else Rule(*weight), Rule(*bias)]
    return rules


def add_axes(weight: Tensor) -> Sequence[Tensor]:
    """A linear layer (C', C) as a 1x1 convolution (C', C, 1, 1)."""
    return [weight[..., None, None]]


def drop_axes(weight: Tensor) -> Sequence[Tensor]:
    """A 1x1 convolution (C', C, 1, 1) as a linear layer (C', C)."""
    return [weight[..., 0, 0]]

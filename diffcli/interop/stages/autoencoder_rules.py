"""First stages in two dialects, diffusers' and CompVis' (taming-transformers, latent-diffusion), as tables of renamings.

Both hold the blocks of ours under other names. Names of ours are those of an `Autoencoder`; a caller puts the place where a
task keeps it before them.
Source: Esser et al. 2020 (arXiv 2012.09841), Rombach et al. 2021 (arXiv 2112.10752); the layout of their code.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diffcli.interop.unets.places import held
from diffcli.interop.weight_files import ForeignTensors, Rule, absent, layer, layers
from diffcli.networks.autoencoder import AutoencoderConfig
from diffcli.networks.bottlenecks import AnyBottleneck
from diffcli.networks.vector_quantiser import VectorQuantiser, Vq

CODEBOOK = "quantize.embedding.weight"  # of both dialects
QUANT = ("quant_conv", "post_quant_conv")
Side = Literal["encoder", "decoder"]


class Dialect(NamedTuple):
    """The names that a library uses for the parts of an encoder and a decoder; {} is a number."""

    level: dict[Side, str]
    from_below: bool  # whether the levels of the decoder are numbered from the finest, as those of the encoder
    block: str
    attention: str
    resample: dict[Side, str]
    middle: tuple[str, str]  # its two blocks
    middle_attention: str
    ends: dict[str, str]
    res: dict[str, str]
    norm: str  # of attention
    qkv: tuple[str, str, str]
    out: str
    axes: int  # that a weight of attention has behind its two, as a 1x1 convolution of so many axes


DIFFUSERS = Dialect(
    level={"encoder": "down_blocks.{}", "decoder": "up_blocks.{}"},
    from_below=False,
    block="resnets.{}",
    attention="attentions.{}",
    resample={"encoder": "downsamplers.0.conv", "decoder": "upsamplers.0.conv"},
    middle=("mid_block.resnets.0", "mid_block.resnets.1"),
    middle_attention="mid_block.attentions.0",
    ends={"stem": "conv_in", "norm": "conv_norm_out", "head": "conv_out"},
    res={"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "skip": "conv_shortcut"},
    norm="group_norm",
    qkv=("to_q", "to_k", "to_v"),
    out="to_out.0",
    axes=0,
)
COMPVIS = Dialect(
    level={"encoder": "down.{}", "decoder": "up.{}"},
    from_below=True,
    block="block.{}",
    attention="attn.{}",
    resample={"encoder": "downsample.conv", "decoder": "upsample.conv"},
    middle=("mid.block_1", "mid.block_2"),
    middle_attention="mid.attn_1",
    ends={"stem": "conv_in", "norm": "norm_out", "head": "conv_out"},
    res={"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "skip": "nin_shortcut"},
    norm="norm",
    qkv=("q", "k", "v"),
    out="proj_out",
    axes=2,
)


class StagePart(NamedTuple):
    """A block of a first stage, ours and theirs."""

    kind: Literal["res", "attention", "resample"]
    ours: str
    theirs: str


def parts(config: AutoencoderConfig, dialect: Dialect, side: Side) -> Iterator[StagePart]:
    """The blocks of the encoder or the decoder, in the order of ours."""
    last = len(config.mult) - 1
    for i in range(len(config.mult)):
        fine = i if side == "encoder" else last - i  # the level counted from the finest
        ours = f"{side}.levels.{i}"
        theirs = f"{side}.{dialect.level[side].format(fine if dialect.from_below else i)}"
        for j in range(config.depth + (side == "decoder")):
            yield StagePart("res", f"{ours}.blocks.{j}", f"{theirs}.{dialect.block.format(j)}")
            if 2**fine in config.attend:
                yield StagePart("attention", f"{ours}.attentions.{j}", f"{theirs}.{dialect.attention.format(j)}")
        if i < last:
            yield StagePart("resample", f"{ours}.resample.conv", f"{theirs}.{dialect.resample[side]}")
    for j, name in enumerate(dialect.middle):
        yield StagePart("res", f"{side}.middle.blocks.{j}", f"{side}.{name}")
    if config.middle_attention:
        yield StagePart("attention", f"{side}.middle.attentions.0", f"{side}.{dialect.middle_attention}")


def stage_rules(
    config: AutoencoderConfig,
    bottleneck: AnyBottleneck,
    ours: ForeignTensors,
    dialect: Dialect,
    gone: Sequence[str] = (),
    quant: Mapping[str, bool] | None = None,
) -> list[Rule]:
    """ours: the tensors of an Autoencoder. gone: prefixes of attention that theirs lacks. quant: whether theirs has QUANT."""
    rules: list[Rule] = []
    for side in ("encoder", "decoder"):
        rules += layers(side, side, dialect.ends)
        for part in parts(config, dialect, side):
            if part.theirs.startswith(tuple(gone)):
                rules.append(absent((name for name in ours if name.startswith(f"{part.ours}.")), ours))
            elif part.kind == "res":
                rules += layers(part.ours, part.theirs, held(dialect.res, part.ours, ours))
            elif part.kind == "attention":
                rules += attention_rules(part.ours, part.theirs, dialect)
            else:
                rules += layer(part.ours, part.theirs)
    for name in QUANT:
        rules += layer(name, name) if quant is None or quant[name] else [unchanged(name, ours)]
    return rules + codebook_rules(bottleneck, ours)


def attention_rules(mine: str, theirs: str, dialect: Dialect) -> list[Rule]:
    """One head, so that its q, k and v simply follow each other in ours."""

    def fit(weight: Tensor) -> Tensor:  # (C', C, 1), the weight of a 1x1 convolution over a sequence -> theirs
        return weight.flatten(1).unflatten(1, (-1, *[1] * dialect.axes))

    def plain(weight: Tensor) -> Tensor:  # theirs -> (C', C, 1)
        return weight.flatten(1)[..., None]

    weights, biases = (tuple(f"{theirs}.{name}.{part}" for name in dialect.qkv) for part in ("weight", "bias"))
    return [
        *layer(f"{mine}.norm", f"{theirs}.{dialect.norm}"),
        Rule(
            (f"{mine}.qkv.weight",),
            weights,
            lambda *qkv: [torch.cat([plain(w) for w in qkv])],
            lambda qkv: [fit(w) for w in qkv.chunk(3)],
        ),
        Rule((f"{mine}.qkv.bias",), biases, lambda *qkv: [torch.cat(qkv)], lambda qkv: qkv.chunk(3)),
        Rule((f"{mine}.out.weight",), (f"{theirs}.{dialect.out}.weight",), lambda w: [plain(w)], lambda w: [fit(w)]),
        Rule((f"{mine}.out.bias",), (f"{theirs}.{dialect.out}.bias",)),
    ]


def unchanged(name: str, ours: ForeignTensors) -> Rule:
    """The identity, for a 1x1 convolution that theirs does not have."""
    names = (f"{name}.weight", f"{name}.bias")
    channels = len(ours[names[1]])
    return Rule(names, (), lambda: [torch.eye(channels)[..., None, None], torch.zeros(channels)], lambda *_: [])


def codebook_rules(bottleneck: AnyBottleneck, ours: ForeignTensors) -> list[Rule]:
    """The rules of a vector quantiser; all codes of an imported codebook count as equally used."""
    if not isinstance(bottleneck, Vq):
        return []
    names = tuple(name for name in ours if name.startswith("bottleneck."))

    def take(codebook: Tensor) -> Sequence[Tensor]:
        made: VectorQuantiser = bottleneck.build(codebook.shape[1])
        made.reset(codebook)
        return [made.state_dict()[name.removeprefix("bottleneck.")] for name in names]

    def give(*tensors: Tensor) -> Sequence[Tensor]:
        return [tensors[names.index("bottleneck.codebook")]]

    return [Rule(names, (CODEBOOK,), take, give)]

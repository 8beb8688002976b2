"""Low-rank adaptation: a frozen layer y = W x learns a change of rank r, y = W x + (alpha / r) B A x.

`attach` gives a layer a child `lora` (A is `down`, B is `up`) and a forward hook that adds what it says: names of the layer's own
weights stay as they are. B starts at 0, so that the layer is at first what it was. `merged` adds the products to the weights of a
state dict, after which nothing of it is left to compute.
Source: Hu et al. 2021, section 4.1 (arXiv 2106.09685); for convolutions the kernel stays in A, as LoCon and peft have it.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, get_args

import torch
from pydantic import Field
from torch import Tensor, nn

from diffcli.config import Config, UserError, closest
from diffcli.networks.attention_blocks import PatchAttention, TokenAttention
from diffcli.networks.channel_blocks import ClassAttention
from diffcli.networks.dit import PatchConv, SelfAttention, TokenReader
from diffcli.networks.layers import Attention, EnlargingConv, Pointwise, PositionLinear
from diffcli.networks.temporal import FrameAttention
from diffcli.networks.trunk import AttentionPool

CHILD = "lora"  # of an adapted layer
DOWN, UP, ALPHA = "down.weight", "up.weight", "alpha"  # what it holds
SHOWN = 6  # names that an error lists

Group = Literal["attention", "linear", "convolution", "all"]
GROUPS: tuple[Group, ...] = get_args(Group)
ATTENTIONS = (
    *(Attention, PatchAttention, TokenAttention, ClassAttention, SelfAttention, TokenReader, AttentionPool),
    FrameAttention,
)
LINEAR = (nn.Linear, PositionLinear, Pointwise, PatchConv)  # by what they compute; the others are convolutions


class LoraConfig(Config):
    """Low-rank changes of layers; all else stays as it was in the model that the run begins from."""

    rank: int = Field(8, ge=1, description="of the change of each layer, at most its smaller side")
    alpha: float | None = Field(None, gt=0, description="the change is multiplied by alpha / rank; null: rank, so by 1")
    targets: tuple[str, ...] = Field(
        ("attention",),
        min_length=1,
        description="layers that learn: attention, linear, convolution, all, or patterns of their names, as '*.feed.*'",
    )
    whole: tuple[str, ...] = Field(
        (), description="patterns of parameters that are trained as they are, beside the low-rank ones"
    )

    @property
    def strength(self) -> float:
        """alpha, whether it is said or follows from the rank."""
        return float(self.rank) if self.alpha is None else self.alpha


class LowRank(NamedTuple):
    """The change of one layer. down: (r, C, *kernel); up: (C', r) with as many axes of 1 behind as it has."""

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return len(self.down)

    def change(self, scale: float = 1.0) -> Tensor:
        """(C', C * kernel) float64: scale * alpha / r * B A."""
        return (scale * self.alpha / self.rank) * (self.up.double().flatten(1) @ self.down.double().flatten(1))


class Lora(nn.Module):
    """(alpha / r) B A x for one layer; see the module. It is called with what the layer is called with."""

    alpha: Tensor

    def __init__(self, layer: nn.Module, rank: int, alpha: float) -> None:
        super().__init__()
        self.rank = rank
        self.down, self.up = SHAPES[type(layer)](layer, rank)
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        nn.init.zeros_(self.up.get_parameter("weight"))

    def forward(self, *inputs: Any) -> Tensor:
        changed: Tensor = self.up(self.down(*inputs) * (self.alpha / self.rank))
        return changed


def _linear(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=False)


def _position_linear(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    return PositionLinear(layer.in_channels, rank, bias=False), PositionLinear(rank, layer.out_channels, bias=False)


def _pointwise(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    return Pointwise(layer.in_channels, rank, bias=False), Pointwise(rank, layer.out_channels, bias=False)


def _enlarging(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    return EnlargingConv(layer.in_channels, rank, bias=False), Pointwise(rank, layer.out_channels, bias=False)


def _patches(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    down = PatchConv(layer.in_channels, rank, layer.kernel_size[0], bias=False)
    return down, nn.Linear(rank, layer.out_channels, bias=False)


def _convolution(layer: Any, rank: int) -> tuple[nn.Module, nn.Module]:
    kind = type(layer)
    down = kind(
        layer.in_channels,
        rank,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        bias=False,
        padding_mode=layer.padding_mode,
    )
    up = (
        Pointwise(rank, layer.out_channels, bias=False)
        if kind is nn.Conv2d
        else kind(rank, layer.out_channels, 1, bias=False)
    )
    return down, up


SHAPES: dict[type[nn.Module], Callable[[Any, int], tuple[nn.Module, nn.Module]]] = {
    nn.Linear: _linear,
    PositionLinear: _position_linear,
    Pointwise: _pointwise,
    EnlargingConv: _enlarging,
    PatchConv: _patches,
    nn.Conv1d: _convolution,
    nn.Conv2d: _convolution,
    nn.Conv3d: _convolution,
}
"""How the two layers of a change are made, by the kind of the layer: `down` is called as the layer is, `up` with its result."""


def adapted(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
    """The forward hook of a layer with a change."""
    changed: Tensor = output + layer.get_submodule(CHILD)(*inputs)
    return changed


def attach(parts: Mapping[str, nn.Module], config: LoraConfig, key: str = "train.lora") -> list[str]:
    """Gives the layers that the config names their changes, drawn from torch's generator; returns their names.

    parts: the modules in which layers are looked for, by what their names begin with. key: of the config, for errors. Raises
    UserError for a pattern that matches no layer, a layer that cannot be adapted, and a rank that is none.
    """
    chosen = matched(parts, config.targets, key)
    for name, layer in chosen.items():
        check_rank(name, layer, config.rank, key)
    for layer in chosen.values():
        weight = layer.get_parameter("weight")
        with torch.device(weight.device):
            layer.add_module(CHILD, Lora(layer, config.rank, config.strength))
        layer.register_forward_hook(adapted)
    return list(chosen)


def matched(parts: Mapping[str, nn.Module], targets: Iterable[str], key: str = "train.lora") -> dict[str, nn.Module]:
    """The layers that targets name, each with its name, in the order of the parts. Raises UserError as `attach` does."""
    layers = dict(weighted(parts))
    found: set[str] = set()
    for target in targets:
        here = members(target, parts, layers) if target in GROUPS else [n for n in layers if matches(n, target)]
        if not here:
            raise nothing(target, parts, layers, key)
        refused = next(((n, why) for n in here if (why := refusal(layers[n]))), None)
        if refused is not None:
            raise UserError(
                f"{key}.targets: '{target}' matches {refused[0]}, {refused[1]}",
                f"name other layers; the groups {', '.join(GROUPS)} leave such layers out",
            )
        found.update(here)
    return {name: layer for name, layer in layers.items() if name in found}


def weighted(parts: Mapping[str, nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Every layer that multiplies by a matrix, with its name; those of changes are none."""
    for prefix, part in parts.items():
        for name, module in part.named_modules():
            if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) and CHILD not in name.split("."):
                yield f"{prefix}.{name}".strip("."), module


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern, with * and ?, is the name or the end of it: `query` is that of every attention."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def refusal(layer: nn.Module) -> str | None:
    """Why a layer cannot be adapted; None: it can."""
    if type(layer) not in SHAPES:
        return f"a {type(layer).__name__}, whose weight is changed before it is used: no product of matrices adds to it"
    if getattr(layer, "groups", 1) != 1:
        return f"a convolution in {layer.groups} groups, whose weight is no single matrix"
    return None


def members(group: str, parts: Mapping[str, nn.Module], layers: Mapping[str, nn.Module]) -> list[str]:
    """The layers of one of GROUPS: of those that can be adapted without the ends of a network and without single rows."""
    ends = set(map(id, ends_of(parts)))
    attending = {
        id(child)
        for part in parts.values()
        for m in part.modules()
        if isinstance(m, ATTENTIONS)
        for child in m.children()
    }
    usable = [n for n, layer in layers.items() if refusal(layer) is None and id(layer) not in ends and side(layer) > 1]
    match group:
        case "attention":
            return [name for name in usable if id(layers[name]) in attending]
        case "linear":
            return [name for name in usable if isinstance(layers[name], LINEAR)]
        case "convolution":
            return [name for name in usable if not isinstance(layers[name], LINEAR)]
        case _:
            return usable


def ends_of(parts: Mapping[str, nn.Module]) -> Iterator[nn.Module]:
    """The first and the last layer of every network."""
    for part in parts.values():
        for module in part.modules():
            yield from (
                m for m in (getattr(module, name, None) for name in ("stem", "head")) if isinstance(m, nn.Module)
            )
            if isinstance(module, PatchConv):
                yield module


def side(layer: nn.Module) -> int:
    """The smaller side of a layer's matrix (C', C * kernel): no change of it has a higher rank."""
    weight = layer.get_parameter("weight")
    return min(len(weight), weight[0].numel())


def check_rank(name: str, layer: nn.Module, rank: int, key: str) -> None:
    """Raises UserError for a rank above the smaller side of a layer's matrix."""
    if rank <= side(layer):
        return
    weight = layer.get_parameter("weight")
    raise UserError(
        f"{key}.rank is {rank}, but the matrix of {name} is {len(weight)}x{weight[0].numel()}: no change of it has that rank",
        f"set {key}.rank to {side(layer)} or less, or leave that layer out of {key}.targets",
    )


def nothing(target: str, parts: Mapping[str, nn.Module], layers: Mapping[str, nn.Module], key: str) -> UserError:
    """The error for a target that matches no layer."""
    sizes = {group: len(members(group, parts, layers)) for group in GROUPS}
    known = ", ".join(f"{group} ({count} layers)" for group, count in sizes.items() if count)
    if target in GROUPS:
        return UserError(f"{key}.targets: '{target}' matches no layer of this model", f"choose one of {known}")
    endings = Counter(name.rpartition(".")[2] for name in layers)
    close = closest(target.rpartition(".")[2], [*GROUPS, *(e for e in endings if not e.isdecimal())])
    guess = f" (did you mean '{close}'?)" if close else ""
    some = ", ".join(list(layers)[:SHOWN])
    return UserError(
        f"{key}.targets: '{target}' matches no layer{guess}",
        f"name {known}, or a pattern as '*.NAME'; layers are {some}, ...",
    )


def low_rank(tensors: Mapping[str, Tensor]) -> dict[str, LowRank]:
    """The changes in a state dict, by the names of their layers. Raises ValueError where one is not whole."""
    found: dict[str, LowRank] = {}
    for name in tensors:
        layer, child, _ = name.rpartition(f".{CHILD}.{DOWN}")
        if not child:
            continue
        whole = [tensors.get(f"{layer}.{CHILD}.{part}") for part in (UP, ALPHA)]
        if whole[0] is None or whole[1] is None or len(tensors[name]) != whole[0].shape[1]:
            raise ValueError(f"the change of {layer} is not whole")
        found[layer] = LowRank(tensors[name], whole[0], float(whole[1]))
    return found


def of_change(name: str) -> bool:
    """Whether a tensor of this name belongs to a change."""
    return f".{CHILD}." in name


def merged(tensors: Mapping[str, Tensor], changes: Mapping[str, LowRank], scale: float = 1.0) -> dict[str, Tensor]:
    """A state dict whose weights have taken changes in: W + scale * alpha / r * B A, in float64 and rounded once.

    Raises ValueError naming the first layer that is not there or has another shape.
    """
    result = {name: tensor for name, tensor in tensors.items() if not of_change(name)}
    for layer, each in changes.items():
        name = f"{layer}.weight"
        change = each.change(scale)
        if name not in result or result[name].flatten(1).shape != change.shape:
            found = "is not there" if name not in result else f"is {list(result[name].shape)}"
            raise ValueError(f"{name} {found}, but its change is {list(change.shape)}")
        weight = result[name]
        result[name] = (weight.double() + change.view(weight.shape)).to(weight.dtype)
    return result

"""Our layers of first stages by diffusers' names, for tests that compare the two. (interop has its own table, of files.)"""

import re
from collections.abc import Mapping

from torch import Tensor


def diffusers_state(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state of `Autoencoder` under the names that AutoencoderKL and VQModel have; a codebook's statistics are left out."""
    state = {}
    for name, value in ours.items():
        if name.startswith("bottleneck."):
            if name.endswith("codebook"):
                state["quantize.embedding.weight"] = value
            continue
        if found := re.fullmatch(r"(.*)attentions\.(\d+)\.(norm|qkv|out)\.(\w+)", name):
            place, number, layer, kind = found.groups()
            at = renamed(f"{place}attentions.{number}")
            value = value.squeeze(-1)
            if layer == "qkv":
                for part, piece in zip("qkv", value.chunk(3), strict=True):
                    state[f"{at}.to_{part}.{kind}"] = piece
            else:
                state[f"{at}.{'group_norm' if layer == 'norm' else 'to_out.0'}.{kind}"] = value
            continue
        state[renamed(name)] = value
    return state


def renamed(name: str) -> str:
    """One name of a layer, its last words as they are."""
    name = re.sub(r"^(encoder|decoder)\.stem", r"\1.conv_in", name)
    name = re.sub(r"^(encoder|decoder)\.norm", r"\1.conv_norm_out", name)
    name = re.sub(r"^(encoder|decoder)\.head", r"\1.conv_out", name)
    name = re.sub(r"^(encoder|decoder)\.middle\.blocks", r"\1.mid_block.resnets", name)
    name = re.sub(r"^(encoder|decoder)\.middle\.attentions", r"\1.mid_block.attentions", name)
    name = re.sub(r"^encoder\.levels\.(\d+)\.resample", r"encoder.down_blocks.\1.downsamplers.0", name)
    name = re.sub(r"^decoder\.levels\.(\d+)\.resample", r"decoder.up_blocks.\1.upsamplers.0", name)
    name = re.sub(r"^encoder\.levels\.(\d+)\.blocks", r"encoder.down_blocks.\1.resnets", name)
    name = re.sub(r"^decoder\.levels\.(\d+)\.blocks", r"decoder.up_blocks.\1.resnets", name)
    name = re.sub(r"^encoder\.levels\.(\d+)\.attentions", r"encoder.down_blocks.\1.attentions", name)
    name = re.sub(r"^decoder\.levels\.(\d+)\.attentions", r"decoder.up_blocks.\1.attentions", name)
    return re.sub(r"(resnets\.\d+)\.skip", r"\1.conv_shortcut", name)

"""Computes luminance, edges, lines, and colours without detail of pictures.

Pictures are float (B, C, H, W) in [0, 1]; borders repeat the last pixel.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
REACH = 3.0  # standard deviations that a Gaussian is cut at
WIDER = 1.6  # of the second Gaussian of XDoG, the ratio at which it is nearest to a Laplacian
SOBEL = ((-1.0, 0.0, 1.0), (-2.0, 0.0, 2.0), (-1.0, 0.0, 1.0))
STEEPEST = 4.0 * math.sqrt(2)  # the largest length of a Sobel gradient of values in [0, 1]


def grey(images: Tensor) -> Tensor:
    """uint8 (B, C, H, W), C 1 or 3 -> luminance (B, 1, H, W) in [0, 1]."""
    values = images.float() / 255
    if values.shape[1] == 1:
        return values
    return (values * torch.tensor(LUMA)[:, None, None]).sum(1, keepdim=True)


def smoothed(images: Tensor, sigma: float) -> Tensor:
    """(B, C, H, W) under a Gaussian of standard deviation sigma, in pixels."""
    reach = max(1, math.ceil(REACH * sigma))
    weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).double() / sigma) ** 2)
    weights = (weights / weights.sum()).float()
    x = images.flatten(0, 1)[:, None]
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), weights[None, None, None, :])
    x = F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), weights[None, None, :, None])
    return x.view_as(images)


def canny(images: Tensor, sigma: float, low: float, high: float) -> Tensor:
    """Luminance (B, 1, H, W) -> bool (B, 1, H, W): edges one pixel wide. low, high: shares of the steepest gradient.

    Source: Canny 1986, doi 10.1109/TPAMI.1986.4767851: smoothing, Sobel gradients, thinning along the gradient, hysteresis.
    """
    across = torch.tensor(SOBEL)[None, None]
    padded = F.pad(smoothed(images, sigma), (1, 1, 1, 1), mode="replicate")
    gx, gy = F.conv2d(padded, across), F.conv2d(padded, across.transpose(2, 3))
    steep = torch.hypot(gx, gy) / STEEPEST
    crest = _crest(steep, gx, gy)
    strong, weak = crest & (steep >= high), crest & (steep >= low)
    while True:
        grown = (F.max_pool2d(strong.float(), 3, 1, 1) > 0) & weak | strong
        if torch.equal(grown, strong):
            return strong
        strong = grown


def _crest(steep: Tensor, gx: Tensor, gy: Tensor) -> Tensor:
    """Where the gradient is at least that of its two neighbours along its direction, one of four."""
    height, width = steep.shape[2:]
    around = F.pad(steep, (1, 1, 1, 1))
    sector = (torch.atan2(gy, gx) * (4 / math.pi)).round().long() % 4  # 0 across, 1 down right, 2 down, 3 down left
    crest = torch.zeros_like(steep, dtype=torch.bool)
    for number, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = around[:, :, 1 + down : 1 + down + height, 1 + right : 1 + right + width]
        behind = around[:, :, 1 - down : 1 - down + height, 1 - right : 1 - right + width]
        crest |= (sector == number) & (steep >= ahead) & (steep > behind)  # of two equal ones the first
    return crest


def xdog(images: Tensor, sigma: float, sharpness: float, threshold: float, slope: float) -> Tensor:
    """Luminance (B, 1, H, W) -> lines (B, 1, H, W) in [0, 1], 0 is ink.

    Source: Winnemoeller et al. 2012, eq. 5 to 7, doi 10.1016/j.cag.2012.03.004.
    """
    near, far = smoothed(images, sigma), smoothed(images, WIDER * sigma)
    sharp = (1 + sharpness) * near - sharpness * far
    return torch.where(sharp >= threshold, 1.0, 1 + torch.tanh(slope * (sharp - threshold))).clamp(0, 1)

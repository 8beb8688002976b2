"""PSNR and SSIM of bytes: closed forms, and agreement with other definitions of the same windows."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from diffcli.metrics.metric import empty_summaries
from diffcli.metrics.nearness import MOST, psnr_of_bytes, ssim_of_bytes
from diffcli.metrics.scores import metrics_by_name
from diffcli.noise import Noise


def pair(channels: int, height: int, width: int, n: int = 3) -> tuple[Tensor, Tensor]:
    """Random bytes, and the same with noise."""
    noise = Noise(range(n), torch.device("cpu"))
    image = noise(torch.empty(n, channels, height, width)) * 60 + 128
    other = image + noise(image) * 20
    first, second = (x.round().clamp(0, 255).to(torch.uint8) for x in (image, other))
    return first, second


def test_one_level_everywhere_is_48_dB_whatever_the_image() -> None:
    image, _ = pair(3, 8, 6)
    image = image.clamp(max=254)
    assert psnr_of_bytes(image, image + 1).tolist() == pytest.approx([20 * math.log10(255)] * 3, abs=1e-5)


def test_each_image_has_a_psnr_of_its_own_and_equal_ones_have_the_most() -> None:
    image, other = pair(3, 16, 16)
    found = psnr_of_bytes(image, torch.stack([image[0], other[1], other[2]]))
    error = ((image.double() - other.double()) / 255).square().flatten(1).mean(dim=1)
    assert found[0] == MOST
    assert torch.allclose(found[1:], (-10 * error.log10()).float()[1:], atol=1e-5)


def test_errors_of_a_large_image_do_not_overflow() -> None:
    black = torch.zeros(1, 3, 512, 512, dtype=torch.uint8)
    assert psnr_of_bytes(black, black + 255).item() == pytest.approx(0, abs=1e-6)


def test_ssim_of_two_flat_images_is_the_luminance_term() -> None:
    a, b = (torch.full((1, 3, 12, 15), level, dtype=torch.uint8) for level in (51, 102))
    expected = (2 * 0.2 * 0.4 + 1e-4) / (0.2**2 + 0.4**2 + 1e-4)
    assert ssim_of_bytes(a, b).item() == pytest.approx(expected, abs=1e-4)


def ssim(image: Tensor, other: Tensor) -> float:
    """Of two images, as scikit-image computes it with gaussian_weights, sigma 1.5 and no sample covariance; in float64."""

    def blur(x: np.ndarray) -> np.ndarray:
        return np.stack([gaussian_filter(channel, 1.5, truncate=3.5) for channel in x])

    x, y = image.double().numpy() / 255, other.double().numpy() / 255
    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    values = (2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return float(values[:, 5:-5, 5:-5].mean())


def test_ssim_is_that_of_gaussian_windows_inside_the_image() -> None:
    image, other = pair(3, 20, 27)
    for found, a, b in zip(ssim_of_bytes(image, other), image, other, strict=True):
        assert found.item() == pytest.approx(ssim(a, b), abs=1e-5)


def nearly_white() -> tuple[Tensor, Tensor]:
    """Images whose squares are 10,000 times their variance."""
    first, second = (252 + levels // 64 for levels in pair(3, 20, 27))
    return first, second


def test_ssim_of_nearly_flat_images_is_that_of_float64() -> None:
    for found, a, b in zip(ssim_of_bytes(*nearly_white()), *nearly_white(), strict=True):
        assert found.item() == pytest.approx(ssim(a, b), abs=1e-6)


@pytest.mark.gpu
def test_ssim_on_a_gpu_is_that_of_the_cpu() -> None:
    """Its convolutions may round factors to 10 bits, as they do for training."""
    image, other = nearly_white()
    with torch.backends.cudnn.flags(allow_tf32=True):
        found = ssim_of_bytes(image.cuda(), other.cuda()).cpu()
    assert torch.allclose(found, ssim_of_bytes(image, other), rtol=0, atol=1e-6)


def test_ssim_agrees_with_torchmetrics_but_for_its_border() -> None:
    import diffcli.torchvision_compat  # noqa: F401, I001
    from torchmetrics.functional.image import structural_similarity_index_measure

    image, other = pair(1, 24, 16)
    unit = (image.float() / 255, other.float() / 255)
    _, full = structural_similarity_index_measure(*unit, data_range=1.0, reduction="none", return_full_image=True)
    inside = full[..., 5:-5, 5:-5].flatten(1).mean(dim=1)
    assert torch.allclose(ssim_of_bytes(image, other), inside, atol=1e-5)


def test_ssim_of_an_image_and_itself_is_1_even_where_one_window_fits_alone() -> None:
    image, _ = pair(1, 11, 11)
    assert torch.allclose(ssim_of_bytes(image, image), torch.ones(3))


def test_scores_are_means_over_the_images_and_floors_stand_beside() -> None:
    metrics = metrics_by_name(["psnr", "ssim"])
    summaries = empty_summaries(metrics)
    summary = summaries["samples", "reconstruction"]
    summary.update({"psnr": torch.tensor([20.0, 30.0]), "ssim": torch.tensor([0.5, 0.5])})
    summary.update({"psnr": torch.tensor([40.0]), "ssim": torch.tensor([0.8])})
    psnr, ssim = (metric.compute(summaries) for metric in metrics)
    assert psnr["psnr"] == pytest.approx(30)
    assert psnr["psnr_std"] == pytest.approx(math.sqrt(200 / 3))
    assert ssim["ssim"] == pytest.approx(0.6)
    floor = {"name": "floor", "psnr": 16.3, "what": "principal components"}
    assert metrics[0].lines(psnr, {"floors": [floor]}) == {
        "psnr": "30 dB +- 8.16 over the images",
        "floor": "16.3 dB by principal components",
    }

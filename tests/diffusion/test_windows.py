"""Windows of frames: their weights, that they agree with the whole where they can, and what does not depend on the length."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from diffcli.diffusion.denoiser import Prediction
from diffcli.diffusion.samplers import Ddim, last
from diffcli.diffusion.schedule import Cosine
from diffcli.diffusion.windows import InWindows, Windows, in_windows
from diffcli.noise import FrameNoise

CASES = [(8, 4, 9), (8, 4, 16), (8, 4, 17), (5, 2, 23), (8, 0, 20), (4, 3, 10), (1, 0, 5)]


@pytest.mark.parametrize(("size", "overlap", "frames"), CASES)
def test_windows_cover_every_frame_with_weights_that_sum_to_one(size: int, overlap: int, frames: int) -> None:
    windows = Windows(size, overlap)
    total = torch.zeros(frames)
    for span, weight in zip(windows.spans(frames), windows.weights(frames), strict=True):
        assert span.stop - span.start == size == len(weight)
        assert (weight > 0).all()
        total[span] += weight
    assert torch.allclose(total, torch.ones(frames), atol=1e-6)
    spans = windows.spans(frames)
    assert all(before.stop - after.start >= overlap for before, after in pairwise(spans))
    assert spans[-1].stop == frames


def test_windows_begin_at_the_same_frames_however_long_the_clip_is() -> None:
    windows = Windows(8, 4)
    assert windows.spans(8) == [slice(0, 8)]
    short, long = windows.spans(21), windows.spans(40)
    assert short[:-1] == long[: len(short) - 1]


def predict(x: Tensor, t: Tensor, places: object) -> Prediction:
    return Prediction(2 * x, x - 1, torch.sigmoid(x))


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_a_prediction_that_looks_at_one_frame_is_that_of_the_whole_clip(at_once: int) -> None:
    x = torch.randn(2, 3, 21, 4, 5, generator=torch.Generator().manual_seed(0))
    found, whole = in_windows(predict, Windows(8, 3, at_once))(x, torch.tensor(0.5)), predict(x, torch.tensor(0.5), ())
    for part, wanted in zip(found[:3], whole[:3], strict=True):
        assert part is not None
        assert wanted is not None
        assert torch.allclose(part, wanted, atol=1e-6)


def test_a_clip_that_fits_is_predicted_whole() -> None:
    seen: list[Tensor] = []

    def watched(x: Tensor, t: Tensor, places: object) -> Prediction:
        seen.append(x)
        return Prediction(x, x)

    x = torch.randn(2, 1, 8, 2, 2)
    assert torch.equal(in_windows(watched, Windows(8, 4))(x, torch.tensor(0.5)).x0, x)
    assert torch.equal(seen[0], x)


def test_each_window_is_predicted_at_the_time_of_its_clip() -> None:
    def timed(x: Tensor, t: Tensor, places: object) -> Prediction:
        return Prediction(t.view(-1, 1, 1, 1, 1).expand_as(x), x)

    found = in_windows(timed, Windows(4, 2, at_once=3))(torch.zeros(2, 1, 9, 2, 2), torch.tensor([0.25, 0.75])).x0
    assert torch.allclose(found[0], torch.tensor(0.25))
    assert torch.allclose(found[1], torch.tensor(0.75))


def slow_clips(rho: float = 0.98) -> InWindows:
    """The ideal denoiser of windows of clips whose frames, of one pixel, are Gaussian and change slowly: an AR(1) process."""
    schedule = Cosine()

    def ideal(x: Tensor, t: Tensor, places: object) -> Prediction:
        alpha, sigma = schedule.alpha_sigma(t)
        place = torch.arange(x.shape[2], dtype=torch.float64)
        spread = rho ** (place[:, None] - place).abs()
        noisy = alpha**2 * spread + sigma**2 * torch.eye(len(place), dtype=torch.float64)
        gain = alpha * torch.linalg.solve(noisy, spread).T
        x0 = torch.einsum("fg,bcghw->bcfhw", gain, x.double())
        return Prediction(x0.float(), ((x.double() - alpha * x0) / sigma).float())

    return ideal


def steps_between(overlap: int, frames: int = 28) -> tuple[float, float]:
    """Deviation of the difference of neighbouring frames: at the worst border of windows, and elsewhere.

    All is linear: the walk of a unit vector of noise is a column of the map from noise to clips, whose rows say the deviations.
    """
    windows = Windows(8, overlap)
    x, noise = torch.eye(frames).view(frames, 1, frames, 1, 1), FrameNoise(range(frames), torch.device("cpu"))
    clips = last(Ddim(steps=16).trajectory(in_windows(slow_clips(), windows), Cosine(), x, noise)).x
    steps = (clips[:, :, 1:] - clips[:, :, :-1]).square().sum(dim=(0, 1, 3, 4)).sqrt()
    spans = windows.spans(frames)
    cuts = sorted({span.start - 1 for span in spans[1:]} | {span.stop - 1 for span in spans[:-1]})
    inside = [i for i in range(frames - 1) if i not in cuts]
    return float(steps[cuts].max()), float(steps[inside].mean())


def test_slow_clips_have_no_cut_where_windows_overlap_and_one_where_they_do_not() -> None:
    at, elsewhere = steps_between(overlap=4)
    assert at < 1.1 * elsewhere
    at, elsewhere = steps_between(overlap=0)
    assert at > 4 * elsewhere, "two windows that share no frame know nothing of each other"

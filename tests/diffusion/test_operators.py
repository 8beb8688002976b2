"""Operators and their pseudo-inverses: Moore and Penrose's identities, Pillow's kernels, and what a sampler makes of them."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffcli.diffusion.denoiser import Denoise, Prediction
from diffcli.diffusion.editing import projected, pursued
from diffcli.diffusion.guidance import clip_x0
from diffcli.diffusion.operators import Known, Luma, Operator, blurred, blurring, lowered, resizing
from diffcli.diffusion.samplers import Ddim, Ddpm, DpmPlusPlus2M, Sampler, last
from diffcli.diffusion.schedule import Cosine, Flow, Linear
from diffcli.lookup.kernels import KERNELS, Kernel
from diffcli.noise import Noise
from tests.diffusion.oracle import Mixture, kind
from tests.pairing import paired

CPU = torch.device("cpu")
NONE = Noise([0, 1], CPU)  # of samplers that draw none
R = 0.9  # the correlation of two pixels
DATA = Mixture((0.5, 0.5), (-0.5, 0.6), (0.2, 0.1))
SIZE = 16, 24


def hole() -> Known:
    known = torch.ones(SIZE, dtype=torch.bool)
    known[4:9, 3:20] = False
    return Known(known)


OPERATORS: dict[str, Callable[[], Operator]] = {
    **{f"sr{f}-{k}": lambda f=f, k=k: lowered(SIZE, f, k) for f in (2, 4) for k in KERNELS},  # type: ignore[misc]
    "blur": lambda: blurred(SIZE, 1.5),
    "colour": Luma,
    "mask": hole,
}


def draws(*seeds: int, size: tuple[int, int] = SIZE) -> Tensor:
    return Noise(seeds, CPU)(torch.empty(len(seeds), 3, *size))


@pytest.fixture(params=OPERATORS, ids=str)
def operator(request: pytest.FixtureRequest) -> Operator:
    return OPERATORS[request.param]()


def test_measuring_what_was_inverted_changes_nothing(operator: Operator) -> None:
    """A A^+ A = A, so A A^+ y = y for every y that was measured, and A^+ A A^+ = A^+."""
    x = draws(0, 1)
    y = operator.measure(x)
    back = operator.invert(y)
    torch.testing.assert_close(operator.measure(back), y, rtol=0, atol=1e-5)
    torch.testing.assert_close(operator.invert(operator.measure(back)), back, rtol=0, atol=1e-5)


def test_what_the_inverse_adds_is_orthogonal_to_what_the_operator_cannot_see(operator: Operator) -> None:
    """A^+ A is symmetric: <A^+ A x, z> = <x, A^+ A z>, so it is the nearest consistent picture that projection takes."""
    x, z = draws(0).double(), draws(1).double()
    seen_x, seen_z = (operator.invert(operator.measure(each)) for each in (x, z))
    assert float((seen_x * z).sum()) == pytest.approx(float((x * seen_z).sum()), abs=1e-8)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name != "mask"])
def test_a_flat_picture_stays_flat(name: str) -> None:
    flat = torch.full((1, 3, *SIZE), 0.4)
    assert (OPERATORS[name]().measure(flat) - 0.4).abs().max() < 1e-5


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("inside", "outside"), [(32, 16), (32, 8), (28, 7), (16, 32), (30, 20)])
def test_a_line_is_resized_as_pillow_does(kernel: Kernel, inside: int, outside: int) -> None:
    line = draws(3, size=(1, inside))[0, 0, 0]
    picture = Image.fromarray(np.repeat(line.numpy()[None], 2, axis=0), mode="F")
    found = np.asarray(picture.resize((outside, 2), Image.Resampling[kernel.upper()]))[0]
    torch.testing.assert_close(
        resizing(inside, outside, kernel).float() @ line, torch.from_numpy(found.copy()), rtol=0, atol=1e-5
    )


def test_low_resolution_has_the_rank_of_its_pixels_and_a_block_mean_repeats() -> None:
    for kernel in KERNELS:
        assert int((lowered(SIZE, 2, kernel).gains > 0).sum()) == SIZE[0] * SIZE[1] // 4
    box = lowered(SIZE, 2, "box")
    x = draws(0)
    torch.testing.assert_close(box.measure(x), torch.nn.functional.avg_pool2d(x, 2), rtol=0, atol=1e-6)
    y = box.measure(x)
    torch.testing.assert_close(box.invert(y), y.repeat_interleave(2, 2).repeat_interleave(2, 3), rtol=0, atol=1e-6)


def test_a_blur_keeps_the_frequencies_above_its_cut_off_as_the_gaussian_has_them() -> None:
    x, operator = draws(0), blurred(SIZE, 1.5)
    down, across = (blurring(side, 1.5) for side in SIZE)
    plain = down @ x.double() @ across.T
    assert (operator.measure(x) - plain).abs().max() < 0.15
    smooth = operator.measure(operator.measure(x))
    plain = down @ operator.measure(x).double() @ across.T
    assert (smooth - plain).abs().max() < 0.02
    assert 0 < int((operator.gains > 0).sum()) < SIZE[0] * SIZE[1]
    assert float(operator.losses.max()) <= 10 * (1 + 1e-9) / float(operator.gains.max())


def test_grey_is_pillows_grey() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    found = Luma().measure(torch.from_numpy(levels).permute(2, 0, 1)[None].float())[0, 0]
    assert (
        found - torch.from_numpy(np.asarray(Image.fromarray(levels).convert("L")).astype(np.float32))
    ).abs().max() <= 0.51


def clipped(schedule: Cosine | Linear | Flow) -> Denoise:
    return clip_x0(DATA.denoise(schedule), schedule)


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    paired([Ddim(steps=7), DpmPlusPlus2M(steps=7), Ddpm(steps=7)], [Cosine(), Linear(), Flow()]),
    ids=kind,
)
def test_the_final_image_measures_as_what_was_given(sampler: Sampler, schedule, operator: Operator) -> None:
    measured = operator.measure(draws(5, 6).clamp(-1, 1) * 0.5)
    denoise = projected(clipped(schedule), schedule, operator, measured)
    end = last(sampler.trajectory(denoise, schedule, draws(0, 1), Noise([0, 1], CPU))).x
    torch.testing.assert_close(operator.measure(end), measured, rtol=0, atol=1e-5)
    assert not torch.allclose(end[0], end[1], atol=0.05)


def test_a_projection_changes_nothing_that_the_operator_cannot_see_and_keeps_what_makes_up_x(
    operator: Operator,
) -> None:
    measured, x, t = operator.measure(draws(5, 6)), draws(0, 1), torch.tensor([0.2, 0.7], dtype=torch.float64)
    plain, p = DATA.denoise(Cosine())(x, t), projected(DATA.denoise(Cosine()), Cosine(), operator, measured)(x, t)
    alpha, sigma = (c.view(2, 1, 1, 1) for c in Cosine().alpha_sigma(t))
    torch.testing.assert_close(alpha * p.x0 + sigma * p.eps, x.double(), rtol=0, atol=1e-4, check_dtype=False)
    moved = p.x0 - plain.x0
    torch.testing.assert_close(operator.invert(operator.measure(moved)), moved, rtol=0, atol=1e-4)


def test_the_final_image_of_a_pursued_walk_measures_as_what_was_given(operator: Operator) -> None:
    measured = operator.measure(draws(5, 6).clamp(-1, 1) * 0.5)
    denoise = pursued(clipped(Flow()), Flow(), operator, measured)
    end = last(DpmPlusPlus2M(steps=7).trajectory(denoise, Flow(), draws(0, 1), NONE)).x
    torch.testing.assert_close(operator.measure(end), measured, rtol=0, atol=1e-5)


def test_a_walk_of_ddim_keeps_the_noise_that_the_network_predicted_beside_the_projected_image() -> None:
    """x_s = alpha_s x0' + sigma_s eps: what the network sees is that walk, whose noise was never corrected."""
    operator, seen, schedule, sampler = lowered(SIZE, 2), [], Cosine(), Ddim(steps=6)
    measured = operator.measure(draws(5, 6))

    def watched(x: Tensor, t: Tensor) -> Prediction:
        seen.append(x)
        return DATA.denoise(schedule)(x, t)

    end = last(sampler.trajectory(pursued(watched, schedule, operator, measured), schedule, draws(0, 1), NONE)).x
    x, times = draws(0, 1).double(), sampler.times(schedule)
    for found, t, s in zip(seen, times[:-1], times[1:], strict=True):
        torch.testing.assert_close(found.double(), x, rtol=0, atol=1e-4)
        p, (alpha, sigma) = DATA.denoise(schedule)(x, t), schedule.alpha_sigma(s)
        x = alpha * (p.x0 + operator.invert(measured - operator.measure(p.x0))) + sigma * p.eps
    torch.testing.assert_close(end.double(), x, rtol=0, atol=1e-4)


def correlated(x: Tensor, t: Tensor) -> Prediction:
    """The ideal denoiser of pairs of pixels (B, 1, 1, 2) ~ N(0, [1 r; r 1]): their sum and difference are independent."""
    alpha, sigma = Cosine().alpha_sigma(t)
    total, apart = x[..., :1] + x[..., 1:], x[..., :1] - x[..., 1:]
    total, apart = (alpha * v / (alpha**2 * v + sigma**2) * z for v, z in ((1 + R, total), (1 - R, apart)))
    x0 = torch.cat([total + apart, total - apart], dim=-1) / 2
    return Prediction(x0, (x - alpha * x0) / sigma)


@pytest.mark.parametrize("sampler", [Ddim(steps=50), DpmPlusPlus2M(steps=50), Ddpm(steps=50)], ids=kind)
def test_what_a_pursued_walk_makes_up_fits_what_is_known(sampler: Sampler) -> None:
    """Of two pixels one is known to be y: the other one has the mean r y and the variance 1 - r^2."""
    seeds, y = range(2000), 1.5
    operator, start = Known(torch.tensor([True, False])), Noise(seeds, CPU)(torch.empty(2000, 1, 1, 2))
    measured = operator.measure(torch.full_like(start, y))
    ends = [
        last(
            sampler.trajectory(project(correlated, Cosine(), operator, measured), Cosine(), start, Noise(seeds, CPU))
        ).x
        for project in (pursued, projected)
    ]
    off, plain = (abs(float(end[..., 1].mean()) - R * y) for end in ends)
    assert (ends[0][..., 0] - y).abs().max() < 1e-5
    assert off < plain / 3, (off, plain)
    assert float(ends[0][..., 1].var()) == pytest.approx(1 - R**2, rel=0.25)


def test_an_evaluation_at_a_time_that_was_passed_adds_nothing_to_a_pursuit() -> None:
    operator, x = hole(), draws(0, 1)
    measured, late = operator.measure(draws(5, 6)), torch.tensor(0.5, dtype=torch.float64)
    early = torch.tensor([0.9, 0.7], dtype=torch.float64)
    once, again = (pursued(DATA.denoise(Cosine()), Cosine(), operator, measured) for _ in range(2))
    for t in (early, early, early + 0.05):
        again(x, t)
    once(x, early)
    assert torch.equal(once(x, late).x0, again(x, late).x0)
    alone = pursued(DATA.denoise(Cosine()), Cosine(), operator, measured)(x, late)
    assert not torch.equal(once(x, late).x0, alone.x0)


def test_low_resolution_of_a_side_that_the_factor_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="4 does not divide 16x22"):
        lowered((16, 22), 4)


@pytest.mark.gpu
def test_on_a_gpu_an_image_measures_as_what_was_given_though_tf32_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda")
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", True)
    operator = lowered(SIZE, 2).to(device)
    y = operator.measure(draws(0).to(device))
    torch.testing.assert_close(operator.measure(operator.invert(y)), y, rtol=0, atol=1e-5)

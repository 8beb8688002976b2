"""The counter-based generator: published vectors, moments, independent streams, and its price."""

import math
import statistics
import time
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcli.noise import Domain, Noise, derive, permutation, philox, signed64

CPU = torch.device("cpu")


def hexadecimal(words: tuple[torch.Tensor, ...]) -> str:
    return " ".join(f"{int(word):08x}" for word in words)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, -1, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            0x299F31D0A4093822,
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
    ids=["zeros", "ones", "pi"],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    """Random123's kat_vectors, philox 4x32, 10 rounds."""
    assert hexadecimal(philox(torch.tensor(key), counter)) == expected


def reference(key: int, counter: tuple[int, ...]) -> tuple[int, ...]:
    """Philox4x32-10 in Python's integers, from the paper."""
    c0, c1, c2, c3 = counter
    k0, k1 = key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & 0xFFFFFFFF, (p0 >> 32) ^ c3 ^ k1, p0 & 0xFFFFFFFF
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


words = st.integers(0, 2**32 - 1)


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**63), 2**63 - 1), st.tuples(words, words, words, words))
def test_philox_is_that_of_the_paper_for_every_key_and_counter(key, counter):
    assert tuple(int(word) for word in philox(torch.tensor(key), counter)) == reference(key, counter)


@settings(max_examples=50, deadline=None)
@given(st.integers())
def test_any_integer_is_a_seed(seed):
    assert -(2**63) <= signed64(seed) < 2**63
    assert (signed64(seed) - seed) % 2**64 == 0
    assert Noise([seed], CPU)(torch.empty(1, 3)).isfinite().all()


def test_negative_and_huge_seeds_have_streams_of_their_own():
    seeds = [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**63, -(2**63) + 1, 2**64 - 2]
    rows = Noise(seeds, CPU)(torch.empty(len(seeds), 64))
    for a, b in combinations(rows, 2):
        assert not torch.equal(a, b)
    assert torch.equal(
        Noise([2**64 + 5], CPU)(torch.empty(1, 64)), Noise([5], CPU)(torch.empty(1, 64))
    )  # 64 bits count


@pytest.mark.parametrize("draw", [0, 5])
def test_normals_have_the_moments_and_the_distribution_of_normals(draw):
    noise = Noise(range(64), CPU)
    for _ in range(draw + 1):
        z = noise(torch.empty(64, 3, 64, 64)).flatten().double()
    n = len(z)
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert float(z.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    assert float((z**3).mean()) == pytest.approx(0, abs=4 * math.sqrt(15 / n))
    assert float((z**4).mean()) == pytest.approx(3, abs=4 * math.sqrt(96 / n))
    p = torch.special.ndtr(z.sort().values)
    distance = (p - (torch.arange(n) + 0.5) / n).abs().max()
    assert float(distance) < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at 0.1%
    assert 4.5 < float(z.abs().max()) < 6.7  # tails reach out, and 32 bits end at 6.66


def test_normals_are_finite_at_the_ends_of_the_words(monkeypatch):
    noise = Noise([0], CPU)
    for word in (0, 1, 2**32 - 1):
        monkeypatch.setattr(noise, "words", lambda blocks, word=word: torch.full((1, 4, blocks), word))
        assert noise(torch.empty(1, 8)).isfinite().all()


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1])


def test_lane_zero_is_the_stream_of_before_and_lanes_are_independent() -> None:
    """A lane is the fourth word of the counter."""
    like = torch.empty(1, 40_000)
    lanes = [Noise([7], CPU, Domain.CONDITION, lane)(like).flatten().double() for lane in (0, 1, 2, 2**32 - 1)]
    assert torch.equal(lanes[0], Noise([7], CPU, Domain.CONDITION)(like).flatten().double())
    correlations = torch.corrcoef(torch.stack(lanes)) - torch.eye(len(lanes))
    assert correlations.abs().max() < 5 / 200
    drawn = Noise([7], CPU, Domain.CONDITION, 3).words(2)
    known = philox(torch.tensor([[7]]), (torch.arange(2)[None], 0, int(Domain.CONDITION), 3))
    assert torch.equal(drawn, torch.stack(known, dim=1))


def test_streams_draws_and_domains_are_independent():
    like, n = torch.empty(2, 40_000), 40_000
    first, second = Noise([1, 2], CPU), Noise([1, 2], CPU, Domain.LABEL)
    a, b, other = first(like), first(like), second(like)
    rows = [*a, *b, *other]
    for x, y in combinations(rows, 2):
        assert abs(correlation(x, y)) < 4.5 / math.sqrt(n)
        assert abs(correlation(x.square(), y.square())) < 4.5 / math.sqrt(n)
    for lag in (1, 2, n // 4, n // 2):  # Box-Muller gives pairs: within an image, too, they are independent
        assert abs(correlation(a[0, lag:], a[0, :-lag])) < 4.5 / math.sqrt(n - lag)


def test_pixels_of_neighbouring_seeds_are_independent():
    """Across 4000 consecutive seeds, as a batch of images has them."""
    z = Noise(range(4000), CPU)(torch.empty(4000, 8))
    matrix = torch.corrcoef(z.T) - torch.eye(8)
    assert matrix.abs().max() < 4.5 / math.sqrt(4000)
    assert abs(correlation(z[1:], z[:-1])) < 4.5 / math.sqrt(8 * 3999)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(-(2**70), 2**70), min_size=1, max_size=9), st.integers(1, 70), st.integers(1, 3))
def test_a_stream_does_not_depend_on_the_batch(seeds, size, draws):
    together = Noise(seeds, CPU)
    alone = [Noise([seed], CPU) for seed in seeds]
    for _ in range(draws):
        whole = together(torch.empty(len(seeds), size))
        assert torch.equal(whole, torch.cat([noise(torch.empty(1, size)) for noise in alone]))


def test_a_stream_does_not_depend_on_threads():
    before = torch.get_num_threads()
    try:
        drawn = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            drawn.append(Noise(range(8), CPU)(torch.empty(8, 3, 64, 64)))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*drawn)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_noise_has_shape_and_dtype_of_what_it_is_added_to(dtype):
    like = torch.empty(2, 3, 5, 7, dtype=dtype)
    z = Noise([1, 2], CPU)(like)
    assert (z.shape, z.dtype) == (like.shape, dtype)
    torch.testing.assert_close(z, Noise([1, 2], CPU)(like.float()).to(dtype), rtol=0, atol=0)


def test_a_seed_tensor_is_the_same_as_a_list():
    like = torch.empty(3, 10)
    assert torch.equal(Noise(torch.tensor([3, -4, 5]), CPU)(like), Noise([3, -4, 5], CPU)(like))


def test_drawing_leaves_the_global_generator_alone():
    before = torch.random.get_rng_state()
    Noise([1], CPU)(torch.empty(1, 10))
    permutation(1, 2, 100)
    assert torch.equal(before, torch.random.get_rng_state())


def test_uniform_numbers_are_uniform_and_never_one():
    noise, n = Noise(torch.arange(200_000), CPU), 200_000
    for _ in range(2):
        u = noise.uniform()
        assert u.dtype == torch.float64
        assert 0 <= u.min() < 1e-4
        assert 1 - 1e-4 < u.max() < 1
        distance = (u.sort().values - (torch.arange(n) + 0.5) / n).abs().max()
        assert float(distance) < 1.95 / math.sqrt(n)
    assert len(u.unique()) == n  # 53 bits: 32 would repeat


def test_the_largest_uniform_number_is_below_one(monkeypatch):
    noise = Noise([0], CPU)
    monkeypatch.setattr(noise, "words", lambda blocks: torch.full((1, 4, 1), 2**32 - 1))
    assert float(noise.uniform()) == 1 - 2**-53


def test_derived_seeds_differ_by_every_argument():
    base = derive(3, Domain.TRAIN, torch.arange(1000))
    assert base.dtype == torch.int64
    assert (base >= 0).all()
    others = [
        derive(4, Domain.TRAIN, torch.arange(1000)),
        derive(3, Domain.ORDER, torch.arange(1000)),
        derive(3, Domain.TRAIN, torch.arange(1000), 1),
        derive(3, Domain.TRAIN, torch.arange(1000) + 2**32),
        derive(3 + 2**32, Domain.TRAIN, torch.arange(1000)),
    ]
    assert len(torch.cat([base, *others]).unique()) == 6000
    assert torch.equal(derive(3, Domain.TRAIN, torch.tensor([7, 7])), base[7].expand(2))


def test_every_purpose_has_a_number_of_its_own():
    assert len({int(domain) for domain in Domain}) == len(Domain)


@settings(max_examples=40, deadline=None)
@given(st.integers(), st.integers(0, 2**32 - 1), st.integers(0, 300))
def test_a_permutation_is_one_and_is_reproducible(seed, epoch, n):
    order = permutation(seed, epoch, n)
    assert order.dtype == torch.int64
    assert torch.equal(order.sort().values, torch.arange(n))
    assert torch.equal(order, permutation(seed, epoch, n))


def test_permutations_differ_by_seed_and_epoch_and_favour_no_place():
    orders = [permutation(seed, epoch, 100) for seed in range(20) for epoch in range(20)]
    assert len({tuple(order.tolist()) for order in orders}) == 400
    places = torch.stack(orders).double().mean(0)  # which image comes k-th, on average over 400 orders
    assert (places - 49.5).abs().max() < 5 * 28.9 / math.sqrt(400)
    fixed = torch.stack([(order == torch.arange(100)).sum() for order in orders]).double().mean()
    assert float(fixed) == pytest.approx(1, abs=0.2)  # a random permutation has one fixed point


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_draws_the_same_numbers():
    gpu, like, seeds = torch.device("cuda"), torch.empty(4, 3, 33, 31), [0, -1, 2**63, 77]
    here, there = Noise(seeds, CPU), Noise(seeds, gpu)
    for _ in range(3):
        torch.testing.assert_close(
            there(like.to(gpu)).cpu(), here(like), rtol=1e-5, atol=1e-5
        )  # log and cos round apart
    assert torch.equal(there.words(100).cpu(), here.words(100))
    assert torch.equal(there.uniform(), here.uniform())


@pytest.mark.slow
def test_noise_costs_less_than_three_percent_of_a_training_step():
    """A U-Net of 6.5 M parameters on 32 images of 32x32x3; medians of alternating measurements."""
    from diffcli.fields import FieldSpec
    from diffcli.tasks.diffusion_config import DiffusionConfig

    network = {"kind": "unet", "width": 64, "mult": [1, 2, 2], "blocks": ["res", "attention"] * 2, "attend_at": [16]}
    task = DiffusionConfig.model_validate({"network": network}).build({"image": FieldSpec("image", (3, 32, 32))})
    position = torch.arange(32)
    batch = {"image": torch.rand(32, 3, 32, 32) * 2 - 1, "position": position, "stream": position}

    def train() -> None:
        task.zero_grad()
        task(batch)["loss"].backward()

    def draw() -> None:
        stream = Noise(position, CPU)
        stream.uniform()
        stream.uniform()
        stream(batch["image"])

    def seconds(work) -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    train()
    draw()
    ratios = [seconds(draw) / seconds(train) for _ in range(7)]
    share = statistics.median(ratios)
    print(f"noise takes {share:.2%} of a training step")
    assert share < 0.03

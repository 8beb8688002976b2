"""Vector quantisation: brute force, the two gradients, the moving codebook and its revival."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from diffcli.config import UserError
from diffcli.kmeans import kmeans, nearest
from diffcli.networks import vector_quantiser
from diffcli.networks.vector_quantiser import VectorQuantiser, Vq, rotated, straight_through
from tests.networks.waking import normal
from tests.ranks import Alone


class First:
    """The first of two processes: what the second gives, in the order in which it is asked for, is known."""

    def __init__(self, others: Sequence[Tensor]) -> None:
        self.others = list(others)

    def gather(self, rows: Tensor) -> Tensor:
        return torch.cat([rows, self.others.pop(0)])


def quantiser(codes: int = 8, latent: int = 3, **options: object) -> VectorQuantiser:
    made = Vq(codes=codes, **options).build(latent)  # type: ignore[arg-type]
    made.reset(normal(codes, latent, seed=11))
    return made


def updated(quantiser: VectorQuantiser, *parts: Tensor) -> VectorQuantiser:
    """After one update with these micro-batches."""
    for h in parts:
        quantiser.remember(quantiser(h, None), h)
    quantiser.update(Alone())
    return quantiser


def same_state(a: VectorQuantiser, b: VectorQuantiser) -> bool:
    return all(x.equal(y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("estimator", ["straight_through", "rotation"])
def test_the_decoder_is_given_the_nearest_row_of_the_codebook_to_the_bit(estimator: str) -> None:
    vq = quantiser(estimator=estimator)
    h = normal(2, 3, 4, 5)
    coded = vq(h, None)
    assert coded.codes is not None
    distances = (h[:, None].double() - vq.codebook.double()[None, :, :, None, None]).square().sum(2)
    assert coded.codes.equal(distances.argmin(1))
    assert coded.z.equal(vq.codebook[coded.codes].movedim(-1, 1))
    assert coded.z.equal(vq.of_codes(coded.codes))


def test_straight_through_passes_gradients_as_they_are() -> None:
    h, code, weight = normal(2, 3, 4).requires_grad_(), normal(2, 3, 4, seed=1), normal(2, 3, 4, seed=2)
    (gradient,) = torch.autograd.grad((straight_through(h, code) * weight).sum(), h)
    assert gradient.equal(weight)


def rotation(h: Tensor, code: Tensor) -> Tensor:
    """The matrix of the paper, times the ratio of lengths: (C, C) for h and code (C,)."""
    here, there = h / h.norm(), code / code.norm()
    between = (here + there) / (here + there).norm()
    turn = torch.eye(len(h)).to(h) - 2 * torch.outer(between, between) + 2 * torch.outer(there, here)
    torch.testing.assert_close(turn @ turn.T, torch.eye(len(h)).to(h))
    torch.testing.assert_close(turn @ here, there)
    return code.norm() / h.norm() * turn


def test_the_rotation_trick_is_a_constant_matrix_that_turns_and_scales() -> None:
    h, code, weight = (normal(6, 4, seed=i).double() for i in range(3))
    h.requires_grad_()
    explicit = torch.stack([rotation(e.detach(), q) @ e for e, q in zip(h, code, strict=True)])
    ours = rotated(h, code)
    torch.testing.assert_close(ours, explicit)
    (expected,) = torch.autograd.grad((explicit * weight).sum(), h)
    (gradient,) = torch.autograd.grad((ours * weight).sum(), h)
    torch.testing.assert_close(gradient, expected)


def test_the_rotation_trick_survives_latents_of_0_and_codes_that_point_away() -> None:
    h = torch.tensor([[0.0, 0.0], [1.0, 0.0]], requires_grad=True)
    code = torch.tensor([[1.0, 1.0], [-1.0, 0.0]])
    ours = rotated(h, code)
    assert ours.equal(code)
    (gradient,) = torch.autograd.grad(ours.sum(), h)
    assert gradient.isfinite().all()


def test_beta_moves_the_encoder_and_not_the_codebook() -> None:
    h = normal(2, 3, 4, 5).requires_grad_()
    found = {}
    for beta in (0.25, 0.5):
        vq = quantiser(codebook="gradient", beta=beta)
        found[beta] = torch.autograd.grad(vq(h, None).loss.sum(), (h, vq.codebook))
    assert found[0.5][0].allclose(2 * found[0.25][0])
    assert found[0.5][1].equal(found[0.25][1])
    assert found[0.5][1].any()


def test_the_loss_is_the_mean_over_the_numbers_of_an_image() -> None:
    h = normal(2, 3, 4, 5)
    vq = quantiser(beta=0.3)
    coded = vq(h, None)
    distance = (h - coded.z).square().mean((1, 2, 3))
    torch.testing.assert_close(coded.terms["commitment"], distance)
    torch.testing.assert_close(coded.loss, 0.3 * distance)


def test_the_codebook_moves_as_the_paper_says() -> None:
    """Sizes and sums in numbers of latents and Laplace smoothing of the sizes, in loops and float64; equal batches."""
    vq = quantiser(decay=0.7, revive=0.0)
    codebook, n = vq.codebook.double(), 40
    size, total = torch.full((8,), n / 8).double(), codebook * n / 8
    for step in range(3):
        h = normal(2, 3, 4, 5, seed=step)
        rows = h.movedim(1, -1).reshape(-1, 3).double()
        codes = (rows[:, None] - codebook).square().sum(-1).argmin(1)
        for code in range(8):
            mine = rows[codes == code]
            size[code] = 0.7 * size[code] + 0.3 * len(mine)
            total[code] = 0.7 * total[code] + 0.3 * mine.sum(0)
        smoothed = (size + 1e-5) / (size.sum() + 8e-5) * size.sum()
        codebook = total / smoothed[:, None]
        updated(vq, h)
        torch.testing.assert_close(vq.codebook.double(), codebook, atol=1e-5, rtol=1e-5)


def test_the_batch_is_quantised_by_the_codebook_before_it_moved() -> None:
    vq = quantiser(decay=0.0)
    before, h = vq.codebook.clone(), normal(2, 3, 4, 5)
    z = vq(h, None).z
    updated(vq, h)
    assert not vq.codebook.allclose(before)
    assert set(map(tuple, z.movedim(1, -1).reshape(-1, 3).tolist())) <= set(map(tuple, before.tolist()))


def test_micro_batches_and_processes_come_to_the_codebook_of_the_whole() -> None:
    h = normal(6, 3, 4, 5)
    whole = updated(quantiser(revive=0.5), h)
    assert same_state(whole, updated(quantiser(revive=0.5), h[:2], h[2:5], h[5:]))
    first = quantiser(revive=0.5)
    first.remember(first(h[:4], None), h[:4])
    first.update(First([h[4:], first.codes_of(h[4:])]))
    assert same_state(whole, first)


def test_an_update_without_a_batch_changes_nothing() -> None:
    vq = quantiser()
    vq.update(Alone())
    assert same_state(vq, quantiser())


def test_latents_that_are_not_finite_do_not_spoil_the_codebook() -> None:
    vq, h = quantiser(decay=0.0, revive=0.9), normal(2, 3, 4, 5)
    h[0, 1, 2, 3], h[1, 0, 0, 0] = torch.nan, torch.inf
    updated(vq, h)
    assert all(value.isfinite().all() for value in vq.state_dict().values())


def dead(**options: object) -> tuple[VectorQuantiser, Tensor]:
    """One whose code 5 is far from all latents, after the update that revived it, and its batch."""
    vq = quantiser(decay=0.0, revive=0.1, **options)
    book = vq.codebook.detach().clone()
    book[5] = 1e3
    vq.reset(book)
    h = normal(4, 3, 8, 8)
    return updated(vq, h), h


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_a_dead_code_becomes_a_latent_of_the_batch(codebook: str) -> None:
    vq, h = dead(codebook=codebook)
    rows = h.movedim(1, -1).reshape(-1, 3)
    assert (rows == vq.codebook[5]).all(1).any()
    assert vq.sizes[5] == 1 / 8


def test_a_revived_code_is_where_it_was_after_the_next_update() -> None:
    vq, _ = dead()
    vq.config = vq.config.model_copy(update={"decay": 0.9, "revive": 0.0})
    revived = vq.codebook[5].clone()
    away = torch.where(torch.arange(8)[:, None] == 5, revived, vq.codebook)  # a batch that has nothing near it
    other = (away[0] + 0 * revived).view(1, 3, 1, 1).expand(2, 3, 4, 4).contiguous()
    assert not (vq.codes_of(other) == 5).any()
    updated(vq, other)
    torch.testing.assert_close(vq.codebook[5], revived, atol=1e-3, rtol=1e-3)


def test_living_codes_are_left_alone() -> None:
    vq, h = dead()
    same = quantiser(decay=0.0, revive=0.0)
    book = same.codebook.clone()
    book[5] = 1e3
    same.reset(book)
    updated(same, h)
    living = torch.arange(8) != 5
    assert vq.codebook[living].equal(same.codebook[living])
    assert vq.sums[living].equal(same.sums[living])


def test_several_dead_codes_become_different_latents() -> None:
    vq = quantiser(codes=64, decay=0.0, revive=0.1)
    vq.reset(torch.full((64, 3), 1e3))
    updated(vq, normal(4, 3, 16, 16))
    assert len(vq.codebook.unique(dim=0)) > 55


def test_from_a_start_without_data_it_comes_to_the_distances_of_k_means() -> None:
    """On 4x4 patches of CIFAR-10 with 512 codes 600 updates come to 23.1 dB, k-means to 22.9; without revival to 17.7."""
    rows = 3 + normal(2048, 4)
    batches = rows.view(16, 2, 8, 8, 4).movedim(-1, 2)  # of 2 images with 8 x 8 positions

    def distance(revive: float) -> float:
        vq = Vq(codes=64, start="random", revive=revive, decay=0.9).build(4)
        vq.reset(normal(64, 4, seed=3))
        for _ in range(6):
            for batch in batches:
                updated(vq, batch)
        return float((vq.codebook[nearest(rows, vq.codebook)] - rows).square().mean())

    draws = torch.arange(64).double().mul(0.618).frac()
    best = kmeans(rows, draws, rounds=20)
    floor = float((best[nearest(rows, best)] - rows).square().mean())
    assert distance(revive=0.1) < 1.1 * floor
    assert distance(revive=0.0) > 2 * floor


def test_its_state_is_buffers_so_a_resumed_run_goes_on_as_it_was() -> None:
    vq = updated(quantiser(revive=0.5, window=3), normal(2, 3, 4, 5))
    again = quantiser(revive=0.5, window=3)
    again.load_state_dict(vq.state_dict())
    h = normal(2, 3, 4, 5, seed=4)
    assert same_state(updated(vq, h), updated(again, h))


def test_it_starts_from_the_clusters_of_the_latents_in_whatever_order_they_come() -> None:
    middles = 100 * normal(8, 3)
    rows = (middles[:, None] + normal(8, 32, 3, seed=1)).flatten(0, 1)
    h = rows[normal(256, seed=2).argsort()].view(4, 8, 8, 3).movedim(-1, 1)
    vq = Vq(codes=8).build(3)
    vq.start(h)
    assert vq.measures > 0
    torch.testing.assert_close(vq.codebook[vq.codes_of(middles.view(8, 3, 1)).flatten()], rows.view(8, 32, 3).mean(1))
    other = Vq(codes=8).build(3)
    other.start(h.flip(0))
    assert same_state(vq, other)


def test_its_start_looks_at_a_bounded_number_of_latents(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def spy(rows: Tensor, uniform: Tensor, rounds: int) -> Tensor:
        seen.append(len(rows))
        return rows[: len(uniform)]

    monkeypatch.setattr(vector_quantiser, "kmeans", spy)
    Vq(codes=2).build(3).start(normal(4, 3, 16, 16))
    assert seen == [2 * vector_quantiser.ROWS_A_CODE]


def test_a_start_from_fewer_latents_than_codes_is_refused() -> None:
    Vq(codes=32).build(3).start(normal(2, 3, 4, 4))
    with pytest.raises(UserError, match=r"task\.bottleneck\.codes is 33, but the 2 images .* 32 latents") as refused:
        Vq(codes=33).build(3).start(normal(2, 3, 4, 4))
    assert "task.bottleneck.codes=32" in refused.value.hint


def test_a_random_start_wants_to_see_nothing() -> None:
    assert Vq(start="random").build(3).measures == 0


def test_usage_and_perplexity_are_of_all_updates_of_a_window() -> None:
    vq = quantiser(window=4, decay=0.5, revive=0.0)
    vq.reset(torch.arange(8.0)[:, None].expand(8, 3) * 100)
    for code in (0, 1):
        updated(vq, vq.codebook[code].view(1, 3, 1, 1).expand(2, 3, 2, 2).contiguous())
    terms = vq(normal(3, 3, 2, 2), None).terms
    assert terms["usage"].tolist() == [0.25] * 3
    torch.testing.assert_close(terms["perplexity"], torch.full((3,), 2.0))
    assert "usage" not in vq.eval()(normal(3, 3, 2, 2), None).terms


def parted(positions: int = 6, codes: int = 4, **options: object) -> VectorQuantiser:
    """A codebook for each position of a latent (3, 2, 3)."""
    made = Vq(codes=codes, own=True, **options).build(3, positions)  # type: ignore[arg-type]
    made.reset(normal(positions * codes, 3, seed=11))
    return made


def test_each_position_has_the_nearest_of_its_own_codes() -> None:
    vq, h = parted(), normal(5, 3, 2, 3)
    codes = vq.codes_of(h)
    own = vq.codebook.view(6, 4, 3)
    distances = (h.flatten(2).mT[:, :, None].double() - own.double()).square().sum(3)  # (5, 6, 4)
    assert codes.flatten(1).equal(distances.argmin(2) + 4 * torch.arange(6))
    assert vq(h, None).z.equal(vq.of_codes(codes))
    assert vq.bits == 2


def test_codebooks_of_positions_learn_as_if_each_had_a_quantiser_of_its_own() -> None:
    first, h = normal(40, 3, 2, 3, seed=2), normal(7, 3, 2, 3)
    vq = Vq(codes=4, own=True, decay=0.5, revive=0).build(3, 6)
    vq.start(first)
    updated(vq, h)
    updated(vq, h * 2)
    for place in range(6):
        alone = Vq(codes=4, decay=0.5, revive=0).build(3)
        rows = first.flatten(2)[:, :, place]
        alone.reset(vq.first(rows))
        for each in (h, h * 2):
            updated(alone, each.flatten(2)[:, :, place : place + 1])
        torch.testing.assert_close(vq.codebook.view(6, 4, 3)[place], alone.codebook)
        torch.testing.assert_close(vq.sizes.view(6, 4)[place] * 6, alone.sizes)


def test_a_dead_code_of_a_position_becomes_a_latent_of_that_position() -> None:
    vq = parted(revive=0.03)
    h = normal(50, 3, 2, 3)
    vq.sizes.view(6, 4)[2, 1] = 0
    vq.sizes.view(6, 4)[5, 0] = 0
    vq.revive(h.movedim(1, -1).reshape(-1, 3))
    for place, code in ((2, 1), (5, 0)):
        found = vq.codebook.view(6, 4, 3)[place, code]
        assert (h.flatten(2)[:, :, place] == found).all(dim=1).sum() == 1


def test_codebooks_of_positions_need_positions_and_images_enough() -> None:
    with pytest.raises(UserError, match=r"task\.bottleneck\.own is true") as error:
        Vq(own=True).build(3)
    assert "task.network.whole" in error.value.hint
    with pytest.raises(UserError, match="the 3 images that k-means looks at have 3 latents at each position") as error:
        parted().start(normal(3, 3, 2, 3))
    assert "--set task.bottleneck.codes=3 or fewer" in error.value.hint

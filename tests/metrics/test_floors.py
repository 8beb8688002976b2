"""The floors: principal components against the spectrum, tables against what they must find, cells and their inverse."""

import pytest
import torch
from torch import Tensor

from diffcli.metrics.floors import LinearFloor, cells, joined, linear, table
from diffcli.metrics.statistics import FeatureMoments
from diffcli.noise import Noise


def normal(seed: int, *shape: int) -> Tensor:
    return Noise([seed], torch.device("cpu"))(torch.empty(1, *shape))[0]


def streamed(rows: Tensor, batch: int, k: int) -> LinearFloor:
    moments = FeatureMoments()
    for part in rows.split(batch):
        moments.update(part)
    return linear(moments, k)


def test_the_error_of_k_numbers_is_the_sum_of_the_other_eigenvalues() -> None:
    rows = normal(0, 400, 12) @ normal(1, 12, 12) + 5 * normal(2, 12)
    spectrum = torch.linalg.eigvalsh(torch.cov(rows.T.double(), correction=0))
    for k in (1, 5, 11):
        code = streamed(rows, 64, k)
        error = (code(rows) - rows).double().square().sum(dim=1).mean()
        assert error.item() == pytest.approx(spectrum[:-k].sum().item(), rel=1e-4)
        assert torch.linalg.matrix_rank(code(rows) - rows.mean(dim=0), tol=1e-2) == k


def test_a_linear_code_depends_on_the_rows_and_not_on_their_batches() -> None:
    rows = normal(3, 300, 8) + 100
    one, many = (streamed(rows, batch, 3) for batch in (300, 7))
    assert torch.allclose(one(rows), many(rows), atol=1e-3)


def test_rows_that_need_k_numbers_are_kept_whole() -> None:
    rows = normal(4, 200, 3) @ normal(5, 3, 20) + normal(6, 20)
    code = streamed(rows, 50, 3)
    fresh = normal(7, 50, 3) @ normal(5, 3, 20) + normal(6, 20)
    assert torch.allclose(code(fresh), fresh, atol=1e-4)


def test_a_table_of_as_many_codes_as_there_are_rows_keeps_them_whole() -> None:
    corners = torch.tensor([[float(i >> b & 1) for b in range(3)] for i in range(8)])
    rows = corners.repeat(20, 1)
    assert table(rows, 8)(rows).equal(rows)
    assert (table(rows, 4)(rows) - rows).square().sum() > 1


def test_cells_are_read_in_order_and_joined_again() -> None:
    images = torch.arange(2 * 3 * 4 * 6).view(2, 3, 4, 6).float()
    rows = cells(images, (2, 3))
    assert rows.shape == (8, 18)
    assert rows[1].equal(images[0, :, :2, 3:].flatten())
    assert rows[6].equal(images[1, :, 2:, :3].flatten())
    assert joined(rows, (2, 3), (3, 4, 6)).equal(images)
    assert cells(images, (4, 6)).equal(images.flatten(1))

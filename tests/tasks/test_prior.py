"""The prior: the identity before training, a linear map learned, modes that regression cannot have; exact in every row."""

import pytest
import torch
import torch.nn.functional as F

from diffcli.config import UserError
from diffcli.diffusion.samplers import Ddim
from diffcli.fields import FieldSpec
from diffcli.noise import Domain, Noise, derive
from diffcli.tasks.conditioners.slots import unit_variance
from diffcli.tasks.conditioners.stored import IMAGE, TEXT
from diffcli.tasks.prior import PriorConfig, PriorTask

pytestmark = pytest.mark.xdist_group("prior")  # one trained model serves several of them
DDIM = Ddim(steps=12)


def build(dim: int, **network: object) -> PriorTask:
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        return PriorConfig(dim=dim, network=network).build({})


def normal(n: int, dim: int, seed: int) -> torch.Tensor:
    return Noise(range(seed * 100_000, seed * 100_000 + n), torch.device("cpu"))(torch.empty(n, dim))


def batch(text: torch.Tensor, image: torch.Tensor, step: int = 0) -> dict[str, torch.Tensor]:
    position = torch.arange(step * len(text), (step + 1) * len(text))
    return {TEXT: text, IMAGE: image, "position": position, "stream": derive(0, Domain.TRAIN, position)}


def fit(task: PriorTask, text: torch.Tensor, image: torch.Tensor, steps: int, lr: float = 3e-3) -> None:
    optimizer = torch.optim.AdamW(task.parameters(), lr, weight_decay=0)
    curve = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, steps)
    for step in range(steps):
        task(batch(text, image, step))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        curve.step()


@torch.no_grad()
def translated(task: PriorTask, text: torch.Tensor, first: int = 0, guidance: float = 1.0) -> torch.Tensor:
    return task.eval().translate(text, range(first, first + len(text)), DDIM, guidance)


def test_an_untrained_mlp_is_the_identity_to_the_last_bit() -> None:
    task, text = build(24, kind="mlp", width=16, depth=3), normal(5, 24, 0) * 7
    assert torch.equal(translated(task, text), unit_variance(text))
    terms = task(batch(text, normal(5, 24, 1)))
    assert terms["mse"] == terms["identity_mse"]
    assert terms["cosine"] == terms["identity_cosine"]


def test_embeddings_have_unit_variance_whatever_length_they_come_in() -> None:
    x = normal(6, 32, 0)
    assert torch.allclose(unit_variance(x).square().mean(1), torch.ones(6))
    assert torch.allclose(unit_variance(x * 100), unit_variance(x), atol=1e-5)


def test_the_logged_terms_are_those_of_the_definitions() -> None:
    task, text, image = build(8, kind="mlp", width=8, depth=1), normal(4, 8, 0), normal(4, 8, 1)
    terms = task(batch(text, image))
    a, b = (8**0.5 * v / v.norm(dim=1, keepdim=True) for v in (text, image))
    assert torch.allclose(terms["loss"], F.mse_loss(a, b))
    assert torch.allclose(terms["identity_cosine"], ((a * b).sum(1) / 8).mean(), atol=1e-6)
    # two vectors of length sqrt(D): the squared error of a value is 2 - 2 cos
    assert torch.allclose(terms["identity_mse"], 2 - 2 * terms["identity_cosine"], atol=1e-5)


def test_a_diffusion_prior_logs_its_prediction_beside_the_identity(modes: tuple) -> None:
    """Trained on two modes, what it predicts at a random noise level is nearer to them than the texts are."""
    task, texts, centres = modes
    which = torch.arange(64) % 2
    terms = task(batch(texts[which], centres[which]))
    assert terms["cosine"] > 0.9 > terms["identity_cosine"] + 0.3
    assert terms["mse"] < 0.2 < terms["identity_mse"]


def test_an_mlp_learns_a_rotation_and_beats_the_identity_on_texts_it_has_not_seen() -> None:
    dim = 16
    rotation = torch.linalg.qr(normal(dim, dim, 9)).Q
    text, held_out = normal(512, dim, 0), normal(256, dim, 1)
    task = build(dim, kind="mlp", width=64, depth=2)
    fit(task, text, text @ rotation, steps=150, lr=1e-2)
    right = held_out @ rotation
    learned = F.cosine_similarity(translated(task, held_out), right).mean()
    assert learned > 0.9
    assert learned > F.cosine_similarity(held_out, right).mean() + 0.5


@pytest.fixture(scope="module")
def modes() -> tuple[PriorTask, torch.Tensor, torch.Tensor]:
    """A trained diffusion prior, three texts, and the centres of two modes: text 0 -> 0, text 1 -> 1, text 2 -> either."""
    dim = 8
    texts, centres = torch.linalg.qr(normal(dim, 3, 3)).Q.T, torch.linalg.qr(normal(dim, 2, 4)).Q.T
    which = torch.arange(96) % 3
    mode = torch.where(which < 2, which, (torch.arange(96) // 3) % 2)
    task = build(dim, kind="diffusion", width=64, depth=2)
    fit(task, texts[which], centres[mode] + 0.05 * normal(96, dim, 5), steps=200)
    return task, texts, unit_variance(centres)


def test_a_diffusion_prior_draws_the_mode_of_each_text_and_both_where_it_is_ambiguous(modes: tuple) -> None:
    task, texts, centres = modes
    for text, expected in ((0, [1.0, 0.0]), (1, [0.0, 1.0]), (2, [0.5, 0.5])):
        drawn = translated(task, texts[[text]].expand(128, -1), first=1000 * text)
        near = F.cosine_similarity(drawn[:, None], centres[None], dim=2)
        assert near.max(1).values.min() > 0.7, "a draw lies between the modes"
        share = F.one_hot(near.argmax(1), 2).double().mean(0)
        assert torch.allclose(share, torch.tensor(expected).double(), atol=0.2 if text == 2 else 0.03)


def test_without_its_text_a_diffusion_prior_draws_every_mode(modes: tuple) -> None:
    task, texts, centres = modes
    drawn = translated(task, texts[[0]].expand(128, -1), guidance=0.0)
    share = (drawn @ centres.T).argmax(1).double().mean()
    assert 0.25 < share < 0.75


def test_a_draw_depends_on_its_seed_and_text_alone(modes: tuple) -> None:
    task, texts, _ = modes
    text = texts[torch.arange(6) % 3]
    whole = translated(task, text, guidance=1.5)
    for i in range(6):
        alone = task.translate(text[[i]] * 3, [i], DDIM, 1.5)
        assert torch.allclose(alone[0], whole[i], atol=1e-4)
    assert not torch.allclose(translated(task, text, first=50), whole, atol=1e-2)


def test_its_noise_is_not_that_of_the_image_with_the_same_seed() -> None:
    like = torch.empty(1, 64)
    draws = [Noise([3], torch.device("cpu"), domain)(like) for domain in (Domain.PRIOR, Domain.NOISE)]
    assert (draws[0] - draws[1]).abs().max() > 0.1


def test_data_without_embeddings_or_of_another_width_are_refused() -> None:
    task = build(8, kind="mlp")
    eight, twelve = (FieldSpec("vector", (dim,)) for dim in (8, 12))
    with pytest.raises(UserError, match=r"task\.dim \(prior\) reads the field 'clip_text'") as caught:
        task.check({"image": FieldSpec("image", (3, 8, 8)), IMAGE: eight})
    assert "--embed clip" in caught.value.hint
    with pytest.raises(UserError, match="'clip_text' 8 wide, but the data's is 12 wide") as caught:
        task.check({TEXT: twelve, IMAGE: twelve})
    assert caught.value.hint == "use --set task.dim=12"
    task.check({TEXT: eight, IMAGE: FieldSpec("vector", (None,))})

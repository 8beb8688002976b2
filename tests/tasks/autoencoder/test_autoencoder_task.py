"""The loss of a first stage: its units, and what it does not depend on."""

import math

import pytest
import torch
from torch import Tensor, nn

from diffcli.config import UserError
from diffcli.fields import FieldSpec
from diffcli.networks.autoencoder import AutoencoderConfig, FirstStageConfig
from diffcli.networks.bottlenecks import Kl
from diffcli.noise import Domain, derive
from diffcli.tasks.autoencoder.autoencoder_config import AutoencoderTaskConfig
from diffcli.tasks.autoencoder.autoencoder_task import AutoencoderTask, Fidelity, psnr
from tests.ranks import Alone
from tests.tasks.autoencoder.stages import NETWORK, batch, first_stage, part

LAMBDA = (4.0, 1.0, 0.5, 0.05)
BETA, SIGMA = 2.0, 0.4  # a water level of 0.32, above the last of LAMBDA


class Linear(nn.Module):
    """A linear autoencoder of images (B, C, 1, 1) whose posterior has one variance for each number of the latent."""

    downscale = 1

    def __init__(self, channels: int, beta: float) -> None:
        super().__init__()
        self.bottleneck = Kl(beta=beta).build(channels)
        self.encoder, self.decoder = (nn.Linear(channels, channels, bias=False) for _ in range(2))
        self.log_variance = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, noise: Tensor | None, vector: None = None, seeds: Tensor | None = None):
        mean = self.encoder(x[:, :, 0, 0])
        h = torch.cat([mean, self.log_variance.expand_as(mean)], dim=1)[..., None, None]
        coded = self.bottleneck(h, noise)
        return self.decoder(coded.z[:, :, 0, 0])[..., None, None], coded, h


def test_a_linear_beta_vae_reaches_the_rates_and_distortions_of_reverse_water_filling():
    """Distortion min(lambda, b), rate max(0, ln(lambda / b) / 2) of each number. Source: Cover & Thomas 2006, theorem 10.3.3."""
    torch.manual_seed(0)
    spread, n = torch.tensor(LAMBDA), 128
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    white = torch.linalg.qr(torch.randn(n, 4)).Q * n**0.5  # covariance 1 to the last digit
    x = white * spread.sqrt() @ turn.T
    stage = FirstStageConfig(network=AutoencoderConfig(**NETWORK), bottleneck=Kl(beta=BETA), channels=4)
    linear = Linear(4, BETA)
    task = AutoencoderTask(
        stage, linear, Fidelity(sigma=SIGMA), None, None, None, "image", FieldSpec("image", (4, 1, 1))
    )
    optimizer = torch.optim.Adam(task.parameters(), lr=0.05)
    steps = 400
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1 - step / steps)
        stream = derive(step, Domain.TRAIN, torch.arange(n))
        terms = task({"image": x[..., None, None], "stream": stream}, "main", step + 1)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
    with torch.no_grad():
        variance, means = linear.log_variance.exp(), linear.decoder.weight @ linear.encoder.weight
        missed = (torch.eye(4) - means) @ (turn * spread) @ turn.T @ (torch.eye(4) - means).T
        distortion = turn.T @ (missed + linear.decoder.weight * variance @ linear.decoder.weight.T) @ turn
    b = BETA * SIGMA**2
    torch.testing.assert_close(distortion.diagonal(), spread.clamp(max=b), rtol=0.05, atol=0)
    rates = [max(0.0, math.log(value / b) / 2) for value in LAMBDA]
    assert float(terms["kl"]) == pytest.approx(sum(rates), rel=0.03)


def test_the_kl_counts_in_nats_a_number_beside_a_likelihood_of_the_same_unit():
    task = first_stage(sigma=0.3, bottleneck={"kind": "kl", "beta": 0.7})
    terms = task(batch())
    expected = terms["reconstruction"] / (2 * 0.3**2) + 0.7 * terms["kl"] / 64
    torch.testing.assert_close(terms["loss"], expected)


@pytest.mark.parametrize("distance", ["l1", "l2"])
def test_a_commitment_is_added_as_it_is_and_the_distance_is_a_mean_over_all_numbers(distance: str):
    task, rows = first_stage(distance=distance, bottleneck={"kind": "vq", "codes": 4, "beta": 0.3}), batch()
    terms = task(rows)
    difference = (task.autoencoder(rows["image"])[0] - rows["image"]).abs()
    wanted = difference.mean() if distance == "l1" else difference.square().mean()
    torch.testing.assert_close(terms["reconstruction"], wanted)
    torch.testing.assert_close(terms["loss"], wanted + 0.3 * terms["commitment"])


def test_an_error_of_a_tenth_of_the_range_is_20_db_and_what_is_beyond_the_range_is_none():
    x = torch.tensor([-0.5, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    made = x + torch.tensor([0.2, 0.2]).view(2, 1, 1, 1)
    assert psnr(x, made).tolist() == pytest.approx([20, 100])


@pytest.mark.parametrize("kind", ["none", "kl", "vq", "fsq"])
def test_the_loss_of_a_batch_is_the_mean_of_its_parts(kind: str):
    keys = {"network": NETWORK | {"dropout": 0.3}, "embedding": {"width": 5, "drop": 0.5}}
    bottleneck = {"kind": kind} | ({"levels": [3, 3]} if kind == "fsq" else {})
    task, rows = first_stage(**keys, bottleneck=bottleneck), batch()
    whole = task(rows)
    halves = [task(part(rows, rows_of)) for rows_of in (slice(0, 2), slice(2, 6))]
    for name in ("loss", "reconstruction", "psnr"):
        torch.testing.assert_close(halves[0][name] / 3 + halves[1][name] * 2 / 3, whole[name])


def test_only_a_variational_latent_is_drawn_and_a_reconstruction_is_of_its_mode():
    task, rows = first_stage(), batch()
    other = rows | {"stream": rows["stream"] + 100}
    assert task(rows)["loss"] != task(other)["loss"]
    made = task.reconstruct(rows["image"])
    mean = task.encode(rows["image"]).chunk(2, dim=1)[0]
    torch.testing.assert_close(made, task.autoencoder.decode(mean).clamp(-1, 1))
    quantised = first_stage(bottleneck={"kind": "vq", "codes": 4})
    assert quantised(rows)["loss"] == quantised(other)["loss"]


def test_a_sample_that_drops_its_embedding_trains_what_works_without_one():
    task, rows = first_stage(embedding={"width": 5, "drop": 0.5}, bottleneck={"kind": "none"}), batch(16)
    task.requires_grad_(False)
    trained = task.passed(rows)[0]
    without, other = task.autoencoder(rows["image"])[0], task.reconstruct(rows["image"], task.vector_of(rows))
    dropped = torch.tensor([a.allclose(b, atol=1e-6) for a, b in zip(trained, without, strict=True)])
    told = torch.tensor([a.clamp(-1, 1).allclose(b, atol=1e-6) for a, b in zip(trained, other, strict=True)])
    assert 0 < int(dropped.sum()) < 16
    assert dropped.logical_xor(told).all()


def test_the_start_of_a_codebook_does_not_depend_on_how_images_were_dealt():
    whole = batch(24)
    found = []
    for parts in ([whole], [part(whole, slice(12, 24)), part(whole, slice(0, 5)), part(whole, slice(5, 12))]):
        task = first_stage(bottleneck={"kind": "vq", "codes": 8})
        before = task.autoencoder.bottleneck.codebook.clone()
        task.measure(iter(parts), Alone())
        assert not before.equal(task.autoencoder.bottleneck.codebook)
        found.append(task.autoencoder.bottleneck.codebook)
    torch.testing.assert_close(found[0], found[1])


def test_the_start_of_whole_images_does_not_depend_on_how_they_were_dealt():
    rows, found = batch(24), []
    network = {"width": 8, "mult": [1], "patch": 2, "depth": 1, "latent": 1, "groups": 4, "whole": [8, 8]}
    for parts in ([rows], [part(rows, slice(12, 24)), part(rows, slice(0, 5)), part(rows, slice(5, 12))]):
        task = first_stage(network=network, bottleneck={"kind": "vq", "codes": 8})
        task.measure(iter(parts), Alone())
        found.append(task.autoencoder.state_dict())
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], msg=name)
    untouched = first_stage(network=network, bottleneck={"kind": "vq", "codes": 8}).autoencoder.state_dict()
    started = {name for name, value in found[0].items() if not value.equal(untouched[name])}
    assert {"quant_conv.weight", "quant_conv.bias", "post_quant_conv.weight", "post_quant_conv.bias"} <= started


def test_what_starts_on_images_starts_without_a_quantiser_too():
    network = {"width": 8, "mult": [1], "patch": 2, "depth": 1, "latent": 1, "groups": 4, "whole": [8, 8]}
    task, rows = first_stage(network=network, bottleneck={"kind": "none"}), batch(24)
    assert task.measures > 0
    before = task.seen(rows["image"], task.autoencoder(rows["image"])[0])["loss"]
    task.measure(iter([rows]), Alone())
    assert task.seen(rows["image"], task.autoencoder(rows["image"])[0])["loss"] < before


def test_images_of_another_size_than_is_coded_whole_are_refused_before_training():
    network = {"width": 8, "mult": [1], "patch": 2, "latent": 1, "whole": [8, 8]}
    with pytest.raises(UserError, match="16x16") as error:
        first_stage(size=16, network=network)
    assert error.value.hint == "set data.size to 8, or change task.network.whole"
    config = AutoencoderTaskConfig.model_validate({"network": network})
    config.check_buckets([(8, 8)])
    with pytest.raises(ValueError, match=r"8x16 .* put \[8, 8\] in its place"):
        config.check_buckets([(8, 8), (8, 16)])


def test_a_codebook_is_updated_once_a_step_from_all_micro_batches():
    rows, found = batch(), []
    for cuts in ([slice(0, 6)], [slice(0, 2), slice(2, 6)]):
        task = first_stage(bottleneck={"kind": "vq", "codes": 4, "decay": 0.5})
        for cut in cuts:
            task(part(rows, cut))
        task.after_update(Alone())
        found.append(task.autoencoder.bottleneck.codebook)
        task.eval()(rows)
        task.after_update(Alone())  # what is judged and not trained on leaves nothing
        assert task.autoencoder.bottleneck.codebook.equal(found[-1])
    torch.testing.assert_close(found[0], found[1])


def test_a_preview_has_each_image_above_its_reconstruction():
    task, rows = first_stage(), batch()
    shown = task.preview({"image": rows["image"]}, None, 1)
    assert shown[:, :, :8].equal(rows["image"])
    torch.testing.assert_close(shown[:, :, 8:], task.reconstruct(rows["image"]))


def test_images_that_the_downscale_does_not_divide_are_refused_with_a_size_that_it_does():
    config = AutoencoderTaskConfig.model_validate({"network": NETWORK | {"mult": [1, 1, 1, 1]}})
    with pytest.raises(UserError, match=r"28x28 pixels \(HxW\), which the downscale 8") as error:
        config.build({"image": FieldSpec("image", (1, 28, 28))})
    assert "data.size to 32" in error.value.hint
    with pytest.raises(
        ValueError, match=r"data.buckets holds 20x36 pixels .* downscale 8 .*; put \[16, 32\] in its place"
    ):
        config.check_buckets([(32, 32), (20, 36)])


def test_a_deviation_without_a_normal_distribution_is_refused():
    with pytest.raises(ValueError, match=r"sigma is 0\.1"):
        AutoencoderTaskConfig.model_validate({"network": NETWORK, "distance": "l1", "sigma": 0.1})


def test_data_of_another_width_or_without_the_embedding_are_refused_by_key():
    task = first_stage(embedding={"width": 5})
    image = {"image": FieldSpec("image", (1, 8, 8))}
    with pytest.raises(UserError, match=r"task\.embedding .* 'clip_image'"):
        task.check(image)
    with pytest.raises(UserError, match="5 wide, but the data's is 7") as error:
        task.check(image | {"clip_image": FieldSpec("vector", (7,))})
    assert "task.embedding.width=7" in error.value.hint

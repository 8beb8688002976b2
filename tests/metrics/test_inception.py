"""Inception's weights: found, refused, loaded without pickle's code; its features those of torch-fidelity."""

import functools
import pickle
from pathlib import Path

import pytest
import torch

import diffcli.torchvision_compat  # noqa: F401 - before torch-fidelity
from diffcli.config import UserError
from diffcli.lookup.given_paths import INCEPTION_FILE, INCEPTION_URL
from diffcli.metrics.extractor import Extracted
from diffcli.metrics.inception import InceptionFeatures
from diffcli.noise import Noise

pytestmark = pytest.mark.xdist_group("inception")  # one network serves most of them


@functools.cache
def random_state() -> dict[str, torch.Tensor]:
    """Random weights in the layout of torch-fidelity's file, scaled so that features stay finite."""
    from torch_fidelity import feature_extractor_inceptionv3 as fidelity

    class Bare(fidelity.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **kwargs):  # the constructor loads what it is given: here nothing
            return None

    empty = Path(__file__).parent / "empty.pth"
    with torch.random.fork_rng(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "load", lambda *args, **kwargs: {})
        state = Bare("inception-v3-compat", ["2048"], str(empty)).state_dict()
    # torch's default initialisation loses a factor of sqrt(6) a convolution against He's: the features would vanish
    return {name: value * 6**0.5 if value.ndim == 4 else value for name, value in state.items()}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(random_state(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights) -> InceptionFeatures:
    return InceptionFeatures(weights)


@pytest.fixture(autouse=True)
def hub(tmp_path, monkeypatch) -> Path:
    """An empty torch hub folder."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    return tmp_path / "hub" / "checkpoints"


def images(channels: int) -> torch.Tensor:
    return (
        (Noise([5], torch.device("cpu")).words(2 * channels * 20 * 20 // 4)[0].flatten() % 256)
        .to(torch.uint8)
        .reshape(2, channels, 20, 20)
    )


def seen(inception: InceptionFeatures, pixels: torch.Tensor) -> Extracted:
    return inception({"image": pixels}, range(len(pixels)))


def test_missing_weights_say_what_to_download_and_where_to_put_it(hub):
    with pytest.raises(UserError, match="are missing") as error:
        InceptionFeatures()
    assert error.value.exit_code == 2
    assert INCEPTION_URL in error.value.hint
    assert str(hub / INCEPTION_FILE) in error.value.hint
    assert not hub.exists()  # nothing was fetched


def test_a_weights_option_that_names_no_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"--weights .*none\.pth is not a file"):
        InceptionFeatures(tmp_path / "none.pth")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def test_a_pickle_with_code_in_it_is_refused_unrun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"fc.weight": Bomb()}, tmp_path / "bomb.pth")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.pth", "bomb.pkl"):
        with pytest.raises(UserError, match="cannot be read as weights"):
            InceptionFeatures(tmp_path / name)
    assert not (tmp_path / "exploded").exists()


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"layer.weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="holds other weights than Inception's"):
        InceptionFeatures(tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        InceptionFeatures(tmp_path / "list.pth")


def test_a_truncated_weights_file_is_refused(tmp_path, weights):
    (tmp_path / "cut.pth").write_bytes(weights.read_bytes()[:100_000])
    with pytest.raises(UserError, match="cannot be read as weights"):
        InceptionFeatures(tmp_path / "cut.pth")


def test_inception_gives_the_features_of_torch_fidelity(weights, inception):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    found = seen(inception, images(3))
    direct = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(weights))
    features, logits = direct(images(3))
    assert found["features"].shape == (2, *inception.gives["features"])
    assert found["logits"].shape == (2, *inception.gives["logits"])
    assert torch.equal(found["features"], features)
    assert found["features"].std(0).max() > 1e-3  # random, but neither vanishing nor constant
    assert torch.equal(found["logits"], logits)


def test_grey_images_are_repeated_to_three_channels(inception):
    grey = images(1)
    coloured = seen(inception, grey.repeat(1, 3, 1, 1))
    assert torch.equal(seen(inception, grey)["features"], coloured["features"])


def test_weights_other_than_the_official_ones_are_named_and_noted(inception):
    assert inception.name.startswith("inception-v3-fidelity-")
    assert "do not compare with published" in inception.notes[0]


def test_weights_are_found_in_the_cache_of_torch_hub(hub, weights):
    hub.mkdir(parents=True)
    (hub / INCEPTION_FILE).write_bytes(weights.read_bytes())
    assert seen(InceptionFeatures(), images(3))["features"].shape == (2, 2048)

"""An extractor of images at every frame: the scores of frames, blind to order but for neighbours."""

import torch
from torch import Tensor

from diffcli.fields import FieldSpec
from diffcli.metrics.keepers import CLASSES, HITS, MOMENTS, SAMPLE
from diffcli.metrics.motion.over_frames import OverFrames
from diffcli.metrics.summary import Summary
from tests.engine.score.making import Toy


def clips(n: int = 5, frames: int = 3) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(256, (n, 1, frames, 8, 8), generator=draw, dtype=torch.uint8)


def test_each_frame_has_the_features_that_it_has_as_an_image():
    whole, toy = clips(), Toy()
    extractor = OverFrames(toy).sized(3)
    found = extractor({"clip": whole}, range(5))
    for name, value in found.items():
        assert value.shape[1:] == extractor.gives[name]
    for k in range(3):
        alone = toy({"image": whole[:, :, k]}, range(5))
        assert torch.equal(found["features"][:, k], alone["features"])
        assert torch.equal(found["logits"][:, k], alone["logits"])
    assert extractor.describe()["layer"] == "quarters of each frame"


def test_similarity_is_one_of_still_clips_and_falls_when_frames_are_exchanged():
    extractor = OverFrames(Toy())
    still = clips(frames=1).expand(-1, -1, 4, -1, -1)
    assert torch.allclose(extractor({"clip": still}, range(5))["similarity"], torch.ones(5, 3))
    level = torch.linspace(0, 255, 6).to(torch.uint8)
    fading = torch.zeros(1, 1, 6, 8, 8, dtype=torch.uint8)
    fading[0, 0, :, :4], fading[0, 0, :, 4:] = level[:, None, None], level.flip(0)[:, None, None]
    mixed = fading[:, :, [0, 5, 1, 4, 2, 3]]
    one, other = (extractor({"clip": x}, range(1))["similarity"].mean() for x in (fading, mixed))
    assert one > other + 0.1


def test_the_parts_of_a_summary_are_those_of_the_frames_as_images():
    whole, toy, parts = clips(), Toy(), [MOMENTS, SAMPLE, CLASSES, HITS]
    label = torch.tensor([0, 1, 1, 0, 1])
    of_clips, of_images = Summary(parts), Summary(parts)
    of_clips.update({**OverFrames(toy)({"clip": whole}, range(5)), "label": label})
    images = whole.movedim(2, 1).flatten(0, 1)
    of_images.update({**toy({"image": images}, range(15)), "label": label.repeat_interleave(3)})
    assert of_clips.n == of_images.n == 15
    assert torch.equal(of_clips.statistics().sigma, of_images.statistics().sigma)
    assert torch.equal(of_clips.sample(), of_images.sample())
    assert torch.equal(of_clips.splits().scores(), of_images.splits().scores())
    assert of_clips.hits().right == of_images.hits().right
    again = Summary.from_arrays({**of_clips.arrays()})
    assert torch.equal(again.sample(), of_clips.sample())


def test_it_reads_clips_of_any_length_and_no_images():
    extractor = OverFrames(Toy())
    extractor.check("x", {"clip": FieldSpec("clip", (1, None, 8, 8))})
    assert extractor.reads.keys() == {"clip"}

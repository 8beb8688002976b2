"""Groups of pictures that look alike: those of one direction, whatever their brightness."""

import torch

from diffcli.data.look_alikes import centres_of, group_of

SHAPES = torch.eye(9).view(9, 3, 3)[:4]


def test_pictures_of_one_shape_are_one_group_in_every_brightness():
    noise = torch.randn(40, 3, 3, generator=torch.Generator().manual_seed(0)) / 50
    brightness = torch.linspace(0.2, 1, 10).repeat(4)[:, None, None]
    pictures = (SHAPES.repeat_interleave(10, 0) + noise) * brightness
    groups = group_of(pictures, centres_of(pictures, 4)).view(4, 10)
    assert (groups == groups[:, :1]).all()
    assert len(groups[:, 0].unique()) == 4


def test_centres_are_the_same_every_time_and_of_the_pictures_alone():
    pictures = torch.rand(50, 3, 3, generator=torch.Generator().manual_seed(1))
    centres = centres_of(pictures, 5)
    assert centres.shape == (5, 9)
    torch.manual_seed(7)
    assert torch.equal(centres, centres_of(pictures, 5))


def test_black_pictures_are_a_group_like_others():
    pictures = torch.cat([SHAPES.repeat(5, 1, 1), torch.zeros(5, 3, 3)])
    groups = group_of(pictures, centres_of(pictures, 5))
    assert len(groups[-5:].unique()) == 1
    assert groups[-1] not in groups[:-5]

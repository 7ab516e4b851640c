"""Policies against torchvision's own transforms, called for one image at a time."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from csham.data.policies import augmented, make_policy
from csham.errors import UserError

NAMES = {"trivial": v2.TrivialAugmentWide, "rand": v2.RandAugment}


def images_of(count, side):
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("side", [9, 32])
def test_each_image_is_changed_as_torchvision_changes_it_alone(name, side):
    images, seeds = images_of(40, side), np.arange(40) + 2**62
    before = images.clone()
    changed = augmented(images, make_policy(name), seeds)
    assert changed.shape == images.shape
    assert changed.dtype == torch.uint8
    assert torch.equal(images, before)
    for image, one, seed in zip(images, changed, seeds.tolist(), strict=True):
        torch.manual_seed(seed)
        assert torch.equal(one, NAMES[name]()(image.permute(2, 0, 1)).permute(1, 2, 0))


def test_a_draw_is_an_images_own():
    images, policy = images_of(8, 16), make_policy("trivial")
    whole = augmented(images, policy, np.arange(8))
    assert torch.equal(augmented(images[5:6], policy, np.array([5])), whole[5:6])
    same = augmented(images[:1].repeat(30, 1, 1, 1), policy, np.arange(30))
    assert len({image.numpy().tobytes() for image in same}) > 10  # 14 operations of 31 strengths


def test_torchs_generator_is_left_as_it_was():
    images, policy = images_of(4, 16), make_policy("rand")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    augmented(images, policy, np.arange(4))
    assert torch.equal(torch.rand(2), expected)


def test_no_policy():
    assert make_policy("none") is None
    with pytest.raises(UserError, match=r"unknown augment 'random'\. Did you mean 'rand'"):
        make_policy("random")

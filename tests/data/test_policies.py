"""Policies against torchvision's own transforms, for one image at a time."""

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from csham.data.policies import OPERATIONS, STRONGEST, augmented, find_policy
from csham.errors import UserError

NAMES = {"trivial": v2.TrivialAugmentWide(), "rand": v2.RandAugment()}


def images_of(count, side):
    """Smooth noise of many shades, each image as bright as its number."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.integers(0, 256, (count, 3, 5, 5), dtype=np.uint8)).float()
    smooth = torch.nn.functional.interpolate(coarse, (side, side), mode="bilinear")
    dimmed = smooth * torch.linspace(0.3, 1, count)[:, None, None, None]
    return dimmed.to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def by_torchvision(name, image, operation, strength):
    """Change one image as the transform does when it has drawn this; (S, S, 3) uint8."""
    transform = NAMES[name]
    find, signed = transform._AUGMENTATION_SPACE[operation]
    range_of = find(STRONGEST + 1, *image.shape[:2])
    magnitude = 0.0 if range_of is None else float(range_of[abs(strength)])
    if operation.startswith("Translate"):  # whose linspace gives 15.999999 pixels, of which it takes 15
        magnitude = round(magnitude, 4)
    magnitude *= -1 if signed and strength < 0 else 1
    changed = transform._apply_image_or_video_transform(
        image.permute(2, 0, 1), operation, magnitude, transform.interpolation, transform._fill
    )
    return changed.permute(1, 2, 0)


def test_the_operations_are_torchvisions():
    for transform in NAMES.values():
        assert list(transform._AUGMENTATION_SPACE) == list(OPERATIONS)
    assert (find_policy("rand").operations, find_policy("rand").strength) == (
        NAMES["rand"].num_ops,
        NAMES["rand"].magnitude,
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("side", [8, 33])  # smallest; odd
def test_an_operation_changes_each_image_as_torchvision_changes_it_alone(name, operation, side):
    strengths = np.arange(-STRONGEST, STRONGEST + 1)
    images = images_of(len(strengths), side)
    number = list(OPERATIONS).index(operation)
    draws = np.stack([np.full_like(strengths, number), strengths], -1)[:, None]
    found = augmented(images, draws, find_policy(name))
    assert (found.shape, found.dtype) == (images.shape, torch.uint8)
    expected = torch.stack(
        [by_torchvision(name, image, operation, strength) for image, strength in zip(images, strengths, strict=True)]
    )
    apart = (found.int() - expected.int()).abs()
    # Halfway between two pixels, and at a threshold that is a shade, rounding takes either.
    if operation in ("ShearX", "ShearY", "Rotate", "Solarize"):
        assert (apart > 0).float().mean() < 0.01
    else:  # what a shade is blended with is rounded first here
        assert apart.max() <= (1 if operation in ("Brightness", "Color", "Contrast", "Sharpness") else 0)


@pytest.mark.parametrize("name", NAMES)
def test_each_image_gets_what_it_drew(name):
    policy, images = find_policy(name), images_of(60, 16)
    draws, before = policy.draw(np.random.default_rng(1), 60), images.clone()
    whole = augmented(images, draws, policy)
    assert torch.equal(images, before)
    alone = [augmented(images[i : i + 1], draws[i : i + 1], policy) for i in range(60)]
    assert torch.equal(torch.cat(alone), whole)
    for image, changes, one in zip(images, draws, whole, strict=True):
        expected = image
        for number, strength in changes:
            expected = by_torchvision(name, expected, list(OPERATIONS)[number], strength)
        apart = (one.int() - expected.int()).abs()
        # A shade that is one apart may be further apart after the second operation, at an edge of its steps.
        assert (apart > 1).float().mean() < (0.02 if name == "trivial" else 0.1), changes


@pytest.mark.parametrize(("name", "strengths"), [("trivial", range(31)), ("rand", [9])])
def test_every_operation_strength_and_sign_is_drawn_alike(name, strengths):
    draws = find_policy(name).draw(np.random.default_rng(0), 20_000).reshape(-1, 2)
    assert set(np.abs(draws[:, 1])) == set(strengths)
    for found, count in ((draws[:, 0], 14), (np.abs(draws[:, 1]), len(strengths))):
        shares = np.unique(found, return_counts=True)[1] / len(draws)
        assert len(shares) == count
        np.testing.assert_allclose(shares, 1 / count, atol=5 / np.sqrt(20_000 * count))
    assert abs(np.sign(draws[:, 1]).mean()) < 0.05
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.05


def test_no_policy():
    assert find_policy("none") is None
    with pytest.raises(UserError, match=r"unknown augment 'random'\. Did you mean 'rand'"):
        find_policy("random")

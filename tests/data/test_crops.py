"""Resized crops against torchvision's, box by box, and the boxes against what they should be distributed like."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as oracle

from csham.data.crops import check_crop, draw_boxes, resampled
from csham.data.split import generator
from csham.errors import UserError


def square(side, count=1, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8))


def expected(pixels, box, mirrored, size):
    """What torchvision makes of one image, in float32: its bytes take a rounding more."""
    found = oracle.resized_crop(pixels.permute(2, 0, 1).float(), *box, [size, size], antialias=True)
    return (found.flip(-1) if mirrored else found).permute(1, 2, 0)


# Whole, shrunk twofold; one to one; enlarged; one pixel; tall and wide, one way up and the other down; a corner.
BOXES = [
    (0, 0, 40, 40), (3, 5, 20, 20), (10, 2, 7, 9), (39, 0, 1, 1), (0, 30, 40, 8), (17, 1, 11, 38), (25, 25, 15, 15),
]  # fmt: skip


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("box", BOXES)
def test_a_box_is_resampled_as_torchvision_does(box, mirrored):
    pixels = square(40)
    found = resampled(pixels, torch.tensor([box]), torch.tensor([mirrored]), 20)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.round())
    # Half a level from rounding; float32 sums of 40 values of up to 255 differ by less than 1e-3.
    assert (found[0] - expected(pixels[0], box, mirrored, 20)).abs().max() < 0.501


def test_every_image_has_its_own_box():
    pixels = square(146, 32)  # what is stored for 128 px
    boxes = draw_boxes(np.random.default_rng(1), 32, 146, 0.08)
    mirrored = torch.arange(32) % 3 == 0
    found = resampled(pixels, torch.from_numpy(boxes), mirrored, 128)
    for image, box, flipped, crop in zip(pixels, boxes.tolist(), mirrored, found, strict=True):
        assert (crop - expected(image, box, flipped, 128)).abs().max() < 0.501
        bytes_of = oracle.resized_crop(image.permute(2, 0, 1), *box, [128, 128], antialias=True)
        assert (crop - (bytes_of.flip(-1) if flipped else bytes_of).permute(1, 2, 0)).abs().max() <= 1


def test_autocast_changes_nothing():
    pixels, boxes = square(80, 4), torch.tensor([[0, 0, 80, 80]] * 4)
    mirrored = torch.zeros(4, dtype=torch.bool)
    with torch.autocast("cpu", torch.bfloat16):
        found = resampled(pixels, boxes, mirrored, 70)
    assert torch.equal(found, resampled(pixels, boxes, mirrored, 70))


@settings(max_examples=100)
@given(seed=st.integers(0, 2**32), side=st.integers(8, 1200), least=st.floats(1e-4, 1.0))
def test_boxes_lie_in_the_square(seed, side, least):
    top, left, height, width = draw_boxes(np.random.default_rng(seed), 50, side, least).T
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (np.minimum(top, left) >= 0).all()
    assert (np.maximum(top + height, left + width) <= side).all()


def test_boxes_have_the_areas_ratios_and_places_asked_for():
    side = 1000  # large, so that whole pixels hardly matter
    top, left, height, width = draw_boxes(np.random.default_rng(0), 40_000, side, 0.2).T
    area, ratio = height * width / side**2, width / height
    assert 0.199 < area.min() < 0.201
    assert 0.749 < ratio.min() < ratio.max() < 1.336
    # Below 3/4 every ratio fits: there the area is uniform, and the logarithm of the ratio too. A fifth of them is
    # some 5,000: 5% of that are 3.5 standard deviations, and the seed is fixed.
    small = area < 0.75
    assert np.histogram(area[small], 5, (0.2, 0.75))[0] == pytest.approx(small.sum() / 5, rel=0.05)
    assert np.histogram(np.log(ratio[small]), 5, (-np.log(4 / 3), np.log(4 / 3)))[0] == pytest.approx(
        small.sum() / 5, rel=0.05
    )
    down, right = top / (side - height + 1), left / (side - width + 1)
    assert down.mean() == pytest.approx(0.5, abs=0.01)
    assert right.mean() == pytest.approx(0.5, abs=0.01)
    assert abs(np.corrcoef(down, right)[0, 1]) < 0.02


def test_torchvision_draws_alike():
    from torchvision.transforms import RandomResizedCrop

    image = torch.empty(3, 128, 128)
    theirs = np.array([RandomResizedCrop.get_params(image, (0.35, 1.0), (3 / 4, 4 / 3)) for _ in range(4000)])
    ours = draw_boxes(np.random.default_rng(0), 4000, 128, 0.35)
    # Four standard errors of the difference of two means of 4,000.
    error = 4 * np.sqrt((theirs.var(0) + ours.var(0)) / 4000)
    assert (abs(theirs.mean(0) - ours.mean(0)) < error).all()
    assert theirs.std(0) == pytest.approx(ours.std(0), rel=0.08)


def test_the_whole_square_where_nothing_else_fits():
    boxes = draw_boxes(np.random.default_rng(0), 20, 100, 1.0)
    assert (boxes[:, 2:] >= 99).all()  # a ratio of almost 1 rounds to the square, too


def test_boxes_may_be_as_high_or_as_wide_as_the_square():
    *_, height, width = draw_boxes(np.random.default_rng(0), 1000, 8, 0.3).T
    assert ((height == 8) & (width < 8)).any()
    assert ((height < 8) & (width == 8)).any()


# Frozen: a change of the draws would make every older run impossible to repeat or resume.
def test_the_draws_stay_what_they_are():
    assert draw_boxes(generator(7, 2, 3), 4, 128, 0.35).tolist() == FROZEN_BOXES


FROZEN_BOXES = [[6, 16, 116, 100], [52, 27, 71, 82], [2, 10, 104, 116], [5, 17, 121, 109]]


def test_auto_goes_by_size():
    assert [check_crop("auto", 0.35, size) for size in (8, 64, 65, 224)] == ["pad", "pad", "resized", "resized"]
    assert check_crop("resized", 0.35, 32) == "resized"
    assert check_crop("pad", 0.35, 224) == "pad"


def test_what_cannot_be_asked_for():
    with pytest.raises(UserError, match=r"unknown crop 'resize'\. Did you mean 'resized'"):
        check_crop("resize", 0.35, 112)
    for scale in (0.0, 1.1, float("nan")):
        with pytest.raises(UserError, match="above 0 and at most 1"):
            check_crop("resized", scale, 112)

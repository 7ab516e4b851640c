"""Mixed batches against blends and boxes of the batch that they were made of."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from csham.data.mixing import mixed, pairs_of_rank
from csham.errors import UserError


def batch_of(count, side=12):
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, side, side, generator=draw).to(memory_format=torch.channels_last)
    return images, torch.arange(count) % 5


def mixed_copy(images, labels, seed=0, mixup=0.0, cutmix=0.0):
    return mixed(images.clone(), labels, 5, mixup=mixup, cutmix=cutmix, rng=np.random.default_rng(seed))


def partners(images, labels):
    """Give what each image is mixed with; of an odd number, the first with itself."""
    if len(labels) % 2:
        return torch.cat([images[:1], images[1:].flip(0)]), torch.cat([labels[:1], labels[1:].flip(0)])
    return images.flip(0), labels.flip(0)


def shares_of(labels, others, ratio):
    one_hot = torch.nn.functional.one_hot
    return ratio * one_hot(labels, 5) + (1 - ratio) * one_hot(others, 5)


@pytest.mark.parametrize("count", [2, 8, 9, 1])  # 9: not in pairs
@pytest.mark.parametrize("seed", range(3))
def test_mixup_blends_images_and_classes_in_one_ratio(count, seed):
    images, labels = batch_of(count)
    others, other_labels = partners(images, labels)
    found, targets = mixed_copy(images, labels, seed, mixup=1.0)
    # By least squares, from the pixels alone.
    apart = (images - others).flatten()
    ratio = float((found - others).flatten() @ apart / (apart @ apart)) if count > 1 else 1.0
    assert 0 < ratio <= 1
    torch.testing.assert_close(found, ratio * images + (1 - ratio) * others, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(targets, shares_of(labels, other_labels, ratio), rtol=1e-5, atol=1e-5)
    assert targets.dtype == torch.float32


@pytest.mark.parametrize("count", [8, 9])
@pytest.mark.parametrize("seed", range(3))
def test_cutmix_pastes_one_box_and_counts_its_area(count, seed):
    images, labels = batch_of(count)
    others, other_labels = partners(images, labels)
    found, targets = mixed_copy(images, labels, seed, cutmix=1.0)
    pasted = (found != images).any(1)[1:]  # of an odd number the first has itself pasted in
    inside = pasted.any(0)
    assert (pasted == inside).all(), "the same box in all"
    rows, columns = inside.any(1), inside.any(0)
    assert torch.equal(inside, rows[:, None] & columns)
    assert torch.equal(found, torch.where(inside, others, images))
    ratio = 1 - float(inside.float().mean())
    torch.testing.assert_close(targets, shares_of(labels, other_labels, ratio), rtol=1e-5, atol=1e-5)


def test_with_both_each_batch_gets_one_of_them():
    images, labels = batch_of(8)
    pasted = [
        bool(torch.isin(mixed_copy(images, labels, seed, mixup=1.0, cutmix=1.0)[0], images).all()) for seed in range(40)
    ]
    assert 8 < sum(pasted) < 32  # 20 expected, four standard deviations are 12.6


def test_draws_come_from_the_generator_alone_and_numpys_is_left_as_it_was():
    images, labels = batch_of(6)
    expected, targets = mixed_copy(images, labels, 4, mixup=1.0, cutmix=1.0)
    np.random.seed(5)
    drawn = np.random.rand(3)
    np.random.seed(5)
    again, same = mixed_copy(images, labels, 4, mixup=1.0, cutmix=1.0)
    assert torch.equal(again, expected)
    assert torch.equal(same, targets)
    np.testing.assert_array_equal(np.random.rand(3), drawn)
    assert not torch.equal(mixed_copy(images, labels, 6, mixup=1.0, cutmix=1.0)[1], targets)


@given(half=st.integers(1, 5), world_size=st.integers(1, 5))
def test_every_process_has_its_own_pairs_and_together_they_have_the_batch(half, world_size):
    batch_size = 2 * half * world_size
    places = [pairs_of_rank(batch_size, rank, world_size) for rank in range(world_size)]
    assert sorted(np.concatenate(places)) == list(range(batch_size))
    for mine in places:
        np.testing.assert_array_equal(mine + mine[::-1], batch_size - 1)


def test_a_batch_without_pairs_for_every_process():
    np.testing.assert_array_equal(pairs_of_rank(7, 0, 1), np.arange(7))
    with pytest.raises(UserError, match=r"each of the 2 processes, got a batch of 6\. Choose .* a multiple of 4"):
        pairs_of_rank(6, 0, 2)

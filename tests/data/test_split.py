"""Properties that every split must have."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from csham.data.split import TEST, TRAIN, VALIDATION, generator, held_out, split_parts
from csham.errors import UserError

counts = st.lists(st.integers(1, 40), min_size=2, max_size=8)
seeds = st.integers(0, 2**32)


def labels_of(counts, seed):
    return np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))


def per_class(labels, indices, classes):
    return np.bincount(labels[indices], minlength=classes)


@given(counts, seeds, st.floats(0.01, 0.9))
def test_parts_are_disjoint_complete_and_stratified(counts, seed, validation):
    labels = labels_of(counts, seed)
    split = split_parts(labels, np.full(len(labels), TRAIN), seed, validation)
    assert sorted(np.concatenate(split)) == list(range(len(labels)))
    train, held, test = (per_class(labels, part, len(counts)) for part in split)
    for size, in_train, in_held, in_test in zip(counts, train, held, test, strict=True):
        assert in_train >= 1
        if size >= 3:
            assert in_held >= 1
            assert in_test >= 1
        if size >= 5:  # below, one image is more than its share
            assert abs(in_test - 0.2 * size) <= 0.5
            assert abs(in_held - validation * (size - in_test)) <= 1


@given(counts, seeds)
def test_the_seed_decides(counts, seed):
    labels = labels_of(counts, seed)
    parts = np.full(len(labels), TRAIN)
    for one, two in zip(split_parts(labels, parts, seed, 0.1), split_parts(labels, parts, seed, 0.1), strict=True):
        np.testing.assert_array_equal(one, two)
    assert (parts == TRAIN).all()  # what was given is not written to


def test_another_seed_splits_otherwise():
    labels = np.repeat(np.arange(4), 50)
    first, second = (split_parts(labels, np.full(200, TRAIN), seed, 0.1) for seed in (0, 1))
    assert set(first.test) != set(second.test)
    assert set(first.validation) != set(second.validation)


def test_runs_of_other_versions_drew_the_same_parts():
    """Else what they were trained on would be in the test part that they are measured on again."""
    split = split_parts(np.tile([0, 1, 2], 10), np.full(30, TRAIN), 7, 0.25)
    assert split.test.tolist() == [9, 10, 17, 20, 22, 24]
    assert split.validation.tolist() == [8, 11, 13, 16, 18, 27]


@given(counts, seeds)
def test_a_given_test_part_is_taken_as_it_is(counts, seed):
    labels = np.concatenate([labels_of(counts, seed), np.arange(len(counts))])
    parts = np.repeat([TRAIN, TEST], [sum(counts), len(counts)])
    split = split_parts(labels, parts, seed, 0.1)
    np.testing.assert_array_equal(split.test, np.flatnonzero(parts == TEST))
    assert len(split.train) + len(split.validation) == sum(counts)


def test_a_given_validation_part_means_nothing_more_is_held_out():
    labels = np.tile([0, 1], 30)
    parts = np.repeat([TRAIN, VALIDATION, TEST], 20)
    split = split_parts(labels, parts, 0, 0.1)
    for part, indices in zip((TRAIN, VALIDATION, TEST), split, strict=True):
        np.testing.assert_array_equal(indices, np.flatnonzero(parts == part))


def test_no_validation_at_all():
    split = split_parts(np.tile([0, 1], 30), np.full(60, TRAIN), 0, 0.0)
    assert [len(part) for part in split] == [48, 0, 12]


def test_the_last_image_of_a_class_is_never_held_out():
    assert list(held_out(np.array([0, 0, 0, 1]), 0.99, generator(0))) == sorted(
        held_out(np.array([0, 0, 0, 1]), 0.99, generator(0))
    )
    assert len(held_out(np.array([0, 0, 0, 1]), 0.99, generator(0))) == 2
    assert 3 not in held_out(np.array([0, 0, 0, 1]), 0.99, generator(0))
    assert len(held_out(np.empty(0, np.int64), 0.5, generator(0))) == 0


@pytest.mark.parametrize("validation", [-0.1, 1.0, float("nan")])
def test_a_fraction_out_of_range(validation):
    with pytest.raises(UserError, match="validation fraction"):
        split_parts(np.array([0, 1]), np.array([0, 0]), 0, validation)


def test_a_negative_seed():
    with pytest.raises(UserError, match="seed must be 0 or more, got -1"):
        split_parts(np.array([0, 0, 1, 1]), np.zeros(4, int), -1, 0.1)

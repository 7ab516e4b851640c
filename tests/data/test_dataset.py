"""What an opened dataset can tell about itself."""

import json

import numpy as np
import pytest

from csham.data import prepare
from csham.data.dataset import stored_side
from csham.errors import UserError


def test_stored_side_leaves_room_for_crops_above_64_px():
    assert [stored_side(S) for S in (8, 32, 64, 65, 112, 224)] == [8, 32, 64, 74, 128, 256]


def test_normalisation_is_that_of_the_pixels(two_classes, cache_dir):
    dataset = prepare(two_classes, cache_dir=cache_dir)
    chosen = np.array([0, 3, 7])
    mean, std = dataset.normalisation(chosen)
    pixels = dataset.images[chosen].reshape(-1, 3) / 255
    np.testing.assert_allclose(mean, pixels.mean(0), rtol=1e-12)
    np.testing.assert_allclose(std, pixels.std(0), rtol=1e-9)  # E[x^2] - E[x]^2 cancels a little
    assert isinstance(mean, list)
    assert isinstance(std[0], float)


def test_normalisation_of_a_constant_channel_can_be_divided_by(two_classes, cache_dir):
    dataset = prepare(two_classes, cache_dir=cache_dir)
    side = dataset.images.shape[1]
    dataset.sums[:, 0] = (7 * side * side, 49 * side * side)
    mean, std = dataset.normalisation(range(5))
    assert (mean[0], std[0]) == pytest.approx((7 / 255, 1 / 255))


def test_normalisation_of_nothing(two_classes, cache_dir):
    with pytest.raises(UserError, match="indices is empty"):
        prepare(two_classes, cache_dir=cache_dir).normalisation([])


def test_describe_is_ready_for_json(two_classes, cache_dir):
    (two_classes / "cat" / "broken.png").write_bytes(b"")
    (two_classes / "cat" / "notes.txt").write_bytes(b"")
    dataset = prepare(two_classes, cache_dir=cache_dir)
    found = json.loads(json.dumps(dataset.describe()))
    assert found["images"] == len(dataset) == 11
    assert found["classes"] == ["cat", "dog"]
    assert found["images_per_class"] == {"cat": 6, "dog": 5}
    assert found["parts"] == {"train": 11, "validation": 0, "test": 0}
    assert found["bad_files"] == [{"path": str(two_classes / "cat/broken.png"), "reason": "empty file (0 bytes)"}]
    assert found["ignored_files"] == 1
    assert found["bytes"] == 11 * 32 * 32 * 3
    assert "by seed" in found["test_part"]


def test_the_split_covers_everything(two_classes, cache_dir):
    split = prepare(two_classes, cache_dir=cache_dir).split(3)
    assert sorted(np.concatenate(split)) == list(range(11))
    assert [len(part) for part in split] == [7, 2, 2]

"""The same image in two parts or under two classes is found, counted and named."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from csham.data import prepare
from csham.data.duplicates import also_among, check_leaks, find_duplicates
from csham.errors import UserError

LAYOUT = {"train/cat": 6, "train/dog": 6, "test/cat": 3, "test/dog": 3}


@pytest.fixture
def parted(tmp_path, fill):
    return fill(tmp_path / "pets", LAYOUT)


def opened(root, cache_dir):
    return prepare(root, image_size=16, cache_dir=cache_dir)


def found_in(root, cache_dir):
    return opened(root, cache_dir).describe()["duplicates"]


def test_different_images_are_not_the_same(parted, cache_dir):
    assert found_in(parted, cache_dir) == {
        "repeated": 0, "test_and_training": [], "test_and_validation": [], "validation_and_training": [],
        "under_two_classes": [],
    }  # fmt: skip


def test_content_counts_not_names_and_formats(parted, cache_dir):
    """The same pixels in a BMP under another name."""
    with Image.open(parted / "train/cat/002.png") as image:
        image.save(parted / "test/cat/other.bmp")
    found = found_in(parted, cache_dir)
    assert found["test_and_training"] == [["test/cat/other.bmp", "train/cat/002.png"]]
    assert (found["repeated"], found["under_two_classes"]) == (1, [])


def test_equal_sums_of_different_pixels_are_not_enough(parted, cache_dir):
    with Image.open(parted / "train/cat/002.png") as image:
        image.transpose(Image.Transpose.ROTATE_180).save(parted / "test/cat/other.png")
    dataset = opened(parted, cache_dir)
    rows = [dataset.files.index(name) for name in ("train/cat/002.png", "test/cat/other.png")]
    assert np.array_equal(*dataset.sums[rows])
    assert dataset.describe()["duplicates"]["repeated"] == 0


def test_every_copy_is_named(parted, cache_dir):
    for name in ("train/dog/x.png", "test/dog/y.png", "test/cat/z.png"):
        shutil.copy(parted / "train/cat/000.png", parted / name)
    (parted / "train/cat/bad.png").write_bytes(b"not a picture")  # rows are those that could be read
    found = found_in(parted, cache_dir)
    assert found["under_two_classes"] == [["train/cat/000.png", "train/dog/x.png", "test/cat/z.png", "test/dog/y.png"]]
    assert found["test_and_training"] == [
        ["test/cat/z.png", "train/cat/000.png"],
        ["test/dog/y.png", "train/cat/000.png"],
    ]
    assert found["repeated"] == 3
    json.dumps(found)


def test_the_validation_part_is_compared_too(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "pets", {**LAYOUT, "valid/cat": 2, "valid/dog": 2})
    shutil.copy(root / "valid/cat/000.png", root / "train/cat/v.png")
    shutil.copy(root / "valid/dog/000.png", root / "test/dog/v.png")
    found = found_in(root, cache_dir)
    assert found["validation_and_training"] == [["valid/cat/000.png", "train/cat/v.png"]]
    assert found["test_and_validation"] == [["test/dog/v.png", "valid/dog/000.png"]]


def test_every_pair_is_found_as_by_comparing_each_with_each(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "pets", {"cat": 9, "dog": 9})
    rng = np.random.default_rng(0)
    for number, (a, b) in enumerate(rng.integers(0, 9, (6, 2))):
        shutil.copy(root / f"cat/{a:03}.png", root / f"{('cat', 'dog')[number % 2]}/copy{number}-{b}.png")
    dataset = opened(root, cache_dir)
    images = dataset.images
    expected = [next(j for j in range(i + 1) if np.array_equal(images[i], images[j])) for i in range(len(images))]
    assert find_duplicates(dataset).first.tolist() == expected
    assert len(set(expected)) < len(expected)


def test_images_without_files_have_a_name(cache_dir):
    dataset = prepare("digits", cache_dir=cache_dir)
    assert dataset.name_of(5) == f"{dataset.classes[dataset.labels[5]]} (number 5)"


@pytest.mark.parametrize("copies", [3, 4])
def test_a_test_part_of_training_images_is_refused_where_they_are_most(parted, cache_dir, copies):
    for number in range(copies):
        shutil.copy(
            parted / f"train/cat/00{number}.png", parted / f"test/{('cat', 'dog')[number % 2]}/00{number // 2}.png"
        )
    dataset = opened(parted, cache_dir)
    parts = dataset.split(0)
    parts = parts._replace(train=np.sort(np.concatenate([parts.train, parts.validation])))
    assert len(parts.test) == 6
    allowed = check_leaks(dataset, parts, allow=True)
    assert f"{copies} of 6 test images are training images too: test/cat/000.png = train/cat/000.png" in allowed[0]
    if copies == 3:
        assert check_leaks(dataset, parts)[0] == allowed[0]
    else:
        with pytest.raises(UserError, match="--allow-leaks"):
            check_leaks(dataset, parts)


def test_a_split_by_the_seed_is_looked_at_too(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "pets", {"cat": 10, "dog": 10})
    assert check_leaks(opened(root, cache_dir), opened(root, cache_dir).split(0)) == []
    for file in sorted(root.rglob("*.png")):
        shutil.copy(file, file.with_name(f"copy-{file.name}"))
    dataset = opened(root, cache_dir)
    with pytest.raises(UserError, match="test images are training images too: cat/"):
        check_leaks(dataset, dataset.split(0))


def test_images_of_another_dataset(parted, tmp_path, fill, cache_dir):
    ours, other = opened(parted, cache_dir), fill(tmp_path / "other", {"cat": 2, "dog": 2}, side=20)
    with Image.open(parted / "train/cat/002.png") as image:
        image.save(other / "dog/same.bmp")
        image.transpose(Image.Transpose.ROTATE_180).save(other / "dog/turned.png")
    theirs = opened(other, cache_dir)
    row, same = ours.files.index("train/cat/002.png"), theirs.files.index("dog/same.bmp")
    every = np.arange(len(ours))
    assert also_among(ours, every, theirs, np.arange(len(theirs))).tolist() == [row]
    assert also_among(ours, np.delete(every, row), theirs, np.arange(len(theirs))).tolist() == []
    assert also_among(ours, every, theirs, np.delete(np.arange(len(theirs)), same)).tolist() == []

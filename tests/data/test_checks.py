"""What is said of images before a training, and what is refused."""

import shutil

import pytest

from csham.data import prepare
from csham.data.checks import check_images
from csham.errors import UserError


def checked(root, cache_dir):
    dataset = prepare(root, cache_dir=cache_dir, image_size=32)
    return check_images(dataset, dataset.split(0))


def test_what_was_left_out_is_said(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "data", {"train/a": 8, "train/b": 8, "testing/a": 2})
    assert checked(root, cache_dir) == ["only train, test and val are read; left out: testing"]
    for number in range(5):
        (root / f"train/a/{number:03}.png").write_bytes(b"")
        noted, bad = checked(root, cache_dir)
    assert noted.endswith("testing")
    assert bad.startswith(f"5 files could not be read and are left out: {root}/train/a/000.png: empty file")
    assert bad.count("empty file") == 3
    assert bad.endswith("; ... (csham prepare names more)")


@pytest.mark.filterwarnings("ignore:data is packed anew")
def test_photographs_that_cannot_be_read_are_said_also_of_what_was_packed_before(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "data", {"a": 8, "b": 8})
    assert checked(root, cache_dir) == []
    (root / "a/IMG_1.HEIC").write_bytes(b"x")
    (root / "a/notes.txt").write_bytes(b"x")
    for _ in range(2):
        assert [note.partition(";")[0] for note in checked(root, cache_dir)] == ["1 file left out by name: 1 .heic"]
    assert prepare(root, cache_dir=cache_dir, image_size=32).ignored_files == 1
    archive = shutil.make_archive(str(tmp_path / "data"), "zip", root)
    assert "1 .heic" in checked(archive, cache_dir)[0]


def test_without_an_image_to_test_with_nothing_is_trained(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "data", {"a": 1, "b": 1})
    with pytest.raises(UserError, match=r"no class of .* has two images.* test/<class>"):
        checked(root, cache_dir)
    assert prepare(root, cache_dir=cache_dir).describe()["test_part"].startswith("none")
    assert checked(fill(tmp_path / "more", {"a": 2, "b": 1}), cache_dir) == []

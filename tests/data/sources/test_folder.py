"""Layouts that are understood, and those that are refused with a sentence that helps."""

import os
import shutil
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from csham.data.sources import check_apart, folder, layout
from csham.data.sources.base import default_image_size
from csham.data.sources.folder import scan
from csham.data.split import TEST, TRAIN, VALIDATION
from csham.errors import UserError


def counts(listing):
    return {int(part): int((listing.parts == part).sum()) for part in np.unique(listing.parts)}


def refused(root, *words):
    with pytest.raises(UserError) as caught:
        scan(root)
    message = str(caught.value)
    assert len(message) < 600
    for word in words:
        assert word in message, message


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ({"a": 2, "b": 3}, {TRAIN: 5}),
        ({"train/a": 2, "train/b": 3}, {TRAIN: 5}),
        ({"train/a": 2, "train/b": 3, "test/a": 1, "test/b": 1}, {TRAIN: 5, TEST: 2}),
        ({"train/a": 2, "train/b": 3, "val/a": 1, "val/b": 1}, {TRAIN: 5, TEST: 2}),
        (
            {"train/a": 2, "train/b": 3, "val/a": 1, "val/b": 1, "test/a": 2, "test/b": 2},
            {TRAIN: 5, VALIDATION: 2, TEST: 4},
        ),
        ({"Train/a": 2, "Train/b": 3, "Test/a": 1, "Test/b": 1}, {TRAIN: 5, TEST: 2}),
        ({"train/a": 2, "train/b": 3, "valid/a": 1, "valid/b": 1}, {TRAIN: 5, TEST: 2}),
        (
            {"train/a": 2, "train/b": 3, "valid/a": 1, "valid/b": 1, "test/a": 2, "test/b": 2},
            {TRAIN: 5, VALIDATION: 2, TEST: 4},
        ),
        (
            {"train/a": 2, "train/b": 3, "Validation/a": 1, "Validation/b": 1, "test/a": 2, "test/b": 2},
            {TRAIN: 5, VALIDATION: 2, TEST: 4},
        ),
        ({"train": 4, "bus": 3}, {TRAIN: 7}),  # vehicles
        ({"a/deep/deeper": 2, "a": 1, "b/x": 3}, {TRAIN: 6}),
    ],
)
def test_layouts(tmp_path, fill, layout, expected):
    assert counts(scan(fill(tmp_path / "data", layout))) == expected


@pytest.mark.parametrize("two", [("val", "valid"), ("valid", "validation"), ("Val", "val")])
def test_two_validation_parts_are_refused_by_name(tmp_path, fill, two):
    parts = {f"{part}/{name}": 1 for part in ("train", "test", *two) for name in "ab"}
    refused(fill(tmp_path / "data", parts), *two, "Keep one of them")


@pytest.mark.parametrize("two", [("train", "Train"), ("test", "TEST")])
def test_parts_that_differ_in_case_alone_are_refused(tmp_path, fill, two):
    names = {"train", *two}
    refused(fill(tmp_path / "data", {f"{name}/{c}": 1 for name in names for c in "ab"}), two[0], two[1], "Keep one")


@pytest.mark.parametrize(
    ("layout", "place", "among"),
    [
        ({"a": 1, "b": 1}, "runs/one", True),
        ({"a": 1, "b": 1}, "a/one", True),
        ({"a": 1, "b": 1}, ".runs/one", False),  # which is passed over
        ({"a": 1, "b": 1}, "../runs/one", False),
        ({"train/a": 1, "train/b": 1}, "runs/one", False),  # beside the part
        ({"train/a": 1, "train/b": 1}, "train/one", True),
    ],
)
def test_results_among_the_images_are_refused(tmp_path, fill, layout, place, among):
    root = fill(tmp_path / "data", layout)
    with pytest.raises(UserError, match="Name another") if among else nullcontext():
        check_apart(str(root), root / place, "Name another.")
    scan(root)


def test_the_name_of_a_data_set_is_no_folder(tmp_path, fill, monkeypatch):
    root = fill(tmp_path / "digits", {"a": 1, "b": 1})
    monkeypatch.chdir(tmp_path)
    check_apart("digits", root / "runs/one", "Name another.")
    with pytest.raises(UserError, match=r"as a class of its own .*\. Name another"):
        check_apart("./digits", root / "runs/one", "Name another.")


def test_order_labels_and_classes(tmp_path, fill):
    root = fill(tmp_path / "data", {"dog/b": 1, "dog/a": 2, "cat": 1, "Emu": 1})
    listing = scan(root)
    assert listing.classes == ("Emu", "cat", "dog")
    assert listing.files == ["Emu/000.png", "cat/000.png", "dog/a/000.png", "dog/a/001.png", "dog/b/000.png"]
    assert listing.labels.tolist() == [0, 1, 2, 2, 2]
    assert listing.labels.dtype == np.int64
    assert all(Path(path).exists() for path in listing.paths())


def test_what_is_ignored(two_classes):
    for name in ("cat/.hidden.png", "cat/Thumbs.db", "cat/desktop.ini", ".DS_Store"):
        (two_classes / name).write_bytes(b"x")
    for name in (".git", "__MACOSX", "cat/.ipynb_checkpoints"):
        (two_classes / name).mkdir()
        (two_classes / name / "x.png").write_bytes(b"x")
    assert (scan(two_classes).ignored, len(scan(two_classes).files)) == (0, 11)
    for name in ("cat/notes.txt", "README.md", "cat/png", "stray.png"):
        (two_classes / name).write_bytes(b"x")
    os.mkfifo(two_classes / "cat" / "pipe.png")
    listing = scan(two_classes)
    assert (listing.ignored, len(listing.files)) == (3, 11)
    assert listing.notes == ["1 image file lies in no class folder and was left out"]


def test_photographs_that_pillow_cannot_read_are_left_out_and_said(two_classes):
    before = scan(two_classes).fingerprint
    for name in ("cat/1.HEIC", "cat/deep/2.heic", "dog/3.cr2", "dog/notes.txt", "stray.heic"):
        (two_classes / name).parent.mkdir(exist_ok=True)
        (two_classes / name).write_bytes(b"x")
    listing = scan(two_classes)
    assert (listing.ignored, len(listing.files), len(listing.labels)) == (1, 11, 11)
    assert listing.notes == [
        "3 files left out by name: 1 .cr2, 2 .heic; "
        "Pillow cannot read photographs of these kinds: convert them to JPEG",
        "1 image file lies in no class folder and was left out",
    ]
    assert listing.fingerprint != before  # a cache holds the notes of when it was made
    shutil.rmtree(two_classes / "cat/deep")
    for image in (two_classes / "cat").glob("*.png"):
        image.unlink()
    refused(two_classes, "class 'cat' is empty", "1 file left out by name: 1 .heic", "this kind: convert")


def test_photographs_that_a_plugin_of_pillow_reads_are_images(two_classes, monkeypatch):
    monkeypatch.setattr(layout, "image_suffixes", lambda: {".png", ".heic"})
    (two_classes / "cat/1.heic").write_bytes(b"x")
    listing = scan(two_classes)
    assert (len(listing.files), listing.notes) == (12, [])


def test_other_folders_beside_train_are_mentioned(tmp_path, fill):
    root = fill(tmp_path / "data", {"train/a": 1, "train/b": 1, "extra/a": 1})
    assert "left out: extra" in scan(root).notes[0]


def test_links_are_followed_and_loops_survived(tmp_path, two_classes, fill):
    elsewhere = fill(tmp_path / "elsewhere", {"more": 2})
    (two_classes / "cat" / "linked").symlink_to(elsewhere / "more")
    (two_classes / "cat" / "up").symlink_to(two_classes)
    (two_classes / "cat" / "self").symlink_to(two_classes / "cat")
    (two_classes / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    files = scan(two_classes).files
    assert [f for f in files if f.startswith("cat/linked")] == ["cat/linked/000.png", "cat/linked/001.png"]
    assert "cat/gone.png" in files  # decoding reports it
    assert not [f for f in files if "self" in f]


def test_the_fingerprint_changes_with_any_change(two_classes):
    seen = {scan(two_classes).fingerprint}
    assert scan(two_classes).fingerprint in seen

    def changed():
        fingerprint = scan(two_classes).fingerprint
        new = fingerprint not in seen
        seen.add(fingerprint)
        return new

    image = two_classes / "cat" / "000.png"
    os.utime(image, ns=(1, 1))
    assert changed()
    image.rename(two_classes / "cat" / "renamed.png")
    assert changed()
    (two_classes / "cat" / "001.png").unlink()
    assert changed()
    Image.new("RGB", (8, 8)).save(two_classes / "dog" / "new.png")
    assert changed()
    (two_classes / "dog" / "notes.txt").write_text("no image")
    assert not changed()


def test_the_fingerprint_tells_files_of_one_size_and_time_that_take_each_others_place(two_classes):
    images = [two_classes / name / "000.bmp" for name in ("cat", "dog")]
    for image, colour in zip(images, ("red", "blue"), strict=True):
        Image.new("RGB", (8, 8), colour).save(image)
        os.utime(image, ns=(1, 1))
    before = scan(two_classes).fingerprint
    aside = images[0].rename(two_classes.parent / "aside")
    images[1].rename(images[0])
    aside.rename(images[1])
    assert scan(two_classes).fingerprint != before


def test_a_folder_without_images(tmp_path):
    refused(tmp_path, "holds no images", "<class>/*")


def test_images_without_class_folders(tmp_path, fill):
    refused(fill(tmp_path / "data", {".": 3}), "3 images but no class folders", "train/<class>/*")


def test_only_one_class(tmp_path, fill):
    refused(fill(tmp_path / "data", {"cat": 3}), "only one class, 'cat'", "At least two")


@pytest.mark.parametrize("name", [b"c\x07t", b"line\nbreak", b"\xff\xfe"])
@pytest.mark.parametrize("part", [".", "train"])
def test_a_class_that_cannot_be_shown(tmp_path, fill, name, part):
    root = fill(tmp_path / "data", {f"{part}/dog": 2})
    name = os.fsdecode(name)
    shutil.copytree(root / part / "dog", root / part / name)
    refused(root, repr(name)[1:-1], "class folder", "Rename")


def test_one_folder_too_high(tmp_path, fill):
    refused(fill(tmp_path / "data", {"inner/cat": 3, "inner/dog": 3}), "Did you mean", "data/inner?")


def test_an_empty_class(tmp_path, fill):
    root = fill(tmp_path / "data", {"cat": 3, "dog": 3, "emu": 0})
    refused(root, "class 'emu' is empty")
    (root / "emu" / "video.txt").write_text("x")
    refused(root, "class 'emu' is empty", "1 file there without an image's ending")


def test_classes_that_differ(tmp_path, fill):
    root = fill(tmp_path / "data", {"train/a": 1, "train/b": 1, "test/b": 1, "test/c": 1})
    refused(root, "differ", "test/a", "train/c", "same class folders")


def test_many_differences_are_cut_short(tmp_path, fill):
    root = fill(tmp_path / "data", {**{f"train/c{i}": 1 for i in range(30)}, "test/c0": 1})
    refused(root, "and 24 more")


def test_no_train_folder(tmp_path, fill):
    refused(fill(tmp_path / "data", {"test/a": 1, "val/a": 1}), "but no train/")


def test_an_unreadable_folder(two_classes, monkeypatch):
    def denied(path):  # root, who runs the tests in a container, may read everything
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(folder.os, "scandir", denied)
    refused(two_classes, "cannot read", str(two_classes), "Permission denied", "permissions")


@pytest.mark.parametrize(
    ("sides", "expected"), [([8], 32), ([32], 32), ([63], 32), ([500, 100, 100], 96), ([256], 224), ([], 32)]
)
def test_default_image_size_is_the_largest_that_images_fill(tmp_path, sides, expected):
    paths = [str(tmp_path / f"{index}.png") for index in range(len(sides) + 1)]
    for path, side in zip(paths, sides, strict=False):
        Image.new("L", (side, side + 40)).save(path)
    assert default_image_size(paths) == expected  # the last one does not exist

"""The images that the page opens with: of the test part, of different classes, and none from elsewhere."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

import csham
from csham.app.examples import FOLDER, find_examples
from csham.data import prepare
from csham.share import share

pytestmark = pytest.mark.usefixtures("reference")


@pytest.fixture(scope="module")
def plain(finished):
    return csham.load(finished)


@pytest.fixture
def with_settings(finished, copy_unlisted, tmp_path):
    """Function that loads a copy of the run whose settings say something else."""

    def load(**settings):
        run = copy_unlisted(finished, tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        file = run / "config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), **settings}))
        return csham.load(run)

    return load


def test_test_images_of_different_classes(plain, images):
    found = find_examples([plain], ["a"])
    dataset = prepare(images, image_size=16)
    test = {dataset.files[row]: row for row in dataset.split(0).test}
    assert len(found.images) == 6
    assert [sorted(example.answer for example in found.images[at : at + 3]) for at in (0, 3)] == [
        ["ant", "bee", "cow"]
    ] * 2
    for example in found.images:
        assert example.image == images / example.name
        assert example.image.parent.name == example.answer
        pixels = dataset.images[test[example.name]]
        np.testing.assert_array_equal(plain.transform.pixels(example.image), pixels)
        assert example.picture.shape == (320, 320, 3)
    assert len({example.name for example in found.images}) == 6
    assert found.note == "Images of the test part of animals, on which this network was not trained."
    again = find_examples([plain, plain], ["a", "b"])
    assert [one.name for one in again.images] == [one.name for one in found.images]
    assert again.note == "Images of the test part of animals, on which no network here was trained."


def test_runs_that_were_split_otherwise_have_test_images_in_common_or_that_is_said(plain, with_settings, images):
    dataset = prepare(images, image_size=16)
    first = set(dataset.split(0).test.tolist())
    common = {seed: first.intersection(dataset.split(seed).test.tolist()) for seed in range(1, 100)}
    few = next(seed for seed, rows in common.items() if 0 < len(rows) < 4)
    none = next(seed for seed, rows in common.items() if not rows)
    found = find_examples([plain, with_settings(seed=few)], ["a", "b"])
    assert {example.name for example in found.images} == {dataset.files[row] for row in common[few]}
    found = find_examples([plain, with_settings(seed=none)], ["a", "b"])
    assert {dataset.files.index(example.name) for example in found.images} <= first
    assert found.note.endswith(
        "no image is in the test part of all runs, so some of them may have been trained on these."
    )


def test_images_that_went_are_not_looked_for_elsewhere(with_settings, monkeypatch, tmp_path):
    found = find_examples([with_settings(data=str(tmp_path / "gone_away"))], ["a"])
    assert not found.images
    assert "gone\\_away, are not where they were" in found.note
    assert str(tmp_path) not in found.note


@pytest.mark.parametrize("data", ["cifar100", "digits", None])
def test_nothing_is_packed_or_downloaded(with_settings, monkeypatch, tmp_path, data):
    network = with_settings(**({"data": data} if data else {}))
    monkeypatch.setenv("CSHAM_CACHE", str(tmp_path / "cache"))
    found = find_examples([network], ["a"])
    assert not found.images
    assert f"{data or 'animals'}, are not packed on this machine" in found.note
    assert "`csham prepare` packs them, with `--image-size 16`" in found.note
    assert not (tmp_path / "cache").exists()


def test_packed_pixels_where_the_files_went(plain, write_images, with_settings, tmp_path, monkeypatch):
    data = write_images(tmp_path / "animals")
    dataset = prepare(data, image_size=16)
    archive = shutil.make_archive(str(tmp_path / "animals"), "zip", data)
    zipped = prepare(archive, image_size=16)
    found = find_examples([with_settings(data=archive)], ["a"])
    assert len(found.images) == 6
    for example in found.images:
        np.testing.assert_array_equal(example.image, zipped.images[zipped.files.index(example.name)])
        assert example.picture.shape == (320, 320, 3)
    assert dataset.classes == zipped.classes


def test_networks_that_learnt_from_other_images(plain, with_settings, write_images, tmp_path):
    data = write_images(tmp_path / "others", classes=("bee", "cow", "dog"))
    prepare(data, image_size=16)
    other = with_settings(data=str(data))
    found = find_examples([plain, other], ["a", "b"])
    assert found.note == "Images of the test part of animals; what b learnt from are others, or not known."
    assert {example.answer for example in found.images} == {"ant", "bee", "cow"}


def test_pictures_of_a_shared_folder(finished, images, tmp_path):
    shared = tmp_path / "shared"
    share(finished, shared)
    network = csham.load(shared)
    assert find_examples([network], ["a"]).note == (
        "No examples: a shared folder has no images but those in its folder `examples`, and there are none. "
        "Drop an image of your own, or paste one."
    )
    place = shared / FOLDER
    place.mkdir()
    shutil.copy(images / "bee" / "3.png", place / "one.png")
    (place / "bad.png").write_bytes((images / "bee" / "4.png").read_bytes()[:100])
    (place / "text.txt").write_text("not an image")
    (place / "a link.png").symlink_to(images / "bee" / "5.png")
    found = find_examples([network], ["a_b"])
    assert [(example.image, example.name, example.answer) for example in found.images] == [
        (place / "one.png", "one.png", None)
    ]
    assert found.note == "Pictures that came with a\\_b."


def test_a_folder_that_is_a_link_out_of_the_shared_one_gives_none(finished, images, tmp_path):
    shared = tmp_path / "shared"
    share(finished, shared)
    (shared / FOLDER).symlink_to(images / "bee")
    assert not find_examples([csham.load(shared)], ["a"]).images


def test_a_file_of_weights_has_none(finished, tmp_path):
    file = Path(shutil.copy(finished / "model.safetensors", tmp_path / "model.safetensors"))
    found = find_examples([csham.load(file)], ["a"])
    assert not found.images
    assert "a file of weights does not say which images it was trained on; the run folder does." in found.note

"""A run is measured on the images that it held out, or is told why it cannot be."""

import json
import re
import shutil
import warnings
from dataclasses import replace

import numpy as np
import pytest

from csham.data import prepare
from csham.data.dataset import describe_data
from csham.errors import UserError
from csham.training.config import resolve
from csham.training.division import drawn_parts, rows_of_part, words_on_all
from csham.training.run_folder import RunFolder


class Run:
    """What a run of a folder says of its images, in the places where it says it."""

    def __init__(self, path, data, *, drawn=True, validation=0.2):
        self.folder, self.own = RunFolder(path), prepare(data, image_size=16)
        self.config = resolve({"data": self.own.source, "validation": validation})
        self.split = self.own.split(self.config.seed, validation)
        summary = {"data_fingerprint": describe_data(self.own)["fingerprint"]}
        path.mkdir()
        (path / "summary.json").write_text(
            json.dumps(summary | ({"drawn_parts": drawn_parts(self.own, self.config)} if drawn else {}))
        )

    def rows(self, data, part="test"):
        """Without a word said."""
        dataset = prepare(data, image_size=16)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return rows_of_part(dataset, self.folder, self.config, part)

    def refused(self, data, *words, part="test"):
        with pytest.raises(UserError) as caught:
            self.rows(data, part)
        for word in words:
            assert word in str(caught.value), str(caught.value)

    def warned(self, data, *words):
        with pytest.warns(UserWarning, match=".*".join(map(re.escape, words))):
            return rows_of_part(prepare(data, image_size=16), self.folder, self.config, "test")


pytestmark = pytest.mark.filterwarnings(r"ignore:.* is packed anew")


@pytest.fixture
def pets(tmp_path, write_images):
    return write_images(tmp_path / "pets", count=10)


@pytest.fixture
def arrange(pets):
    """Function that copies some of the images into parts of another folder."""

    def arrange(root, **parts):
        for part, names in parts.items():
            for name in names:
                (root / part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(pets / name, root / part / name)
        return root

    return arrange


def numbered(*numbers):
    return [f"{name}/{number}.png" for name in ("ant", "bee", "cow") for number in numbers]


def test_parts_that_are_drawn(pets, arrange, tmp_path):
    config = resolve({"data": "digits"})
    parted = prepare(arrange(tmp_path / "parted", train=numbered(0, 1), val=numbered(2), test=numbered(3)))
    assert drawn_parts(prepare(pets), config) == ["test", "validation"]
    assert drawn_parts(prepare(pets), replace(config, validation=0.0)) == ["test"]
    assert drawn_parts(parted, config) == []


def test_its_own_images_and_copies_of_them(pets, tmp_path):
    run = Run(tmp_path / "run", pets)
    shutil.copytree(pets, tmp_path / "moved")
    for part in ("test", "validation", "train"):
        for data in (pets, tmp_path / "moved"):
            np.testing.assert_array_equal(run.rows(data, part), getattr(run.split, part))


def test_images_of_others_are_not_called_changed(pets, write_images, tmp_path):
    run = Run(tmp_path / "run", pets)
    other = write_images(tmp_path / "other", count=5, seed=1)
    for part in ("test", "validation", "train"):
        run.refused(other, f"other gives no {part} part, such as {part}/<class>/*, and {run.folder.path}", part=part)
    shutil.copy(pets / "ant/0.png", pets / "ant/more.png")
    run.refused(pets, "Put them back as they were", "images that it was not trained on")


def test_a_given_part_is_compared_with_what_the_run_was_trained_on(pets, arrange, write_images, tmp_path):
    run = Run(tmp_path / "run", pets)
    train, validation, test = ([run.own.files[row] for row in rows] for rows in run.split)
    run.refused(arrange(tmp_path / "a", train=test, test=train), "was trained on 18 of the 18 test images", "such as")
    assert len(run.rows(arrange(tmp_path / "b", train=train, test=test))) == len(test) == 6
    some = arrange(tmp_path / "c", train=train[1:], test=[*test, *validation, train[0]])
    assert len(run.warned(some, "was trained on 1 of the 13 test images", train[0])) == 13
    for part in ("train", "test"):
        write_images(tmp_path / "other" / part, count=4, seed=len(part))
    assert len(run.rows(tmp_path / "other")) == 12


def test_where_its_own_images_are_not_there_what_it_drew_counts(pets, arrange, tmp_path):
    drew, older = Run(tmp_path / "drew", pets), Run(tmp_path / "older", pets, drawn=False)
    parted = arrange(tmp_path / "parted", train=numbered(*range(5)), test=numbered(*range(5, 10)))
    given = Run(tmp_path / "given", parted)
    shutil.copytree(pets, tmp_path / "kept")
    shutil.rmtree(pets)
    for run in (drew, older):
        assert len(run.warned(parted, "not here to compare with", "may hold images that it was trained on")) == 15
    # In the place of what was divided: images of the same names, which give a part.
    shutil.copytree(parted, pets)
    drew.refused(pets, "a test part that it did not give", "Put the images back as they were")
    assert len(older.warned(pets, "may hold images that it was trained on")) == 15
    shutil.copy(tmp_path / "kept/ant/6.png", parted / "train/ant/more.png")
    assert len(given.rows(parted)) == 15


def test_what_a_run_that_does_not_say_its_images_was_trained_on(pets, write_images, tmp_path):
    run, other = Run(tmp_path / "run", pets), prepare(write_images(tmp_path / "other", count=5, seed=1), image_size=16)
    run.folder.summary_file.write_text("{}")
    assert (
        words_on_all(other, run.folder, run.config)
        == f"{run.folder.path} may have been trained on some of these 15 images"
    )
    assert "was trained on 18 of these 30 images" in words_on_all(run.own, run.folder, run.config)


def test_a_column_of_parts_that_came_later_changes_nothing(pets, tmp_path):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    files = sorted(pets.glob("*/*.png"))
    rows = [{"image": file.read_bytes(), "label": file.parent.name} for file in files]
    path = tmp_path / "pets.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    run = Run(tmp_path / "run", path)
    pq.write_table(
        pa.Table.from_pylist([row | {"split": ["train", "test"][i % 2]} for i, row in enumerate(rows)]), path
    )
    assert prepare(path, image_size=16).parts.any()
    for part in ("test", "validation", "train"):
        np.testing.assert_array_equal(run.rows(path, part), getattr(run.split, part))


def test_a_part_without_images(pets, tmp_path):
    run = Run(tmp_path / "run", pets, validation=0.0)
    run.refused(pets, "the validation part", "has no images", part="validation")

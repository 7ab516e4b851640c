"""A source from outside the package: one class, and one line if its data is to be named."""

import numpy as np
import pytest

import csham.data.sources
from csham.data import Source, prepare
from csham.data.sources import SOURCES, Chunk, Images, Listing
from csham.errors import UserError


class Stripes(Source):
    """Two classes of images that are nowhere but in the mind."""

    name, location, fingerprint = "stripes", "stripes:", "stripes 1"

    def __init__(self, given=8):
        self.given = given

    @classmethod
    def find(cls, data):
        return cls() if data == "stripes:" else None

    def default_size(self):
        return 32

    def load(self, work):
        work.say("thinking of stripes")
        work.scratch.mkdir()
        (work.scratch / "left behind").write_text("x")
        images = np.zeros((8, 32, 32, 3), np.uint8)
        images[::2, ::2] = images[1::2, :, ::2] = 255
        labels, parts = np.arange(8) % 2, np.zeros(8, np.uint8)
        listing = Listing("stripes", ("across", "along"), [], labels, parts)
        chunks = [Chunk([row], [images[row]]) for row in reversed(range(self.given))]
        return Images(listing, lambda most: iter(chunks), decoded=True, flip=False)


def test_a_source_is_an_object(cache_dir):
    said = []
    found = prepare(Stripes(), cache_dir=cache_dir, progress=lambda done, total, what: said.append(what))
    assert (found.name, found.source, found.classes, found.flip) == ("stripes", "stripes:", ("across", "along"), False)
    assert found.labels.tolist() == [0, 1] * 4
    assert found.images[0, :2, 0, 0].tolist() == [255, 0]
    assert found.images[1, 0, :2, 0].tolist() == [255, 0]
    assert said[0] == "thinking of stripes"
    assert found.name_of(1) == "along (number 1)"
    assert len(list(found.path.iterdir())) == 5, "nothing but the cache is kept"
    assert prepare(Stripes(), cache_dir=cache_dir).from_cache


def test_a_line_gives_it_a_name(cache_dir, monkeypatch):
    monkeypatch.setattr(csham.data.sources, "SOURCES", [Stripes, *SOURCES])
    assert prepare("stripes:", cache_dir=cache_dir).name == "stripes"
    assert prepare("digits", cache_dir=cache_dir).name == "digits"


def test_a_source_that_gives_fewer_images_than_it_said(cache_dir):
    with pytest.raises(UserError, match="gave 7 of 8 images"):
        prepare(Stripes(given=7), cache_dir=cache_dir)


def test_a_file_of_no_kind(tmp_path):
    (tmp_path / "images.rar").write_bytes(b"Rar!")
    with pytest.raises(UserError, match="is a file of no kind that is read") as caught:
        prepare(tmp_path / "images.rar")
    for word in ("image folder", ".csv", ".parquet", "zip or tar", "Unpack it"):
        assert word in str(caught.value)

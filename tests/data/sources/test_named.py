"""Datasets by name: the embedded one, and downloads that go right and wrong."""

import hashlib
import pickle
import tarfile

import numpy as np
import pytest

from csham.data import prepare
from csham.data.sources.named import DATASETS, IMAGE_SIZES
from csham.errors import UserError

NOWHERE = "http://127.0.0.1:9/cifar.tar.gz"  # the discard port: refused at once


def test_digits(cache_dir):
    digits = prepare("digits", cache_dir=cache_dir)
    assert digits.images.shape == (1797, 32, 32, 3)
    assert digits.classes == tuple("0123456789")
    assert not digits.flip
    split = digits.split(0)
    assert abs(len(split.test) - 0.2 * 1797) < 5
    np.testing.assert_array_equal(split.test, digits.split(1).test)  # given, whatever the seed
    assert set(digits.labels[split.test]) == set(range(10))
    assert digits.describe()["test_part"] == "given"


def test_digits_look_like_scikit_learns(cache_dir):
    from sklearn.datasets import load_digits

    found = load_digits()
    digits = prepare("digits", cache_dir=cache_dir)
    np.testing.assert_array_equal(digits.labels, found.target)
    shrunk = digits.images[..., 0].reshape(-1, 8, 4, 8, 4).mean((2, 4))
    assert np.corrcoef(shrunk.ravel(), found.images.ravel())[0, 1] > 0.97  # bicubic blurs a little
    assert (digits.images.min(), digits.images.max()) == (0, 255)
    assert (digits.images[..., :1] == digits.images).all()


def test_digits_in_another_size(cache_dir):
    assert prepare("digits", image_size=72, cache_dir=cache_dir).images.shape == (1797, 82, 82, 3)


@pytest.fixture(params=["cifar10", "cifar100"])
def tiny_cifar(request, monkeypatch, tmp_path):
    """A small archive laid out like the real one; gives name, class of torchvision and archive."""
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[request.param]
    key = "labels" if request.param == "cifar10" else "fine_labels"
    base = tmp_path / "archive" / kind.base_folder
    base.mkdir(parents=True)

    def write(name, content):
        (base / name).write_bytes(pickle.dumps(content))
        return hashlib.md5((base / name).read_bytes()).hexdigest()

    rng = np.random.default_rng(0)
    for attribute, names in {"train_list": kind.train_list, "test_list": kind.test_list}.items():
        blocks = []
        for name, _ in names:
            data = rng.integers(0, 256, (20, 3072), dtype=np.uint8)
            blocks.append([name, write(name, {"data": data, key: [0, 1] * 10})])
        monkeypatch.setattr(kind, attribute, blocks)
    meta = dict(kind.meta)
    meta["md5"] = write(meta["filename"], {meta["key"]: ["apple", "bear"]})
    archive = tmp_path / kind.filename
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(base, kind.base_folder)
    monkeypatch.setattr(kind, "meta", meta)
    monkeypatch.setattr(kind, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(kind, "url", NOWHERE)
    return request.param, kind, archive


def test_a_hand_downloaded_archive_is_taken(tiny_cifar, cache_dir, capfd):
    name, kind, archive = tiny_cifar
    (cache_dir / "downloads").mkdir(parents=True)
    archive.rename(cache_dir / "downloads" / archive.name)
    said = []
    found = prepare(name, cache_dir=cache_dir, progress=lambda done, total, what: said.append(what))
    assert found.classes == ("apple", "bear")
    trained = 20 * len(kind.train_list)
    assert found.images.shape == (trained + 20, 32, 32, 3)
    np.testing.assert_array_equal(found.split(0).test, np.arange(trained, trained + 20))
    raw = kind(cache_dir / "downloads", train=False).data
    np.testing.assert_array_equal(found.images[trained:], raw)
    assert said[0] == f"reading {name}"
    assert capfd.readouterr() == ("", "")
    assert prepare(name, cache_dir=cache_dir).from_cache


def test_no_network(tiny_cifar, cache_dir):
    name, kind, _ = tiny_cifar
    with pytest.raises(UserError, match="could not be downloaded: no network") as caught:
        prepare(name, cache_dir=cache_dir)
    assert str(cache_dir / "downloads" / kind.filename) in str(caught.value)
    assert kind.tgz_md5 in str(caught.value)
    assert "image folder" in str(caught.value)
    assert not [path for path in (cache_dir / "packed").glob("*") if path.is_dir()], "nothing half-written"


def test_a_damaged_archive(tiny_cifar, cache_dir):
    name, kind, archive = tiny_cifar
    (cache_dir / "downloads").mkdir(parents=True)
    (cache_dir / "downloads" / kind.filename).write_bytes(archive.read_bytes()[:-100])
    with pytest.raises(UserError, match="checksum is not that of"):
        prepare(name, cache_dir=cache_dir)


def test_every_name_says_what_it_is():
    assert (
        list(DATASETS) == list(IMAGE_SIZES) == ["digits", "cifar10", "cifar100", "caltech101", "caltech101-background"]
    )
    assert all("class" in what for what in DATASETS.values())

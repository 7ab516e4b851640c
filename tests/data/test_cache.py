"""A cache is believed only while nothing is wrong with it, and a disk that refuses is explained."""

import errno
import hashlib
import json
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from csham.data import cache, prepare
from csham.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:pets is packed anew")


@pytest.fixture
def packed(two_classes, cache_dir):
    return prepare(two_classes, cache_dir=cache_dir)


def again(packed):
    return prepare(packed.source, image_size=packed.image_size, cache_dir=packed.path.parent.parent)


def is_rebuilt(packed, reason):
    before = np.array(packed.images)
    dataset = again(packed)
    assert not dataset.from_cache
    assert reason in dataset.rebuilt, dataset.rebuilt
    assert again(packed).from_cache
    return np.array_equal(before, dataset.images)


@pytest.mark.parametrize("name", cache.ARRAYS)
@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_flipped_byte_is_noticed(packed, name, position):
    path = packed.path / f"{name}.npy"
    status, kept = path.stat(), np.array(packed.images)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    dataset = again(packed)
    assert f"{name}.npy has a wrong checksum" in dataset.rebuilt
    np.testing.assert_array_equal(dataset.images, kept)


@pytest.mark.parametrize("name", [*(f"{name}.npy" for name in cache.ARRAYS), "meta.json"])
@pytest.mark.parametrize("how", ["missing", "empty", "cut"])
def test_a_missing_or_cut_file_is_noticed(packed, name, how):
    path = packed.path / name
    content = path.read_bytes()
    path.unlink()
    if how != "missing":
        path.write_bytes(content[: len(content) // 2 if how == "cut" else 0])
    dataset = again(packed)
    assert "damaged" in dataset.rebuilt
    assert again(packed).from_cache


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes in folders")
@pytest.mark.parametrize("name", ["labels.npy", "meta.json"])
@pytest.mark.timeout(60)
def test_a_pipe_is_not_waited_for(packed, name):
    (packed.path / name).unlink()
    os.mkfifo(packed.path / name)
    assert is_rebuilt(packed, "damaged")


@pytest.mark.parametrize(
    "garbage",
    [
        b"not json",
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b"{}",
        b'{"body": 3, "sha256": ""}',
        b'{"body": "{}", "sha256": null}',
        b"[" * 100_000,
        b'{"body": "\\ud800", "sha256": "x"}',
    ],
)
def test_garbled_meta_never_crashes(packed, garbage):
    (packed.path / "meta.json").write_bytes(garbage)
    assert is_rebuilt(packed, "damaged")


def flip_pixel(packed):
    """Change a byte of the pixels, and set the time of the change back as far as that goes."""
    path = packed.path / "images.npy"
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        value = file.read(1)[0]
        file.seek(-100, os.SEEK_END)
        file.write(bytes([value ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_a_large_one_is_compared_when_it_was_written_to_and_on_demand(packed, monkeypatch):
    monkeypatch.setattr(cache, "LARGE", 1000)
    kept = np.array(packed.images)
    assert again(packed).from_cache
    flip_pixel(packed)
    dataset = again(packed)
    assert "images.npy has a wrong checksum" in dataset.rebuilt
    np.testing.assert_array_equal(dataset.images, kept)
    # As a disk alters it, where nobody wrote: the times stay.
    flip_pixel(packed)
    status = (packed.path / "images.npy").stat()
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    (packed.path / "checked.json").write_text(json.dumps(state))
    assert again(packed).from_cache
    dataset = prepare(packed.source, image_size=32, cache_dir=packed.path.parent.parent, thorough=True)
    assert "images.npy has a wrong checksum" in dataset.rebuilt
    np.testing.assert_array_equal(dataset.images, kept)


@pytest.mark.parametrize("garbage", [b"", b"null", b"[]", b"\xff", b"[" * 100_000])
def test_what_says_when_it_was_compared_is_not_needed(packed, monkeypatch, garbage):
    monkeypatch.setattr(cache, "LARGE", 1000)
    assert again(packed).from_cache
    (packed.path / "checked.json").write_bytes(garbage)
    flip_pixel(packed)
    assert "images.npy has a wrong checksum" in again(packed).rebuilt


@pytest.mark.parametrize("name", ["labels", "parts", "sums"])
def test_small_arrays_of_a_large_one_are_compared_each_time(packed, monkeypatch, name):
    monkeypatch.setattr(cache, "LARGE", 1000)
    assert again(packed).from_cache
    content = bytearray((packed.path / f"{name}.npy").read_bytes())
    content[-1] ^= 1
    (packed.path / f"{name}.npy").write_bytes(content)
    assert f"{name}.npy has a wrong checksum" in again(packed).rebuilt


def forge(packed, **changes):
    """Write a meta.json whose own checksum is right."""
    meta = json.loads(json.loads((packed.path / "meta.json").read_text())["body"])
    body = json.dumps({**meta, **changes})
    whole = {"body": body, "sha256": hashlib.sha256(body.encode()).hexdigest()}
    (packed.path / "meta.json").write_text(json.dumps(whole))


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": ["only one"]},
        {"classes": 7},
        {"image_size": 64},
        {"image_size": "large"},
        {"image_size": 10**400},
        {"bad_files": [["x"]]},
        {"notes": None},
        {"sha256": {}},
        {"sha256": []},
        {"fingerprint": ["x"]},
    ],
)
def test_hostile_meta_never_crashes(packed, changes):
    forge(packed, **changes)
    assert not again(packed).from_cache


def test_pickles_are_not_read(packed, tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "pwned"),)

    path = packed.path / "labels.npy"
    np.save(path, np.array([Evil()] * 11, dtype=object), allow_pickle=True)
    sums = {n: hashlib.sha256((packed.path / f"{n}.npy").read_bytes()).hexdigest() for n in cache.ARRAYS}
    forge(packed, sha256=sums)
    assert "damaged" in again(packed).rebuilt
    assert not (tmp_path / "pwned").exists()


def test_another_version(packed):
    forge(packed, version=cache.FORMAT_VERSION + 1)
    assert is_rebuilt(packed, "another version")


def test_an_added_file(packed, two_classes):
    Image.new("RGB", (32, 32)).save(two_classes / "dog" / "new.png")
    assert not is_rebuilt(packed, "source, or the way it is read, has changed")
    assert len(again(packed)) == 12


def test_a_changed_file(packed, two_classes):
    Image.new("RGB", (32, 32), "red").save(two_classes / "dog" / "000.png")
    assert not is_rebuilt(packed, "source, or the way it is read, has changed")
    assert (again(packed).images[6] == (255, 0, 0)).all()


def test_a_removed_file(packed, two_classes):
    (two_classes / "dog" / "000.png").unlink()
    assert not is_rebuilt(packed, "source, or the way it is read, has changed")


def test_whoever_has_the_old_one_open_keeps_it(packed, two_classes):
    before = np.array(packed.images)
    Image.new("RGB", (32, 32), "red").save(two_classes / "dog" / "000.png")
    again(packed)
    np.testing.assert_array_equal(packed.images, before)


def nothing_left(cache_dir):
    folder = cache_dir / "packed"
    return not [path for path in folder.glob("*") if path.is_dir()] and not list(folder.glob(".*tmp*"))


def test_too_little_space_is_noticed_before_the_work(two_classes, cache_dir, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(UserError, match=r"packing needs .* MiB are free.*smaller image size.*CSHAM_CACHE"):
        prepare(two_classes, cache_dir=cache_dir)
    assert nothing_left(cache_dir)


def test_space_is_told_in_mebibytes_and_just_enough_is_enough(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(2**40, 2**40 - 2**30, 2**30))
    with pytest.raises(UserError, match=rf"^packing needs 2,048 MiB in {tmp_path}, and 1,024 MiB are free\. "):
        cache.check_space(tmp_path, 2**31)
    with pytest.raises(UserError, match=r"^packing needs"):
        cache.check_space(tmp_path, 2**30 + 1)
    cache.check_space(tmp_path, 2**30)


@pytest.mark.parametrize(
    "error",
    [
        (errno.ENOSPC, "is full"),
        (errno.EDQUOT, "is full"),
        (errno.EROFS, "Read-only"),
        (errno.EACCES, "denied"),
    ],
)
@pytest.mark.parametrize("call", ["posix_fallocate", "fsync", "rename"])
def test_a_disk_that_refuses(two_classes, cache_dir, monkeypatch, error, call):
    number, words = error

    def refuse(*arguments, **settings):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, call, refuse, raising=False)
    with pytest.raises(UserError, match=words) as caught:
        prepare(two_classes, cache_dir=cache_dir)
    assert str(cache_dir) in str(caught.value)
    assert "CSHAM_CACHE" in str(caught.value)
    assert "CSHAM_CACHE" in str(caught.value)
    monkeypatch.undo()
    assert nothing_left(cache_dir)


def test_a_cache_folder_that_cannot_be(two_classes, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write into"):
        prepare(two_classes, cache_dir=tmp_path / "file" / "cache")


def test_a_cache_that_may_not_be_read(packed, monkeypatch):
    def denied(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(cache, "_read_meta", denied)
    with pytest.raises(UserError, match=r"cannot read .*CSHAM_CACHE"):
        again(packed)

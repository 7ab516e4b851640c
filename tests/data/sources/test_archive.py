"""An image folder in a zip or tar gives what the folder gives; hostile and damaged archives are refused by name."""

import gzip
import io
import os
import shutil
import stat
import sys
import tarfile
import warnings
import zipfile
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from csham.data import packing, prepare
from csham.data.dataset import describe_data
from csham.data.sources import archive, open_source
from csham.errors import UserError

KINDS = ["zip", "tar", "tar.gz", "tgz", "tar.bz2", "tar.xz"]
MODES = {"tar": "w", "tar.gz": "w:gz", "tgz": "w:gz", "tar.bz2": "w:bz2", "tar.xz": "w:xz"}


def pack(path, members):
    """Write an archive of pairs of name and content; a name that ends in / is a folder."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members:
                file.writestr(name, content)
        return path
    with tarfile.open(path, MODES[path.name.split(".", 1)[1]]) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            file.addfile(info, io.BytesIO(content))
    return path


@contextmanager
def silent():
    """Without what zipfile says of names that are there twice."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def members_of(root, above=""):
    return [(above + path.relative_to(root).as_posix(), path.read_bytes()) for path in root.rglob("*.*")]


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        open_source(path)
    for word in (str(path), *words):
        assert word in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 900


@pytest.fixture
def images(two_classes):
    return members_of(two_classes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("above", ["", "pets/", "./", "./pets/"])
def test_an_archive_is_the_folder_that_is_in_it(tmp_path, fill, cache_dir, kind, above):
    root = fill(tmp_path / "pets", {"train/cat": 3, "train/dog/deep": 2, "test/cat": 2, "test/dog": 1}, side=70)
    (root / "train/cat/notes.txt").write_text("no image")
    folder = prepare(root, cache_dir=cache_dir)
    path = pack(tmp_path / f"pets.{kind}", reversed(members_of(root, above)))
    shutil.rmtree(root)
    found = prepare(path, cache_dir=cache_dir)
    assert describe_data(found) == describe_data(folder)
    assert (found.files, found.image_size, found.ignored_files) == (folder.files, 64, 1)
    np.testing.assert_array_equal(found.images, folder.images)
    assert prepare(str(path), cache_dir=cache_dir).from_cache
    assert {entry.name for entry in tmp_path.iterdir()} == {"cache", path.name}, "nothing was unpacked"
    assert len(list(found.path.iterdir())) == 5


@pytest.mark.parametrize("encoding", ["utf-8", "cp437"])
def test_names_that_are_not_marked_as_utf8(tmp_path, images, cache_dir, encoding):
    """As Linux's zip writes them, and programs that mean code page 437."""
    raw = "bärsch".encode(encoding)
    plain = "cat----"[: len(raw)]
    path = pack(tmp_path / "pets.zip", [(name.replace("cat", plain), content) for name, content in images])
    path.write_bytes(path.read_bytes().replace(plain.encode(), raw))
    found = prepare(path, cache_dir=cache_dir)
    assert (found.classes, len(found), found.bad_files) == (("bärsch", "dog"), len(images), [])


def test_a_changed_archive_is_packed_anew(tmp_path, images, cache_dir):
    path = pack(tmp_path / "pets.zip", images)
    prepare(path, cache_dir=cache_dir)
    pack(path, images[1:])
    again = prepare(path, cache_dir=cache_dir)
    assert (again.rebuilt, len(again)) == ("its source, or the way it is read, has changed since", 10)


@pytest.mark.filterwarnings("ignore:pets.zip is packed anew")
def test_names_that_are_read_otherwise_are_packed_anew(tmp_path, images, cache_dir, monkeypatch):
    """Their order may be another; and a bad file of the old names would be a good one of the new."""
    images = [(name.replace("000", "Á").replace("001", "Â"), content) for name, content in images]
    images = [(name, b"broken" if name == "cat/Á.png" else content) for name, content in images]
    path = pack(tmp_path / "pets.zip", [(name.replace("Á", "xx").replace("Â", "yy"), one) for name, one in images])
    unmarked = path.read_bytes().replace(b"/xx.png", "/Á.png".encode()).replace(b"/yy.png", "/Â.png".encode())
    path.write_bytes(unmarked)  # in code page 437, Â comes before Á
    monkeypatch.setattr(archive, "_name", lambda info: info.filename)
    before = prepare(path, cache_dir=cache_dir)
    monkeypatch.undo()
    again = prepare(path, cache_dir=cache_dir)
    assert "the way it is read" in again.rebuilt
    assert again.files != before.files
    assert [file.path for file in again.bad_files] == [str(path / "cat/Á.png")]
    for pixels, name in zip(again.images, again.files, strict=True):
        np.testing.assert_array_equal(pixels, Image.open(io.BytesIO(dict(images)[name])))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_workers_give_what_one_process_gives(tmp_path, images, cache_dir, kind, monkeypatch):
    path = pack(tmp_path / f"pets.{kind}", [*images, ("cat/bad.png", b"nonsense")])
    alone = prepare(path, cache_dir=cache_dir)
    monkeypatch.setattr(packing, "_ALONE_BELOW", 1)
    together = prepare(path, cache_dir=tmp_path / "other")
    np.testing.assert_array_equal(alone.images, together.images)
    assert alone.bad_files == together.bad_files == [(str(path / "cat/bad.png"), "not an image that Pillow can read")]
    assert alone.files == together.files
    assert len(alone.files) == 11


def test_what_operating_systems_leave_behind_is_passed_over(tmp_path, images, cache_dir):
    left = [("__MACOSX/pets/._000.png", b"x"), ("pets/.DS_Store", b"x"), ("pets/cat/Thumbs.db", b"x")]
    path = pack(tmp_path / "pets.zip", [*left, *((f"pets/{name}", content) for name, content in images)])
    found = prepare(path, cache_dir=cache_dir)
    assert (len(found), found.ignored_files) == (11, 0)


def test_layouts_are_told_as_folders_are(tmp_path, images):
    cats = [pair for pair in images if pair[0].startswith("cat")]
    refused(pack(tmp_path / "a.zip", cats), "holds only one class, 'cat'")
    refused(pack(tmp_path / "b.tar", [*images, ("empty/", b"")]), "class 'empty' is empty")
    refused(pack(tmp_path / "c.zip", []), "holds no images")
    refused(pack(tmp_path / "d.zip", [("a.png", b"")]), "holds 1 image but no class folders")
    parts = [(f"train/{name}", content) for name, content in images] + [("test/cat/1.png", b"")]
    refused(pack(tmp_path / "e.zip", parts), "test/dog", "differ")
    alone = [(f"test/{name}", content) for name, content in images]  # the one folder around all, but a part
    refused(pack(tmp_path / "f.zip", alone), "holds only test, but no train/")


NAMES = ["/etc/passwd", "../escaped.png", "cat/../../escaped.png", "cat\\..\\escaped.png", "C:/escaped.png"]


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
@pytest.mark.parametrize("name", NAMES)
def test_members_that_leave_the_folder_are_refused(tmp_path, images, kind, name):
    refused(pack(tmp_path / f"pets.{kind}", [*images, (name, b"x")]), repr(name), "refused")


@pytest.mark.parametrize(("length", "shown"), [(200, 200), (201, 200), (5000, 200)])
def test_of_a_long_name_the_beginning_is_shown(tmp_path, images, length, shown):
    name = "../" + "n" * (length - 3)
    words = repr(name[:shown] + "..." * (length > shown))
    refused(pack(tmp_path / "pets.zip", [*images, (name, b"x")]), f"holds {words}, which may lie outside its folder")


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, images, kind):
    path = pack(tmp_path / "pets.tar", images)
    info = tarfile.TarInfo("cat/odd.png")
    info.type, info.linkname = kind, "/etc/passwd"
    with tarfile.open(path, "a") as file:
        file.addfile(info)
    refused(path, "'cat/odd.png'", "is a link" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else "no plain file")


@pytest.mark.parametrize(("mode", "word"), [(stat.S_IFLNK, "is a link"), (stat.S_IFIFO, "no plain file")])
def test_links_and_pipes_in_a_zip_are_refused(tmp_path, images, mode, word):
    path = pack(tmp_path / "pets.zip", images)
    info = zipfile.ZipInfo("cat/odd.png")
    info.external_attr = (mode | 0o644) << 16
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(info, "/etc/passwd")
    refused(path, "'cat/odd.png'", word)


def test_encrypted_members_are_refused(tmp_path, images):
    path = pack(tmp_path / "pets.zip", images)
    content = bytearray(path.read_bytes())
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + flags] |= 1
    path.write_bytes(content)
    refused(path, repr(images[0][0]), "is encrypted")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_a_name_that_is_there_twice_is_refused(tmp_path, images, kind):
    with silent():
        path = pack(tmp_path / f"pets.{kind}", [*images, images[3]])
    refused(path, repr(images[3][0]), "twice")


@pytest.mark.parametrize("kind", ["zip", "tar", "tar.gz"])
def test_an_image_of_absurd_size_is_refused_before_it_is_unpacked(tmp_path, images, kind, monkeypatch):
    monkeypatch.setattr(archive, "_MOST_BYTES", 100_000)
    path = pack(tmp_path / f"pets.{kind}", [*images, ("cat/huge.png", bytes(200_000))])
    refused(path, "'cat/huge.png'", "MiB unpacked")


@pytest.mark.parametrize("kind", ["zip", "tar.gz", "tar.xz", "tar.bz2"])
@pytest.mark.parametrize("name", ["cat/{}.bmp", "cat/{}.txt"])
def test_bombs_are_refused(tmp_path, images, kind, name, monkeypatch):
    """Of many members, each of which might be an image; a zip's others are never unpacked."""
    monkeypatch.setattr(archive, "_MOST_IN_ALL", 1_000_000)
    path = pack(tmp_path / f"pets.{kind}", [*images, *((name.format(i), bytes(1_000_000)) for i in range(9))])
    monkeypatch.setattr(archive, "_MOST_RATIO", 2)
    if kind == "zip" and name.endswith("txt"):
        assert len(open_source(path).listing.files) == 11
    else:
        refused(path, "decompression bomb")


@pytest.mark.parametrize(("mebibytes", "taken"), [(1000, True), (1050, False)])
def test_a_small_zip_may_hold_a_gibibyte_and_no_more(tmp_path, mebibytes, taken):
    """By what its table of contents says, which is all that is read."""
    path = pack(tmp_path / "pets.zip", [(f"{kind}/{i}.bmp", b"x") for kind in ("cat", "dog") for i in range(5)])
    content = bytearray(path.read_bytes())
    entry = content.find(b"PK\x01\x02")
    while entry >= 0:
        content[entry + 24 : entry + 28] = (mebibytes * 2**20 // 10).to_bytes(4, "little")
        entry = content.find(b"PK\x01\x02", entry + 1)
    path.write_bytes(content)
    if taken:
        assert len(open_source(path).listing.files) == 10
    else:
        refused(path, "more than 1.0 GiB unpacked", "decompression bomb")


def test_a_header_that_asks_for_memory_is_refused(tmp_path, monkeypatch):
    """A long name's length is what its header says, and tarfile reads it at once."""
    monkeypatch.setattr(archive, "_MOST_BYTES", 100_000)
    path = tmp_path / "pets.tar"
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    path.write_bytes(info.tobuf() + bytes(1024))
    refused(path, "more memory than an image takes")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_SPARSE, tarfile.XHDTYPE])
def test_a_size_below_zero_is_no_endless_loop(tmp_path, images, kind):
    path = pack(tmp_path / "pets.tar", images)
    with tarfile.open(path) as file:
        last = file.getmembers()[-1]
    info = tarfile.TarInfo("cat/notes.txt")
    info.type, info.size = kind, -512  # its data ends where it begins
    path.write_bytes(path.read_bytes()[: last.offset] + info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
    refused(path, str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_archive_says_what_to_do(tmp_path, images, kind):
    path = pack(tmp_path / f"pets.{kind}", images)
    whole = path.read_bytes()
    for content in (b"", b"nonsense", whole[: len(whole) // 2], whole[:1500]):
        path.write_bytes(content)
        refused(path, "cannot be read as an archive", "Unpack it")


def test_a_tar_that_ends_between_two_members_is_damaged(tmp_path, images):
    path = pack(tmp_path / "pets.tar", images)
    with tarfile.open(path) as file:
        cut = file.getmembers()[5].offset
    path.write_bytes(path.read_bytes()[:cut])
    refused(path, "cut short")


def test_a_damaged_header_within_a_tar_is_not_its_end(tmp_path, images):
    path = pack(tmp_path / "pets.tar", images)
    with tarfile.open(path) as file:
        offset = file.getmembers()[5].offset
    content = bytearray(path.read_bytes())
    content[offset + 3] ^= 0x55
    path.write_bytes(content)
    refused(path, "damaged")


def test_one_damaged_member_of_a_zip_is_one_bad_file(tmp_path, images, cache_dir):
    path = pack(tmp_path / "pets.zip", images)
    with zipfile.ZipFile(path) as file:
        info = file.getinfo(images[2][0])
    content = bytearray(path.read_bytes())
    content[info.header_offset + 30 + len(info.filename) + info.compress_size // 2] ^= 0xFF
    path.write_bytes(content)
    found = prepare(path, cache_dir=cache_dir)
    assert [file.path for file in found.bad_files] == [str(path / images[2][0])]
    assert "cannot be unpacked" in found.bad_files[0].reason
    assert len(found) == len(found.files) == 10


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python reads Zstandard")
def test_zstandard_needs_a_python_that_has_it(tmp_path):
    path = tmp_path / "pets.tar.zst"
    path.write_bytes(b"\x28\xb5\x2f\xfd" + bytes(100))
    refused(path, "Zstandard", "3.14")


@settings(max_examples=150, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["zip", "tar", "tar.gz"]))
def test_garbled_archives_are_read_or_refused(tmp_path_factory, data, kind):
    """Whatever bytes change: images, or a sentence; never another error."""
    root = tmp_path_factory.mktemp("garbled")
    path = pack(root / f"pets.{kind}", [(f"{name}/{i}.png", bytes([i]) * 50) for name in "ab" for i in range(3)])
    content = bytearray(gzip.decompress(path.read_bytes()) if kind == "tar.gz" else path.read_bytes())
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(gzip.compress(content, 1) if kind == "tar.gz" else content)
    try:
        source = open_source(path)
        source.default_size()
        rows = [row for chunk in source.load(None).chunks(4) for row in chunk.rows]
        assert sorted(rows) == list(range(len(source.listing.labels)))
    except UserError:
        pass


HOSTILE = st.lists(st.sampled_from(["a", "b", "..", ".", "", "train", "1.png", "x\0y", "é", "C:", "\\"]), max_size=5)


@settings(max_examples=150, deadline=None)
@given(names=st.lists(HOSTILE.map("/".join), max_size=8), kind=st.sampled_from(["zip", "tar"]))
def test_hostile_names_stay_inside_or_are_refused(tmp_path_factory, names, kind):
    root = tmp_path_factory.mktemp("hostile")
    fine = [(f"{name}/{i}.png", b"x") for name in "ab" for i in range(2)]
    with silent():
        path = pack(
            root / f"pets.{kind}", [*fine, *((name, b"" if name.endswith("/") else b"x") for name in names if name)]
        )
    try:
        listing = open_source(path).listing
    except UserError:
        return
    for file in listing.paths():
        assert Path(os.path.normpath(file)).is_relative_to(path)

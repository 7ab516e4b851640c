"""Caltech-101 from small archives laid out like the real one: whole, damaged, hostile, absent."""

import gzip
import hashlib
import io
import shutil
import tarfile
import zipfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from csham.data import prepare
from csham.data.sources import caltech101
from csham.errors import UserError

NOWHERE = "http://127.0.0.1:9/caltech-101.zip"  # the discard port: refused at once
SHARED = Path(__file__).parents[4] / "shared" / "data" / "caltech101-128px.zip"

# Class: size and mode of its images, as they vary in the original.
CLASSES = {
    "accordion": [((300, 200), "RGB"), ((200, 300), "RGB"), ((90, 300), "RGB")],
    "Faces": [((300, 200), "RGB"), ((40, 30), "RGB"), ((300, 200), "L")],
    "BACKGROUND_Google": [((300, 150), "RGB"), ((150, 150), "L"), ((120, 200), "RGB")],
}


def jpeg(size, mode, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).resize(size).save(file, "JPEG", quality=95)
    return file.getvalue()


def tar_of(add=()):
    """The inner archive: the classes, a stray file that the original has, and ``add``, pairs of member and bytes."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        members = [(tarfile.TarInfo("101_ObjectCategories/BACKGROUND_Google/tmp"), b"stray")]
        for name, images in CLASSES.items():
            for number, (size, mode) in enumerate(images, 1):
                path = f"101_ObjectCategories/{name}/image_{number:04}.jpg"
                members.append((tarfile.TarInfo(path), jpeg(size, mode, number + len(name))))
        for member, content in [*members, *add]:
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


def zip_of(inner, name="caltech-101/101_ObjectCategories.tar.gz"):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as outer:
        outer.writestr("caltech-101/Annotations.tar", b"not read")
        outer.writestr(name, inner)
    return file.getvalue()


@pytest.fixture
def publish(monkeypatch, cache_dir):
    """Put an archive where one downloaded by hand belongs, and take its checksum for the real one's."""

    def publish(content):
        path = cache_dir / "downloads" / "caltech-101.zip"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        monkeypatch.setattr(caltech101, "MD5", hashlib.md5(content).hexdigest())
        monkeypatch.setattr(caltech101, "URL", NOWHERE)
        return path

    return publish


@pytest.fixture
def serve(publish, tmp_path, monkeypatch):
    """Publish an archive on a server of this machine instead; gives its path there."""
    folder = tmp_path / "published"
    folder.mkdir()

    class Silent(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    def serve(content):
        publish(content).rename(folder / "caltech-101.zip")
        monkeypatch.setattr(caltech101, "URL", f"http://127.0.0.1:{server.server_port}/caltech-101.zip")
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        return folder / "caltech-101.zip"

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=folder)) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield serve
        server.shutdown()


def nothing_half_written(cache_dir):
    return not [path for path in (cache_dir / "packed").glob("*") if path.is_dir()]


def refused(cache_dir, *words):
    with pytest.raises(UserError) as caught:
        prepare("caltech101", cache_dir=cache_dir)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert nothing_half_written(cache_dir)


def test_without_the_background_class(publish, cache_dir):
    publish(zip_of(tar_of()))
    said = []
    found = prepare("caltech101", cache_dir=cache_dir, progress=lambda done, total, what: said.append(what))
    assert found.classes == ("Faces", "accordion")
    assert found.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.source == "caltech101"
    assert found.image_size == 128
    assert found.images.shape == (6, 146, 146, 3)
    assert found.describe()["test_part"] == "20% of each class, by seed"
    assert (found.bad_files, found.ignored_files) == ([], 0)
    assert said[:3] == ["reading caltech101", "unpacking caltech101", "decoding"]
    assert {path.name for path in found.path.iterdir()} == {
        "images.npy", "labels.npy", "meta.json", "parts.npy", "sums.npy",
    }  # fmt: skip


def test_with_the_background_class_and_greyscale(publish, cache_dir):
    publish(zip_of(tar_of()))
    without = prepare("caltech101", image_size=32, cache_dir=cache_dir)
    found = prepare("caltech101-background", image_size=32, cache_dir=cache_dir)
    assert found.classes == ("BACKGROUND_Google", "Faces", "accordion")
    assert found.ignored_files == 1
    assert np.array_equal(found.images[3:], without.images)
    grey = found.images[[1, 5]]
    assert (grey == grey[..., :1]).all()
    assert len(np.unique(grey)) > 10


def test_pixels_are_the_files_centre_squares(publish, cache_dir):
    publish(zip_of(tar_of()))
    found = prepare("caltech101", image_size=200, cache_dir=cache_dir).images[0]  # Faces, 300 x 200; stored 229
    original = Image.open(io.BytesIO(jpeg((300, 200), "RGB", 1 + len("Faces"))))
    square = original.crop((50, 0, 250, 200)).resize((229, 229), Image.Resampling.BICUBIC)
    assert np.abs(found.astype(int) - np.asarray(square)).max() <= 1


def test_downloaded_once_and_kept(serve, cache_dir, capfd):
    published = serve(zip_of(tar_of()))
    said = []
    prepare("caltech101", cache_dir=cache_dir, progress=lambda done, total, what: said.append(what))
    assert said[0] == "downloading caltech101 (137 MB)"
    assert [path.name for path in (cache_dir / "downloads").iterdir()] == ["caltech-101.zip"]
    assert capfd.readouterr() == ("", "")
    published.unlink()
    assert len(prepare("caltech101", image_size=32, cache_dir=cache_dir)) == 6
    shutil.rmtree(cache_dir / "downloads")
    assert prepare("caltech101", cache_dir=cache_dir).from_cache


def test_no_network(publish, cache_dir):
    publish(b"anything").unlink()
    path = cache_dir / "downloads" / "caltech-101.zip"
    refused(cache_dir, "no network?", NOWHERE, caltech101.MD5, str(path), "image folder")
    assert not list(path.parent.iterdir())


def test_a_truncated_archive(publish, cache_dir):
    whole = zip_of(tar_of())
    path = publish(whole)
    path.write_bytes(whole[:-100])
    refused(cache_dir, f"{path} is damaged", caltech101.MD5, "image folder")
    assert path.read_bytes() == whole[:-100], "what was put there by hand stays"


def test_a_damaged_archive_is_downloaded_again(serve, cache_dir):
    serve(zip_of(tar_of()))
    (cache_dir / "downloads" / "caltech-101.zip").write_bytes(b"half")
    assert len(prepare("caltech101", cache_dir=cache_dir)) == 6


def test_a_download_with_a_wrong_checksum(serve, cache_dir):
    serve(zip_of(tar_of())).write_bytes(b"something else")
    refused(cache_dir, "what came has a wrong checksum", caltech101.MD5)
    assert not list((cache_dir / "downloads").iterdir())


@pytest.mark.parametrize(
    "content",
    [
        b"no archive at all",
        zip_of(tar_of()[:-60]),
        zip_of(gzip.compress(b"no tar" * 1000)),
        zip_of(b"no gzip"),
        zip_of(tar_of(), name="other/101_ObjectCategories.tar.gz"),
    ],
    ids=["no zip", "tar cut short", "no tar", "no gzip", "lacks the images"],
)
def test_an_archive_that_cannot_be_unpacked(publish, cache_dir, content):
    publish(content)
    refused(cache_dir, "caltech-101.zip cannot be unpacked", "Remove it")


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


@pytest.mark.parametrize(
    "hostile",
    [
        member("101_ObjectCategories/Faces/../../../../escaped.jpg"),
        member("../escaped.jpg"),
        member("/tmp/escaped.jpg"),
        member("101_ObjectCategories\\..\\escaped.jpg"),
        member("101_ObjectCategories/Faces/link.jpg", tarfile.SYMTYPE, "/etc/passwd"),
        member("101_ObjectCategories/ant", tarfile.SYMTYPE, "/tmp"),
        member("101_ObjectCategories/Faces/hard.jpg", tarfile.LNKTYPE, "101_ObjectCategories/Faces/image_0001.jpg"),
        member("101_ObjectCategories/Faces/pipe.jpg", tarfile.FIFOTYPE),
        member("101_ObjectCategories/Faces/device.jpg", tarfile.CHRTYPE),
    ],
    ids=lambda info: info.name,
)
def test_hostile_members_are_refused(publish, cache_dir, hostile, tmp_path):
    publish(zip_of(tar_of([(hostile, b"")])))
    refused(cache_dir, repr(hostile.name), "refused", "image folder")
    assert not list(tmp_path.rglob("escaped*"))


def test_members_that_belong_to_no_class_are_left_out(publish, cache_dir):
    publish(zip_of(tar_of([(member("101_ObjectCategories/image.jpg"), b"x"), (member("README"), b"x")])))
    assert len(prepare("caltech101", cache_dir=cache_dir)) == 6


def test_a_bad_file_is_named_by_its_place_in_the_archive(publish, cache_dir):
    publish(zip_of(tar_of([(member("101_ObjectCategories/Faces/image_0009.jpg"), b"nonsense")])))
    found = prepare("caltech101", cache_dir=cache_dir)
    assert [file.path for file in found.bad_files] == ["Faces/image_0009.jpg"]


def test_a_folder_with_the_background_class_says_so(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "101_ObjectCategories", {"BACKGROUND_Google": 2, "ant": 2})
    found = prepare(root, cache_dir=cache_dir)
    assert found.classes == ("BACKGROUND_Google", "ant")
    assert "BACKGROUND_Google is one of the classes" in found.notes[0]


def test_torchvision_agrees_on_classes_and_labels(publish, cache_dir, tmp_path):
    """The oracle for the layout: torchvision's own reading of the same images."""
    from torchvision.datasets import Caltech101

    publish(zip_of(tar_of()))
    found = prepare("caltech101", cache_dir=cache_dir)
    with tarfile.open(fileobj=io.BytesIO(tar_of())) as tar:
        tar.extractall(tmp_path / "caltech101", filter="data")
    theirs = Caltech101(tmp_path)
    assert found.classes == tuple(theirs.categories)
    assert found.labels.tolist() == theirs.y


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_file(), reason="needs ../shared/data/caltech101-128px.zip")
def test_the_real_images_as_a_folder(tmp_path, cache_dir):
    with zipfile.ZipFile(SHARED) as source:
        source.extractall(tmp_path)
    found = prepare(tmp_path / "101_ObjectCategories", image_size=32, cache_dir=cache_dir)
    assert (len(found), len(found.classes), found.bad_files) == (9144, 102, [])
    assert np.bincount(found.labels).min() == 31
    split = found.split(0)
    assert len(split.test) == pytest.approx(0.2 * 9144, abs=51)  # half an image for each class

"""The images that a command line names, in order, whatever they are called."""

import os

import pytest

from csham.errors import UserError
from csham.inference import ImageFiles


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder, and files of no content: listing does not open them."""
    monkeypatch.chdir(tmp_path)
    for name in ("b/z.png", "b/a/1.JPG", "b-x.webp", "b.gif", "b/notes.txt", ".hidden.png", ".git/a.png", "10.bmp"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path


@pytest.fixture
def given():
    """Function that puts bytes on a pipe and returns its descriptor."""
    opened = []

    def give(content):
        reading, writing = os.pipe()
        opened.append(reading)
        os.write(writing, content)
        os.close(writing)
        return reading

    yield give
    for descriptor in opened:
        os.close(descriptor)


def test_a_folder_is_searched_to_the_bottom_and_sorted_by_path(tree):
    found = list(ImageFiles(["photos"]))
    assert found == ["photos/10.bmp", "photos/b-x.webp", "photos/b.gif", "photos/b/a/1.JPG", "photos/b/z.png"]
    assert found == sorted(found)
    assert list(ImageFiles(["photos/"])) == found
    assert ImageFiles(["photos", "photos/b/z.png"]).count() == 6


def test_files_are_given_as_named_whatever_their_ending(tree):
    names = ["photos/b/notes.txt", "photos//b/../b.gif", "photos/.hidden.png"]
    files = ImageFiles(names)
    files.check()
    assert list(files) == names


def test_photographs_that_pillow_cannot_read_are_left_out_and_said(tree, given):
    for name in ("photos/b/1.HEIC", "photos/2.nef", "raw/3.cr2"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()
    said = r"photos: 2 files left out by name: 1 \.heic, 1 \.nef; Pillow cannot read .* convert them to JPEG"
    for files in (ImageFiles(["photos"]), ImageFiles(["-"], stdin=given(b"photos\n"))):
        with pytest.warns(UserWarning, match=said) as warned:
            assert len(list(files)) == 5
        assert len(warned) == 1
    assert ImageFiles(["photos"]).count() == 5
    assert list(ImageFiles(["raw/3.cr2"])) == ["raw/3.cr2"]
    with pytest.raises(UserError, match=r"no file below the folder raw .* \(1 file left out by name: 1 \.cr2"):
        ImageFiles(["raw"]).check()


def test_listing_begins_before_it_has_seen_everything(tree, monkeypatch):
    listed = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda folder: listed.append(folder) or scandir(folder))
    paths = iter(ImageFiles(["photos"]))
    assert next(paths) == "photos/10.bmp"
    assert listed == ["photos"]


def test_links_are_followed_and_circles_are_not(tree):
    (tree / "photos/b/again").symlink_to(tree / "photos")
    (tree / "more").mkdir()
    (tree / "more/c.png").touch()
    (tree / "photos/more").symlink_to(tree / "more")
    (tree / "photos/self.png").symlink_to("self.png")
    (tree / "photos/dead.png").symlink_to("nowhere")
    found = list(ImageFiles(["photos"]))
    assert {"photos/more/c.png", "photos/self.png", "photos/dead.png"} <= set(found)
    assert not [path for path in found if "again" in path]
    ImageFiles(["photos/dead.png"]).check()


def test_pipes_in_a_folder_are_left_alone(tree):
    os.mkfifo(tree / "photos/pipe.png")
    assert "photos/pipe.png" not in list(ImageFiles(["photos"]))


def test_a_folder_that_cannot_be_listed_is_given_itself(tree, monkeypatch):
    scandir = os.scandir

    def refuse(folder):
        if folder == "photos/b":
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    assert list(ImageFiles(["photos"])) == ["photos/10.bmp", "photos/b-x.webp", "photos/b.gif", "photos/b"]


def test_standard_input_has_a_path_a_line(tree, given):
    (tree / "empty").mkdir()
    lines = b"photos/b.gif\n\nphotos/b\r\nnot there.png\nempty\n\xff \xc3\xa4.png"
    files = ImageFiles(["x.png", "-"], stdin=given(lines))
    assert files.count() is None
    expected = ["x.png", "photos/b.gif", "photos/b/a/1.JPG", "photos/b/z.png", "not there.png", "empty"]
    assert list(files) == [*expected, os.fsdecode(b"\xff \xc3\xa4.png")]


def test_paths_that_end_with_nul_may_hold_lines(given):
    assert list(ImageFiles(["-"], null=True, stdin=given(b"a\nb.png\0c\r\0"))) == ["a\nb.png", "c\r"]
    for content in (b"a.png\0b.png\0", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"):
        with pytest.raises(UserError, match="--null"):
            list(ImageFiles(["-"], stdin=given(content)))


def test_paths_longer_than_a_block(given, monkeypatch):
    monkeypatch.setattr("csham.inference.image_files._BLOCK", 3)
    assert list(ImageFiles(["-"], stdin=given(b"abcdefg.png\nh.png\n"))) == ["abcdefg.png", "h.png"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["photos", "phots"], "no file or folder 'phots'"),
        ([""], "no file or folder ''"),
        (["photos/*.tiff"], "the pattern matched nothing"),
        (["photos/none"], "no file below the folder photos/none is an image by its name"),
        (["-", "photos", "-"], "give it once"),
    ],
)
def test_what_is_not_there_is_said_at_once(tree, names, words):
    (tree / "photos/none").mkdir()
    (tree / "photos/none/notes.txt").touch()
    with pytest.raises(UserError, match=words.replace("*", r"\*")):
        ImageFiles(names).check()

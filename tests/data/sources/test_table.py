"""Tables of paths and labels: what their columns may be called, and faults told by their line."""

import os
import shutil

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from csham.data import prepare
from csham.data.dataset import describe_data
from csham.data.sources import open_source
from csham.data.split import TEST, TRAIN, VALIDATION
from csham.errors import UserError


def write(folder, *lines, name="pets.csv", encoding="utf-8"):
    path = folder / name
    path.write_bytes("\n".join([*lines, ""]).encode(encoding))
    return path


def lines_of(root, folder):
    """One line for each image: its path, class and part."""
    found = sorted(root.rglob("*.png"), reverse=True)
    return [f"{path.relative_to(folder)},{path.parent.name},{path.parent.parent.name}" for path in found]


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        open_source(path)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 900


FEW = ["cat/000.png,cat", "cat/001.png,cat", "dog/000.png,dog", "dog/001.png,dog"]


def test_a_table_is_the_folder_that_it_lists(tmp_path, fill, cache_dir):
    root = fill(tmp_path / "pets", {"train/cat": 3, "train/dog": 2, "test/cat": 2, "test/dog": 1}, side=70)
    folder = prepare(root, cache_dir=cache_dir)
    found = prepare(write(tmp_path, "path,label,part", *lines_of(root, tmp_path)), cache_dir=cache_dir)
    assert describe_data(found) == describe_data(folder)
    np.testing.assert_array_equal(found.images, folder.images)
    assert (found.name, found.image_size) == ("pets.csv", 64)
    assert found.files == [f"pets/{file}" for file in folder.files]
    assert prepare(tmp_path / "pets.csv", cache_dir=cache_dir).from_cache


@pytest.mark.parametrize(
    "header", ["path,label", "image,class", "File,Label", " filename ,class_name", "file_name,category"]
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_names_of_columns_and_delimiters(two_classes, header, delimiter):
    path = write(two_classes, *(line.replace(",", delimiter) for line in [header, *FEW]))
    assert open_source(path).listing.files == [line.split(",")[0] for line in FEW]


def test_a_tsv_may_hold_commas(two_classes):
    shutil.copy(two_classes / "cat/000.png", two_classes / "a, b.png")
    lines = [line.replace(",", "\t") for line in ["path,label", *FEW]]
    path = write(two_classes, *lines, "a, b.png\tdog", name="pets.tsv")
    assert "a, b.png" in open_source(path).listing.files


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(two_classes, encoding):
    path = write(two_classes, "path,label", *(line.replace(",dog", ",Hündin") for line in FEW), encoding=encoding)
    assert open_source(path).listing.classes == ("Hündin", "cat")


def test_other_columns_are_named_behind_a_colon(two_classes, cache_dir):
    lines = [f"{line},{'test' if '001' in line else 'train'},x" for line in FEW]
    path = write(two_classes, "where,species,fold,label", *lines)
    found = prepare(f"{path}:where,species", cache_dir=cache_dir)
    assert (found.classes, found.parts.tolist()) == (("cat", "dog"), [TRAIN] * 4)
    found = prepare(f"{path}:where,species,fold", cache_dir=cache_dir)
    assert (found.parts == TEST).sum() == 2
    refused(path, "no column for the path", "where, species, fold, label", "colon")
    refused(f"{path}:where,kind", "no one column 'kind'", "species")
    refused(f"{path}:where", "where, species", "TABLE:PATH,LABEL")


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        (["train", "val", "train", "valid"], [TRAIN, TRAIN, TEST, TEST]),
        (["Train", "TEST", "training", "testing"], [TRAIN, TRAIN, TEST, TEST]),
    ],
)
def test_parts(two_classes, parts, expected):
    path = write(two_classes, "path,label,split", *(f"{line},{part}" for line, part in zip(FEW, parts, strict=True)))
    assert open_source(path).listing.parts.tolist() == expected


def test_validation_and_test_part(two_classes):
    lines = [
        f"{kind}/00{i}.png,{kind},{part}"
        for kind in ("cat", "dog")
        for i, part in enumerate(("train", "validation", "test"))
    ]
    listing = open_source(write(two_classes, "path,label,part", *lines)).listing
    assert listing.parts.tolist() == [TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("cat/002.png,", "line 6 of {} has no label"),
        (",cat", "line 6 of {} has no path"),
        ("cat/002.png", "line 6 of {} has 1 columns and the first line 2"),
        ("cat/002.png,cat,test", "line 6 of {} has 3 columns"),
        ("cat/002.png,a/b", "line 6 of {}: 'a/b' cannot be a class's name"),
        ("cat/002.png,a\x07", "cannot be a class's name"),
        ('"cat/002.png,cat', "line 6 of {} cannot be read"),
    ],
)
def test_a_fault_is_told_by_its_line(two_classes, line, words):
    path = write(two_classes, "path,label", *FEW, line)
    refused(path, words.format(path))


def test_parts_that_cannot_be(two_classes):
    header, lines = "path,label,part", [f"{line},train" for line in FEW]
    refused(write(two_classes, header, *lines, "cat/002.png,cat,dev"), "line 6", "unknown part 'dev'", "valid")
    refused(write(two_classes, header, *lines, "cat/002.png,cat,"), "line 6", "has no part")
    refused(
        write(two_classes, header, *(line.replace("train", "test") for line in lines)), "no training images", "test"
    )
    refused(write(two_classes, header, *lines, "cat/002.png,cat,test"), "Missing: test/dog", "train and test")


def test_tables_that_cannot_be_trained_on(two_classes):
    refused(write(two_classes, "path,label"), "names no images")
    refused(write(two_classes), "no column for the path", "it has none")
    refused(write(two_classes, "path,label", *FEW[:2]), "only one class, 'cat'")
    refused(write(two_classes, "path,file,label", "a,b,c"), "several columns that could be its path")
    refused(
        write(two_classes, "path,label", "x/1.png,a", "x/2.png,b"), "none of the 2 files", str(two_classes / "x/1.png")
    )


def test_no_utf8(two_classes):
    path = write(two_classes, "path,label", *FEW, "cat/002.png,Höhle", encoding="latin-1")
    refused(path, "line 6", "UTF-8")


def test_repeated_lines_count_once(two_classes, cache_dir):
    path = write(two_classes, "path,label", *FEW, "", FEW[0], FEW[3], FEW[3])
    found = prepare(path, cache_dir=cache_dir)
    assert len(found) == 4
    assert found.notes == ["left out 3 lines with what an earlier line says"]


def test_one_file_under_two_classes_is_told_as_in_folders(two_classes, cache_dir):
    found = prepare(write(two_classes, "path,label", *FEW, "cat/000.png,dog"), cache_dir=cache_dir)
    assert found.describe()["duplicates"]["under_two_classes"] == [["cat/000.png", "cat/000.png"]]


def test_files_that_are_bad(two_classes, cache_dir):
    os.mkfifo(two_classes / "cat/pipe.png")  # opening it would wait for ever
    (two_classes / "cat/text.png").write_text("no image")
    bad = ["gone.png,cat", "cat/pipe.png,cat", "cat/text.png,cat", "cat,cat", "cat/nul\0.png,cat"]
    path = write(two_classes, "path,label", *FEW, *bad)
    found = prepare(path, cache_dir=cache_dir)
    reasons = {file.path.removeprefix(f"{two_classes}/"): file.reason for file in found.bad_files}
    assert reasons == {
        "gone.png (line 6)": "no such file (a broken link?)",
        "cat/pipe.png (line 7)": "no plain file",
        "cat/text.png (line 8)": "not an image that Pillow can read",
        "cat (line 9)": "no plain file",
        "cat/nul\0.png (line 10)": "no such file (its path holds a NUL character)",
    }
    assert found.files == [line.split(",")[0] for line in FEW]


def test_too_many_bad_files_are_told_with_the_table_and_their_lines(two_classes, cache_dir):
    path = write(two_classes, "path,label", *FEW, "gone.png,cat", "cat/away.png,cat")
    with pytest.raises(UserError) as err:
        prepare(path, cache_dir=cache_dir, max_bad=1)
    for words in (str(path), f"{two_classes}/gone.png (line 6): no such file", f"{two_classes}/cat/away.png (line 7)"):
        assert words in str(err.value)
    prepare(path, cache_dir=cache_dir)
    with pytest.raises(UserError, match="2 files") as err:  # from the cache too
        prepare(path, cache_dir=cache_dir, max_bad=1)
    assert str(path) in str(err.value)


def test_a_class_without_a_file_is_told_with_the_table_and_a_line(two_classes, cache_dir):
    path = write(two_classes, "path,label", *FEW, "gone.png,cow", "away.png,cow")
    with pytest.raises(UserError, match="class 'cow'") as err:
        prepare(path, cache_dir=cache_dir)
    assert str(path) in str(err.value)
    assert f"{two_classes}/away.png (line 7)" in str(err.value)


def test_paths_elsewhere_say_nothing_of_what_is_there(two_classes, tmp_path, cache_dir):
    """Whoever wrote the table may name any file; of one that is no image nothing but that is told."""
    (tmp_path / "secret.txt").write_text("the password is swordfish")
    folder = tmp_path / "tables"
    folder.mkdir()
    lines = [f"../pets/{line}" for line in FEW[:2]] + [f"{two_classes}/{line}" for line in FEW[2:]]
    found = prepare(write(folder, "path,label", *lines, "../secret.txt,cat"), cache_dir=cache_dir)
    assert len(found) == 4
    assert [file.reason for file in found.bad_files] == ["not an image that Pillow can read"]
    assert "swordfish" not in str(found.describe())


def test_a_changed_table_or_file_is_packed_anew(two_classes, cache_dir):
    path = write(two_classes, "path,label", *FEW)
    prepare(path, cache_dir=cache_dir)
    write(two_classes, "path,label", *FEW, "cat/002.png,cat")
    assert len(prepare(path, cache_dir=cache_dir)) == 5
    shutil.copy(two_classes / "cat/005.png", two_classes / "cat/000.png")
    assert prepare(path, cache_dir=cache_dir).rebuilt == "its source, or the way it is read, has changed since"


@settings(max_examples=200, deadline=None)
@example(content=b".,0\n\0,1")  # a folder, and a path that nothing can have
@given(
    content=st.binary(max_size=200) | st.text(alphabet='path,label\n"\tcatdog/01.\0é;|', max_size=200).map(str.encode)
)
def test_any_bytes_are_read_or_refused(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("any") / "pets.csv"
    for text in (content, b"path,label\n" + content):
        path.write_bytes(text)
        with pytest.raises(UserError):  # not one of the files is there
            open_source(path)

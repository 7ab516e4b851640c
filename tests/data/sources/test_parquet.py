"""Parquet files as Hugging Face's datasets writes them: parts, features, what is ambiguous, what is damaged."""

import io
import json
import subprocess
import sys
from contextlib import nullcontext

import numpy as np
import pytest
from PIL import Image

from csham.data import packing, prepare
from csham.data.packing import open_packed
from csham.data.sources import check_apart, open_source, parquet
from csham.data.sources.parquet import ParquetSource
from csham.data.split import TEST, TRAIN, VALIDATION
from csham.errors import UserError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FIELDS = [("image", IMAGE), ("label", pa.int64())]
NAMES = ["zebra", "ant"]


def png(seed, side=40):
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def rows(count, first=0):
    return [{"image": {"bytes": png(first + i), "path": f"{i}.png"}, "label": i % 2} for i in range(count)]


def features(**kinds):
    return {"image": {"_type": "Image"}, **kinds}


CLASS_LABEL = {"_type": "ClassLabel", "names": NAMES}


def write(path, rows, fields=FIELDS, said=None, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    said = features(label=CLASS_LABEL) if said is None else said
    schema = pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": said}})})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, **settings)
    return path


def refused(path, *words):
    with pytest.raises(UserError) as caught:
        open_source(path)
    for word in words:
        assert word in str(caught.value), str(caught.value)
    assert len(str(caught.value)) < 900


@pytest.mark.parametrize("group", [3, 1000])
def test_one_file(tmp_path, cache_dir, group):
    path = write(tmp_path / "train.parquet", rows(10), row_group_size=group)
    found = prepare(path, cache_dir=cache_dir)
    assert (found.classes, found.labels.tolist(), found.parts.tolist()) == (("zebra", "ant"), [0, 1] * 5, [TRAIN] * 10)
    assert found.image_size == 32
    for row in range(10):
        pixels = Image.open(io.BytesIO(png(row))).resize((32, 32), Image.Resampling.BICUBIC, reducing_gap=3.0)
        np.testing.assert_array_equal(found.images[row], pixels)
    assert found.name_of(9) == "train.parquet row 9"
    assert prepare(str(path), cache_dir=cache_dir).from_cache


@pytest.mark.parametrize(
    "names", ["{}-00000-of-00001.parquet", "data/{}-00000-of-00001-ab12.parquet", "{}/0000.parquet"]
)
def test_shards_and_parts(tmp_path, names):
    for number, part in enumerate(("train", "validation", "test")):
        write(tmp_path / "hf" / names.format(part), rows(4, first=4 * number))
    (tmp_path / "hf/README.md").write_text("a card")
    listing = open_source(tmp_path / "hf").listing
    assert sorted(listing.parts.tolist()) == [TRAIN] * 4 + [VALIDATION] * 4 + [TEST] * 4
    assert {
        name.split(" row ")[0] for name, part in zip(listing.files, listing.parts, strict=True) if part == TEST
    } == {names.format("test")}


def test_shards_without_parts_all_train_and_validation_alone_is_the_test_part(tmp_path):
    for number in range(2):
        write(tmp_path / "a" / f"000{number}.parquet", rows(4))
    assert open_source(tmp_path / "a").listing.parts.tolist() == [TRAIN] * 8
    write(tmp_path / "b/train-0.parquet", rows(4))
    write(tmp_path / "b/validation-0.parquet", rows(2))
    assert open_source(tmp_path / "b").listing.parts.tolist() == [TRAIN] * 4 + [TEST] * 2


def with_parts(count, said):
    return [row | {"split": said[i // 2 % len(said)]} for i, row in enumerate(rows(count))]


def test_a_column_says_which_rows_test(tmp_path):
    fields = [*FIELDS, ("split", pa.string())]
    listing = open_source(
        write(tmp_path / "one.parquet", with_parts(12, ["train", "Validation", "test"]), fields)
    ).listing
    assert listing.parts.tolist() == [TRAIN, TRAIN, VALIDATION, VALIDATION, TEST, TEST] * 2
    for number in range(2):  # more than what the files are called
        write(tmp_path / f"a/train-{number}.parquet", with_parts(4, ["train", "test"]), fields)
    assert open_source(tmp_path / "a").listing.parts.tolist() == [TRAIN, TRAIN, TEST, TEST] * 2
    write(tmp_path / "a/more.parquet", rows(4))
    refused(tmp_path / "a", "more.parquet", "no column part or split")


@pytest.mark.filterwarnings("ignore:one.parquet is packed anew")
def test_what_was_packed_without_its_parts_is_packed_anew(tmp_path, cache_dir, monkeypatch):
    path = write(tmp_path / "one.parquet", with_parts(12, ["train", "test"]), [*FIELDS, ("split", pa.string())])
    monkeypatch.setattr(parquet, "PART_COLUMNS", ())
    assert not prepare(path, cache_dir=cache_dir).parts.any()
    monkeypatch.undo()
    assert open_packed(path, image_size=32, cache_dir=cache_dir) is None
    again = prepare(path, cache_dir=cache_dir)
    assert again.rebuilt == "its source is read otherwise now"
    assert again.parts.tolist() == [TRAIN, TRAIN, TEST, TEST] * 3
    assert prepare(path, cache_dir=cache_dir).from_cache


def test_a_column_of_that_name_that_says_something_else(tmp_path):
    path = write(tmp_path / "x.parquet", with_parts(8, ["head", "tail"]), [*FIELDS, ("split", pa.string())])
    refused(path, "row 0", "unknown part 'head' in column 'split'", "DATA:IMAGE,LABEL")
    assert open_source(f"{path}:image,label").listing.parts.tolist() == [TRAIN] * 8


@pytest.mark.parametrize(
    ("data", "place", "free"),
    [
        ("hf/data", "hf/runs/one", True),
        ("hf/data/train-0.parquet", "hf/data/runs/one", True),
        ("hf", "hf/.runs/one", True),
        ("hf", "hf/runs/one", False),
        ("hf:label", "hf/runs/one", False),
    ],
)
def test_a_run_that_would_make_it_an_image_folder_is_refused(tmp_path, data, place, free):
    write(tmp_path / "hf/data/train-0.parquet", rows(4))
    with nullcontext() if free else pytest.raises(UserError, match=r"no pictures lie beside them\. Name another\."):
        check_apart(f"{tmp_path}/{data}", tmp_path / place, "Name another.")
    picture = tmp_path / place / "curves.png"
    picture.parent.mkdir(parents=True)
    picture.write_bytes(png(0))
    with nullcontext() if free else pytest.raises(UserError):
        open_source(f"{tmp_path}/{data}")


@pytest.mark.parametrize("name", ["._train-0.parquet", ".ipynb_checkpoints/train-0-checkpoint.parquet"])
def test_what_programs_leave_behind_is_passed_over(tmp_path, name):
    write(tmp_path / "a/train-0.parquet", rows(4))
    write(tmp_path / "a" / name, rows(4)).write_bytes(b"no Parquet")
    assert len(open_source(tmp_path / "a").listing.labels) == 4


def test_shards_that_differ(tmp_path):
    write(tmp_path / "a/train-0.parquet", rows(4))
    write(tmp_path / "a/more.parquet", rows(4))
    refused(tmp_path / "a", "more.parquet", "does not say its part")
    write(tmp_path / "b/train-0.parquet", rows(4))
    write(tmp_path / "b/test-0.parquet", rows(1))
    refused(tmp_path / "b", "Missing: test/ant")
    write(tmp_path / "c/test-0.parquet", rows(4))
    refused(tmp_path / "c", "no training images")


def test_a_folder_of_images_with_a_parquet_file_beside_them_is_a_folder(two_classes, cache_dir):
    write(two_classes / "meta.parquet", rows(2))
    found = prepare(two_classes, cache_dir=cache_dir)
    assert (found.classes, len(found), found.ignored_files) == (("cat", "dog"), 11, 1)


@pytest.mark.parametrize(
    ("kind", "labels", "classes"),
    [
        (pa.string(), ["b", "a"], ("a", "b")),
        (pa.large_string(), ["b", "a"], ("a", "b")),
        (pa.int32(), [10, 9], ("9", "10")),
        (pa.dictionary(pa.int32(), pa.string()), ["b", "a"], ("a", "b")),
    ],
)
def test_labels_without_names(tmp_path, kind, labels, classes):
    data = [{"img": row["image"]["bytes"], "label": labels[row["label"]]} for row in rows(4)]
    path = write(tmp_path / "x.parquet", data, [("img", pa.binary()), ("label", kind)], {})
    listing = open_source(path).listing
    assert listing.classes == classes
    assert [listing.classes[label] for label in listing.labels] == [str(label) for label in labels * 2]


def test_classes_without_images_are_left_out(tmp_path):
    path = write(
        tmp_path / "x.parquet", rows(4), said=features(label={"_type": "ClassLabel", "names": [*NAMES, "yak"]})
    )
    listing = open_source(path).listing
    assert (listing.classes, listing.notes) == (("zebra", "ant"), ["left out 1 class without images: yak"])


def two_labels(tmp_path):
    data = [{"img": row["image"], "fine_label": i % 3, "coarse_label": i % 2} for i, row in enumerate(rows(6))]
    fields = [("img", IMAGE), ("fine_label", pa.int64()), ("coarse_label", pa.int64())]
    said = {"img": {"_type": "Image"}} | {
        f"{kind}_label": {"_type": "ClassLabel", "names": [f"{kind}{i}" for i in range(count)]}
        for kind, count in (("fine", 3), ("coarse", 2))
    }
    return write(tmp_path / "cifar100/train-0.parquet", data, fields, said).parent


def test_two_columns_of_labels_are_asked_for_by_name(tmp_path, cache_dir):
    folder = two_labels(tmp_path)
    refused(folder, "2 columns that could be its labels", "fine_label (int64), coarse_label (int64)", "DATA:fine_label")
    fine, coarse = (prepare(f"{folder}:{kind}_label", cache_dir=cache_dir) for kind in ("fine", "coarse"))
    assert (fine.classes, coarse.classes) == (("fine0", "fine1", "fine2"), ("coarse0", "coarse1"))
    assert fine.path != coarse.path
    assert prepare(f"{folder}:img,fine_label", cache_dir=cache_dir).classes == fine.classes
    refused(f"{folder}:label", "no column 'label'", "fine_label")
    refused(f"{folder}:img", "labels in column 'img' are struct")


def test_columns_that_are_not_there(tmp_path):
    refused(
        write(tmp_path / "a.parquet", [{"label": 1}], [("label", pa.int64())]), "no column of images", "label (int64)"
    )
    path = write(tmp_path / "b.parquet", [{"image": None, "x": 1.0}], [("image", IMAGE), ("x", pa.float32())], {})
    refused(path, "no column of labels", "x (float)")
    refused(f"{path}:x", "labels in column 'x' are float", "whole numbers or text")
    fields = [("image", IMAGE), ("label", pa.bool_())]
    refused(write(tmp_path / "d.parquet", [], fields, {}), "labels in column 'label' are bool", "whole numbers or text")
    fields = [("image", pa.binary()), ("mask", pa.binary()), ("label", pa.int64())]
    refused(write(tmp_path / "c.parquet", [], fields, {}), "2 columns that could be its images", "DATA:IMAGE,LABEL")


def test_rows_that_are_bad(tmp_path, cache_dir, monkeypatch):
    data = rows(8)
    data[2]["image"] = None
    data[3]["image"] = {"bytes": None, "path": "/etc/passwd"}
    data[4]["image"]["bytes"] = b""
    data[5]["image"]["bytes"] = b"no image"
    path = write(tmp_path / "x.parquet", data)
    found = prepare(path, cache_dir=cache_dir)
    assert [(file.path, file.reason) for file in found.bad_files] == [
        (f"{path} row 2", "no bytes in this row"),
        (f"{path} row 3", "no bytes in this row but only a path"),
        (f"{path} row 4", "empty file (0 bytes)"),
        (f"{path} row 5", "not an image that Pillow can read"),
    ]
    assert found.labels.tolist() == [0, 1, 0, 1]
    monkeypatch.setattr(packing, "_ALONE_BELOW", 1)
    together = prepare(path, cache_dir=tmp_path / "other")
    np.testing.assert_array_equal(found.images, together.images)
    assert together.bad_files == found.bad_files


@pytest.mark.parametrize("label", [-1, 2, None, 2**40])
def test_labels_that_name_no_class(tmp_path, label):
    data = rows(4)
    data[3]["label"] = label
    refused(write(tmp_path / "x.parquet", data), "row 3 of", "no label that names a class")


@pytest.mark.parametrize("names", ["ab", ["a", 1], ["a", "a"], ["a", "b/c"], ["a", "\x07"], {"a": 1}])
def test_names_that_are_none(tmp_path, names):
    path = write(tmp_path / "x.parquet", rows(4), said=features(label={"_type": "ClassLabel", "names": names}))
    refused(path, "names of classes", "are none")


@pytest.mark.parametrize("said", ["[]", "no JSON", '{"info": {"features": [1]}}', '{"info": 1}', "[" * 100_000])
def test_other_metadata_says_nothing(tmp_path, said):
    schema = pa.schema([("image", IMAGE), ("label", pa.int64())], metadata={"huggingface": said})
    pq.write_table(pa.Table.from_pylist(rows(4), schema=schema), tmp_path / "x.parquet")
    assert open_source(tmp_path / "x.parquet").listing.classes == ("0", "1")


def test_few_classes_or_rows(tmp_path):
    refused(write(tmp_path / "a.parquet", rows(1)), "only one class, 'zebra'")
    refused(write(tmp_path / "b.parquet", []), "holds no rows")


def test_damaged_files(tmp_path, cache_dir):
    path = write(tmp_path / "x.parquet", rows(6))
    whole = path.read_bytes()
    for content in (b"", b"PAR1", b"nonsense" * 10, whole[:-20], whole[:1000], b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(content)
        refused(path, str(path), "cannot be read as Parquet")


def test_damage_among_the_images_is_told(tmp_path, cache_dir):
    path = write(tmp_path / "x.parquet", rows(6), compression="gzip")
    content = bytearray(path.read_bytes())
    content[2000:2100] = bytes(100)
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as Parquet"):
        prepare(path, image_size=32, cache_dir=cache_dir)
    assert not [entry for entry in (cache_dir / "packed").glob("*") if entry.is_dir()], "nothing half-written"


def test_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(parquet, "_MOST_IN_ALL", 1_000_000)
    data = [{"image": {"bytes": bytes(1_000_000), "path": None}, "label": 1}] * 9
    refused(write(tmp_path / "x.parquet", data, use_dictionary=False, compression="zstd"), "decompression bomb")
    refused(write(tmp_path / "y.parquet", [{"image": None, "label": 1}] * 100_000), "100,000 rows")


@pytest.mark.parametrize(("mebibytes", "taken"), [(1000, True), (1050, False)])
def test_a_small_file_may_hold_a_gibibyte_and_no_more(tmp_path, mebibytes, taken):
    schema = pa.schema([*FIELDS, ("filler", pa.string())])
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "x.parquet"
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        group = [row | {"filler": "0" * (25 * 2**20)} for row in rows(2)]
        table = pa.Table.from_pylist(group, schema=schema)
        for _ in range(mebibytes // 50):
            writer.write_table(table)
    if taken:
        assert len(open_source(path).listing.labels) == mebibytes // 25
    else:
        refused(path, "decompression bomb")


def test_without_pyarrow_the_extra_is_named(tmp_path):
    path = write(tmp_path / "x.parquet", rows(4))
    code = "import sys; sys.modules['pyarrow'] = None; from csham.data import prepare; prepare(sys.argv[1])"
    found = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
    assert "pip install 'csham[parquet]'" in found.stderr.splitlines()[-1]


def test_a_sample_from_all_groups_gives_the_size(tmp_path):
    data = [{"image": {"bytes": png(i, side=100 if i >= 100 else 8), "path": None}, "label": i % 2} for i in range(400)]
    source = ParquetSource.find(write(tmp_path / "x.parquet", data, row_group_size=50))
    assert source.default_size() == 96

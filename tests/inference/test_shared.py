"""Shared folders that anyone may have written: a network or an error that says what is wrong, never anything else."""

import contextlib
import copy
import json
import os
import resource
import shutil
import sys
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import csham
from csham.errors import UserError
from csham.inference.shared import CONFIG, WEIGHTS, is_shared, shared_config
from csham.training.network import NetworkInfo, write_weights

INFO = {
    "backbone": "resnet20",
    "attention": "csham",
    "strategy": "transfer",
    "position": "auto",
    "gated": False,
    "num_classes": 3,
    "image_size": 16,
    "classes": ["ant", "bee", "кот"],
    "mean": [0.4, 0.5, 0.6],
    "std": [0.2, 0.2, 0.3],
    "period": None,
    "points": None,
    "stages": [1],
}


def write_shared(folder, **changes):
    info = NetworkInfo(**{**INFO, **changes})
    folder.mkdir()
    write_weights(folder / WEIGHTS, info.build().state_dict(), info)
    (folder / CONFIG).write_text(shared_config(info, "best"))
    return folder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    return write_shared(tmp_path_factory.mktemp("shared") / "original")


@pytest.fixture
def shared(original, tmp_path):
    return shutil.copytree(original, tmp_path / "shared")


def config_of(folder):
    return json.loads((folder / CONFIG).read_text())


def write_config(folder, content):
    (folder / CONFIG).write_text(json.dumps(content))


def header_of(path):
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def write_header(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_back_without_the_run(shared):
    trained = csham.load(shared)
    assert (trained.label, trained.classes, trained.weights) == (
        "resnet20 + csham (transfer, stages 1)",
        INFO["classes"],
        "best",
    )
    assert trained.transform.mean == (0.4, 0.5, 0.6)
    alone = csham.load(shared / WEIGHTS)
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(trained.network(x), alone.network(x))
    with pytest.raises(UserError, match="holds the best weights of its run, no others"):
        csham.load(shared, weights="last")


def test_a_run_folder_stays_one(shared):
    assert is_shared(shared)
    (shared / "config.yaml").write_text("data: digits")
    (shared / CONFIG).write_text("{}")
    assert csham.load(shared).classes == INFO["classes"]


NETWORK = [
    ("backbone", "hf-hub:evil/model", "backbone should be the name of a network"),
    ("backbone", "hf_hub:evil/model", "backbone should be"),
    ("backbone", "local-dir:/etc", "backbone should be"),
    ("backbone", "https://evil.example/x.pth", "backbone should be"),
    ("backbone", "../../../etc/passwd", "backbone should be"),
    ("backbone", "torchvision/../x", "backbone should be"),
    ("backbone", "os", "unknown backbone"),
    ("backbone", "a" * 10**6, "backbone should be"),
    ("backbone", None, "backbone should be"),
    ("backbone", "resnet56", "other architecture"),
    ("backbone", "resnet152@width=16", "far larger than the file"),
    ("backbone", "resnet20@depth=10000", "far larger than the file"),
    ("attention", "os.system", "unknown attention"),
    ("attention", ["csham"], "attention should be"),
    ("attention", "se", "needs an attention with a channel part"),
    ("strategy", "eval", "unknown strategy"),
    ("position", "nowhere", "unknown position"),
    ("position", "a\nb", "position should be"),
    ("gated", "false", "gated should be true or false"),
    ("num_classes", "3", "num_classes should be"),
    ("num_classes", 3.0, "num_classes should be"),
    ("num_classes", True, "num_classes should be"),
    ("num_classes", 10**9, "num_classes should be"),
    ("num_classes", 4, "it has 4 classes and names 3"),
    ("period", -1, "period should be"),
    ("points", ["*a" * 100_000], "points should be"),
    ("points", "layer1", "points should be"),
    ("points", ["(a+)+$"], "names no module"),
    ("points", ["*" * 200 + "x"], "names no module"),
    ("points", ["layer1.*bn2"] * 20_000, "points should be"),
    ("stages", [99], "must be numbers of stages"),
    ("stages", [True], "stages should be"),
    ("stages", [0], "other architecture"),
]


@pytest.mark.parametrize(("name", "value", "message"), NETWORK, ids=[f"{n}-{str(v)[:20]}" for n, v, _ in NETWORK])
def test_a_network_that_cannot_be_is_refused(shared, name, value, message):
    content = config_of(shared)
    content["network"][name] = value
    write_config(shared, content)
    drop_metadata(shared)
    with pytest.raises(UserError, match=message) as caught:
        csham.load(shared)
    assert len(str(caught.value)) < 2000


def drop_metadata(folder):
    header, data = header_of(folder / WEIGHTS)
    del header["__metadata__"]
    write_header(folder / WEIGHTS, header, data)


OTHERS = [
    ("preprocessing", "center_crop", 10**9, "image_size should be"),
    ("preprocessing", "center_crop", "16", "image_size should be"),
    ("preprocessing", "center_crop", 32, "does not do: resize"),
    ("preprocessing", "interpolation", "nearest", "does not do: interpolation"),
    ("preprocessing", "std", [0, 0.1, 0.1], "std should be"),
    ("preprocessing", "mean", [0.1, 0.1], "mean should be"),
    ("preprocessing", "mean", ["0.1"] * 3, "mean should be"),
    ("preprocessing", "weights_file", "../../x", "unknown 'weights_file'"),
    ("network", "weights_file", "../../x", "unknown 'weights_file'"),
    (None, "weights_file", "../../x", "unknown 'weights_file'"),
    (None, "weights", "../x", "should be 'best' or 'last'"),
    (None, "format", 2, "Install a newer csham"),
    (None, "format", True, "Install a newer csham"),
    (None, "library_name", "transformers", "not written by csham share"),
    (None, "network", [], "should be an object"),
    (None, "classes", ["../../etc/passwd", "b", "c"], "classes should be"),
    (None, "classes", ["..", "b", "c"], "classes should be"),
    (None, "classes", ["a", "a", "c"], "classes should be"),
    (None, "classes", ["\x1b[2J", "b", "c"], "classes should be"),
    (None, "classes", ["\udc80", "b", "c"], "classes should be"),
    (None, "classes", {"0": "a"}, "classes should be"),
    (None, "classes", ["a", 1, "c"], "classes should be"),
]


@pytest.mark.parametrize(
    ("part", "name", "value", "message"), OTHERS, ids=[f"{n}-{str(v)[:20]!a}" for _, n, v, _ in OTHERS]
)
def test_a_configuration_that_cannot_be_is_refused(shared, part, name, value, message):
    content = config_of(shared)
    (content if part is None else content[part])[name] = value
    write_config(shared, content)
    with pytest.raises(UserError, match=message):
        csham.load(shared)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "not JSON"),
        (b"[]", "not written by csham"),
        (b"\xff\xfe", "not JSON"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a": NaN}', "NaN is not a number"),
        (b'{"a": ' + b"1" * 10_000 + b"}", "damaged"),
        (b'{"library_name": "csham", "library_name": "x"}', "is there twice"),
        (b" " * (2**24 + 1), "larger than 16 MiB"),
    ],
    ids=["empty", "list", "bytes", "deep", "nan", "long", "twice", "large"],
)
def test_a_file_that_is_no_configuration_is_refused(shared, text, message):
    (shared / CONFIG).write_bytes(text)
    with pytest.raises(UserError, match=message):
        csham.load(shared)


def test_classes_that_the_weights_do_not_have(shared):
    content = config_of(shared)
    content["classes"], content["network"]["num_classes"] = [str(n) for n in range(1000)], 1000
    write_config(shared, content)
    with pytest.raises(UserError, match="describes another network than the file beside it, in num_classes, classes"):
        csham.load(shared)
    drop_metadata(shared)
    with pytest.raises(UserError, match=r"'fc.bias' is \(3,\), not \(1000,\)"):
        csham.load(shared)


def first_tensor(header):
    return next(name for name in header if name != "__metadata__")


def overlap(header):
    names = [name for name in header if name != "__metadata__"]
    header[names[0]]["data_offsets"] = header[names[1]]["data_offsets"]


def out_of_range(header):
    header[first_tensor(header)]["data_offsets"] = [2**50, 2**50 + 4]


def negative(header):
    header[first_tensor(header)]["data_offsets"] = [-8, 0]


def huge_shape(header):
    header[first_tensor(header)]["shape"] = [2**62, 2**62]


def other_shape(header):
    header["fc.bias"]["shape"] = [1, 3]


def traversal(header):
    header["../../etc/passwd"] = header.pop(first_tensor(header))


def unknown_dtype(header):
    header[first_tensor(header)]["dtype"] = "PICKLE"


def whole_numbers(header):
    header["fc.bias"]["dtype"] = "I32"


def no_entry(header):
    header[first_tensor(header)] = "posix\nsystem"


def evil_metadata(header):
    header["__metadata__"]["backbone"] = '"hf-hub:evil/model"'


def deep_metadata(header):
    header["__metadata__"]["classes"] = "[" * 100_000


def wrong_metadata(header):
    header["__metadata__"] = {"backbone": 7}


@pytest.mark.parametrize(
    "change",
    [
        overlap, out_of_range, negative, huge_shape, other_shape, traversal, unknown_dtype, whole_numbers, no_entry,
        evil_metadata, deep_metadata, wrong_metadata,
    ],
)  # fmt: skip
@pytest.mark.parametrize("alone", [True, False], ids=["file", "folder"])
def test_a_header_that_cannot_be_is_refused(shared, change, alone):
    header, data = header_of(shared / WEIGHTS)
    change(header)
    write_header(shared / WEIGHTS, header, data)
    with pytest.raises(
        UserError, match=r"damaged|other architecture|holds numbers|does not describe|other network|changed since"
    ):
        csham.load(shared / WEIGHTS if alone else shared)


@pytest.mark.parametrize(
    "content",
    [
        (2**60).to_bytes(8, "little") + b"{}",
        (2**25).to_bytes(8, "little") + b" " * 2**25,
        (7).to_bytes(8, "little") + b"no json",
        (2).to_bytes(8, "little") + b"[]",
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        b"\x80\x04.",
    ],
    ids=["2**60", "32MiB", "text", "list", "deep", "pickle"],
)
def test_a_file_that_is_no_safetensors_is_refused(shared, content):
    (shared / WEIGHTS).write_bytes(content)
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        csham.load(shared)


def test_double_names_and_truncation(shared):
    header, data = header_of(shared / WEIGHTS)
    text = json.dumps(header)
    write_header(shared / WEIGHTS, (text[:-1] + f', "fc.bias": {json.dumps(header["fc.bias"])}}}').encode(), data)
    with pytest.raises(UserError, match=r"'fc.bias' is there twice"):
        csham.load(shared)
    write_header(shared / WEIGHTS, text.encode(), data[:-1])
    with pytest.raises(UserError, match="damaged"):
        csham.load(shared)


def test_a_large_file_is_not_read_before_its_names_are_known(shared):
    header = {"x": {"dtype": "F32", "shape": [2**31], "data_offsets": [0, 2**33]}}
    write_header(shared / WEIGHTS, header, b"")
    with (shared / WEIGHTS).open("r+b") as file:
        file.truncate(8 + len(json.dumps(header)) + 2**33)  # sparse: eight gigabytes that take no room
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match="other architecture"):
        csham.load(shared)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # KiB


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
def test_links_out_of_the_folder_are_not_followed(shared, name, tmp_path):
    shutil.move(shared / name, tmp_path / "secret")
    (shared / name).symlink_to("../secret")
    with pytest.raises(UserError, match="is a link out of its folder"):
        csham.load(shared)
    (shared / name).unlink()
    (shared / name).symlink_to(name)
    with pytest.raises(UserError, match=name):
        csham.load(shared)
    (shared / name).unlink()
    os.mkfifo(shared / name)
    with pytest.raises(UserError, match=f"has no file {name}"):
        csham.load(shared)


def test_the_hubs_cache_links_to_its_blobs(shared, tmp_path):
    snapshot = tmp_path / "models--user--name/snapshots/0123"
    blobs = tmp_path / "models--user--name/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name in (CONFIG, WEIGHTS):
        shutil.move(shared / name, blobs / name[:3])
        (snapshot / name).symlink_to(f"../../blobs/{name[:3]}")
    assert csham.load(snapshot).classes == INFO["classes"]


def test_other_files_are_never_opened(shared, monkeypatch):
    names = ["pytorch_model.bin", "model.pkl", "modeling.py", "__init__.py", "training_args.bin"]
    for name in names:
        (shared / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/owned'\ntR.")
    (shared / os.fsdecode(b"\xff\xfe.bin")).write_bytes(b"")
    opened = []
    sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
    csham.load(shared)
    ours = {Path(path).name for path in list(opened) if str(shared) in path}
    assert CONFIG in ours
    assert ours <= {CONFIG, WEIGHTS}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["resnet20", "lenet5", "csham", "se", "sequential", "none", 16, 8, 3, 0.5]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(content, found=()):
    """Return the path of every value of an object."""
    paths = [found] if found else []
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        paths += places(content[key], (*found, key))
    return paths


def corrupted(content, data):
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 2))):
        *parents, last = data.draw(st.sampled_from(places(content)))
        inner = content
        for key in parents:
            inner = inner[key]
        if data.draw(st.booleans()) or isinstance(inner, list):
            inner[last] = data.draw(JSON)
        else:
            del inner[last]
        if not content:
            break
    return json.dumps(content).encode()


def spoiled(text, data):
    """Change some bytes, or cut the end off."""
    text = bytearray(text)
    for _ in range(data.draw(st.integers(0, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    return bytes(text[: data.draw(st.integers(0, len(text)))] if data.draw(st.booleans()) else text)


@settings(max_examples=25)
@given(st.data())
def test_any_configuration_ends_in_a_network_or_an_error_for_users(original, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("any")
    text = (original / CONFIG).read_bytes()
    text = corrupted(json.loads(text), data) if data.draw(st.booleans()) else spoiled(text, data)
    (folder / CONFIG).write_bytes(text)
    os.link(original / WEIGHTS, folder / WEIGHTS)
    with contextlib.suppress(UserError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert csham.load(folder).network


@settings(max_examples=25)
@given(st.data())
def test_any_header_ends_in_a_network_or_an_error_for_users(original, tmp_path_factory, data):
    header, values = header_of(original / WEIGHTS)
    text = corrupted(header, data) if data.draw(st.booleans()) else spoiled(json.dumps(header).encode(), data)
    path = tmp_path_factory.mktemp("any") / WEIGHTS
    write_header(path, text, values[: data.draw(st.integers(0, len(values)))] if data.draw(st.booleans()) else values)
    with contextlib.suppress(UserError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert csham.load(path).network

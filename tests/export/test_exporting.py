import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.layers import CecaModule, EcaModule, EffectiveSEModule, SqueezeExcite
from timm.layers.cbam import CbamModule, LightCbamModule
from torch import nn

import csham
from csham.errors import UserError
from csham.export.exporting import export
from csham.export.files import session
from csham.export.quantization import quantize
from csham.export.real_images import LabelledImages, folder_images, run_images
from csham.files import has_right_seal
from csham.training.network import read_network, write_weights

onnx = pytest.importorskip("onnx")


def graph_of(path):
    return onnx.load(path).graph


def test_an_onnx_file_of_any_size_answers_as_the_network(tiny, tiny_onnx):
    assert tiny_onnx.dynamic == ("batch", "height", "width")
    assert (tiny_onnx.smallest_side, tiny_onnx.sizes) == (3, ((16, 16), (21, 25), (12, 13)))
    assert 0 < tiny_onnx.max_error < 1e-5
    assert (tiny_onnx.top1_agreement, tiny_onnx.images, tiny_onnx.notes) == (100, 7, ())
    assert tiny_onnx.bytes == tiny_onnx.path.stat().st_size
    opened = session(tiny_onnx.path)
    (given,), (answer,) = opened.get_inputs(), opened.get_outputs()
    assert (given.name, given.shape) == ("images", ["batch", 3, "height", "width"])
    assert (answer.name, answer.shape) == ("logits", ["batch", 3])
    for shape in ((1, 3, 16, 16), (5, 3, 33, 18), (2, 3, 6, 9)):
        x = torch.randn(shape)
        with torch.no_grad():
            expected = tiny.network(x).numpy()
        np.testing.assert_allclose(opened.run(None, {"images": x.numpy()})[0], expected, rtol=1e-4, atol=1e-5)


def test_the_graph_is_of_plain_operations_without_traces_of_this_machine(tiny_onnx):
    graph = graph_of(tiny_onnx.path)
    assert {node.domain for node in graph.node} == {""}
    assert not {"GatherND", "BatchNormalization"} & {node.op_type for node in graph.node}
    assert b"site-packages" not in tiny_onnx.path.read_bytes()
    assert [item.name for item in tiny_onnx.path.parent.iterdir()] == ["tiny.onnx"]


def test_the_file_says_what_it_is(tiny, tiny_onnx):
    found = session(tiny_onnx.path).get_modelmeta().custom_metadata_map
    assert json.loads(found["classes"]) == tiny.classes
    assert (found["image_size"], found["resize_to"]) == ("16", "16")
    assert (json.loads(found["mean"]), json.loads(found["std"])) == (tiny.info.mean, tiny.info.std)
    assert found["input"] == "images: (batch, 3, height, width) float32, RGB, normalised; sides from 3 pixels on"
    assert "16 x 16 pixels, bicubic" in json.loads(found["preprocessing"])[1]
    assert json.loads(found["network"])["backbone"] == "tiny"
    assert (found["csham_version"], found["weights"]) == (csham.__version__, "best")


@pytest.mark.parametrize(("mode", "size"), [("RGB", (16, 16)), ("RGB", (400, 301)), ("L", (9, 30))])
def test_the_file_alone_suffices(mode, size, tiny, tiny_onnx, tmp_path, monkeypatch, capsys):
    """The page's program, with onnxruntime, numpy and Pillow, answers as csham does."""
    page = (Path(__file__).parents[2] / "docs/export.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    noise = np.random.default_rng(5).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(noise).convert(mode).save(tmp_path / "image.jpg")
    (tmp_path / "model.onnx").write_bytes(tiny_onnx.path.read_bytes())
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(program, "docs/export.md", "exec"), names)
    with torch.no_grad():
        expected = tiny.network(tiny.batch(["image.jpg"]))
    np.testing.assert_allclose(names["logits"], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert capsys.readouterr().out.strip() == tiny.classes[int(expected.argmax())]


@pytest.mark.slow
@pytest.mark.long
def test_preprocessing_in_the_graph_takes_bytes(tiny, pixels, tmp_path):
    found = export(tiny, tmp_path / "bytes.onnx", images=pixels, preprocessing=True, dynamic_size=False)
    assert found.dynamic == ("batch",)
    assert found.sizes == ((16, 16),)
    opened = session(found.path)
    assert opened.get_inputs()[0].type == "tensor(uint8)"
    assert opened.get_inputs()[0].shape == ["batch", 16, 16, 3]
    with torch.no_grad():
        expected = tiny.network(tiny.transform.normalise(torch.from_numpy(pixels))).numpy()
    np.testing.assert_allclose(opened.run(None, {"images": pixels})[0], expected, rtol=1e-4, atol=1e-5)


def test_a_changed_file_is_refused_where_it_is_read_again(tiny, tiny_onnx, pixels, tmp_path):
    weights, graph = tmp_path / "tiny.safetensors", tmp_path / "tiny.onnx"
    info = replace(tiny.info, backbone="lenet5")
    write_weights(weights, info.build().state_dict(), info)
    graph.write_bytes(tiny_onnx.path.read_bytes())
    labels = LabelledImages(pixels, np.zeros(len(pixels), int))
    readers = {
        weights: lambda: read_network(weights),
        graph: lambda: quantize(tiny, graph, tmp_path / "int8.onnx", calibration=pixels, test=labels),
    }
    rng = np.random.default_rng(0)
    for path, read in readers.items():
        content = path.read_bytes()
        words = content.index(b"csham-sha256:")
        places = np.setdiff1d(np.arange(len(content) // 2, len(content)), np.arange(words, words + 13))
        for place in rng.choice(places, 20):
            changed = bytearray(content)
            changed[place] ^= 1 << rng.integers(8)
            path.write_bytes(changed)
            with pytest.raises(UserError, match=f"{path.name} was changed since it was written"):
                read()
        path.write_bytes(content)
    assert has_right_seal(weights)
    assert not (tmp_path / "int8.onnx").exists()


def test_a_pt2_file_is_loaded_by_pytorch_alone_and_holds_no_pickle(tiny, pixels, tmp_path):
    found = export(tiny, tmp_path / "tiny.pt2", images=pixels)
    assert found.max_error < 1e-6
    more = {"classes": "", "mean": ""}
    program = torch.export.load(found.path, extra_files=more)
    assert json.loads(more["classes"]) == tiny.classes
    for shape in ((3, 3, 16, 16), (1, 3, 8, 8)):  # in the second the neighbourhood is one position
        x = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(program.module()(x), tiny.network(x))
    with pytest.raises(Exception, match=r"to be >= \d+, but got 1"):
        program.module()(torch.randn(1, 3, 1, 1))
    assert b'"use_pickle": true' not in found.path.read_bytes().lower()
    assert b"csham::" not in found.path.read_bytes()


class WithTimms(nn.Module):
    """Attention of timm's own, which csham.accelerate lets run on csham's kernels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        kinds = (SqueezeExcite, EffectiveSEModule, EcaModule, CecaModule, CbamModule, LightCbamModule)
        self.body = nn.Sequential(*(layer for kind in kinds for layer in (kind(16), nn.Conv2d(16, 16, 1))))
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        return self.head(self.body(self.stem(x)).mean((2, 3)))


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
def test_accelerated_modules(as_trained, pixels, tmp_path, file_format):
    network = WithTimms()
    assert len(csham.accelerate(network)) == 6
    found = export(as_trained(network), tmp_path / f"model.{file_format}", images=pixels)
    assert found.dynamic == ("batch", "height", "width")
    assert found.max_error < 1e-6
    assert b"csham::" not in found.path.read_bytes()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("file_format", ["onnx", "pt2"])
def test_gates_and_block_ends_that_are_one_call(as_trained, pixels, tmp_path, file_format):
    network = csham.create_model("resnet14", num_classes=3, image_size=16)
    points = csham.attach(network, "csham", strategy="transfer", gated=True, input_size=(3, 16, 16))
    assert all(point.fused for point in points)
    with torch.no_grad():  # half open
        for name, parameter in network.named_parameters():
            if name.endswith(".gate"):
                parameter.fill_(0.5)
    found = export(as_trained(network), tmp_path / f"model.{file_format}", images=pixels)
    assert found.dynamic == ("batch", "height", "width")
    assert found.top1_agreement == 100


@pytest.mark.slow
@pytest.mark.long
def test_fixed_by_the_network(as_trained, pixels, tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 14 * 14, 3))
    trained = as_trained(network)
    found = export(trained, tmp_path / "fixed.onnx", images=pixels)
    assert found.dynamic == ("batch",)
    (note,) = found.notes
    assert note.startswith("takes images of 16 x 16 pixels only: the network takes no other size (")
    assert "shapes cannot be multiplied" in note
    with pytest.raises(UserError, match="cannot be exported for images of any size: the network takes no other"):
        export(trained, tmp_path / "any.onnx", images=pixels, dynamic_size=True)
    assert [item.name for item in tmp_path.iterdir()] == ["fixed.onnx"]


class Windows(nn.Module):
    """Goes one of two ways, by the size of its map; where the map is small, ONNX would answer as if it were large."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=4, padding=1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(nn.functional.avg_pool2d(x, (min(7, x.shape[2]), min(7, x.shape[3]))).amax((2, 3)))


def test_a_graph_for_larger_images_than_the_networks_own_is_not_taken(as_trained, pixels, tmp_path):
    found = export(as_trained(Windows()), tmp_path / "windows.onnx", images=pixels)
    assert (found.dynamic, found.smallest_side) == (("batch",), None)
    assert found.notes == ("takes images of 16 x 16 pixels only: its graph for other sizes holds from 25 pixels on",)


class Squares(nn.Module):
    """Goes another way where the image is a square; ONNX would answer as if none were."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        y = self.head(x.mean((2, 3)))
        return y if x.shape[2] == x.shape[3] else 2 * y


def test_a_graph_that_is_wrong_at_the_networks_own_size_is_not_taken(as_trained, pixels, tmp_path):
    found = export(as_trained(Squares()), tmp_path / "squares.onnx", images=pixels)
    assert (found.dynamic, found.sizes, found.top1_agreement) == (("batch",), ((16, 16),), 100)
    (note,) = found.notes
    assert note.startswith("takes images of 16 x 16 pixels only: at 16 x 16 its logits are off by ")


@pytest.mark.slow
@pytest.mark.long
def test_smaller_images_than_the_graph_is_for_are_not_promised(as_trained, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3)).astype(np.uint8)
    found = export(as_trained(Windows(), side=32), tmp_path / "windows.onnx", images=images)
    assert found.sizes == ((32, 32), (41, 49))
    assert (found.smallest_side, found.notes) == (25, ())
    assert "sides from 25 pixels on" in session(found.path).get_modelmeta().custom_metadata_map["input"]


class Random(nn.Module):
    """A fault: no two passes agree."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        y = x.mean((2, 3))
        return self.head(y + torch.rand_like(y))


def test_other_answers_leave_no_file(as_trained, pixels, tmp_path):
    with pytest.raises(UserError, match=r"does not answer as the network does: .* tolerance 0\.0001; top-1 agrees on"):
        export(as_trained(Random()), tmp_path / "new" / "random.onnx", images=pixels)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_is_kept_when_the_new_one_fails(as_trained, pixels, tmp_path):
    path = tmp_path / "old.pt2"
    path.write_text("old")
    with pytest.raises(UserError, match=r"exists already.*force"):
        export(as_trained(Random()), path, images=pixels)
    with pytest.raises(UserError, match="does not answer"):
        export(as_trained(Random()), path, images=pixels, force=True)
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["old.pt2"]


@pytest.mark.parametrize("force", [True, False])
def test_only_files_are_replaced(tiny, pixels, tmp_path, force):
    os.mkfifo(tmp_path / "pipe.pt2")
    with pytest.raises(UserError, match=r"pipe\.pt2 is not a file\. Name a file"):
        export(tiny, tmp_path / "pipe.pt2", images=pixels, force=force)
    assert (tmp_path / "pipe.pt2").is_fifo()
    with pytest.raises(UserError, match=r"is a folder\. Name a file"):
        export(tiny, tmp_path, images=pixels, force=force)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file is a file\. Name another"):
        export(tiny, tmp_path / "file" / "a.pt2", images=pixels, force=force)


def test_a_file_of_a_run_is_not_replaced(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    weights = tmp_path / "run" / "model.safetensors"
    before = weights.read_bytes()
    with pytest.raises(UserError, match=r"path .*model\.safetensors is a file of .*run, which cannot be read"):
        export(csham.load(tmp_path / "run"), weights, force=True)
    assert weights.read_bytes() == before


class Broken(nn.Module):
    """Looks at values, which no graph can."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(3, 3)

    def forward(self, x):
        y = self.head(x.mean((2, 3)))
        return y if y.sum().item() > 0 else y * 2


def test_networks_that_are_no_graph_are_refused(as_trained, pixels, tmp_path):
    with pytest.raises(UserError, match=r"tiny cannot be exported to pt2: "):
        export(as_trained(Broken()), tmp_path / "broken.pt2", images=pixels)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("x.tflite", {}, r"x.tflite does not say what to write\. Let it end in .onnx"),
        ("x.safetensors", {"preprocessing": True}, "holds weights, no graph"),
        ("x.pt2", {"opset": 18}, "opset is a version of ONNX"),
        ("x.onnx", {"dynamic_size": "yes"}, "dynamic_size is True, False or 'auto'"),
        ("x.onnx", {"images": []}, "no images to check"),
        ("x.onnx", {}, r"belongs to no run folder.*--images FOLDER"),
    ],
)
def test_what_cannot_work_is_said(name, settings, message, tiny, tmp_path):
    with pytest.raises(UserError, match=message):
        export(tiny, tmp_path / name, **settings)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tiny, pixels, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r'needs onnxruntime\. Install them: pip install "csham\[export\]"'):
        export(tiny, tmp_path / "x.onnx", images=pixels)


def test_weights_travel(attended, images, tmp_path):
    trained = csham.load(attended)
    found = export(trained, tmp_path / "weights.safetensors")
    assert (found.max_error, found.top1_agreement, found.images) == (0, 100, 12)
    again = csham.load(found.path)
    assert again.info == trained.info
    with pytest.raises(UserError, match="belongs to no run folder"):
        run_images(again)


def test_images_of_a_run_are_the_same_every_time(attended, images):
    trained = csham.load(attended)
    few = run_images(trained, "test", 5)
    assert few.pixels.shape == (5, 16, 16, 3)
    assert np.array_equal(few.pixels, run_images(trained, "test", 5).pixels)
    assert sorted(np.bincount(run_images(trained).labels)) == [4, 4, 4]
    # the loader's own answer about files is the reference: same order of classes, same pixels
    assert np.isin(
        folder_images(trained, images).sum((1, 2, 3)), run_images(trained, "train").pixels.sum((1, 2, 3))
    ).any()


def test_folders_of_images(tiny, tmp_path):
    with pytest.raises(UserError, match="no folder of images"):
        folder_images(tiny, tmp_path / "nothing")
    (tmp_path / "bad.png").write_text("no image")
    with pytest.raises(UserError, match="no image that can be read"):
        folder_images(tiny, tmp_path)
    for number in range(3):
        Image.new("RGB", (30, 20), (number, 0, 0)).save(tmp_path / f"{number}.png")
    assert folder_images(tiny, tmp_path, 2)[:, 0, 0, 0].tolist() == [0, 1]


def test_quantizing_makes_a_smaller_file_and_measures_both(tiny, tiny_onnx, pixels, tmp_path):
    with torch.no_grad():
        labels = tiny.network(tiny.transform.normalise(torch.from_numpy(pixels))).argmax(1).numpy()
    labels[0] = (labels[0] + 1) % 3
    found = quantize(
        tiny, tiny_onnx.path, tmp_path / "int8.onnx", calibration=pixels, test=LabelledImages(pixels, labels)
    )
    assert found.before.top1 == pytest.approx(100 * 6 / 7)
    assert found.before.bytes == tiny_onnx.bytes
    assert has_right_seal(tiny_onnx.path)
    assert has_right_seal(found.path)
    assert set(found.after.latency_ms) == {1, 32}
    assert min(*found.before.latency_ms.values(), *found.after.latency_ms.values()) > 0
    kinds = [node.op_type for node in graph_of(found.path).node]
    assert "DequantizeLinear" in kinds
    initializers = {tensor.data_type for tensor in graph_of(found.path).initializer}
    assert onnx.TensorProto.INT8 in initializers
    before, after = (session(path) for path in (tiny_onnx.path, found.path))
    kept, copied = (opened.get_modelmeta().custom_metadata_map for opened in (before, after))
    assert {**copied, "seal": None} == {**kept, "seal": None}
    given = {"images": tiny.transform.normalise(torch.from_numpy(pixels)).numpy()}
    exact, rounded = before.run(None, given)[0], after.run(None, given)[0]
    assert 0 < np.abs(exact - rounded).max() < 0.1 * np.abs(exact).max()
    with pytest.raises(UserError, match="needs images to calibrate on"):
        quantize(tiny, tiny_onnx.path, tmp_path / "b", calibration=pixels[:0], test=LabelledImages(pixels, labels))
    assert [item.name for item in tmp_path.iterdir()] == ["int8.onnx"]

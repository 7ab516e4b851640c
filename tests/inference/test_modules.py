"""Any module, loaded or trained elsewhere, asked, explained, exported and measured."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import nn

import csham
from csham.errors import UserError
from csham.inference import predict
from csham.training.network import NetworkInfo


class Own(nn.Module):
    """Another forward than its children's order, and a classifier of its own."""

    def __init__(self, classes=4):
        super().__init__()
        self.head = nn.Linear(8, classes)
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x, scale=1.0):
        x = torch.relu(self.norm(self.stem(x))) * scale
        return self.head(x.mean((2, 3)))


BUILDS = {
    "timm": lambda: timm.create_model("resnet18", num_classes=4),
    "torchvision": lambda: torchvision.models.mobilenet_v3_small(num_classes=4),
    "own": Own,
}
SIZES = {"image_size": 64, "classes": ["ant", "bee", "cow", "dog"]}


@pytest.fixture(params=BUILDS)
def model(request):
    """A network in a mixture of modes, with a hook, and with statistics."""
    torch.manual_seed(1)
    model = BUILDS[request.param]()
    model.train()(torch.randn(8, 3, 64, 64))
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    model.register_forward_hook(lambda *_: None)
    return model


@pytest.fixture
def files(images):
    return sorted((images / "bee").iterdir())[:3]


def state(model):
    """Everything of a module that is to stay."""
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    return (
        {name: module.training for name, module in model.named_modules()},
        {name: (t.dtype, t.device, t.stride(), t.requires_grad, t.grad) for name, t in tensors.items()},
        {name: t.detach().clone() for name, t in tensors.items()},
        {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()},
        [(id(t), t.data_ptr()) for t in tensors.values()],
    )


def assert_same(before, after):
    for i in (0, 1, 3, 4):
        assert before[i] == after[i]
    for name, value in before[2].items():
        torch.testing.assert_close(after[2][name], value, rtol=0, atol=0, equal_nan=True, msg=name)


def probabilities(model, trained, files):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(trained.batch(files)).float().softmax(1)


def test_it_is_asked_and_stays_as_it_was(model, files):
    before = state(model)
    trained = csham.Trained.of(model, **SIZES)
    expected = probabilities(model, trained, files)
    torch.testing.assert_close(trained.probabilities(files), expected)
    found = list(predict(model, files, top_k=4, **SIZES))
    for row, one in zip(expected, found, strict=True):
        by_name = dict(zip(one.classes, one.probabilities, strict=True))
        np.testing.assert_allclose([by_name[name] for name in SIZES["classes"]], row, rtol=1e-4)
    assert_same(before, state(model))


def test_its_description_read_again_tells_of_its_name():
    network = Own()
    csham.attach(network, "se", points="norm")
    described = csham.Trained.of(network, image_size=32).info.to_dict()
    with pytest.raises(UserError, match="unknown backbone 'Own'"):
        NetworkInfo.from_dict(described, Path("own.safetensors"))


def test_it_is_explained_and_stays_as_it_was(model, files):
    before = state(model)
    found = list(csham.explain(model, files, target="cow", **SIZES))
    expected = probabilities(model, csham.Trained.of(model, **SIZES), files)
    for row, one in zip(expected, found, strict=True):
        np.testing.assert_allclose(one.probabilities, row, rtol=1e-4)
        assert (one.network, one.target, one.no_maps) == (type(model).__name__, 2, "no attention attached")
        assert one.gradcam.ndim == 2
    assert_same(before, state(model))


@pytest.mark.parametrize("model", ["timm", pytest.param("torchvision", marks=pytest.mark.slow), "own"], indirect=True)
def test_it_is_exported_and_stays_as_it_was(model, files, tmp_path):
    before = state(model)
    exported = csham.export(model, tmp_path / "model.pt2", images=files, dynamic_size=False, **SIZES)
    assert exported.max_error < 1e-4
    trained = csham.Trained.of(model, **SIZES)
    program = torch.export.load(exported.path).module()
    torch.testing.assert_close(program(trained.batch(files)).softmax(1), probabilities(model, trained, files))
    assert_same(before, state(model))


def test_it_is_measured_and_stays_as_it_was(model):
    before = state(model)
    cost = csham.cost(model, image_size=32, batch_sizes=[2], rounds=1)
    assert cost.params == sum(p.numel() for p in model.parameters())
    assert_same(before, state(model))


def test_its_attention_is_shown(files):
    model = timm.create_model("resnet18", num_classes=4)
    csham.attach(model, "csham")
    (one,) = csham.explain(model, files[:1], image_size=64)
    assert one.network == "ResNet + CSHAM"
    assert list(one.stages) == ["layer1", "layer2", "layer3", "layer4"]
    assert one.stages["layer1"].spatial[1].shape == (16, 16)
    (one,) = csham.explain(timm.create_model("seresnet18", num_classes=4), files[:1], image_size=64)
    assert one.no_maps == "no attention attached"


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({}, {"attention": "CSHAM", "gated": False}),
        ({"gated": True, "strategy": "entry"}, {"attention": "CSHAM", "gated": True}),
        (
            {"strategy": "transfer", "gated": True},
            {"attention": "ChannelAttention and SpatialAttention", "strategy": "transfer", "gated": True},
        ),
        (
            {"strategy": "alternate"},
            {"attention": "ChannelAttention and SpatialAttention", "strategy": "alternate", "gated": False},
        ),
        ({"strategy": "parallel"}, {"attention": "CSHAM", "strategy": "parallel", "gated": False}),
        (None, {"attention": "none", "strategy": "sequential", "position": "auto", "gated": False}),
    ],
)
def test_what_it_shows_of_its_attentions_settings_is_said_and_no_more(settings, shown):
    model = csham.create_model("resnet14", num_classes=3, image_size=32)
    if settings is not None:
        csham.attach(model, "csham", input_size=(3, 32, 32), **settings)
    trained = csham.Trained.of(model, image_size=32)
    names = ("attention", "strategy", "position", "points", "period", "stages", "gated")
    said = {name: value for name, value in trained.info.to_dict().items() if name in names and value is not None}
    assert said == shown
    assert ("gated" in trained.label) == shown["gated"]


def test_what_timm_says_of_its_networks_is_known():
    trained = csham.Trained.of(timm.create_model("mobilenetv3_small_050", num_classes=3))
    config = trained.network.pretrained_cfg
    assert trained.transform.image_size == config["input_size"][-1]
    assert trained.transform.mean == config["mean"]
    assert trained.classes == ["0", "1", "2"]
    assert trained.described == "MobileNetV3"
    other = csham.Trained.of(trained.network, image_size=96, mean=np.zeros(3), std=torch.ones(3))
    assert (other.transform.image_size, other.transform.mean, other.transform.std) == (96, (0, 0, 0), (1, 1, 1))
    assert csham.Trained.of(Own(), image_size=32).transform.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_computes_in_its_own_type(dtype, files):
    model = Own().to(dtype)
    (one, *_) = predict(model, files, **SIZES)
    assert len(one.classes) == 4
    for explanation in csham.explain(model, files, **SIZES):
        assert explanation.gradcam.max() <= 1
    assert csham.Trained.of(model, **SIZES).batch(files).dtype == model.head.weight.dtype == dtype


def test_one_without_weights_and_one_that_is_wrapped(files):
    still = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert csham.Trained.of(still, image_size=32).probabilities(files).shape == (3, 3)
    wrapped = nn.DataParallel(Own())
    assert csham.Trained.of(wrapped, image_size=32).network is wrapped.module


class Says(Own):
    def __init__(self, change):
        super().__init__()
        self.change = change

    def forward(self, x):
        return self.change(super().forward(x))


@pytest.mark.parametrize(
    ("network", "facts", "message"),
    [
        ("runs/one", {}, r"expected a network, .* or an nn.Module, got a str. csham.load\(path\) reads a run"),
        (Own(), {}, "Own does not say how large its images are. Give image_size="),
        (Own(), {"image_size": (32, 32)}, "image_size= is the side of square images"),
        (Own(), {"image_size": 32, "classes": ["a"]}, "Own tells 4 classes apart, and classes= names 1"),
        (Own(), {"image_size": 32, "mean": 0.5}, "mean= is three numbers of red, green and blue"),
        (Own(), {"image_size": 32, "std": (0, 1, 1)}, "std= is three numbers"),
        (Own(), {"image_size": 32, "std": (58, 57, 57)}, "std= is three numbers .* from 0 to 1"),
        (Own().to("meta"), {"image_size": 32}, "Own is on the meta device, so it has no weights"),
        (nn.Linear(3, 2), {"image_size": 32}, "Linear could not be run on an image of 32 pixels: RuntimeError"),
        (nn.Conv2d(3, 2, 1), {"image_size": 32}, r"makes a map of \(1, 2, 32, 32\) float32 of one image, not logits"),
        (Says(lambda y: {"out": y}), {"image_size": 32}, "makes a dict of one image"),
        (Says(lambda y: (y, y)), {"image_size": 32}, "makes a tuple of one image"),
        (Says(lambda y: y.argmax(1)), {"image_size": 32}, r"makes \(1,\) int64 of one image"),
        (Says(lambda y: None), {"image_size": 32}, "makes None of one image"),
        (Own(1), {"image_size": 32}, r"makes one logit of an image, z, .* torch\.cat\(\[-z, z\], 1\) / 2"),
    ],
)
def test_what_cannot_be_asked_is_refused(network, facts, message, files, tmp_path):
    with pytest.raises(UserError, match=message):
        csham.Trained.of(network, **facts)
    calls = [
        lambda: csham.explain(network, files, **facts),
        lambda: predict(network, files, **facts),
        lambda: csham.export(network, tmp_path / "model.pt2", images=files, **facts),
    ]
    for call in calls:
        with pytest.raises(UserError, match=message):
            call()
    assert not list(tmp_path.iterdir())


def test_detectors_and_segmentation_are_told_apart_from_classifiers():
    model = torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None)
    with pytest.raises(UserError, match="makes a OrderedDict of one image, not logits"):
        csham.Trained.of(model, image_size=64)
    with pytest.raises(UserError, match=r"training step .* an? OrderedDict, not a tensor.*training=False"):
        csham.cost(model, image_size=64, rounds=1, batch_sizes=[2])
    assert csham.cost(model, image_size=64, rounds=1, batch_sizes=[2], training=False).flops > 0


def test_what_a_module_lacks_is_said(files, tmp_path):
    with pytest.raises(UserError, match=r"Own belongs to no run folder, .* images=\[\.\.\.\]"):
        csham.export(Own(), tmp_path / "own.pt2", **SIZES)
    with pytest.raises(UserError, match=r"Own is a module of your own: safetensors\.torch\.save_model"):
        csham.export(Own(), tmp_path / "own.safetensors", images=files, **SIZES)
    names = ["crane", "bee", "crane", "dog"]
    with pytest.raises(UserError, match=r"Own has several classes 'crane'. Give one's number: 0 or 2"):
        csham.explain(Own(), files, image_size=32, classes=names, target="crane")
    (one,) = csham.explain(Own(), [Image.new("RGB", (40, 50))], image_size=32, classes=names, target=2)
    assert one.target == 2


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:")
def test_a_scripted_one_is_asked_and_cannot_be_looked_into(files):
    scripted = torch.jit.script(torchvision.models.mobilenet_v3_small(num_classes=4))
    assert csham.Trained.of(scripted, image_size=64).probabilities(files).shape == (3, 4)
    with pytest.raises(UserError, match="is scripted, and cannot be looked into"):
        csham.explain(scripted, files, image_size=64)


def test_facts_are_for_modules_alone(finished):
    with pytest.raises(UserError, match=r"image_size, mean: what csham\.load returned knows that itself"):
        csham.explain(csham.load(finished), [], image_size=32, mean=(0, 0, 0))

"""pytorch-grad-cam through our stand-in: the library's maps, of networks it could not hook, which stay as they were."""

import copy
import csv
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import csham
from csham.attach import attach
from csham.errors import UserError
from csham.explain import explain
from csham.explain.faithfulness import measure_faithfulness, pixel_ranks, sample_test_images
from csham.explain.gradcam import GradCam
from csham.explain.methods import METHODS, OWN, find_method

pytorch_grad_cam = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed: make test-cam")

from csham.explain.cams import LibraryCam, road  # noqa: E402

OTHERS = [name for name in METHODS if name != OWN]
SLOW = ("scorecam", "ablationcam")


class Blocks(nn.Module):
    """Writes in place after its last map, as many networks do."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.last = nn.Conv2d(8, 6, 3, stride=2, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.act(self.last(self.first(x))).mean((2, 3)))


def state(model):
    return [
        (id(module), module.training, len(module._forward_hooks), len(module._forward_pre_hooks))
        for module in model.modules()
    ] + [(id(p), p.requires_grad, None if p.grad is None else p.grad.clone().sum().item()) for p in model.parameters()]


@pytest.fixture
def as_library_cam(monkeypatch):
    """The library's own Grad-CAM as one of the methods, which ours can be compared with."""
    monkeypatch.setitem(METHODS, "theirs", METHODS["gradcam++"].__class__("theirs", "GradCAM", ""))


@pytest.mark.usefixtures("as_library_cam")
@pytest.mark.parametrize("layer", ["first.1", "last", "act"])
def test_the_librarys_grad_cam_is_ours(layer):
    model = Blocks().train()
    gradcam = GradCam(model, (3, 12, 10), layer)
    images, targets = torch.randn(3, 3, 12, 10), torch.tensor([0, 3, 1])
    ours, _ = gradcam(images, targets)
    theirs = LibraryCam(gradcam, "theirs")(images, targets)
    ours = ours - ours.amin((1, 2), keepdim=True)
    ours = F.interpolate((ours / (1e-7 + ours.amax((1, 2), keepdim=True)))[:, None], (12, 10), mode="bilinear")[:, 0]
    ours = ours - ours.amin((1, 2), keepdim=True)
    torch.testing.assert_close(theirs, ours / (1e-7 + ours.amax((1, 2), keepdim=True)), rtol=0, atol=2e-3)


@pytest.mark.parametrize("method", OTHERS)
def test_every_method_leaves_the_network_as_it_was(method):
    model = Blocks().train()
    model.head.weight.requires_grad_(False)
    model.first[0].weight.grad = torch.ones_like(model.first[0].weight)
    weights, before = copy.deepcopy(model.state_dict()), state(model)
    cam = LibraryCam(GradCam(model, (3, 8, 8)), method)
    maps = cam(torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.tensor([1, 2]))
    assert maps.shape == (2, 8, 8)
    assert maps.dtype == torch.float32
    assert maps.min() >= 0
    assert maps.max() <= 1
    assert state(model) == before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", [name for name in OTHERS if METHODS[name].of_class])
def test_a_method_of_a_class_asks_for_that_class(method):
    cam = LibraryCam(GradCam(Blocks(), (3, 8, 8)), method)
    images = torch.randn(1, 3, 8, 8)
    maps = [cam(images, torch.tensor([target])) for target in range(4)]
    assert any(not torch.equal(maps[0], other) for other in maps[1:])


@pytest.mark.parametrize("method", ["layercam", "eigencam", *SLOW])
def test_attached_attention_kernels_compiled_networks_and_inference_mode(method, cpu_kernels):
    model = nn.Sequential(
        Blocks().first, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    )
    attach(model, "csham", points=["2"])
    images, targets = torch.randn(2, 3, 10, 10), torch.tensor([0, 1])
    expected = LibraryCam(GradCam(model, (3, 10, 10)), method)(images, targets)
    with csham.ops.use_kernels("cpu"):
        torch.testing.assert_close(
            LibraryCam(GradCam(model, (3, 10, 10)), method)(images, targets), expected, rtol=1e-3, atol=1e-3
        )
    with torch.inference_mode():
        given = torch.stack(list(images))
        found = LibraryCam(GradCam(model, (3, 10, 10)), method)(given, targets)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(LibraryCam(GradCam(compiled, (3, 10, 10)), method)(images, targets), expected)


def test_a_network_in_bfloat16():
    model = Blocks().bfloat16()
    maps = LibraryCam(GradCam(model, (3, 8, 8)), "layercam")(torch.randn(2, 3, 8, 8).bfloat16(), torch.tensor([1, 2]))
    assert maps.dtype == torch.float32
    assert maps.max() > 0.9


def test_a_layer_that_runs_twice_is_told():
    class Twice(Blocks):
        def forward(self, x):
            return super().forward(self.first[2](x))

    model = Twice()
    gradcam = GradCam(model, (3, 8, 8), "first.2")
    with pytest.raises(UserError, match=r"first\.2 runs several times. Name another layer"):
        LibraryCam(gradcam, "layercam")(torch.randn(1, 3, 8, 8), torch.tensor([0]))
    assert not model.first[2]._forward_hooks


@pytest.mark.usefixtures("reference")
def test_explanations_show_the_method_that_was_asked_for(attended, images):
    from csham.explain.picture import draw

    trained, files = csham.load(attended), sorted((images / "bee").iterdir())[:2]
    plain = list(explain(trained, files))
    for one, ours in zip(explain(trained, files, method="layercam"), plain, strict=True):
        assert (one.method, ours.method) == ("layercam", OWN)
        assert one.gradcam.shape == (16, 16)
        assert one.gradcam_layer == ours.gradcam_layer
        np.testing.assert_array_equal(one.probabilities, ours.probabilities)
        for name, stage in one.stages.items():  # of one run of the network on the whole batch, not of the method's runs
            for point, maps in stage.points.items():
                for kind, values in maps.items():
                    np.testing.assert_array_equal(values, ours.stages[name].points[point][kind])
        assert any(text.get_text() == f"LayerCAM: {one.classes[one.target]}" for text in draw(one).texts)
    (agnostic,) = explain(trained, files[:1], method="eigencam")
    assert any(text.get_text() == "Eigen-CAM: of no class" for text in draw(agnostic).texts)


class Patch(nn.Module):
    """Sees one patch alone: the brighter it is, the more the image is of class 0."""

    def forward(self, x):
        seen = x[:, :, 2:5, 6:9].mean((1, 2, 3))
        return torch.stack([8 * seen, torch.zeros_like(seen)], 1)


def test_road_prefers_the_patch_that_decides_and_repeats_itself():
    image = -torch.ones(3, 12, 12)
    image[:, 2:5, 6:9] = 1
    rng = np.random.default_rng(0)
    truth = np.zeros((12, 12))
    truth[2:5, 6:9] = 1
    ranks = [pixel_ranks(truth, rng), pixel_ranks(np.zeros((12, 12)), rng), pixel_ranks(-truth, rng)]
    state = torch.get_rng_state()
    true, random, wrong = found = road(Patch(), image, 0, ranks, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert 0.5 >= true > random > wrong >= -0.5
    np.testing.assert_array_equal(road(Patch(), image, 0, ranks, seed=3), found)


@pytest.mark.usefixtures("reference")
def test_road_stands_beside_deletion_and_insertion(attended):
    trained = csham.load(attended)
    images = sample_test_images(trained, 2)
    (found,) = measure_faithfulness([trained], images, method="layercam", road=True, steps=3)
    (plain,) = measure_faithfulness([trained], images, steps=3)
    rows = {row["map"]: row for row in json.loads(json.dumps(found.rows()))}
    assert list(rows) == ["layer1", "layer2", "layer3", "LayerCAM", "random order", "centre first"]
    for row, before in zip(found.maps[:3], plain.maps[:3], strict=True):
        np.testing.assert_allclose(row.deletion, before.deletion, atol=1e-5)
        assert before.road is None
        assert row.road.shape == (2,)
        assert (abs(row.road) <= 0.5).all()
    assert rows["LayerCAM"]["road_minus_random"] == pytest.approx(
        rows["LayerCAM"]["road"] - rows["random order"]["road"]
    )


@pytest.mark.usefixtures("reference")
def test_on_the_command_line(attended, images, tmp_path, capsys):
    from csham.cli import main

    words = ["explain", str(attended), str(images / "cow/0.png"), "--method", "gradcam++", "--road", "--samples", "2"]
    words += ["--output", str(tmp_path), "--device", "cpu", "--quiet"]
    assert main(words) == 0
    out, err = capsys.readouterr()
    assert "it/s" not in err  # the library's own bars
    assert "Grad-CAM++" in out
    assert "ROAD: half of how much" in out
    with (tmp_path / "faithfulness.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(float(row["road_low"]) <= float(row["road"]) <= float(row["road_high"]) for row in rows)
    assert (tmp_path / "0.png").is_file()


def test_names_are_those_of_the_library():
    for name in OTHERS:
        assert issubclass(getattr(pytorch_grad_cam, find_method(name).class_name), pytorch_grad_cam.base_cam.BaseCAM)

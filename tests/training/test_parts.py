"""The parts of a network under training, and holding its backbone still."""

import pytest
import torch
import torchvision
from torch import nn

import csham
from csham.training.parts import Backbone, parts_of


@pytest.mark.parametrize(
    ("backbone", "head"),
    [
        ("resnet20", {"fc.weight", "fc.bias"}),
        pytest.param("vgg11_bn", {"head.fc.weight", "head.fc.bias"}, marks=pytest.mark.slow),
        ("torchvision/mobilenet_v3_small", {"classifier.3.weight", "classifier.3.bias"}),
        ("convnext_atto", {"head.fc.weight", "head.fc.bias"}),
    ],
)
def test_every_parameter_has_a_part(backbone, head):
    model = csham.create_model(backbone, attention="csham", gated=True, num_classes=5, image_size=64)
    plain = csham.create_model(backbone, num_classes=5, image_size=64)
    parts = parts_of(model)
    assert list(parts) == [name for name, _ in model.named_parameters()]
    assert {name for name, part in parts.items() if part == "head"} == head
    ours = set(dict(plain.named_parameters()))
    assert {name for name, part in parts.items() if part == "attention"} == set(parts) - ours


def test_attention_at_the_end_does_not_hide_the_head():
    """Of a network that does not say which layer is its last, as torchvision's do not."""
    model = torchvision.models.mobilenet_v3_small(num_classes=5)
    csham.attach(model, "cbam", position="last", gated=True)
    parts = parts_of(model)
    assert {name for name, part in parts.items() if part == "head"} == {"classifier.3.weight", "classifier.3.bias"}
    assert "attention" in parts.values()


def test_a_network_without_a_layer_that_could_be_the_head_is_all_backbone():
    model = nn.Sequential(nn.Conv3d(3, 4, 1), nn.BatchNorm3d(4))
    assert set(parts_of(model).values()) == {"backbone"}


def test_what_starts_from_new_weights_belongs_to_the_head():
    model = csham.create_model("resnet18", num_classes=5, image_size=32)
    assert parts_of(model)["conv1.weight"] == "backbone"
    assert parts_of(model, ["conv1", "fc"])["conv1.weight"] == "head"


def step(model, x):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(x).square().sum().backward()
    torch.optim.SGD(model.parameters(), lr=0.1).step()
    model.zero_grad()
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_a_backbone_that_is_held_moves_neither_weights_nor_statistics(kernels, cpu_kernels):
    with csham.ops.use_kernels(kernels):
        model = csham.create_model("resnet14", attention="cbam", gated=True, num_classes=5, image_size=16)
        x = torch.randn(4, 3, 16, 16)
        backbone = Backbone(model)
        model.train()
        backbone.hold(True)
        moved = step(model, x)
        assert {"fc.weight", "fc.bias"} < moved
        assert all(name.startswith("fc.") or ".attached." in name for name in moved)
        assert any(name.endswith("attached.gate") for name in moved)
        backbone.hold(False)
        moved = step(model, x)
        assert {"conv1.weight", "bn1.running_mean", "layer1.0.bn2.num_batches_tracked"} <= moved


def test_a_held_norm_normalises_by_its_running_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    x = torch.randn(4, 3, 2, 2)
    backbone = Backbone(model)
    model.train()
    backbone.hold(True)
    held = model(x)
    assert torch.equal(held, model.eval()(x))


def test_what_its_owner_froze_stays_frozen():
    model = csham.create_model("resnet14", num_classes=5, image_size=16)
    model.conv1.weight.requires_grad_(False)
    backbone = Backbone(model)
    backbone.hold(True)
    backbone.hold(False)
    assert not model.conv1.weight.requires_grad
    assert model.layer1[0].conv1.weight.requires_grad

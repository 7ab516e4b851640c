"""Grad-CAM: its formula, the layer it chooses, and a network that is afterwards what it was before."""

import pytest
import torch
import torch.nn.functional as F
from networks import NETWORKS, FunctionalNet
from torch import nn

import csham
from csham import ops
from csham.explain import GradCam
from csham.explain.gradcam import find_layer

# How the last map of each is put out: the end of the last block or, without blocks, the last activation or norm.
LAYERS = {
    "own-nested": "groups.deep.2",
    "timm-resnet10t": "layer4.0",
    "timm-mobilenetv2_050": "bn2",
    "timm-mobilenetv3_large_100": "blocks.6.0.bn1",  # what follows is pooled already
    "timm-efficientnet_b0": "bn2",
    "timm-convnext_atto": "stages.3.blocks.1",
    "timm-densenet121": "features.norm5",
    "timm-vgg11_bn": "features.27",
    "timm-inception_v3": "Mixed_7c",
    "torchvision-resnet18": "layer4.1",
    "torchvision-vgg11_bn": "features.27",
    "torchvision-densenet121": "features.norm5",
    "torchvision-mobilenet_v2": "features.18.2",
    "torchvision-efficientnet_b0": "features.8.2",
    "torchvision-convnext_tiny": "features.7.2",
    "torchvision-googlenet": "inception5b",
    "torchvision-inception_v3": "Mixed_7c",
    "torchvision-squeezenet1_1": "features.12",
    "torchvision-alexnet": "features.11",
    "torchvision-shufflenet_v2_x0_5": "conv5.2",
}
LIGHT = ("own-nested", "torchvision-resnet18", "torchvision-mobilenet_v2")
KNOWN = [
    pytest.param(network, id=network.id, marks=[] if network.id in LIGHT else [pytest.mark.slow, pytest.mark.long])
    for network in NETWORKS
    if network.id in LAYERS
]


class Tiny(nn.Module):
    """A convolution, an activation that overwrites it, the mean of each channel, and a linear layer."""

    def __init__(self, inplace=True):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.act = nn.ReLU(inplace=inplace)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, x):
        return self.fc(self.drop(self.act(self.conv(x)).mean((2, 3))))


def state_of(model):
    hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks), m.training) for m in model.modules()]
    return hooks, {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}, torch.is_grad_enabled()


def test_with_a_linear_head_it_is_the_class_activation_map():
    # Selvaraju et al., section 3.1: for global average pooling and a linear layer Grad-CAM is CAM, over h * w.
    model, x = Tiny(), torch.randn(3, 3, 6, 5)
    maps, logits = GradCam(model, (3, 6, 5))(x, torch.tensor([1, 4, 0]))
    activated = F.relu(model.conv(x))
    for row, target in enumerate((1, 4, 0)):
        cam = F.relu((model.fc.weight[target][:, None, None] * activated[row]).sum(0))
        torch.testing.assert_close(maps[row], cam / cam.max())
    torch.testing.assert_close(logits, model.eval()(x))
    assert not maps.requires_grad
    assert not logits.requires_grad


@pytest.mark.parametrize("inplace", [False, True])
def test_before_an_activation_in_place_it_is_what_autograd_says(inplace):
    model, x = Tiny(inplace).eval(), torch.randn(2, 3, 6, 6)
    maps, logits = GradCam(model, (3, 6, 6), "conv")(x)
    before = model.conv(x)
    y = model.fc(torch.relu(before).mean((2, 3)))
    (grad,) = torch.autograd.grad(y.max(1).values.sum(), before)
    cam = F.relu((grad.mean((2, 3), keepdim=True) * before).sum(1))
    torch.testing.assert_close(maps, cam / cam.amax((1, 2), keepdim=True))
    torch.testing.assert_close(logits, y)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_frozen_in_training_and_without_gradients_it_is_the_same_and_leaves_all_as_it_was(context):
    model, x = Tiny(), torch.randn(2, 3, 8, 8)
    expected, _ = GradCam(model, (3, 8, 8))(x)
    model.requires_grad_(False)
    model.fc.weight.requires_grad_(True).grad = torch.ones(5, 4)
    model.train()
    model.conv.eval()
    before = state_of(model)
    with context():
        inside = torch.is_grad_enabled()
        maps, _ = GradCam(model, (3, 8, 8))(x.clone())
        assert torch.is_grad_enabled() == inside
    torch.testing.assert_close(maps, expected)
    after = state_of(model)
    assert before[0] == after[0]
    assert before[2] == after[2]
    assert all(before[1][name][0] == wanted and before[1][name][1] is grad for name, (wanted, grad) in after[1].items())


def test_a_network_that_fails_is_left_as_it_was():
    model = Tiny().train()
    gradcam = GradCam(model, (3, 8, 8))
    before = state_of(model)
    with pytest.raises(RuntimeError):
        gradcam(torch.randn(2, 4, 8, 8))
    assert state_of(model) == before


def test_nothing_speaks_for_a_class_and_one_place_gives_no_nan():
    model = Tiny()
    with torch.no_grad():
        model.fc.weight.fill_(-1)
    assert GradCam(model, (3, 8, 8))(torch.randn(1, 3, 8, 8))[0].eq(0).all()
    model = csham.create_model("resnet20", num_classes=3, image_size=32)
    maps, _ = GradCam(model, (3, 32, 32), "layer3")(torch.randn(2, 3, 4, 4))
    assert maps.shape == (2, 1, 1)
    assert maps.isfinite().all()


@pytest.mark.parametrize("network", KNOWN)
def test_the_layer_of_each_architecture(network):
    model = network.build().eval().requires_grad_(False)
    gradcam = GradCam(model, (3, network.side, network.side))
    assert gradcam.layer == LAYERS[network.id]
    x = torch.randn(2, 3, network.side, network.side)
    maps, logits = gradcam(x)
    seen = []
    handle = model.get_submodule(gradcam.layer).register_forward_hook(lambda m, args, y: seen.append(y.shape))
    torch.testing.assert_close(logits, model(x))
    handle.remove()
    assert maps.shape == (2, *seen[0][2:])
    assert ((maps >= 0) & (maps <= 1)).all()


def test_where_no_module_puts_the_last_map_out_it_is_the_last_before_it():
    assert find_layer(FunctionalNet(), (3, 32, 32)) == "down"


@pytest.mark.usefixtures("reference")
def test_fused_blocks_show_the_same_as_blocks_that_are_not():
    x, maps = torch.randn(2, 3, 16, 16), []
    for fuse in (True, False):
        torch.manual_seed(0)
        model = csham.create_model("resnet20", num_classes=3, image_size=32).eval()
        points = csham.attach(model, "csham", strategy="transfer", fuse=fuse, input_size=(3, 32, 32))
        assert all(point.fused == fuse for point in points)
        maps.append(GradCam(model, (3, 16, 16))(x)[0])
        maps.append(GradCam(model, (3, 16, 16), "layer3.2.act2")(x)[0])  # which a fused block does not call by itself
    for other in maps[1:]:
        torch.testing.assert_close(other, maps[0])


def test_attention_at_the_last_map_is_seen_from_its_host():
    model = csham.create_model("lenet5", attention="scse", num_classes=3, image_size=32)
    assert find_layer(model, (3, 32, 32)) == "act2"
    model = csham.create_model("resnet20", attention="csham", position="last", num_classes=3, image_size=32)
    assert find_layer(model, (3, 32, 32)) == "layer3.2"


@pytest.mark.slow
def test_kernels_give_what_the_reference_gives(cpu_kernels):
    model = csham.create_model("resnet20", attention="csham", strategy="transfer", num_classes=3, image_size=32).eval()
    x = torch.randn(2, 3, 32, 32)
    found = []
    for name in ("reference", "cpu"):
        with ops.use_kernels(name):
            found.append(GradCam(model, (3, 32, 32))(x)[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
@pytest.mark.long
def test_a_compiled_network_runs_without_its_code():
    model, x = Tiny().eval(), torch.randn(2, 3, 8, 8)
    expected, _ = GradCam(model, (3, 8, 8))(x)
    compiled = torch.compile(model, backend="aot_eager")
    compiled(x)
    torch.testing.assert_close(GradCam(compiled, (3, 8, 8))(x)[0], expected)
    model.compile(backend="aot_eager")
    model(x)
    torch.testing.assert_close(GradCam(model, (3, 8, 8))(x)[0], expected)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("layer3.3", "unknown layer 'layer3.3'. Did you mean"),
        ("", "unknown layer ''"),
        ("fc", r"fc \(Linear\) puts out 1 x 3, not a feature map"),
    ],
)
def test_layers_that_cannot_be_looked_at(layer, message):
    model = csham.create_model("resnet20", num_classes=3, image_size=32)
    with pytest.raises(ValueError, match=message):
        GradCam(model, (3, 32, 32), layer)


def test_a_layer_that_the_logits_do_not_depend_on_and_one_that_does_not_run():
    class Aside(Tiny):
        def __init__(self):
            super().__init__()
            self.aside, self.idle = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)

        def forward(self, x):
            self.aside(x)
            return super().forward(x)

    model, x = Aside(), torch.randn(1, 3, 8, 8)
    with pytest.raises(ValueError, match="the logits do not depend on the output of aside"):
        GradCam(model, (3, 8, 8), "aside")(x)
    with pytest.raises(ValueError, match=r"idle \(Conv2d\) does not run"):
        GradCam(model, (3, 8, 8), "idle")


def test_networks_without_a_map_or_made_in_inference_mode_are_told():
    flat = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    with pytest.raises(ValueError, match="Sequential has no feature map of more than one place at 4x4"):
        GradCam(flat, (3, 4, 4))
    with torch.inference_mode():
        model = Tiny()
    with pytest.raises(ValueError, match=r"made under torch.inference_mode"):
        GradCam(model, (3, 8, 8))

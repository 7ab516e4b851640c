"""Networks for 32 pixels, and the same networks untouched for larger images."""

import pytest
import timm
import torch
import torchvision.models
from torch import nn

import csham
from csham.backbones import BACKBONES

FAMILIES = [
    "lenet5", "wrn16_8", "resnet18", "resnext50_grouped", "mobilenetv2_100", "densenet121", "googlenet",
    pytest.param("vgg11_bn", marks=pytest.mark.slow),  # timm draws 103 million weights of a head first
]  # fmt: skip


@pytest.mark.parametrize("name", FAMILIES)
def test_a_step_on_small_images_reaches_every_parameter(name):
    model = csham.create_model(name, num_classes=7, image_size=32)
    logits = model(torch.randn(1, 3, 32, 32) + 1)
    assert logits.shape == (1, 7)
    logits.square().sum().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize(
    ("name", "side"),
    [("resnet18", 4), ("resnext50_32x4d", 4), ("wide_resnet50_2", 4), ("densenet121", 4), ("mobilenetv2_100", 4)],
)
def test_the_last_map_of_a_small_image(name, side):
    with torch.device("meta"):
        model = csham.create_model(name, image_size=32).eval()
        assert model.forward_features(torch.empty(1, 3, 32, 32)).shape[-2:] == (side, side)


def test_googlenet_halves_a_small_image_twice():
    with torch.device("meta"):
        model = csham.create_model("googlenet", image_size=32).eval()
        shapes = []
        model.inception5b.register_forward_hook(lambda _, __, output: shapes.append(output.shape))
        model(torch.empty(1, 3, 32, 32))
    assert shapes == [(1, 1024, 8, 8)]


@pytest.mark.parametrize(
    "name", ["resnet50", "resnext50_32x4d", "wide_resnet50_2", "vgg16_bn", "mobilenetv2_100", "densenet121"]
)
def test_larger_images_get_timms_network(name):
    with torch.device("meta"):
        ours, theirs = csham.create_model(name, image_size=65), timm.create_model(name)
    assert repr(ours) == repr(theirs)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("resnet18", lambda: timm.create_model("resnet18", num_classes=5)),
        ("torchvision/resnet18", lambda: torchvision.models.resnet18(num_classes=5)),
        ("googlenet", lambda: torchvision.models.googlenet(
            num_classes=5, aux_logits=False, init_weights=True, transform_input=True
        )),
    ],
)  # fmt: skip
def test_one_seed_gives_the_librarys_outputs_on_larger_images(name, build):
    torch.manual_seed(3)
    ours = csham.create_model(name, image_size=96, num_classes=5).eval()
    torch.manual_seed(3)
    theirs = build().eval()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(1, 3, 96, 96)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize(("name", "small", "large"), [("vgg11_bn", [0.5, 0.5], [0, 0]), ("googlenet", [0.4], [0.2])])
def test_small_images_get_the_collections_dropout_and_larger_ones_the_librarys(name, small, large):
    for image_size, expected in [(32, small), (224, large)]:
        with torch.device("meta"):
            model = csham.create_model(name, image_size=image_size)
        assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == expected


def test_a_prefix_keeps_a_librarys_network_on_small_images_too():
    with torch.device("meta"):
        assert csham.create_model("timm/resnet18", image_size=32).conv1.kernel_size == (7, 7)
        assert csham.create_model("torchvision/resnet18", image_size=32).conv1.kernel_size == (7, 7)
        assert csham.create_model("resnet18.a1_in1k", image_size=32).conv1.kernel_size == (3, 3)


def test_new_layers_start_at_the_scale_of_those_they_replace():
    def outputs(name, side, layer):
        model = csham.create_model(name, num_classes=5, image_size=side)
        return dict(model.named_modules())[layer].weight.std().item()

    for name, layer in [("resnet18", "conv1"), ("densenet121", "features.conv0"), ("googlenet", "conv1.conv")]:
        small, large = outputs(name, 32, layer), outputs(name, 224, layer)
        assert 0.5 < small / large < 3  # kernels of 9 and 49 weights


def test_the_published_resnext_is_the_one_with_groups_in_its_first_convolutions():
    with torch.device("meta"):
        blocks = [m for m in csham.create_model("resnext50_grouped", image_size=224).modules() if hasattr(m, "conv3")]
    assert len(blocks) == 16
    assert all(block.conv1.groups == block.conv2.groups == 32 for block in blocks)
    assert all(isinstance(block.conv3, nn.Conv2d) and block.conv3.groups == 1 for block in blocks)


def test_published_counts_match_or_the_table_says_why():
    for entry in BACKBONES.values():
        if entry.published:
            ratio = entry.params / 1e6 / float(entry.published.removesuffix("M"))
            assert entry.note or abs(ratio - 1) < 0.01, entry
    for name in (
        "resnet18",
        "resnet50",
        "vgg16_bn",
        "mobilenetv2_100",
        "resnext50_grouped",
        "densenet121",
        "googlenet",
    ):
        assert BACKBONES[name].published
        assert not BACKBONES[name].note.startswith("published")

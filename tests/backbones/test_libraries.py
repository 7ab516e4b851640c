"""timm's and torchvision's networks: one tensor out, any channels in, and published weights that are not there."""

import time
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
import torchvision.models

import csham
from csham.backbones.libraries import torchvision_network
from csham.errors import UserError


@pytest.mark.parametrize("name", ["torchvision/googlenet", "torchvision/inception_v3"])
def test_training_gives_one_tensor_and_no_warning(name, recwarn):
    side = 75
    with torch.device("meta"):
        model = csham.create_model(name, image_size=side, num_classes=4)
        assert model.train()(torch.empty(2, 3, side, side)).shape == (2, 4)
    assert not [w for w in recwarn if "init" in str(w.message)]


@pytest.mark.parametrize(
    "name", ["mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5", "torchvision/densenet121", "timm/test_resnet"]
)
@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channels(name, in_chans):
    model = csham.create_model(name, image_size=64, num_classes=3, in_chans=in_chans).eval()
    assert model(torch.randn(1, in_chans, 64, 64)).shape == (1, 3)


def test_a_grey_image_gives_what_its_three_equal_channels_gave():
    torch.manual_seed(4)
    colour = torchvision_network("squeezenet1_1", 3, 3).eval()
    torch.manual_seed(4)
    grey = torchvision_network("squeezenet1_1", 3, 1).eval()
    x = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(grey(x), colour(x.expand(-1, 3, -1, -1)))


def test_googlenets_change_of_range_does_not_hang_on_weights_that_a_run_loads_later():
    with torch.device("meta"):
        assert csham.create_model("googlenet", image_size=224).transform_input
        assert not csham.create_model("googlenet", image_size=224, in_chans=1).transform_input
        assert not csham.create_model("googlenet", image_size=32).transform_input


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("resnet18", "model.safetensors of timm/resnet18.a1_in1k on the Hugging Face hub"),
        ("timm/resnet18.a2_in1k", "model.safetensors of timm/resnet18.a2_in1k"),
        ("torchvision/squeezenet1_1", "/squeezenet1_1-"),
        ("googlenet", "/googlenet-"),
    ],
)
def test_weights_out_of_reach_are_said_so_at_once(name, source, no_network):
    started = time.monotonic()
    with pytest.raises(UserError, match=r"could not be reached \(.*Name or service not known\)") as caught:
        csham.create_model(name, pretrained=True)
    assert source in str(caught.value)
    assert "weights_file=FILE (--weights-file FILE)" in str(caught.value)
    assert time.monotonic() - started < 15
    assert not list(no_network.rglob("*.pth"))


def test_networks_without_published_weights():
    with pytest.raises(UserError, match="timm has no pretrained weights for densenet264d"):
        csham.create_model("densenet264d", pretrained=True)


def test_timms_weights_are_taken_from_the_hubs_cache(no_network):
    theirs = timm.create_model("test_resnet")
    snapshot = no_network / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("0" * 40)
    safetensors.torch.save_model(theirs, str(snapshot / "model.safetensors"))
    ours = csham.create_model("test_resnet", pretrained=True, num_classes=6, in_chans=1)
    expected = theirs.state_dict()
    assert ours(torch.randn(2, 1, 64, 64)).shape == (2, 6)
    assert torch.equal(ours.layer4[0].conv1.weight, expected["layer4.0.conv1.weight"])
    first = next(key for key in expected if key.startswith("conv1") and key.endswith("weight"))
    torch.testing.assert_close(ours.state_dict()[first], expected[first].sum(1, keepdim=True))


def test_torchvisions_weights_are_taken_from_its_cache(no_network):
    theirs = torchvision.models.squeezenet1_1()
    url = torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url
    cached = no_network / "torch" / "hub" / "checkpoints" / Path(url).name
    cached.parent.mkdir(parents=True)
    torch.save(theirs.state_dict(), cached)
    ours = csham.create_model("squeezenet1_1", pretrained=True, num_classes=6, in_chans=1)
    assert ours.classifier[1].weight.shape[0] == 6
    assert torch.equal(ours.features[3].squeeze.weight, theirs.features[3].squeeze.weight)
    torch.testing.assert_close(ours.features[0].weight, theirs.features[0].weight.sum(1, keepdim=True))


def test_a_network_without_classes():
    assert csham.create_model("timm/test_resnet", num_classes=0)(torch.randn(2, 3, 64, 64)).ndim == 2
    with pytest.raises(UserError, match="at least one class"):
        csham.create_model("torchvision/alexnet", num_classes=0)

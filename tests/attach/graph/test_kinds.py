"""Networks that work on something else than feature maps: what is said of them, and what is found in those that mix."""

import copy
import re
import warnings

import pytest
import timm
import torch
import torchvision
from torch import nn

import csham


class Residual(nn.Module):
    """A residual block of any number of dimensions."""

    def __init__(self, conv, norm, channels=8):
        super().__init__()
        self.first, self.second = conv(channels, channels, 3, padding=1), conv(channels, channels, 3, padding=1)
        self.norm = norm(channels)

    def forward(self, x):
        return torch.relu(x + self.norm(self.second(torch.relu(self.first(x)))))


class Net(nn.Module):
    def __init__(self, conv, norm=nn.Identity, in_channels=1):
        super().__init__()
        self.stem = conv(in_channels, 8, 3, padding=1)
        self.blocks = nn.Sequential(Residual(conv, norm), Residual(conv, norm))
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).flatten(2).mean(2))


SIGNALS = r"has 1-D convolutions \(stem\): its maps are \(B, C, L\), and .* rescale \(B, C, H, W\)\. Let it"
VOLUMES = r"has 3-D convolutions \(stem(\.0)?\): its maps are \(B, C, D, H, W\), and .*\. Choose a network"


@pytest.mark.parametrize(
    ("build", "choice", "message"),
    [
        (lambda: Net(nn.Conv1d, nn.BatchNorm1d), {}, SIGNALS),
        (lambda: Net(nn.Conv1d, nn.BatchNorm1d), {"input_size": (1, 64)}, SIGNALS),
        (lambda: Net(nn.Conv1d, nn.BatchNorm1d, 12), {"position": "stage"}, SIGNALS),
        (lambda: Net(nn.Conv3d, nn.BatchNorm3d), {}, VOLUMES),
        (lambda: Net(nn.Conv3d, nn.BatchNorm3d), {"input_size": (1, 8, 16, 16)}, VOLUMES),
        # One volume of no batch is what a batch of images looks like to it.
        (lambda: Net(nn.Conv3d), {}, VOLUMES),
        (lambda: Net(nn.Conv3d), {"position": "last"}, VOLUMES),
        (lambda: torchvision.models.video.r3d_18(num_classes=3), {}, VOLUMES),
        (lambda: torchvision.models.video.r3d_18(num_classes=3), {"input_size": (3, 4, 32, 32)}, VOLUMES),
    ],
)
def test_signals_and_volumes_are_named(build, choice, message):
    with pytest.raises(ValueError, match=message):
        csham.attach(build(), "se", **choice)


@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv3d])
def test_they_are_not_run_at_one_side_after_another(conv):
    net, runs = Net(conv), []
    net.register_forward_pre_hook(lambda *_: runs.append(1))
    with pytest.raises(ValueError, match="convolutions"):
        csham.attach(net, "se")
    assert len(runs) == 1


class Recognizer(Net):
    """Reads a line of text: an image network, its columns a signal."""

    def __init__(self):
        super().__init__(nn.Conv2d)
        self.columns = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x):
        x = self.blocks(self.stem(x)).mean(2)
        return self.head((x + self.columns(x)).mean(2))


@pytest.mark.parametrize(("build", "count"), [(Recognizer, 2), (lambda: timm.create_model("eca_resnext26ts"), 8)])
def test_a_few_convolutions_of_other_dimensions_are_part_of_a_network_for_images(build, count):
    assert len(csham.attach(build(), "se", dry_run=True)) == count


@pytest.mark.parametrize(
    ("name", "stages"),
    [("mobilevit_xxs", 5), ("mobilevit_s", 5), ("maxvit_pico_rw_256", 4), ("caformer_s18", 2)],
)
def test_a_hybrid_attends_among_its_feature_maps(name, stages):
    model = timm.create_model(name, num_classes=3)
    with pytest.warns(UserWarning, match=r"residual branches of \w+ carry tokens, .* and get no attention") as caught:
        points = csham.attach(model, "se")
    assert points
    tokens, branches = map(int, re.match(r"attach: (\d+) of the (\d+) residual", str(caught[0].message)).groups())
    assert 0 < tokens < branches
    assert len({point.stage for point in points}) <= stages
    model(torch.randn(1, 3, *model.default_cfg["input_size"][1:])).sum().backward()


def test_maps_with_their_channels_last_are_called_that_and_what_can_be_named():
    model = timm.create_model("test_mambaout", num_classes=3)
    with pytest.raises(ValueError, match=r"the maps of MambaOut are \(B, H, W, C\)") as caught:
        csham.attach(model, "se")
    names = str(caught.value).partition("points=: ")[2].partition(".  ")[0].split(". Or")[0].split(", ")
    assert [point.name for point in csham.attach(model, "se", points=names)] == names


class Timed(nn.Module):
    """Takes more than images, as networks of diffusion and of optical flow do."""

    def __init__(self):
        super().__init__()
        self.net = Net(nn.Conv2d, in_channels=3)

    def forward(self, sample, timestep, *, scale=1.0):
        return self.net(sample) * scale + timestep


class Run(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x, 0)


def test_a_network_that_takes_more_than_images_is_attached_to_within_another():
    model, x = Timed().eval(), torch.randn(2, 3, 16, 16)
    with pytest.raises(ValueError, match=r"Timed takes sample and timestep, and is run here .* a module around it"):
        csham.attach(model, "se")
    before = model(x, 5)
    assert len(csham.attach(Run(model), "se", gated=True)) == 2
    torch.testing.assert_close(model(x, 5), before)
    again = copy.deepcopy(model)
    for parameter in again.parameters():
        nn.init.normal_(parameter)
    again.train()(x, 5).sum().backward()
    assert all(parameter.grad is not None for parameter in again.parameters())
    assert sum("attached" in name for name in again.state_dict()) == 10


def test_8_bit_integers_are_named():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's way of quantizing is deprecated
        model = torchvision.models.quantization.mobilenet_v2(quantize=True, num_classes=3)
    with pytest.raises(ValueError, match=r"features\.0\.0 works on 8-bit integers, .* before it is quantized"):
        csham.attach(model, "se")


def test_a_network_of_floats_that_may_be_quantized_later_is_like_any_other():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.add = nn.Conv2d(8, 8, 3, padding=1), torch.ao.nn.quantized.FloatFunctional()

        def forward(self, x):
            return self.add.add_relu(self.conv(x), x)

    points = csham.attach(nn.Sequential(nn.Conv2d(3, 8, 1), Block(), Block()), "se")
    assert [point.name for point in points] == ["1.conv", "2.conv"]

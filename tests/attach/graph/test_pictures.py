"""Networks that make a picture, or class scores of every position: all gets attention but the layer that makes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import csham


def conv(in_channels, channels, *more):
    return nn.Conv2d(in_channels, channels, 3, 1, 1), *more


def unit(in_channels, channels):
    return nn.Sequential(*conv(in_channels, channels, nn.BatchNorm2d(channels), nn.ReLU()))


def body(layers=4, head=None):
    return nn.Sequential(unit(3, 8), *(unit(8, 8) for _ in range(layers - 1)), head or nn.Conv2d(8, 3, 3, padding=1))


class Joined(nn.Module):
    """Makes its result of the images and of what a network makes of these."""

    def __init__(self, net, join):
        super().__init__()
        self.net, self.join = net, join

    def forward(self, x):
        return self.join(x, self.net(x))


class UNet(nn.Module):
    """Two levels, each of which is two layers."""

    def __init__(self):
        super().__init__()
        double = lambda before, channels: nn.Sequential(unit(before, channels), unit(channels, channels))  # noqa: E731
        self.inc, self.down, self.up = double(3, 8), double(8, 16), double(24, 8)
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        x = self.inc(x)
        below = self.down(F.max_pool2d(x, 2))
        return self.head(self.up(torch.cat([x, F.interpolate(below, scale_factor=2.0)], 1)))


class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(*conv(channels, channels, nn.ReLU()), *conv(channels, channels))

    def forward(self, x):
        return x + self.layers(x)


class AroundBlocks(nn.Module):
    """Super-resolution: residual blocks, a shortcut past all of them, and the way up."""

    def __init__(self, count=3):
        super().__init__()
        self.first, self.blocks = nn.Conv2d(3, 8, 3, padding=1), nn.Sequential(*(Block(8) for _ in range(count)))
        self.after = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(8, 3, 3, padding=1))

    def forward(self, x):
        x = self.first(x)
        return self.up(self.after(self.blocks(x)) + x)


def names(model, **choice):
    return [point.name for point in csham.attach(model, "se", dry_run=True, **choice)]


UNITS = [f"net.{i}.2" for i in range(4)]


@pytest.mark.parametrize(
    "join",
    [
        lambda x, y: y,
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: (y * 0.5).add_(x).clamp(0, 1),
        lambda x, y: x * torch.sigmoid(y),
        lambda x, y: F.interpolate(x, scale_factor=2.0) + F.interpolate(y, scale_factor=2.0),
        lambda x, y: (x - x.mean()) / x.std() - y,
    ],
)
@pytest.mark.parametrize(
    ("build", "expected"), [(body, UNITS), (UNet, ["net.inc", "net.down", "net.up"])], ids=["chain", "unet"]
)
def test_what_is_joined_with_the_images_has_the_points_that_it_has_alone(build, expected, join, recwarn):
    model = Joined(build(), join)
    assert names(model) == names(model, position="post") == expected
    assert names(model, position="last") == expected[-1:]
    assert not recwarn.list


@pytest.mark.parametrize("layers", [18, 30])
def test_a_long_way_beside_a_shortcut_is_followed(layers):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), Joined(nn.Sequential(*(unit(8, 8) for _ in range(layers))), torch.add))
    assert names(model, position="post")[1:] == [f"1.net.{i}.2" for i in range(layers)]


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("auto", [f"blocks.{i}.layers.2" for i in range(3)]),
        ("stage", ["blocks.2"]),
        ("last", ["up.1"]),
    ],
)
def test_a_shortcut_past_blocks_hides_none(position, expected):
    assert names(AroundBlocks(), position=position) == expected


def test_a_residual_block_alone_is_one_though_it_adds_what_it_is_given():
    block = Block(16)
    block.layers.append(nn.BatchNorm2d(16))
    assert names(block) == ["layers.3"]
    assert names(nn.Sequential(Block(16), Block(16))) == ["0.layers.2", "1.layers.2"]


def test_a_gate_on_the_images_is_no_part_of_the_network_after_it():
    gate = Joined(nn.Sequential(*conv(3, 4, nn.ReLU()), *conv(4, 1, nn.Sigmoid())), torch.mul)
    assert names(nn.Sequential(gate, unit(3, 8), unit(8, 8))) == ["1.2", "2.2"]


def test_maps_that_no_position_finds_are_named():
    model = Joined(nn.Sequential(unit(3, 8), nn.Conv2d(8, 3, 3, padding=1)), torch.minimum)
    with pytest.raises(ValueError, match=r"found no points in Joined for position='auto'\. Name .* as net\.0\.2, net"):
        csham.attach(model, "se")
    with pytest.raises(ValueError, match=r"no module of Flatten puts out feature maps"):
        csham.attach(nn.Flatten(), "se")


HEADS = {
    "tanh": nn.Sequential(*conv(8, 3, nn.Tanh())),
    "scores": nn.Conv2d(8, 5, 3, padding=1),
    "softmax": nn.Sequential(*conv(8, 5, nn.Upsample(scale_factor=2), nn.Softmax(1))),
    "transposed": nn.Sequential(nn.ConvTranspose2d(8, 1, 4, 2, 1), nn.Sigmoid()),
    "shuffled": nn.Sequential(*conv(8, 12, nn.PixelShuffle(2))),
    "padded": nn.Sequential(nn.ReflectionPad2d(3), nn.Conv2d(8, 3, 7), nn.Tanh()),
    "flat": nn.Sequential(nn.Conv2d(8, 1, 4), nn.Flatten()),
}
FEATURES = {
    "norm": nn.Sequential(*conv(8, 4, nn.BatchNorm2d(4))),
    "activation": nn.Sequential(*conv(8, 4, nn.ReLU())),
    "pooling": nn.Sequential(*conv(8, 4, nn.ReLU(), nn.MaxPool2d(2))),
    "more channels": nn.Sequential(*conv(8, 16)),
    "one by one": nn.Sequential(nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_the_layer_that_makes_the_output_gets_no_attention(head):
    model = body(3, head)
    assert names(model) == ["0.2", "1.2", "2.2"]
    assert names(model, position="last") == names(model, position="stage") == ["2.2"]


@pytest.mark.parametrize("end", FEATURES.values(), ids=FEATURES)
def test_an_output_of_features_keeps_its_attention(end):
    model = body(3, end)
    found = names(model)
    assert found[:3] == ["0.2", "1.2", "2.2"]
    assert found[3:] == names(model, position="last")
    assert found[3].startswith("3.")


@pytest.mark.parametrize("model", [nn.Sequential(*conv(3, 2)), nn.Sequential(*conv(3, 2, nn.Tanh()))])
def test_a_network_of_one_layer_keeps_its_point(model):
    assert names(model) == [str(len(model) - 1)]


class SegNet(nn.Module):
    """Hands the places of its maxima to the way up."""

    def __init__(self):
        super().__init__()
        self.down = nn.ModuleList([unit(3, 8), unit(8, 16), unit(16, 16)])
        self.up = nn.ModuleList([unit(16, 16), unit(16, 8), unit(8, 8)])
        self.head = nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        places = []
        for block in self.down:
            x, place = F.max_pool2d(block(x), 2, return_indices=True)
            places.append(place)
        for block in self.up:
            x = block(F.max_unpool2d(x, places.pop(), 2))
        return self.head(x)


def test_the_places_of_maxima_are_no_shortcut(recwarn):
    ways = [f"{way}.{i}.2" for way in ("down", "up") for i in range(3)]
    assert names(SegNet()) == ways
    assert names(SegNet(), position="stage") == ways
    assert not recwarn.list

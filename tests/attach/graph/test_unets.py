"""Networks whose skip connections reach over all that lies between them: every resolution of both ways gets points."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import csham


def conv(in_channels, channels):
    return [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


class DoubleConv(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.layers = nn.Sequential(*conv(in_channels, channels), *conv(channels, channels))

    def forward(self, x):
        return self.layers(x)


class Residual(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.layers = nn.Sequential(*conv(in_channels, channels), *conv(channels, channels)[:2])
        self.shortcut = nn.Conv2d(in_channels, channels, 1)

    def forward(self, x):
        return F.relu(self.layers(x) + self.shortcut(x))


class UNet(nn.Module):
    """The usual one: blocks in lists, skip connections by concatenation, transposed convolutions on the way up."""

    def __init__(self, block=DoubleConv, up_block=DoubleConv, widths=(8, 16, 32, 64)):
        super().__init__()
        self.downs, self.ups, self.up_blocks = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for before, width in zip((3, *widths), widths[:-1], strict=False):
            self.downs.append(block(before, width))
        self.bottleneck = block(*widths[-2:])
        for deep, width in zip(widths[:0:-1], widths[-2::-1], strict=True):
            self.ups.append(nn.ConvTranspose2d(deep, width, 2, stride=2))
            self.up_blocks.append(up_block(2 * width, width))
        self.head = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x):
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottleneck(x)
        for up, block, skip in zip(self.ups, self.up_blocks, reversed(skips), strict=True):
            x = block(torch.cat([skip, up(x)], 1))
        return self.head(x)


class Down(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(in_channels, channels))

    def forward(self, x):
        return self.maxpool_conv(x)


class Up(nn.Module):
    def __init__(self, in_channels, channels):
        super().__init__()
        self.up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.conv = DoubleConv(in_channels, channels)

    def forward(self, x, skip):
        x = self.up(x)
        x = F.pad(x, (0, skip.shape[3] - x.shape[3], 0, skip.shape[2] - x.shape[2]))
        return self.conv(torch.cat([skip, x], dim=1))


class Padded(UNet):
    """What comes from below is padded to the size of what is skipped, here by nothing."""

    def __init__(self):
        super().__init__()
        self.ups = nn.ModuleList([Fitted(up.in_channels, up.out_channels, 2, stride=2) for up in self.ups])


class Fitted(nn.ConvTranspose2d):
    def __call__(self, x):
        return F.pad(super().__call__(x), (0, 0, 0, 0), mode="replicate")


class Enlarged(nn.Sequential):
    """A way up that is a layer with its norm and activation, and then a residual unit."""

    def __init__(self, in_channels, channels):
        super().__init__(
            nn.ConvTranspose2d(in_channels, channels, 2, 2), nn.BatchNorm2d(channels), nn.ReLU(), Unit(channels)
        )


class Unit(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layers = nn.Sequential(*conv(channels, channels))

    def forward(self, x):
        return x + self.layers(x)


class Connected(nn.Module):
    """MONAI's: each level holds the one below it, and joins what that gives with what it was given."""

    def __init__(self, widths=(8, 16, 32), before=3, after=4):
        super().__init__()
        self.down = Residual(before, widths[0])
        deeper = widths[1:]
        self.below = Connected(deeper, widths[0], widths[0]) if len(deeper) > 1 else Residual(widths[0], deeper[0])
        self.up = Enlarged(widths[0] + (widths[0] if len(deeper) > 1 else deeper[0]), after)

    def forward(self, x):
        x = self.down(F.max_pool2d(x, 2))
        return self.up(torch.cat([x, self.below(x)], 1))


class Milesial(nn.Module):
    """Modules of one resolution each, pooling and upsampling within them."""

    def __init__(self):
        super().__init__()
        self.inc = DoubleConv(3, 8)
        self.down1, self.down2 = Down(8, 16), Down(16, 32)
        self.up1, self.up2 = Up(48, 16), Up(24, 8)
        self.outc = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        return self.outc(self.up2(self.up1(x3, x2), x1))


class Sequences(nn.Module):
    """An encoder whose stages are sequences of blocks, a decoder that adds what it skips."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.ModuleList(
            [
                nn.Sequential(DoubleConv(3, 8), DoubleConv(8, 8)),
                nn.Sequential(nn.MaxPool2d(2), DoubleConv(8, 16), DoubleConv(16, 16)),
                nn.Sequential(nn.MaxPool2d(2), DoubleConv(16, 32), DoubleConv(32, 32)),
            ]
        )
        self.reduce = nn.ModuleList([nn.Conv2d(32, 16, 1), nn.Conv2d(16, 8, 1)])
        self.decoder = nn.ModuleList([DoubleConv(16, 16), DoubleConv(8, 8)])
        self.head = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x):
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for reduce, block, skip in zip(self.reduce, self.decoder, skips[-2::-1], strict=True):
            x = block(skip + F.interpolate(reduce(x), scale_factor=2.0))
        return self.head(x)


class Flat(nn.Module):
    """Every layer a module of the network's own, called in one forward."""

    def __init__(self):
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        widths = {"down1": (3, 8), "down2": (8, 16), "deep": (16, 32), "up2": (48, 16), "up1": (24, 8)}
        for name, (before, width) in widths.items():
            self.add_module(f"{name}_conv1", nn.Conv2d(before, width, 3, padding=1))
            self.add_module(f"{name}_conv2", nn.Conv2d(width, width, 3, padding=1))
            self.add_module(f"{name}_bn", nn.BatchNorm2d(width))
        self.head = nn.Conv2d(8, 1, 1)

    def level(self, name, x):
        x = F.relu(self.get_submodule(f"{name}_conv1")(x))
        return F.relu(self.get_submodule(f"{name}_bn")(self.get_submodule(f"{name}_conv2")(x)))

    def forward(self, x):
        one = self.level("down1", x)
        two = self.level("down2", self.pool(one))
        x = self.level("deep", self.pool(two))
        x = self.level("up2", torch.cat([F.interpolate(x, scale_factor=2.0), two], 1))
        return self.head(self.level("up1", torch.cat([F.interpolate(x, scale_factor=2.0), one], 1)))


class Gated(UNet):
    """Attention U-Net: what is skipped is weighed by what comes from below."""

    def __init__(self):
        super().__init__()
        self.gates = nn.ModuleList([nn.Conv2d(width, 1, 1) for width in (64, 32, 16)])

    def forward(self, x):
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
            x = F.max_pool2d(x, 2)
        x = self.bottleneck(x)
        parts = zip(self.gates, self.ups, self.up_blocks, reversed(skips), strict=True)
        for gate, up, block, skip in parts:
            weights = F.interpolate(gate(x), scale_factor=2.0).sigmoid()
            x = block(torch.cat([skip * weights, up(x)], 1))
        return self.head(x)


class Nested(nn.Module):
    """U-Net++: between its two ways are more blocks, each of which joins all of its resolution before it."""

    def __init__(self):
        super().__init__()
        self.down0, self.down1, self.down2 = DoubleConv(3, 8), DoubleConv(8, 16), DoubleConv(16, 32)
        self.mid0_1, self.mid1_1, self.mid0_2 = DoubleConv(24, 8), DoubleConv(48, 16), DoubleConv(32, 8)
        self.head = nn.Conv2d(8, 1, 1)

    def forward(self, x):
        up = lambda x: F.interpolate(x, scale_factor=2.0)  # noqa: E731
        x0 = self.down0(x)
        x1 = self.down1(F.max_pool2d(x0, 2))
        x0_1 = self.mid0_1(torch.cat([x0, up(x1)], 1))
        x2 = self.down2(F.max_pool2d(x1, 2))
        x1_1 = self.mid1_1(torch.cat([x1, up(x2)], 1))
        return self.head(self.mid0_2(torch.cat([x0, x0_1, up(x1_1)], 1)))


LISTS = [*(f"downs.{i}" for i in range(3)), "bottleneck", *(f"up_blocks.{i}" for i in range(3))]
UNETS = {
    "lists": (UNet, LISTS),
    "gated": (Gated, LISTS),
    "padded": (Padded, LISTS),
    "connected": (
        Connected,
        ["down.layers.4", "below.down.layers.4", "below.below.layers.4", "below.up.3.layers.2", "up.3.layers.2"],
    ),
    "modules": (Milesial, ["inc", "down1", "down2", "up1", "up2"]),
    "sequences": (
        Sequences,
        ["encoder.0.0", "encoder.0.1", "encoder.1.1", "encoder.1.2", "encoder.2.1", "encoder.2.2",
         "decoder.0", "decoder.1"],
    ),
    "flat": (Flat, [f"{name}_bn" for name in ("down1", "down2", "deep", "up2", "up1")]),
    "nested": (
        Nested, ["down0", "down1", "mid0_1", "down2", "mid1_1", "mid0_2"],
    ),
    "residual": (lambda: UNet(Residual, Residual), [f"{name}.layers.4" for name in LISTS]),
    "residual encoder": (lambda: UNet(Residual), [f"{name}.layers.4" for name in LISTS[:4]] + LISTS[4:]),
}  # fmt: skip


@pytest.mark.parametrize(("build", "expected"), UNETS.values(), ids=UNETS)
def test_every_resolution_of_both_ways_has_points(build, expected, recwarn):
    points = csham.attach(build(), "se", dry_run=True)
    assert [point.name for point in points] == expected
    assert not recwarn.list


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_attends_and_trains(name):
    model = UNETS[name][0]()
    plain = copy.deepcopy(model).eval()
    csham.attach(model, "csham_linear", strategy="sequential", gated=True)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), plain(x))
    csham.detach(model)
    csham.attach(model, "csham_linear")
    model.train()(x).square().mean().backward()
    assert all(p.grad.abs().max() > 0 for n, p in model.named_parameters() if n.endswith(".avg.weight"))


def test_points_of_both_ways_come_in_the_order_in_which_they_run():
    model = UNet(Residual, DoubleConv)
    model.up_blocks[2] = Residual(16, 8)
    encoder = ["downs.0", "downs.1", "downs.2", "bottleneck"]
    expected = [*(f"{block}.layers.4" for block in encoder), "up_blocks.0", "up_blocks.1", "up_blocks.2.layers.4"]
    assert [point.name for point in csham.attach(model, "se", dry_run=True)] == expected


class NamedSkips(nn.Module):
    """A U-Net whose skip connections are identities, beside the way down."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(3, 4, 3, 1, 1), nn.Conv2d(4, 6, 3, 1, 1), nn.Conv2d(6, 6, 3, 1, 1)
        self.deep, self.deeper = nn.Conv2d(6, 8, 3, 1, 1), nn.Conv2d(8, 8, 3, 1, 1)
        self.up, self.out = nn.Conv2d(14, 4, 3, 1, 1), nn.Conv2d(8, 2, 1)
        self.skip_one, self.skip_two = nn.Identity(), nn.Sequential(nn.Identity())

    def forward(self, x):
        one = F.relu(self.one(x))
        first = self.skip_one(one)
        two = F.relu(self.three(F.relu(self.two(F.max_pool2d(one, 2)))))
        second = self.skip_two(two)
        x = F.relu(self.deeper(F.relu(self.deep(F.max_pool2d(two, 2)))))
        x = F.relu(self.up(torch.cat([second, F.interpolate(x, scale_factor=2.0)], 1)))
        return self.out(torch.cat([first, F.interpolate(x, scale_factor=2.0)], 1))


def test_a_skip_connections_identity_misses_the_way_down():
    names = [point.name for point in csham.attach(NamedSkips(), "se")]
    assert names == ["one", "three", "deeper", "up"]

"""Where each position lies, on networks whose blocks are known."""

import dataclasses
import functools
import re
import types

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from networks import NETWORKS, FunctionalNet, NestedNet
from torch import nn

import csham
from csham.attach.graph.positions import residual_ends
from csham.attach.graph.trace import trace

BY_ID = {network.id: network for network in NETWORKS}


@functools.lru_cache(maxsize=1)
def built(name):
    """A network to look at, and to change nothing of; VGG's hundred million weights take a second."""
    return BY_ID[name].build()


def names(model, **choice):
    return [point.name for point in csham.attach(model, dry_run=True, **choice)]


@pytest.mark.parametrize(
    ("network", "position", "expected"),
    [
        ("timm-resnet10t", "residual", ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2", "layer4.0.bn2"]),
        ("timm-resnet10t", "post", ["layer1.0", "layer2.0", "layer3.0", "layer4.0"]),
        ("timm-resnet26", "stage", ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("timm-resnet26", "last", ["layer4.1"]),
        ("timm-seresnet18", "stage", ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("torchvision-resnet18", "stage", ["layer1.1", "layer2.1", "layer3.1", "layer4.1"]),
        ("torchvision-vgg11_bn", "auto", [f"features.{i}" for i in (2, 6, 10, 13, 17, 20, 24, 27)]),
        ("torchvision-vgg11_bn", "stage", [f"features.{i}" for i in (2, 6, 13, 20, 27)]),
        ("torchvision-vgg11_bn", "last", ["features.27"]),
        ("torchvision-mobilenet_v2", "stage", [f"features.{i}" for i in (3, 6, 13, 16)]),
        ("torchvision-mobilenet_v2", "last", ["features.18.2"]),
        ("torchvision-densenet121", "auto", [f"features.denseblock{i}" for i in (1, 2, 3, 4)]),
        ("torchvision-densenet121", "last", ["features.norm5"]),
        ("torchvision-googlenet", "stage", ["inception3b", "inception4e", "inception5b"]),
        ("torchvision-squeezenet1_1", "last", ["features.12"]),
        ("torchvision-shufflenet_v2_x0_5", "stage", ["stage2.3", "stage3.7", "stage4.3"]),
        ("timm-cspresnet50", "stage", [f"stages.{i}.conv_transition.bn" for i in range(4)]),
        ("timm-ese_vovnet19b_dw", "auto", [f"stages.{i}.blocks.0" for i in range(4)]),
        ("timm-convnext_atto", "stage", [f"stages.{i}.blocks.{b}" for i, b in ((0, 1), (1, 1), (2, 5), (3, 1))]),
        ("timm-repvgg_a0", "last", ["stages.3.0"]),
        ("own-nested", "residual", ["groups.shallow.0.body.4", "groups.shallow.1.body.4"]
         + [f"groups.deep.{i}.body.4" for i in range(3)]),
        ("own-nested", "post", ["groups.shallow.0", "groups.shallow.1", *(f"groups.deep.{i}" for i in range(3))]),
        ("own-nested", "stage", ["groups.shallow.1", "groups.deep.2"]),
        ("own-functional", "residual", ["second", "fourth"]),
    ],
)  # fmt: skip
def test_positions_are_the_modules_that_the_architecture_names(network, position, expected):
    assert names(built(network), position=position) == expected


@pytest.mark.parametrize(("name", "expected"), [("dla46_c", "level5.root"), ("mobilenetv1_100", "blocks.4.1.bn2")])
def test_a_backbone_that_ends_with_a_1x1_convolution_and_its_norm_ends_with_features(name, expected):
    model = timm.create_model(name, features_only=True)
    for position in ("stage", "last"):
        assert names(model, position=position)[-1] == expected


@pytest.mark.parametrize("channels", [1, 3])
def test_the_first_layer_is_one_whatever_the_channels_of_the_images(channels):
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten())
    assert names(model) == ["1", "3"]


def test_a_layer_on_a_map_of_one_channel_is_not_depthwise():
    narrow = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ConvTranspose2d(4, 1, 3), nn.ReLU(), nn.Conv2d(1, 4, 3), nn.ReLU())
    model = nn.Sequential(*narrow, nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Flatten())
    assert names(model) == ["1", "3", "5", "9"]


def test_deformable_convolutions_are_layers():
    class Deformed(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.offsets = nn.Conv2d(channels, 18, 3, padding=1)
            self.conv = torchvision.ops.DeformConv2d(channels, channels, 3, padding=1)
            self.norm = nn.BatchNorm2d(channels)

        def forward(self, x):
            return F.relu(self.norm(self.conv(x, self.offsets(x))))

    model = nn.Sequential(*(Deformed(3) for _ in range(3)), nn.Flatten())
    assert names(model) == ["0", "1", "2"]


@pytest.mark.parametrize(
    "build",
    [
        lambda: timm.create_model("vit_tiny_patch16_224", num_classes=3, depth=2),
        lambda: timm.create_model("mixer_s32_224", num_classes=3),
        lambda: timm.create_model("swin_tiny_patch4_window7_224", num_classes=3, depths=(1, 1, 1, 1)),
        lambda: torchvision.models.SwinTransformer([4, 4], 48, [1, 1, 1, 1], [3, 6, 12, 24], [7, 7], num_classes=3),
    ],
)
def test_vision_transformers_are_refused_with_the_reason(build):
    model = build()
    before = list(model.state_dict())
    for position in ("auto", "residual", "last"):
        with pytest.raises(ValueError, match="vision transformer or mixer: its residual branches carry tokens"):
            csham.attach(model, position=position)
    assert list(model.state_dict()) == before


def test_a_transformers_feature_map_can_be_named():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    assert [p.channels for p in csham.attach(model, "se", points="patch_embed.proj")] == [192]


def test_no_residual_branches_names_the_other_positions():
    model = built("torchvision-vgg11_bn")
    with pytest.raises(ValueError, match=r"no residual branches in VGG: .*Use position='post'"):
        csham.attach(model, position="residual")


def test_sums_within_one_forward_have_no_module_of_their_own():
    with pytest.raises(ValueError, match=r"the 2 points of FunctionalNet are the output of no module.*Name modules"):
        csham.attach(FunctionalNet(), position="post")


class Wrapped(nn.Module):
    """A body whose result a function makes of the input and of what ``inner`` gives."""

    def __init__(self, inner, join):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.inner = inner
        self.join = join
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.join(x, self.inner).mean((2, 3)))


def layers(*more):
    return nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), *more)


@pytest.mark.parametrize(
    ("inner", "join", "expected"),
    [
        (layers(), lambda x, f: x + f(x), ["inner.1"]),
        (layers(), lambda x, f: f(x) + x, ["inner.1"]),
        (layers(), lambda x, f: f(x).add_(x), ["inner.1"]),
        (layers(), lambda x, f: torch.add(x, f(x), alpha=0.5), ["inner.1"]),
        (layers(), lambda x, f: F.relu(0.1 * f(x) + x), ["inner.1"]),
        (layers(nn.Dropout2d(0.2)), lambda x, f: x + f(x), ["inner.1"]),
        (layers(nn.Identity()), lambda x, f: x + f(x), ["inner.1"]),
        (layers(nn.ReLU()), lambda x, f: x + f(x), ["inner.2"]),
        (layers(), lambda x, f: x[:, :8] + f(x), ["inner.1"]),
        # A pooled shortcut is no slice, though the branch begins without a convolution.
        (nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)), lambda x, f: F.avg_pool2d(x, 2) + f(x), ["inner.1"]),
        (nn.Conv2d(8, 16, 1), lambda x, f: x + f(x)[:, :8], ["inner"]),
        (layers(), lambda x, f: x + f(x).sigmoid() * f(x), []),
        (layers(), lambda x, f: x * f(x), []),
        (nn.Identity(), lambda x, f: x + f(x), []),
        (nn.AvgPool2d(3, 1, 1), lambda x, f: x + f(x), []),
        (layers(), lambda x, f: f(x) + torch.ones(8, 1, 1), []),
        (layers(), lambda x, f: f(x) + f(x).mean((2, 3), keepdim=True), []),
    ],
)
def test_what_a_residual_branch_is(inner, join, expected):
    assert residual_ends(trace(Wrapped(inner, join)))[0] == expected


def branch(kernel_size):
    return nn.Sequential(nn.Conv2d(8, 8, kernel_size, padding=kernel_size // 2), nn.BatchNorm2d(8), nn.ReLU())


class Joins(nn.Module):
    """Branches side by side, joined by what ``join`` makes of the block's input and the list of theirs."""

    def __init__(self, join, layers=1):
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(*[branch(k) for _ in range(layers)]) for k in (1, 3, 5))
        self.join = join

    def forward(self, x):
        return self.join(x, [branch(x) for branch in self.branches])


def of_blocks(join, **settings):
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), *(Joins(join, **settings) for _ in range(3)), nn.AvgPool2d(2), nn.Flatten()
    )


@pytest.mark.parametrize("position", ["auto", "stage"])
@pytest.mark.parametrize(
    "join",
    [
        lambda x, maps: torch.stack(maps).sum(0),
        lambda x, maps: torch.stack(maps, 1).mean(1),
        lambda x, maps: torch.mean(torch.stack(maps, dim=-1), dim=-1),
    ],
)
def test_a_stack_that_is_summed_joins_as_a_sum_does(join, position):
    summed = names(of_blocks(lambda x, maps: sum(maps)), position=position)
    assert names(of_blocks(join), position=position) == summed
    assert len(summed) == (3 if position == "auto" else 1)


def test_a_stack_of_a_branch_and_its_shortcut_is_residual():
    model = of_blocks(lambda x, maps: torch.stack([x, maps[1]]).sum(0))
    assert names(model, position="residual") == [f"{block}.branches.1.0.2" for block in (1, 2, 3)]


@pytest.mark.parametrize(
    "join",
    [
        lambda x, branch: x - branch,
        lambda x, branch: F.relu(x - branch),
        lambda x, branch: branch.sub_(x),
        lambda x, branch: torch.lerp(x, branch, 0.3),
        lambda x, branch: torch.addcmul(x, branch, torch.full((8, 1, 1), 0.1)),
    ],
)
@pytest.mark.parametrize("fuse", [True, False])
def test_blocks_that_subtract_or_interpolate_are_residual(join, fuse):
    model = of_blocks(lambda x, maps: join(x, maps[1])).eval()
    x = torch.randn(2, 3, 16, 16)
    before = model(x)
    points = csham.attach(model, "se", gated=True, fuse=fuse)
    assert [point.name for point in points] == [f"{block}.branches.1.0.2" for block in (1, 2, 3)]
    torch.testing.assert_close(model(x), before, rtol=0, atol=0)
    csham.detach(model)
    assert names(model, position="post") == ["1", "2", "3"]


class ByHand(nn.Module):
    """A norm that is written out."""

    def forward(self, x):
        away = x - x.mean(1, keepdim=True)
        return away / ((away * away).mean(1, keepdim=True) + 1e-5).sqrt()


def test_a_norm_that_subtracts_is_no_sum():
    model = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), ByHand(), nn.ReLU()) for _ in range(3)))
    assert names(nn.Sequential(*model, nn.Flatten())) == ["0.2", "1.2", "2.2"]


@pytest.mark.parametrize("reduce", [lambda maps: maps.amax(0), lambda maps: maps.flatten(0, 1)])
def test_a_stack_that_is_not_summed_is_no_sum(reduce):
    model = of_blocks(lambda x, maps: reduce(torch.stack([x, maps[1]])))
    assert residual_ends(trace(model))[0] == []


def test_branches_that_are_added_one_by_one_are_all_attended_to():
    model = of_blocks(lambda x, maps: F.relu(x + maps[0] + maps[1] + maps[2]), layers=2)
    assert names(model) == [f"{block}.branches.{number}.1.2" for block in (1, 2, 3) for number in range(3)]
    assert len(names(model, position="post")) == 3


def test_branches_come_in_the_order_in_which_they_run_not_are_added():
    model = of_blocks(lambda x, maps: F.relu(x + maps[2] + maps[0]), layers=2).eval()
    points = csham.attach(model, "csham", strategy="transfer", gated=True)
    assert [point.name for point in points] == [f"{block}.branches.{n}.1.2" for block in (1, 2, 3) for n in (0, 2)]
    model(torch.randn(2, 3, 16, 16)).sum().backward()


class Octave(nn.Module):
    """Maps of two resolutions side by side, each added to, from both."""

    def __init__(self, mixed=1):
        super().__init__()
        self.mixed = mixed
        self.fine, self.coarse = (nn.Sequential(branch(3), branch(3)) for _ in range(2))
        self.up, self.down = (nn.Conv2d(8, 8, 1) for _ in range(2))

    def forward(self, maps):
        fine, coarse = maps
        more_fine = self.fine(fine + self.mixed * F.interpolate(self.up(coarse), scale_factor=2))
        more_coarse = self.coarse(coarse + self.mixed * F.avg_pool2d(self.down(fine), 2))
        return fine + more_fine, coarse + more_coarse


def test_a_block_of_two_resolutions_has_two_branches_and_the_next_one_too():
    class Both(nn.Sequential):
        def forward(self, x):
            return super().forward((x, F.avg_pool2d(x, 2)))

    class Mean(nn.Module):
        def forward(self, maps):
            return torch.cat([one.mean((2, 3)) for one in maps], 1)

    model = nn.Sequential(branch(3), Both(*(Octave() for _ in range(3)), Mean()), nn.Linear(16, 5))
    model[0][0] = nn.Conv2d(3, 8, 3, padding=1)
    assert names(model) == [f"1.{block}.{which}.1.2" for block in range(3) for which in ("fine", "coarse")]


def test_a_repeated_block_is_one_point_and_attends_every_time():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem = nn.Conv2d(3, 8, 3, padding=1)
            self.cell = layers()

        def forward(self, x):
            x = self.stem(x)
            for _ in range(3):
                x = x + self.cell(x)
            return x.mean((2, 3))

    model = Recurrent().eval()
    assert [p.name for p in csham.attach(model, "csham_channel")] == ["cell.1"]
    seen = []
    model.cell[1].attached.register_forward_hook(lambda *_: seen.append(1))
    model(torch.randn(1, 3, 8, 8))
    assert len(seen) == 3


def test_what_cannot_be_seen_through_is_its_modules_doing():
    class Scripted(nn.Module):
        """As timm's scripted activations: no function of tensors is seen within."""

        def forward(self, x):
            return _scripted_swish(x)

    model = Wrapped(layers(Scripted()), lambda x, f: x + f(x))
    assert residual_ends(trace(model))[0] == ["inner.2"]


@torch.jit.script
def _scripted_swish(x: torch.Tensor) -> torch.Tensor:
    return x * x.sigmoid()


def test_a_feature_pyramid_over_a_backbone_adds_no_points():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = timm.create_model("resnet10t", features_only=True, out_indices=(3, 4))
            self.lateral = nn.ModuleList([nn.Conv2d(c, 32, 1) for c in (256, 512)])

        def forward(self, x):
            fine, coarse = (conv(f) for conv, f in zip(self.lateral, self.body(x), strict=True))
            return [fine + F.interpolate(coarse, size=fine.shape[-2:]), coarse]

    found = names(Pyramid())
    assert len(found) == 4
    assert all(re.fullmatch(r"body\.layer\d\.0\.bn2", name) for name in found)


def test_containers_that_are_never_called_may_hold_a_stage():
    model = NestedNet().eval()
    points = csham.attach(model, "csham", strategy="transfer")
    assert [p.weights_from for p in points] == [
        None, "groups.shallow.0.body.4", None, "groups.deep.0.body.4", None,
    ]  # fmt: skip
    model(torch.randn(2, 3, 32, 32)).sum().backward()


def test_a_forward_that_adds_twice_ends_with_what_follows_the_second():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 2)
            self.one, self.two = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.after_one, self.after_two = nn.ReLU(), nn.ReLU()

        def forward(self, x):
            x = self.stem(x)
            x = self.after_one(self.one(x) + x)
            x = self.after_two(self.two(x) + x)
            return self.head(x.mean((2, 3)))

    points = csham.attach(Flat(), "se", position="post", dry_run=True)
    assert [point.name for point in points] == ["after_two"]


class Chain(nn.Module):
    """Halves the resolution six times; what it says is an attribute of an object, or the logits alone."""

    def __init__(self, answer=lambda logits: logits):
        super().__init__()
        sizes = ((3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9))
        self.stages = nn.Sequential(
            *(nn.Sequential(nn.Conv2d(*pair, 3, 2, 1), nn.BatchNorm2d(pair[1]), nn.ReLU()) for pair in sizes)
        )
        self.head = nn.Linear(9, 2)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.head(self.stages(x).mean((2, 3))))


def test_a_map_that_is_small_only_in_the_probe_is_a_map():
    """Of 64 pixels six halvings leave one."""
    assert names(Chain(), position="last") == ["stages.5.2"]
    assert names(Chain(), position="stage") == names(Chain(), position="stage", input_size=(3, 256, 256))


def test_a_convolution_over_the_whole_map_pools_it():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 2, 32), nn.Flatten(1))
    assert names(model, position="last") == ["1"]


@dataclasses.dataclass
class Plain:
    logits: torch.Tensor


@dataclasses.dataclass(slots=True)
class Slotted:
    loss: torch.Tensor | None
    several: list[Plain]


@pytest.mark.parametrize(
    "answer",
    [Plain, lambda y: types.SimpleNamespace(logits=y), lambda y: Slotted(None, [Plain(y)])],
    ids=["dataclass", "attribute", "nested"],
)
def test_a_network_may_answer_with_an_object(answer):
    assert names(Chain(answer)) == names(Chain())


class Identities(nn.Module):
    """Branches whose ends identities put out, for the addition or beside it."""

    def __init__(self, *, beside):
        super().__init__()
        self.stem, self.beside = nn.Conv2d(3, 8, 1), beside
        self.convs = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.identities = nn.ModuleList(nn.Identity() for _ in range(3))

    def forward(self, x):
        x, means = self.stem(x), []
        for conv, identity in zip(self.convs, self.identities, strict=True):
            branch = F.gelu(conv(x))
            end = identity(branch)
            means.append(end.mean((2, 3)))
            x = x + (branch if self.beside else end)
        return torch.cat([x.mean((2, 3)), *means], 1)


@pytest.mark.parametrize(("beside", "expected"), [(False, "identities"), (True, "convs")])
def test_an_identity_shows_a_value_where_all_that_use_it_come_after(beside, expected):
    assert names(Identities(beside=beside)) == [f"{expected}.{i}" for i in range(3)]

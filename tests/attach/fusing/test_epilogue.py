"""Fused block ends compute what the network computes without them, and give way wherever they would not."""

import copy
import io
import os
import pickle
import random
from collections import Counter

import networks
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from networks import NARROW, NETWORKS, FunctionalNet, NestedNet
from timm.layers import BlurPool2d, DropPath
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn
from torch.utils.checkpoint import checkpoint

import csham
from csham import ops
from csham.attach.fusing import endings
from csham.attach.fusing.epilogue import Epilogue, fuse_block
from csham.attach.installed.attached import Attached
from csham.backbones import CifarResNet, create_model


@pytest.fixture(autouse=True)
def _by_the_reference():
    # Equality to the bit is a matter of torch's own operations; the kernels have their own test.
    with ops.use_kernels("reference"):
        yield


class Block(nn.Module):
    """A user's block; subclasses end it in their own way."""

    def __init__(self, channels=8):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def branch(self, x):
        return self.second(self.relu(self.first(x)))

    def forward(self, x):
        return F.relu(self.branch(x) + x)


class Net(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class AddsInPlace(Block):
    def forward(self, x):
        identity = x
        out = self.branch(x)
        out += identity
        return self.relu(out)


class ShortcutFirst(Block):
    def forward(self, x):
        return (x + self.branch(x)).relu_()


class AddsByFunction(Block):
    def forward(self, x):
        return torch.relu(torch.add(self.branch(x), x))


class AddsByMethod(Block):
    def forward(self, x):
        return F.relu(self.branch(x).add_(x), inplace=True)


class GoesOn(Block):
    """Something follows the activation, and something was done to the shortcut."""

    def forward(self, x):
        return F.relu(0.9 * x + self.branch(x)) * 0.5


class WithIdentities(Block):
    def __init__(self):
        super().__init__()
        self.none, self.nothing = nn.Identity(), nn.Identity()

    def forward(self, x):
        return self.relu(self.nothing(self.none(self.branch(x)) + x))


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        return self.bn(self.conv(x))


class Nested(Block):
    """The branch ends within a module, and that within another."""

    def __init__(self):
        super().__init__()
        self.second = nn.Sequential(nn.ReLU(), Pair(), nn.Identity())

    def forward(self, x):
        return self.relu(self.second(self.first(x)) + x)


class SeveralEnds(nn.Module):
    """A whole network in one forward: ends by a shared activation, by functions, in place, and one that is no ReLU."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.single = nn.Conv2d(8, 8, 3, padding=1)
        self.layers = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))
        self.other = nn.Sequential(nn.Conv2d(8, 8, 1), nn.Identity())
        self.last = Pair()
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.stem(x))
        x = self.relu(x + self.single(x))
        x = F.relu(self.layers(x) + x)
        x = F.gelu(x + self.other(x))
        y = self.last(x)
        y += x
        return self.head(self.relu(y).mean((2, 3)))


class TwoEnds(nn.Module):
    """Two ends in each of several blocks, of one class."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Pair(), Pair()

    def forward(self, x):
        x = F.relu(x + self.first(x))
        return F.relu(self.second(x) + x, inplace=True)


class SharesItsLast(Block):
    """The branch ends with an activation that other blocks end theirs with too."""

    def __init__(self, act):
        super().__init__()
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), act)


def one_activation_for_all():
    act = nn.Hardtanh()
    return Net(*(SharesItsLast(act) for _ in range(4)))


def small_resnet(block=Bottleneck, layers=(1, 1, 1, 1), **settings):
    return ResNet(block, layers, num_classes=5, channels=(8, 16, 24, 32), **settings)


# How to build it, and how many of its points are fused: all unless said.
FUSED = {
    "own": (lambda: create_model("resnet20", num_classes=5), 9),
    "basic": (lambda: timm.create_model("resnet10t", num_classes=5, **NARROW), 4),
    "bottleneck": (small_resnet, 4),
    "resnext": (lambda: small_resnet(cardinality=4, base_width=32), 4),
    "wide": (lambda: small_resnet(base_width=128), 4),
    "anti-aliased": (lambda: small_resnet(BasicBlock, aa_layer=BlurPool2d), 4),
    "average-pooled": (lambda: small_resnet(BasicBlock, avg_down=True), 4),
    "no drop path": (lambda: timm.create_model("resnet18", num_classes=5, drop_path_rate=0.0, **NARROW), 8),
    "own SE": (lambda: timm.create_model("seresnet18", num_classes=5, **NARROW), 8),
    "regnet": (lambda: timm.create_model("regnetx_002", num_classes=5), 13),
    "repvgg": (lambda: timm.create_model("repvgg_a0", num_classes=5), 17),
    "torchvision basic": (lambda: torchvision.models.resnet18(num_classes=5), 8),
    "torchvision regnet": (lambda: torchvision.models.regnet_x_400mf(num_classes=5), 22),
    "functional": (FunctionalNet, 1),  # the other multiplies before it adds
    "several ends": (SeveralEnds, 3),
    "one activation for all branches": (one_activation_for_all, 4),
    "two ends in each block": (lambda: Net(TwoEnds(), TwoEnds()), 4),
} | {
    kind.__name__: (lambda kind=kind: Net(kind(), kind()), 2)
    for kind in (Block, AddsInPlace, ShortcutFirst, AddsByFunction, AddsByMethod, GoesOn, WithIdentities, Nested)
}
REAL = {
    "resnet50": (lambda: timm.create_model("resnet50", num_classes=5), 16),
    "resnext50": (lambda: timm.create_model("resnext50_32x4d", num_classes=5), 16),
    "wide resnet50": (lambda: timm.create_model("wide_resnet50_2", num_classes=5), 16),
    "torchvision resnet50": (lambda: torchvision.models.resnet50(num_classes=5), 16),
}
_ALL = pytest.mark.skipif(not os.environ.get("CSHAM_ALL_NETWORKS"), reason="takes long; CSHAM_ALL_NETWORKS=1 runs it")
FUSED |= {name: pytest.param(*how, marks=[pytest.mark.slow, _ALL]) for name, how in REAL.items()}


def wake(model):
    """Undo gains of zero, which would keep attention from the loss."""
    for name, parameter in model.named_parameters():
        if not name.endswith("bias") and parameter.abs().max() < 1e-3:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def both(build, attention="csham_linear", **choice):
    """The same network with and without fusing, of the same weights, and the points with."""
    torch.manual_seed(5)
    plain = wake(build())
    fused = copy.deepcopy(plain)
    csham.attach(plain, attention, fuse=False, **choice)
    points = csham.attach(fused, attention, **choice)
    for name, parameter in plain.named_parameters():
        if name.endswith(".gate"):
            parameter.data.uniform_(0.2, 0.8)
    fused.load_state_dict(plain.state_dict())
    return fused, plain, points


def run(model, x):
    """Output, gradients of the images and of all parameters, and buffers."""
    x = x.clone().requires_grad_()
    model.zero_grad()
    y = model(x)
    y.float().square().sum().backward()
    return {"y": y, "x": x.grad} | {n: p.grad for n, p in model.named_parameters()} | dict(model.named_buffers())


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        if value is None:
            assert got[name] is None, name
        else:
            assert torch.equal(got[name], value), name


@pytest.fixture
def finished(monkeypatch):
    """How often an attention finished a block."""
    count = Counter()
    attend = Attached.forward

    def counted(self, x, shortcut=None, **how):
        if shortcut is not None:
            count[self.name] = count.get(self.name, 0) + 1  # as older torch.compile can follow it
        return attend(self, x, shortcut, **how)

    monkeypatch.setattr(Attached, "forward", counted)
    return count


@pytest.mark.usefixtures("cpu_kernels")
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("strategy", ["sequential", "transfer", "reapply"])
def test_one_pass_of_the_kernels_computes_what_three_do(strategy, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    fused, plain, points = both(lambda: small_resnet(BasicBlock, (2, 2, 2, 2)), "csham", strategy=strategy)
    assert all(point.fused for point in points)
    x = torch.randn(2, 3, 64, 64).to(memory_format=layout)
    with ops.use_kernels("cpu"):
        got, expected = (run(model.to(memory_format=layout), x) for model in (fused, plain))
    for name, value in expected.items():
        assert torch.equal(got[name], value), name


@pytest.mark.parametrize(
    ("build", "number"), [how if hasattr(how, "marks") else pytest.param(*how) for how in FUSED.values()], ids=FUSED
)
def test_computes_to_the_bit_what_the_network_computes_without(build, number, finished):
    fused, plain, points = both(build)
    assert sum(point.fused for point in points) == number
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert repr(fused) == repr(plain)
    x = torch.randn(2, 3, 64, 64)
    for training in (True, False):
        finished.clear()
        assert_same(run(fused.train(training), x), run(plain.train(training), x))
        assert finished == {point.name: 1 for point in points if point.fused}


@pytest.mark.parametrize("choice", [{"strategy": "transfer"}, {"strategy": "reapply", "gated": True}], ids=str)
@pytest.mark.parametrize("name", ["own", "regnet", "Nested", "several ends", "two ends in each block"])
def test_strategies_and_gates(name, choice, finished):
    build, number = FUSED[name]
    fused, plain, points = both(build, **choice)
    assert sum(point.fused for point in points) == number
    x = torch.randn(2, 3, 32, 32)
    finished.clear()
    assert_same(run(fused, x), run(plain, x))
    assert sum(finished.values()) == number


class OtherActivation(Block):
    def __init__(self, act):
        super().__init__()
        self.act = act

    def forward(self, x):
        return self.act(self.branch(x) + x)


NOT_FUSED = {
    "pre-activation": lambda: timm.create_model("resnetv2_18", num_classes=5),
    "no activation": lambda: timm.create_model("mobilenetv2_050", num_classes=5),
    "SiLU": lambda: timm.create_model("resnext26ts", num_classes=5),
    "ReLU6": lambda: Net(OtherActivation(nn.ReLU6())),
    "GELU": lambda: Net(OtherActivation(nn.GELU())),
    "LeakyReLU": lambda: Net(OtherActivation(nn.LeakyReLU())),
    "an addition that is a module": NestedNet,
}


@pytest.mark.parametrize("build", NOT_FUSED.values(), ids=NOT_FUSED)
def test_other_ends_are_left_alone(build):
    model = build()
    kinds = {name: type(module) for name, module in model.named_modules()}
    points = csham.attach(model, "se")
    assert points
    assert not any(point.fused for point in points)
    assert {name: type(module) for name, module in model.named_modules() if name in kinds} == kinds


def test_what_drops_whole_branches_stays_between():
    """Stochastic depth rises from zero in the first block, which has none."""
    build = lambda: small_resnet(BasicBlock, drop_path_rate=0.3)  # noqa: E731
    fused, plain, points = both(build)
    assert [point.fused for point in points] == [True, False, False, False]
    x = torch.randn(4, 3, 32, 32)
    results = []
    for model in (fused, plain):
        torch.manual_seed(3)
        results.append(run(model, x))
    assert_same(*results)


@pytest.mark.parametrize(
    "name", ["timm-resnet26", "timm-regnety_002", "timm-hrnet_w18_small", "timm-convnext_atto", "timm-cspresnet50",
             "timm-dla34", "torchvision-resnet18", "torchvision-mobilenet_v2", "own-nested", "own-functional"]
)  # fmt: skip
def test_how_many_points_of_the_table_are_fused(name):
    expected = {"timm-resnet26": 8, "timm-regnety_002": 13, "timm-hrnet_w18_small": 23, "torchvision-resnet18": 8}
    expected |= {"own-functional": 1}
    network = next(network for network in NETWORKS if network.id == name)
    points = csham.attach(network.build(), dry_run=True)
    assert sum(point.fused for point in points) == expected.get(name, 0)


class Scales(Block):
    def forward(self, x):
        return F.relu(torch.add(self.branch(x), x, alpha=2))


class WritesIntoTheShortcut(Block):
    def forward(self, x):
        y = self.branch(x)
        x = x * 1
        x += y
        return F.relu(x)


class Broadcasts(Block):
    def forward(self, x):
        return F.relu(self.branch(x) + x.mean((2, 3), keepdim=True))


class AddsThree(Block):
    def forward(self, x):
        return F.relu(self.branch(x) + x + x.mean((2, 3), keepdim=True))


class UsesTheBranchTwice(Block):
    def forward(self, x):
        y = self.branch(x)
        return F.relu(y + x) * y.mean()


class UsesTheSumTwice(Block):
    def forward(self, x):
        total = self.branch(x) + x
        return F.relu(total) + 0.1 * total


class LooksAtValues(Block):
    def forward(self, x):
        y = self.branch(x)
        return F.relu(y + x) if x.sum() > -1e9 else y


class LooksAtItsMode(Block):
    def forward(self, x):
        y = self.branch(x)
        return F.relu(y + x) if self.training else F.relu(y + x) * 0.9


class MultipliesInTraining(Block):
    def forward(self, x):
        y = self.branch(x)
        return F.relu(y * x if self.training else y + x)


class LooksAtAChildsMode(Block):
    def forward(self, x):
        return F.relu(F.dropout(self.branch(x), 0.5, self.first.training) + x)


class LooksAtGradients(Block):
    def forward(self, x):
        return F.relu(self.branch(x) + (x if torch.is_grad_enabled() else 2 * x))


class LooksAtTypes(Block):
    def forward(self, x):
        if isinstance(x, torch.Tensor):
            x = self.first(x)
        return F.relu(self.second(x) + x)


class RollsDice(Block):
    def forward(self, x):
        return x if self.training and random.random() < 0.0 else F.relu(self.branch(x) + x)


class RollsTorchDice(Block):
    def forward(self, x):
        return x if torch.rand(()).item() < 0.0 else F.relu(self.branch(x) + x)


class WithoutGradients(Block):
    def forward(self, x):
        with torch.no_grad():
            shortcut = x * 2
        return F.relu(self.branch(x) + shortcut)


class WithoutAutocast(Block):
    def forward(self, x):
        with torch.autocast("cpu", enabled=False):
            return F.relu(self.branch(x) + x)


class LeavesSomething(Block):
    def forward(self, x):
        self.last = self.branch(x)
        return F.relu(self.last + x)


class LeavesSomethingUnread(Block):
    def forward(self, x):
        y = self.last = self.branch(x)
        return F.relu(y + x)


class Counts(Block):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return F.relu(self.branch(x) + x)


class Appends(Block):
    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x):
        self.seen.append(x.shape)
        return F.relu(self.branch(x) + x)


class TakesMore(Block):
    def forward(self, x, more=None):
        return F.relu(self.branch(x) + (x if more is None else more))


SCALE = 1.0
SEEN = []


class ReadsAGlobal(Block):
    def forward(self, x):
        return F.relu(self.branch(x) + x * SCALE)


class ReadsOfAModule(Block):
    def forward(self, x):
        return F.relu(self.branch(x) + x * len(networks.NARROW))


def scaled(x):
    return x * SCALE


class CallsWhatReadsAGlobal(Block):
    def forward(self, x):
        return F.relu(self.branch(x) + sum(scaled(part) for part in [x]))


class ReadsAGlobalInAMethod(Block):
    def branch(self, x):
        return super().branch(x) * SCALE


class ReadsAGlobalAbove(ReadsAGlobal):
    def forward(self, x):
        return super().forward(x)


class WritesAGlobal(Block):
    def forward(self, x):
        global SEEN  # noqa: PLW0603
        SEEN = []
        return F.relu(self.branch(x) + x)


class AppendsToAGlobal(Block):
    def forward(self, x):
        y = self.branch(x)
        SEEN.append(y)
        return F.relu(y + x)


class AppendsToADefault(Block):
    def branch(self, x, seen=[]):  # noqa: B006
        seen.append(x)
        return super().branch(x)


class AppendsToItsClasss(Block):
    kept = []  # noqa: RUF012

    def forward(self, x):
        y = self.branch(x)
        self.kept.append(y)
        return F.relu(y + x)


def closing_over(scale):
    class ReadsAClosure(Block):
        def forward(self, x):
            return F.relu(self.branch(x) + x * scale)

    return ReadsAClosure


ReadsAClosure = closing_over(1.0)


class Checkpoints(Block):
    def forward(self, x):
        return F.relu(checkpoint(self.branch, x, use_reentrant=False) + x)


class SavesElsewhere(Block):
    def forward(self, x):
        with torch.autograd.graph.save_on_cpu():
            return F.relu(self.branch(x) + x)


class ReadsAValue(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        return F.relu(self.branch(x) + (x if self.scale > 0 else 2 * x))


class WritesAParameter(Block):
    def forward(self, x):
        for parameter in self.parameters():
            parameter.data.clamp_(-0.01, 0.01)
        return F.relu(self.branch(x) + x)


class WritesToAChild(Block):
    def forward(self, x):
        self.first.calls = getattr(self.first, "calls", 0) + 1
        return F.relu(self.branch(x) + x)


class OwnPickle(Block):
    def __reduce__(self):
        return OwnPickle, ()


class Twice(nn.Module):
    """Runs one block two times."""

    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(self.block(x))


def overridden():
    block = Block()
    block.forward = lambda x: F.relu(block.branch(x) + x)
    return block


ODD = [Scales, WritesIntoTheShortcut, Broadcasts, AddsThree, UsesTheBranchTwice, UsesTheSumTwice, LooksAtValues,
       LooksAtItsMode, MultipliesInTraining, LooksAtAChildsMode, LooksAtGradients, LooksAtTypes, RollsDice,
       RollsTorchDice, WithoutGradients, WithoutAutocast, LeavesSomething, LeavesSomethingUnread, Counts, Appends,
       TakesMore, OwnPickle, Twice, overridden, ReadsAGlobal, ReadsOfAModule, CallsWhatReadsAGlobal,
       ReadsAGlobalInAMethod, ReadsAGlobalAbove, WritesAGlobal, AppendsToAGlobal, AppendsToADefault, AppendsToItsClasss,
       ReadsAClosure, Checkpoints, SavesElsewhere, ReadsAValue, WritesAParameter, WritesToAChild]  # fmt: skip


@pytest.mark.parametrize("kind", ODD, ids=lambda kind: kind.__name__)
def test_a_block_that_is_out_of_the_ordinary_is_left_alone(kind, finished):
    model = Net(kind())
    modes = [module.training for module in model.modules()]
    state = random.getstate()
    points = csham.attach(model, "se", points=lambda name, module: name.endswith("second"), dry_run=True)
    assert [point.fused for point in points] == [False]
    left = [value for module in model.modules() for value in vars(module).values()]
    left += [item for value in [*left, SEEN, AppendsToItsClasss.kept] if isinstance(value, list) for item in value]
    assert not any(isinstance(value, torch.fx.Proxy) for value in left)
    assert [module.training for module in model.modules()] == modes
    assert random.getstate() == state
    csham.attach(model, "se", points="*second")
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    assert not finished


def test_an_end_that_cannot_be_fused_leaves_the_others_of_its_block():
    model = Net(TwoEnds(), TwoEnds())
    model.blocks[0].first.register_forward_hook(lambda m, a, y: 2 * y)  # what happens there is in no forward
    points = csham.attach(model, "se")
    assert [point.fused for point in points] == [False, True, True, True]


def test_hooks_that_were_there_keep_a_block_as_it_is():
    model = Net(AddsInPlace(), AddsInPlace())
    seen = []
    model.blocks[0].relu.register_forward_hook(lambda m, a, y: seen.append(y))
    points = csham.attach(model, "se")
    assert [point.fused for point in points] == [False, True]
    seen.clear()
    model(torch.randn(2, 3, 8, 8))
    assert len(seen) == 2


def change_nothing(model):
    pass


def watch_the_activation(model):
    model.blocks[0].relu.register_forward_hook(lambda m, a, y: 2 * y)


def watch_before_the_activation(model):
    model.blocks[0].relu.register_forward_pre_hook(lambda m, a: (a[0] - 1,))


def watch_gradients_of_the_activation(model):
    model.blocks[0].relu.inplace = False  # torch refuses such hooks otherwise
    model.blocks[0].relu.register_full_backward_hook(lambda m, gx, gy: (2 * gx[0],))


def watch_the_host(model):
    model.blocks[0].second[1].bn.register_forward_hook(lambda m, a, y: 2 * y)


def watch_before_the_host(model):
    model.blocks[0].second[1].bn.register_forward_pre_hook(lambda m, a: (2 * a[0],))


def watch_gradients_of_the_host(model):
    model.blocks[0].second[1].bn.register_full_backward_hook(lambda m, gx, gy: (2 * gx[0],))


def watch_around_the_host(model):
    model.blocks[0].second.register_forward_hook(lambda m, a, y: 2 * y)


def watch_the_attention(model):
    model.blocks[0].second[1].bn.attached.register_forward_hook(lambda m, a, y: 2 * y)


def watch_before_the_attention(model):
    model.blocks[0].second[1].bn.attached.register_forward_pre_hook(lambda m, a: (2 * a[0],))


def override_the_attention(model):
    attached = model.blocks[0].second[1].bn.attached
    attached.forward = lambda x: 2 * type(attached).forward(attached, x)


def watch_gradients_of_the_attention(model):
    model.blocks[0].second[1].bn.attached.register_full_backward_pre_hook(lambda m, gy: (2 * gy[0],))


def watch_an_identity(model):
    model.blocks[0].second[2].register_forward_hook(lambda m, a, y: 2 * y)


def replace_the_activation(model):
    model.blocks[0].relu = nn.GELU()


def replace_an_identity(model):
    model.blocks[0].second[2] = nn.ReLU()


def replace_a_layer(model):
    model.blocks[0].first = nn.Conv2d(8, 8, 1, groups=8, bias=False)
    nn.init.ones_(model.blocks[0].first.weight)


def replace_the_host(model):
    model.blocks[0].second[1].bn = nn.BatchNorm2d(8)


def convert_norms(model):
    model.blocks = nn.SyncBatchNorm.convert_sync_batchnorm(model.blocks)


def widen_the_type(model):
    model.double().float()


def override(model):
    block = model.blocks[0]
    block.forward = lambda x: 2 * type(block).forward(block, x)


CHANGES = {  # and the blocks that stay fused
    change_nothing: 2, watch_the_activation: 1, watch_before_the_activation: 1, watch_gradients_of_the_activation: 1,
    watch_the_host: 1, watch_before_the_host: 1, watch_gradients_of_the_host: 1, watch_around_the_host: 1,
    watch_the_attention: 1, watch_before_the_attention: 1, override_the_attention: 1,
    watch_gradients_of_the_attention: 1, watch_an_identity: 1, replace_the_activation: 1, replace_an_identity: 1,
    replace_a_layer: 2, replace_the_host: 2, convert_norms: 2, widen_the_type: 2, override: 2,
}  # fmt: skip


@pytest.mark.parametrize(("change", "left"), CHANGES.items(), ids=lambda value: getattr(value, "__name__", value))
def test_what_is_changed_afterwards_counts(change, left, finished):
    """With batch norm that shifts, so that an activation cuts something off."""
    fused, plain, points = both(lambda: Net(Nested(), Nested()))
    assert all(point.fused for point in points)
    change(fused), change(plain)
    x = torch.randn(2, 3, 8, 8)
    finished.clear()
    if change is convert_norms:  # which runs on GPUs alone in training
        fused.eval(), plain.eval()
    assert_same(run(fused, x), run(plain, x))
    assert sum(finished.values()) == left


@pytest.mark.parametrize("change", [change_nothing, watch_the_activation, replace_the_activation])
def test_a_change_makes_a_difference(change):
    """That the changes above are none that nobody would notice."""
    fused, plain, _ = both(lambda: Net(Nested(), Nested()))
    change(fused)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fused(x), plain(x)) == (change is change_nothing)


class Schedule(nn.Module):
    scale = 1.0

    def rescale(self, x):
        return x * self.scale


class ReadsManyThings(Block):
    """All but the last of which are there by its class, its bases' and its children's alone."""

    slope = 1.0

    def __init__(self):
        super().__init__()
        self.schedule = Schedule()
        self.extra = None
        self.layers = nn.ModuleList([nn.Identity()])
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8))

    @property
    def factor(self):
        return 2 * self.slope

    def branch(self, x):
        return super().branch(x * self.schedule.scale)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        shortcut = x if self.extra is None else self.extra(x)
        shortcut = self.schedule.rescale(shortcut) * self.factor
        return F.relu(self.branch(x) + (shortcut if not hasattr(self, "bias") else shortcut + self.bias))


LATER = {
    "nothing": lambda block, patch: None,
    "a number of its own": lambda block, patch: setattr(block, "slope", 0.5),
    "a number of its class": lambda block, patch: patch.setattr(ReadsManyThings, "slope", 0.5),
    "a number of a child": lambda block, patch: setattr(block.schedule, "scale", 0.5),
    "a number of a child's class": lambda block, patch: patch.setattr(Schedule, "scale", 0.5),
    "a method of a child's class": lambda block, patch: patch.setattr(Schedule, "rescale", lambda self, x: x * 3),
    "a method of its class": lambda block, patch: patch.setattr(ReadsManyThings, "branch", lambda self, x: x * 3),
    "a method of its own": lambda block, patch: setattr(block, "branch", lambda x: x * 3),
    "a method of its base": lambda block, patch: patch.setattr(Block, "branch", lambda self, x: x * 3),
    "its forward": lambda block, patch: patch.setattr(ReadsManyThings, "forward", lambda self, x: x * 3),
    "something that was not there": lambda block, patch: setattr(block, "bias", 1.0),
    "a child that was None": lambda block, patch: setattr(block, "extra", nn.Hardtanh()),
    "one layer more": lambda block, patch: block.layers.append(nn.Hardtanh()),
    "one layer more behind the attention": lambda block, patch: block.second.append(nn.Sigmoid()),
    "layers of another kind": lambda block, patch: setattr(block, "second", Backwards(*block.second)),
}


class Backwards(nn.Sequential):
    def forward(self, x):
        return super().forward(-x)


@pytest.mark.parametrize("change", LATER.values(), ids=LATER)
def test_whatever_a_forward_read_counts_when_it_is_changed(change, finished):
    fused, plain, points = both(lambda: Net(ReadsManyThings(), Nested()).eval())
    assert all(point.fused for point in points)
    x = torch.randn(2, 3, 8, 8)
    before = fused(x)
    with pytest.MonkeyPatch.context() as patch:
        change(fused.blocks[0], patch), change(plain.blocks[0], patch)
        finished.clear()
        assert_same(run(fused, x), run(plain, x))
        assert sum(finished.values()) == (2 if change is LATER["nothing"] else 1)
        assert torch.equal(fused(x), before) == (change is LATER["nothing"])


class CountsByABuffer(Block):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.calls.add_(1)
        return F.relu(self.branch(x) + x)


def test_a_buffer_that_counts_goes_on_counting():
    fused, plain, points = both(lambda: Net(CountsByABuffer()))
    assert points[0].fused
    x = torch.randn(2, 3, 8, 8)
    for _ in range(2):
        assert_same(run(fused, x), run(plain, x))
    assert fused.blocks[0].calls == 2


def test_a_block_that_was_built_without_version_counters_is_fused():
    with torch.inference_mode():
        model = Net(AddsInPlace())
        assert all(point.fused for point in csham.attach(model, "se"))


def test_a_block_that_is_given_another_setting_runs_its_own_forward(finished):
    fused, plain, _ = both(lambda: small_resnet(BasicBlock))
    x = torch.randn(4, 3, 32, 32)
    results = []
    for model in (fused, plain):
        model.layer1[0].drop_path = DropPath(0.5)
        torch.manual_seed(1)
        results.append(run(model, x))
    assert_same(*results)
    finished.clear()
    fused(x)
    assert finished == {f"layer{stage}.0.bn2": 1 for stage in (2, 3, 4)}


def test_a_reparameterised_block_runs_its_own_forward():
    model = wake(timm.create_model("repvgg_a0", num_classes=5)).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
    csham.attach(model, "se", points="stages.0.0")
    x = torch.randn(1, 3, 64, 64)
    csham.detach(model)
    plain = copy.deepcopy(model)
    csham.attach(model, "se")
    csham.detach(model)
    assert torch.equal(model(x), plain(x))


def test_hooks_of_every_module_see_every_module(finished):
    fused, plain, _ = both(lambda: Net(AddsInPlace()))
    calls = []
    handle = nn.modules.module.register_module_forward_hook(lambda m, a, y: calls.append(type(m).__name__))
    try:
        x = torch.randn(1, 3, 8, 8)
        fused(x)
        seen, calls[:] = list(calls), []
        plain(x)
    finally:
        handle.remove()
    assert seen == calls
    assert calls.count("ReLU") == 2


@pytest.mark.parametrize("name", ["own", "several ends"])
def test_copies_and_pickles_are_fused_and_on_their_own(name, finished):
    fused, _, points = both(FUSED[name][0], strategy="transfer")
    kinds, own = ([type(module) for module in model.modules()] for model in (fused, FUSED[name][0]()))
    x = torch.randn(2, 3, 16, 16)
    expected = run(copy.deepcopy(fused), x)
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False)):
        assert [type(module) for module in other.modules()] == kinds
        finished.clear()
        assert_same(run(other, x), expected)
        assert sum(finished.values()) == sum(point.fused for point in points)
        for parameter in other.parameters():
            parameter.data.zero_()
        assert [type(module) for module in csham.detach(other).modules()] == own
    assert_same(run(fused, x), expected)


def test_a_block_that_an_older_version_pickled_runs_its_own_forward():
    block, x = AddsInPlace().eval(), torch.randn(2, 8, 4, 4)
    expected = block(x)
    old = object.__new__(Epilogue)
    vars(old).update(source="def forward(self, x):\n    return None\n", ends=(), opened=(), settings=())
    fuse_block(block, old)
    assert torch.equal(pickle.loads(pickle.dumps(block))(x), expected)


def test_detaching_gives_the_blocks_their_classes_back():
    model = small_resnet()
    csham.attach(model)
    assert isinstance(model.layer1[0], Bottleneck)
    assert type(model.layer1[0]) is not Bottleneck
    csham.detach(model)
    assert type(model.layer1[0]) is Bottleneck


def test_blocks_alike_share_a_class():
    """And with it what torch.compile made of the first."""
    model = create_model("resnet20", num_classes=5)
    csham.attach(model)
    assert type(model.layer1[0]) is type(model.layer1[1]) is type(model.layer3[2])


def test_blocks_alike_are_read_once(monkeypatch):
    read = []
    forward_graph = endings.forward_graph
    monkeypatch.setattr(endings, "forward_graph", lambda *args, **how: read.append(args) or forward_graph(*args, **how))
    assert all(point.fused for point in csham.attach(create_model("resnet20", num_classes=5)))
    assert len(read) == 4  # with a projection and without, in training and in evaluation


DIFFERENT = {
    "a number": lambda block: setattr(block, "slope", 0.5),
    "a child": lambda block: setattr(block, "extra", nn.Hardtanh()),
    "a layer": lambda block: block.layers.append(nn.Hardtanh()),
    "a layer that is there twice": lambda block: block.layers.append(block.layers[0]),
    "a child that is another": lambda block: setattr(block, "relu", block.first),
}


@pytest.mark.parametrize("change", DIFFERENT.values(), ids=DIFFERENT)
def test_blocks_that_are_almost_alike_are_told_apart(change, finished):
    def build():
        model = Net(ReadsManyThings(), ReadsManyThings(), ReadsManyThings())
        change(model.blocks[1])
        return model.eval()

    fused, plain, points = both(build)
    assert all(point.fused for point in points)
    x = torch.randn(2, 3, 8, 8)
    finished.clear()
    assert_same(run(fused, x), run(plain, x))
    assert sum(finished.values()) == 3


def test_a_network_that_would_not_run_fused_is_attached_unfused(monkeypatch):
    attend = Attached.forward

    def refuse(self, x, shortcut=None, **how):
        if shortcut is not None:
            raise RuntimeError("not this one")
        return attend(self, x)

    monkeypatch.setattr(Attached, "forward", refuse)
    model = create_model("resnet20", num_classes=5)
    points = csham.attach(model)
    assert not any(point.fused for point in points)
    model(torch.randn(2, 3, 16, 16))


def test_a_failed_attach_unfuses(monkeypatch):
    def interrupt(*args, **how):
        raise KeyboardInterrupt

    monkeypatch.setattr(Attached, "forward", interrupt)
    model = create_model("resnet20", num_classes=5)
    with pytest.raises(KeyboardInterrupt):
        csham.attach(model)
    assert type(model.layer1[0]) is type(CifarResNet(8).layer1[0])
    assert not any(isinstance(module, Attached) for module in model.modules())


@pytest.mark.parametrize("fuse", [True, False])
def test_a_dry_run_says_the_same(fuse):
    choice = {"strategy": "transfer", "fuse": fuse}
    model = create_model("resnet20", num_classes=5)
    assert csham.attach(model, dry_run=True, **choice) == csham.attach(model, **choice)


def test_a_borrower_on_the_shortcut_comes_after_its_lender():
    names = ["layer2.0.bn2", "layer2.0.downsample.1"]
    build = lambda: timm.create_model("resnet10t", num_classes=5, **NARROW)  # noqa: E731
    fused, plain, points = both(build, strategy="transfer", points=names)
    assert [point.weights_from for point in points] == [None, "layer2.0.bn2"]
    x = torch.randn(2, 3, 64, 64)
    assert_same(run(fused, x), run(plain, x))


def test_points_within_points():
    fused, plain, _ = both(FUSED["Nested"][0], points=["blocks.0.second", "blocks.0.second.1.bn", "blocks.1"])
    x = torch.randn(2, 3, 8, 8)
    assert_same(run(fused, x), run(plain, x))


def test_an_activation_that_is_attended_to_is_called():
    names = ["layer1.0.bn2", "layer1.0.act2", "layer2.0.bn2"]
    fused, plain, points = both(lambda: create_model("resnet20", num_classes=5), points=names)
    assert [point.fused for point in points] == [False, False, True]
    x = torch.randn(2, 3, 16, 16)
    assert_same(run(fused, x), run(plain, x))


def test_maps_are_recorded_without_a_change_of_route(finished):
    fused, plain, points = both(lambda: create_model("resnet20", num_classes=5), strategy="transfer")
    x = torch.randn(2, 3, 16, 16)
    finished.clear()
    with csham.attention_maps(fused) as maps:
        fused(x)
    assert sum(finished.values()) == len(points)
    with csham.attention_maps(plain) as expected:
        plain(x)
    assert maps.keys() == expected.keys()
    assert all(torch.equal(maps[name][kind], expected[name][kind]) for name in maps for kind in maps[name])


@pytest.mark.parametrize("kind", [Block, AddsInPlace, ShortcutFirst, Nested])
def test_under_autocast_types_are_the_networks_own(kind, finished):
    """The first block adds bfloat16 to float32: in place the sum is bfloat16, else float32."""

    class Float32(nn.Module):
        def forward(self, x):
            return x.float()

    fused, plain, points = both(lambda: Net(Float32(), kind(), kind()))
    types = []
    for model in (fused, plain):
        for block in model.blocks:
            block.register_forward_hook(lambda m, a, y: types.append(y.dtype))
    x = torch.randn(2, 3, 8, 8)
    finished.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(run(fused, x), run(plain, x))
    assert sum(finished.values()) == len(points) == 2
    assert types[:3] == types[3:]


@pytest.mark.parametrize("reentrant", [False, True])
def test_under_activation_checkpointing(reentrant):
    fused, plain, _ = both(lambda: Net(Nested(), Nested()))

    class Checkpointed(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            x = self.net.stem(x)
            for block in self.net.blocks:
                x = checkpoint(block, x, use_reentrant=reentrant)
            return self.net.head(x.mean((2, 3)))

    x = torch.randn(2, 3, 8, 8)
    assert_same(run(Checkpointed(fused.eval()), x), run(Checkpointed(plain.eval()), x))


def test_stand_ins_for_tensors_see_the_blocks_own_forward():
    """torch.fx, as feature extractors use it, is shown the activation that a fused block does not call."""
    model = create_model("resnet20", num_classes=5)
    csham.attach(model, "se")

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m, name):
            return not isinstance(m, nn.Sequential) and "BasicBlock" not in type(m).__name__

    graph = Tracer().trace(model)
    assert "layer1.0.act2" in [node.target for node in graph.nodes]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "training"),
    [(FUSED["own"][0], True), (FUSED["Nested"][0], False), (FUSED["several ends"][0], True),
     (FUSED["two ends in each block"][0], False), (lambda: Net(ReadsManyThings()), True)],
    ids=["own", "Nested", "several ends", "two ends in each block", "reads many things"],
)  # fmt: skip
def test_compiles_to_one_graph(build, training, finished):
    torch.compiler.reset()
    fused, plain, points = both(build, strategy="transfer" if build is FUSED["own"][0] else "sequential")
    compiled = torch.compile(fused.train(training), backend="eager", fullgraph=True)
    x = torch.randn(2, 3, 32, 32)
    finished.clear()
    expected = run(plain.train(training), x)["y"]
    torch.testing.assert_close(compiled(x), expected)
    assert sum(finished.values()) == sum(point.fused for point in points)


def test_exports_to_one_graph():
    fused, _, _ = both(lambda: Net(Nested(), AddsInPlace()))
    x = torch.randn(2, 3, 16, 16)
    exported = torch.export.export(fused.eval(), (x,))
    torch.testing.assert_close(exported.module()(x), fused(x))

"""attach: what it finds, what it keeps, and what it refuses."""

import copy
import io
import itertools

import pytest
import timm
import torch
import torchvision
from networks import NARROW
from torch import nn

import csham
from csham.backbones import CifarResNet
from csham.errors import UserError


def small_resnet(**settings):
    torch.manual_seed(1)
    return CifarResNet(20, num_classes=5, **settings)


def images(n=2, side=32):
    return torch.randn(n, 3, side, side)


NETWORKS = {
    # name: (how to build it, blocks by stage)
    "ours": (small_resnet, [3, 3, 3]),
    "timm basic": (lambda: timm.create_model("resnet18", num_classes=5, **NARROW), [2, 2, 2, 2]),
    "timm bottleneck": (lambda: timm.create_model("resnet50", num_classes=5, **NARROW), [3, 4, 6, 3]),
    "timm with its own SE": (lambda: timm.create_model("seresnet18", num_classes=5, **NARROW), [2, 2, 2, 2]),
    "torchvision basic": (lambda: torchvision.models.resnet18(num_classes=5), [2, 2, 2, 2]),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("strategy", ["sequential", "transfer"])
class TestEveryResNet:
    def test_finds_the_end_of_every_residual_branch(self, network, strategy):
        build, blocks = NETWORKS[network]
        points = csham.attach(build(), strategy=strategy)
        assert [sum(p.stage == s for p in points) for s in range(len(blocks))] == blocks
        if strategy == "transfer":
            for stage in range(len(blocks)):
                parts = [p.part for p in points if p.stage == stage]
                assert parts == (["channel", "spatial"] * len(parts))[: len(parts)]
            for before, point in itertools.pairwise(points):
                assert point.weights_from == (before.name if point.part == "spatial" else None)


# test_every_network.py asks this of all, more slowly.
@pytest.mark.parametrize("network", ["ours", "timm with its own SE"])
@pytest.mark.parametrize("strategy", ["sequential", "transfer"])
class TestResNets:
    def test_gated_output_and_own_keys_are_unchanged(self, network, strategy):
        model = NETWORKS[network][0]().eval()
        plain = copy.deepcopy(model)
        keys = list(model.state_dict())
        csham.attach(model, strategy=strategy, gated=True)
        assert [k for k in model.state_dict() if ".attached." not in k] == keys
        x = images(side=64)
        assert torch.equal(model(x), plain(x))

    def test_plain_checkpoint_loads_before_and_after(self, network, strategy):
        model = NETWORKS[network][0]()
        other = NETWORKS[network][0]()
        for parameter in other.parameters():
            parameter.data += 0.01 * torch.randn_like(parameter)
        csham.attach(model, strategy=strategy, gated=True)
        model.load_state_dict(other.state_dict())
        x = images(side=64)
        assert torch.equal(model.eval()(x), other.eval()(x))

    def test_one_step_moves_every_attention_parameter(self, network, strategy):
        model = NETWORKS[network][0]()
        # timm's networks start with the last batch norm at zero, which would keep the attention from the loss
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1 and name.endswith("weight"):
                nn.init.ones_(parameter)
        csham.attach(model, "csham_linear", strategy=strategy)
        (model(images(4, 64)) ** 2).sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            if ".attached." in name and not name.endswith("_bn.bias"):
                assert parameter.grad.abs().max() > 0, name


def test_the_branch_is_rescaled_before_the_addition():
    """Computed by hand through one block, with the steps of both strategies."""
    model = small_resnet().eval()
    csham.attach(model, strategy="transfer")
    first, second = model.layer1[0], model.layer1[1]
    x = torch.randn(2, 16, 8, 8)

    def branch(block, x):
        bn2 = nn.functional.batch_norm
        y = torch.relu(block.bn1(block.conv1(x)))
        y = block.conv2(y)
        return bn2(y, block.bn2.running_mean, block.bn2.running_var, block.bn2.weight, block.bn2.bias)

    channel = first.bn2.attached.attention
    spatial = second.bn2.attached.attention
    b = branch(first, x)
    w = channel.weights(b)[:, :, None, None]
    y = torch.relu(w * b + x)
    b = w * branch(second, y)
    y = torch.relu(spatial.weights(b) * b + y)
    y = model.layer1[2](y)  # a channel point again
    torch.testing.assert_close(model.layer1(x), y)


def test_attached_weights_survive_a_round_trip_through_a_file():
    model = small_resnet().eval()
    csham.attach(model, strategy="transfer", gated=True)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    stored = io.BytesIO()
    torch.save(model.state_dict(), stored)
    stored.seek(0)
    other = small_resnet().eval()
    csham.attach(other, strategy="transfer", gated=True)
    other.load_state_dict(torch.load(stored, weights_only=True))
    x = images()
    assert torch.equal(other(x), model(x))


def test_a_checkpoint_with_part_of_an_attention_is_refused():
    model = small_resnet()
    csham.attach(model)
    state = model.state_dict()
    del state["layer1.0.bn2.attached.attention.channel.avg.weight"]
    with pytest.raises(RuntimeError, match=r"layer1\.0\.bn2\.attached\.attention\.channel\.avg\.weight"):
        model.load_state_dict(state)


def test_dry_run_changes_nothing():
    model = small_resnet()
    modules, hooks = list(model.modules()), [len(m._forward_hooks) for m in model.modules()]
    points = csham.attach(model, strategy="transfer", dry_run=True)
    assert len(points) == 9
    assert [id(m) for m in model.modules()] == [id(m) for m in modules]
    assert [len(m._forward_hooks) for m in model.modules()] == hooks


def test_finding_the_points_leaves_modes_statistics_and_random_numbers_alone():
    model = small_resnet().train()
    model.layer2.eval()
    before = copy.deepcopy(model.state_dict())
    modes = [m.training for m in model.modules()]
    drawn = torch.get_rng_state()
    csham.attach(model, dry_run=True)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert modes == [m.training for m in model.modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())
    csham.attach(model, "csham_channel")
    assert model.layer2[0].bn2.attached.training is False
    assert model.layer1[0].bn2.attached.training is True


class Counts(nn.Module):
    """Counts the calls of a block, and starts from the first map that it sees, as ActNorm does."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.is_ready = nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), False
        self.mean = nn.Parameter(torch.zeros(8, 1, 1))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        y = self.conv(x)
        return self.act(y + x)


class Begins(Counts):
    def forward(self, x):
        if not self.is_ready:
            self.mean.data.copy_(x.mean((0, 2, 3))[:, None, None])
            self.is_ready = True
        return super().forward(x) - self.mean


@pytest.mark.parametrize("dry_run", [True, False])
def test_networks_that_remember_what_they_saw_have_not_seen_anything(dry_run):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Counts(), Begins(), Counts())
    before, x = copy.deepcopy(model), torch.randn(2, 3, 16, 16)
    points = csham.attach(model, Same, dry_run=dry_run)
    assert len(points) == 3
    assert not any(block.calls or getattr(block, "is_ready", False) for block in model[1:])
    assert model(x).equal(before(x))
    assert [block.calls.item() for block in model[1:]] == [1, 1, 1]
    with pytest.raises(ValueError, match="made a map of"):
        csham.attach(before, lambda channels: nn.AvgPool2d(2))
    assert [block.calls.item() for block in before[1:]] == [1, 1, 1]


class Same(nn.Module):
    def __init__(self, channels):
        super().__init__()

    def forward(self, x):
        return x


def test_follows_the_networks_type():
    model = small_resnet().to(torch.bfloat16).eval()
    csham.attach(model, strategy="transfer", gated=True)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model(images().bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("attention", ["csham", "se", "a2"])
def test_follows_the_type_of_the_maps_where_norms_have_another(attention):
    model = small_resnet().to(torch.bfloat16).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.float()
    csham.attach(model, attention, gated=True)
    attached = [p for name, p in model.named_parameters() if ".attached." in name]
    assert {p.dtype for p in attached} == {torch.bfloat16}
    assert model(images().bfloat16()).dtype == torch.bfloat16


def test_a_network_that_works_in_less_than_its_weights_gets_attention_of_their_type():
    class Autocast(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = small_resnet()

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.model(x)

    model = Autocast()
    csham.attach(model, gated=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    model(images()).sum().backward()


def test_other_attentions_attach_too():
    for name in ("se", "eca", "cbam"):
        model = small_resnet()
        points = csham.attach(model, name)
        assert len(points) == 9
        model(images()).sum().backward()


def test_the_room_and_the_function_of_one_name():
    import csham.attach.install

    assert callable(csham.attach)
    assert len(csham.attach(small_resnet(), dry_run=True)) == 9


class NeedsRoom(nn.Module):
    """An attention that takes maps of four positions a side and more, as some that shrink theirs do."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        assert min(x.shape[2:]) >= 4, "maps are too small"
        return x * self.conv(x).sigmoid()


@pytest.mark.parametrize(
    ("said", "read"), [("too small. ", r"too small\. Nothing"), ("on and " * 99, r"on and on \[\.\.\.\]\. Nothing")]
)
def test_an_error_within_attention_is_one_sentence_and_shows_where_it_was_cut(said, read):
    class Fails(nn.Identity):
        def forward(self, x):
            raise ValueError(said)

    with pytest.raises(UserError, match=rf"ValueError: .*{read} was attached\."):
        csham.attach(small_resnet(), lambda channels: Fails())


def test_attention_is_to_run_at_the_size_that_was_given():
    model = small_resnet()
    with pytest.raises(UserError, match=r"no longer runs on images of 12x8: AssertionError: maps are too small"):
        csham.attach(model, NeedsRoom, input_size=(3, 12, 8))
    assert not any("attached" in name for name, _ in model.named_modules())
    assert len(csham.attach(model, NeedsRoom, input_size=(3, 16, 16))) == 9
    deep = nn.Sequential(*(nn.Sequential(nn.Conv2d(3, 3, 3, 2, 1), nn.ReLU()) for _ in range(5)), nn.Flatten())
    assert len(csham.attach(deep, NeedsRoom)) == 5  # at 224 pixels, where 64 are too few


class Refuses(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = timm.models.resnet.BasicBlock(4, 4)

    def forward(self, x):
        raise RuntimeError("this network takes no images")


@pytest.mark.parametrize(
    ("build", "settings", "message"),
    [
        (small_resnet, {"attention": "cshma"}, "Did you mean 'csham'"),
        (small_resnet, {"strategy": "transfr"}, "Did you mean 'transfer'"),
        (small_resnet, {"position": "residul"}, "Did you mean 'residual'"),
        (
            small_resnet,
            {"attention": "se", "strategy": "transfer"},
            "'se' has none. Use strategy 'sequential'",
        ),
        (small_resnet, {"kernel_size": 2}, "kernel_size must be an odd whole number, got 2"),
        (small_resnet, {"reduction": 2}, "csham does not take these settings"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), {"position": "residual"}, "no residual branches in Sequential"),
        (Refuses, {}, "Refuses could not be run to find its attachment points. Pass input_size="),
    ],
)
def test_refuses_with_a_reason_and_leaves_the_network_alone(build, settings, message):
    model = build()
    keys = list(model.state_dict())
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
    with pytest.raises(ValueError) as caught:
        csham.attach(model, **settings)
    assert message in str(caught.value)
    assert list(model.state_dict()) == keys
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks


def test_what_is_no_network_is_named():
    with pytest.raises(ValueError, match=r"expected a network, an nn\.Module, got str"):
        csham.attach("resnet18")


def test_open_gates_start_near_the_plain_network():
    x = images()
    plain = small_resnet().eval()
    outputs = {}
    for open_gates in (False, True):
        model = small_resnet().eval()
        points = csham.attach(model, "se", open_gates=open_gates)
        with csham.attention_maps(model) as maps:
            outputs[open_gates] = model(x)
        assert len(points) == 9
        assert all((maps[point.name]["channel"].mean() > 0.9) == open_gates for point in points)
    far, near = ((output - plain(x)).abs().mean() for output in (outputs[False], outputs[True]))
    assert near < far / 2


def test_a_dry_run_counts_the_biases_that_open_gates_need():
    usual = csham.attach(small_resnet(), "eca", dry_run=True)
    opened = csham.attach(small_resnet(), "eca", open_gates=True, dry_run=True)
    assert [point.params + 1 for point in usual] == [point.params for point in opened]


def test_open_gates_of_an_attention_without_are_refused_before_anything_changes():
    model = small_resnet()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(UserError, match="simam has no bias that its weights start from"):
        csham.attach(model, "simam", open_gates=True)
    assert [name for name, _ in model.named_modules()] == names

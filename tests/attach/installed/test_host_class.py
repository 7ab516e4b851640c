"""Attached networks as torch.fx sees them: attention is in the graph, under every strategy, and stays when it folds."""

import copy
import pickle

import pytest
import timm
import torch
from networks import NARROW
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.models.resnet import BasicBlock, ResNet

import csham
from csham.attach.names import STRATEGIES


def network(build, **choice):
    torch.manual_seed(1)
    model = build()
    csham.attach(model, "csham", **choice)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.7, 1.3)
    return model.eval()


class Flat(nn.Module):
    """Convolutions and norms in the network itself, whose own hooks no tracer calls."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1, self.bn1 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.bn1(self.conv1(x)))
        x = torch.relu(x + self.bn2(self.conv2(x)))
        return self.fc(x.mean((2, 3)))


BUILDS = {
    "timm": lambda: timm.create_model("resnet10t", num_classes=5, zero_init_last=False, **NARROW),
    "timm, leaves of its own": lambda: timm.create_model("regnetx_002", num_classes=5),
    "torchvision": lambda: ResNet(BasicBlock, [2, 1, 1, 1], num_classes=5),
    "flat": Flat,
}
HEADS = {"timm": "fc", "timm, leaves of its own": "head", "torchvision": "fc", "flat": "fc"}


def choices(build):
    strategies = [s for s in STRATEGIES if build != "timm" or not STRATEGIES[s].needs_pairs]
    return [{"strategy": strategy} for strategy in strategies] + [{"position": "post"}] * (build != "flat")


CASES = [
    pytest.param(build, choice, id="-".join((build, *choice.values()))) for build in BUILDS for choice in choices(build)
]


def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def check_same(got, model, x):
    """That a graph computes what the network does, and other than without attention."""
    expected = model(x)
    plain = csham.detach(copy.deepcopy(model))(x)
    scale = expected.abs().max()
    assert (plain - expected).abs().max() > 1e-3 * scale
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("build", "choice"), CASES)
def test_folding_the_norms_of_a_traced_network_leaves_attention(build, choice):
    model, x = network(BUILDS[build], **choice), images()
    check_same(fx.symbolic_trace(model)(x), model, x)
    check_same(fuse(model)(x), model, x)


@pytest.mark.parametrize(("build", "choice"), CASES)
def test_feature_extractors_attend(build, choice):
    model, x = network(BUILDS[build], **choice), images()
    head = HEADS[build]
    create = timm.layers.create_feature_extractor if "timm" in build else create_feature_extractor
    extractor = create(model, [head])
    check_same(extractor.eval()(x)[head], model, x)
    check_same(copy.deepcopy(extractor).eval()(x)[head], model, x)
    extractor.train()
    torch.testing.assert_close(extractor(x)[head], copy.deepcopy(model).train()(x))


def test_an_extractor_trains_the_weights_of_the_network():
    model, x = network(BUILDS["torchvision"], strategy="transfer"), images()
    extractor = create_feature_extractor(model, ["fc"]).eval()
    own = dict(model.named_parameters())
    assert {id(p) for p in extractor.parameters()} == {id(p) for p in own.values()}
    model(x).square().mean().backward()
    expected = {name: p.grad.clone() for name, p in own.items()}
    model.zero_grad()
    extractor(x)["fc"].square().mean().backward()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter.grad, expected[name], msg=lambda m, n=name: f"{n}: {m}")


def test_features_carry_the_attention_of_their_module():
    model, x = network(BUILDS["torchvision"], strategy="transfer"), images()
    seen = {}
    names = ["layer1.1.bn2", "layer2"]
    handles = [
        model.get_submodule(name).register_forward_hook(lambda m, a, y, name=name: seen.update({name: y.clone()}))
        for name in names
    ]
    model(x)
    for handle in handles:
        handle.remove()
    found = create_feature_extractor(model, names).eval()(x)
    for name in names:
        torch.testing.assert_close(found[name], seen[name])


def test_a_host_that_somebody_hooked_himself_to_is_called_as_a_whole():
    model, x = network(BUILDS["torchvision"]), images()
    seen = []
    model.layer1[1].bn2.register_forward_hook(lambda m, a, y: seen.append(y))
    graph = fx.symbolic_trace(model)
    assert not seen
    got = graph(x)
    assert len(seen) == 1
    check_same(got, model, x)


@pytest.mark.parametrize("register", ["register_full_backward_hook", "register_full_backward_pre_hook"])
def test_a_host_whose_gradients_somebody_watches_is_called_as_a_whole(register):
    model, x = network(BUILDS["torchvision"]), images()
    seen = []
    getattr(model.layer1[1].bn2, register)(lambda *_: seen.append(1))
    fx.symbolic_trace(model)(x).sum().backward()
    assert len(seen) == 1


@pytest.mark.parametrize("strategy", ["sequential", "transfer"])
def test_timms_features_by_fx(strategy):
    torch.manual_seed(1)
    model = timm.create_model("resnet18", zero_init_last=False)
    csham.attach(model, "csham", strategy=strategy)
    extracted = timm.models.FeatureGraphNet(model.eval(), out_indices=(1, 2, 3, 4))
    x = images()
    expected = model.forward_intermediates(x, indices=[1, 2, 3, 4], intermediates_only=True)
    for got, feature in zip(extracted(x), expected, strict=True):
        torch.testing.assert_close(got, feature)


def test_tracing_changes_nothing_that_matters():
    model, x = network(BUILDS["torchvision"], strategy="transfer"), images()
    expected, keys = model(x), list(model.state_dict())
    graph = fx.symbolic_trace(model)
    again = fx.symbolic_trace(graph)
    assert list(model.state_dict()) == keys
    assert torch.equal(again(x), expected)
    assert torch.equal(fuse(graph)(x), fuse(model)(x))
    for other in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model)), pickle.loads(pickle.dumps(graph))):
        assert torch.equal(other(x), expected)
        assert type(other.get_submodule("layer1.0.bn1")) is nn.BatchNorm2d
        assert isinstance(other.get_submodule("layer1.0.bn2"), nn.BatchNorm2d)
    assert type(csham.detach(model).layer1[0].bn2) is nn.BatchNorm2d


@pytest.mark.parametrize("replace", ["before", "after"])
def test_a_traced_network_that_loses_attention_says_so(replace):
    model = network(BUILDS["torchvision"])
    if replace == "before":
        model.layer1[0]._modules["bn2"] = nn.BatchNorm2d(64)
        with pytest.raises(ValueError, match=r"layer1\.0\.bn2 is gone"):
            fx.symbolic_trace(model)
    else:
        fx.symbolic_trace(model)
        model.layer1[0]._modules["bn2"] = nn.BatchNorm2d(64)
        with pytest.raises(ValueError, match=r"layer1\.0\.bn2 is gone"):
            model(images())


def test_a_lender_that_a_tracer_does_not_look_into_is_named():
    class Blocks(fx.Tracer):
        def is_leaf_module(self, m, module_qualified_name):
            return module_qualified_name == "layer1.0" or super().is_leaf_module(m, module_qualified_name)

    model = network(BUILDS["torchvision"], strategy="transfer")
    with pytest.raises(RuntimeError, match=r"this tracer of torch\.fx did not look into layer1\.0\.bn2"):
        Blocks().trace(model)


def test_torchscript_is_refused_and_tracing_is_not():
    model, x = network(BUILDS["timm"]), images()
    with pytest.raises(ValueError, match=r"torch\.jit\.script cannot read Attached\. Use torch\.export\.export"):
        torch.jit.script(model)
    check_same(torch.jit.trace(model, x)(x), model, x)
    with torch.no_grad():
        check_same(torch.jit.trace(model, x)(x), model, x)


def test_accelerating_after_tracing_finds_what_it_would_before():
    def build():
        return timm.create_model("seresnet18", num_classes=5)

    model = network(build)
    fx.symbolic_trace(model)
    assert [m.name for m in csham.accelerate(model)] == [m.name for m in csham.accelerate(build())]

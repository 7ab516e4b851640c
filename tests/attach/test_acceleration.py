"""Networks of timm's and torchvision's before and after accelerate."""

import copy
import math
import os
import pickle

import pytest
import timm
import timm.layers
import torch
import torchvision
from networks import NARROW
from timm.layers.cbam import CbamModule
from torch import nn

import csham
from csham import ops
from csham.errors import UserError

# Name, settings, attention, how many, the first of them.
NETWORKS = {
    "seresnet18": (NARROW, "se", 8, "layer1.0.se"),
    "legacy_seresnet18": ({}, "se", 8, "layer1.0.se_module"),
    "mobilenetv3_small_050": ({}, "se", 9, "blocks.0.0.se"),
    "efficientnet_b0": ({}, "se", 16, "blocks.0.0.se"),
    "eca_resnext26ts": ({}, "eca", 8, "stages.0.0.attn"),
    "ese_vovnet19b_slim": ({}, "ese", 4, "stages.0.blocks.0.attn"),
    "resnet18": ({"block_args": {"attn_layer": "cbam"}}, "cbam", 8, "layer1.0.se"),
}
# float32, where a rounding error before a ReLU or among equal maxima sends a gradient another way.
TOLERANCE = 1e-2
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@pytest.fixture(params=["reference", "cpu"])
def kernels(request):
    """Each implementation in turn."""
    if request.param == "cpu":
        request.getfixturevalue("cpu_kernels")
    with ops.use_kernels(request.param):
        yield request.param


def build(name="mobilenetv3_small_050"):
    settings = NETWORKS[name][0]
    model = timm.create_model(name, num_classes=5, drop_rate=0, **settings)
    for module in model.modules():  # norms that begin at zero would hide the attention before them
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
    return model


def pair(name="mobilenetv3_small_050"):
    theirs = build(name)
    ours = copy.deepcopy(theirs)
    assert csham.accelerate(ours)
    return theirs, ours


def results(model, x):
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return {"y": y.detach(), **{key: p.grad for key, p in model.named_parameters()}, **dict(model.named_buffers())}


def error(found, expected):
    """Relative error of the worst of output, buffers, and the gradient of all parameters together."""
    assert found.keys() == expected.keys()
    norm = {key: float(value.double().norm()) for key, value in expected.items()}
    off = {key: float((value - expected[key]).double().norm()) for key, value in found.items()}
    alone = [key for key in found if key == "y" or "running" in key or "num_batches" in key]
    together = [key for key in found if key not in alone]
    worst = max(off[key] / max(norm[key], 1e-6) for key in alone)
    return max(worst, math.hypot(*map(off.get, together)) / math.hypot(*map(norm.get, together)))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_gradients_and_state_are_what_they_were(kernels, name, memory_format):
    if kernels == "reference" and memory_format == "NHWC":
        pytest.skip("timm's own operations, in whatever layout")
    theirs, ours = (model.to(memory_format=FORMATS[memory_format]) for model in pair(name))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=FORMATS[memory_format])
    exact = copy.deepcopy(theirs).double()
    for training in (False, True):
        for model in (theirs, ours, exact):
            model.train(training).zero_grad()
        found, expected = results(ours, x), results(theirs, x)
        if kernels == "reference":
            assert error(found, expected) == 0, training
        else:
            # Batch norms of eight values each make much of rounding errors, timm's as well as ours.
            right = results(exact, x.double())
            assert error(found, right) <= 3 * error(expected, right) + TOLERANCE, training


@pytest.mark.parametrize("name", NETWORKS)
def test_what_was_found_is_told(name):
    model = build(name)
    _, attention, count, first = NETWORKS[name]
    modules = {module_name: id(module) for module_name, module in model.named_modules()}
    parameters = {key: id(p) for key, p in model.named_parameters()}
    told = csham.accelerate(model)
    assert {module.attention for module in told} == {attention}
    assert len(told) == count
    assert told[0] == csham.AcceleratedModule(first, attention)
    assert {module_name: id(module) for module_name, module in model.named_modules()} == modules
    assert {key: id(p) for key, p in model.named_parameters()} == parameters
    assert csham.accelerate(model) == []


def test_torchvisions_network(kernels):
    theirs = torchvision.models.mobilenet_v3_small(num_classes=5).eval()
    ours = copy.deepcopy(theirs)
    told = csham.accelerate(ours)
    assert [module.attention for module in told] == ["se"] * 9
    x = torch.randn(2, 3, 64, 64)
    assert error(results(ours, x), results(theirs, x)) <= TOLERANCE


def test_autocast(kernels):
    theirs, ours = pair("seresnet18")
    x = torch.randn(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = ours.eval()(x), theirs.eval()(x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0.05, atol=0.05)


def test_copies_and_pickles_and_checkpoints(kernels):
    theirs, ours = pair()
    x = torch.randn(2, 3, 64, 64)
    expected = ours.eval()(x)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin.blocks[0][0].se) is type(ours.blocks[0][0].se)
        assert torch.equal(twin(x), expected)
    fresh = build()
    fresh.load_state_dict(ours.state_dict())
    torch.testing.assert_close(fresh.eval()(x), expected)
    ours.load_state_dict(theirs.state_dict())


def test_hooks_stay(kernels):
    model = build("seresnet18").eval()
    shapes = []
    model.layer1[0].se.register_forward_hook(lambda module, args, y: shapes.append(tuple(y.shape)))
    model.layer1[0].se.fc1.register_forward_hook(lambda module, args, y: shapes.append(tuple(args[0].shape)))
    csham.accelerate(model)
    model(torch.randn(2, 3, 64, 64))
    assert shapes == [(2, 16, 1, 1), (2, 16, 16, 16)]


def test_what_is_not_known_is_left_alone():
    class Own(timm.layers.SEModule):
        def forward(self, x):
            return 2 * super().forward(x)

    replaced = timm.layers.SEModule(8)
    replaced.forward = lambda x: x
    shared = timm.layers.EcaModule(8)
    model = nn.Sequential(Own(8), replaced, nn.Conv2d(8, 8, 1), shared, shared)
    assert csham.accelerate(model) == [csham.AcceleratedModule("3", "eca")]
    assert type(model[0]) is Own
    assert type(replaced) is timm.layers.SEModule
    assert model[3] is model[4] is shared
    assert csham.accelerate(csham.create_attention("se", 8)) == []
    assert csham.accelerate(nn.Conv2d(3, 3, 1)) == []


def test_a_single_attention_and_a_part_of_one():
    assert csham.accelerate(timm.layers.SEModule(8)) == [csham.AcceleratedModule("", "se")]
    assert csham.accelerate(CbamModule(8)) == [csham.AcceleratedModule("", "cbam")]
    part = nn.Sequential(CbamModule(8).spatial)
    assert csham.accelerate(part) == [csham.AcceleratedModule("0", "cbam")]
    assert csham.accelerate(timm.layers.EcaModule(8, use_mlp=True)) == [csham.AcceleratedModule("", "ecam")]


def test_compiled_and_scripted_networks_are_refused():
    model = build()
    with pytest.raises(UserError, match=r"blocks\.1 is scripted and cannot be changed"):
        csham.accelerate(nn.ModuleDict({"blocks": nn.ModuleList([model, torch.jit.script(nn.ReLU())])}))
    with pytest.raises(UserError, match=r"this network is compiled already\. Accelerate, then compile"):
        csham.accelerate(torch.compile(model, backend="eager"))
    model.blocks[1].compile(backend="eager")
    with pytest.raises(UserError, match=r"blocks\.1 is compiled already"):
        csham.accelerate(model)
    assert not any("Accelerated" in type(module).__name__ for module in model.modules())
    with pytest.raises(UserError, match=r"expected a network, an nn\.Module, got str"):
        csham.accelerate("resnet18")


def test_attach_works_on_an_accelerated_network(kernels):
    model = build("seresnet18").eval()
    csham.accelerate(model)
    assert len(csham.attach(model, "csham", gated=True)) == 8
    x = torch.randn(2, 3, 64, 64)
    attached = model(x)
    torch.testing.assert_close(attached, csham.detach(model)(x))


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("CSHAM_ALL_NETWORKS"), reason="takes long; CSHAM_ALL_NETWORKS=1 runs it")
@pytest.mark.parametrize("name", ["resnet18", "seresnet18"])
@pytest.mark.parametrize("kernels", ["cpu"], indirect=True)
def test_compiles_to_one_graph(kernels, name):
    torch.compiler.reset()
    _, ours = pair(name)
    x = torch.randn(2, 3, 64, 64)
    expected = results(copy.deepcopy(ours), x)
    found = results(torch.compile(ours, fullgraph=True, backend="aot_eager"), x)
    found = {key.removeprefix("_orig_mod."): value for key, value in found.items()}
    assert error(found, expected) <= TOLERANCE


@pytest.mark.slow
def test_exported_as_before(kernels):
    _, ours = pair()
    x = torch.randn(2, 3, 64, 64)
    exported = torch.export.export(ours.eval(), (x,)).module()
    assert not any("csham" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported(x), ours(x))

"""timm's and torchvision's layers on the kernels against themselves in float64, and against themselves without."""

import copy
from functools import partial

import pytest
import timm.layers
import torch
import torchvision
from timm.layers.cbam import CbamModule, LightCbamModule
from timm.models import _efficientnet_blocks as efficientnet
from timm.models import senet
from torch import nn

import csham
from csham import ops
from csham.layers.accelerated import accelerate_layer

C = 16

THEIRS = {
    "se": partial(timm.layers.SEModule, C),
    "se, every setting": partial(
        timm.layers.SEModule,
        C,
        rd_channels=5,
        add_maxpool=True,
        bias=False,
        norm_layer=nn.BatchNorm2d,
        act_layer=nn.SiLU,
        gate_layer="hard_sigmoid",
    ),
    "se of EfficientNets": partial(efficientnet.SqueezeExcite, C, force_act_layer=nn.SiLU, rd_round_fn=int),
    "se of MobileNets": partial(efficientnet.SqueezeExcite, C, gate_layer="hard_sigmoid"),
    "se of SENets": partial(senet.SEModule, C, 4),
    "se of torchvision": partial(torchvision.ops.SqueezeExcitation, C, 4, scale_activation=nn.Hardsigmoid),
    "ese": partial(timm.layers.EffectiveSEModule, C, add_maxpool=True),
    "eca": partial(timm.layers.EcaModule, C),
    "ecam": partial(timm.layers.EcaModule, C, use_mlp=True),
    "ceca": partial(timm.layers.CecaModule, C),
    "cbam": partial(CbamModule, C),
    "cbam, hard": partial(CbamModule, C, mlp_bias=True, gate_layer="hard_sigmoid", spatial_kernel_size=3),
    "lcbam": partial(LightCbamModule, C),
}
FORMATS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
# float32: sums in another order, of what cancels in a norm's weight, where timm's own are off by 2e-5. bfloat16: 8 bit.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 2e-2}


@pytest.fixture(params=["reference", "cpu"])
def kernels(request):
    """Each implementation in turn."""
    if request.param == "cpu":
        request.getfixturevalue("cpu_kernels")
    with ops.use_kernels(request.param):
        yield request.param


def build(name):
    layer = THEIRS[name]()
    for parameter in layer.parameters():  # away from the ones and zeros that norms begin with
        nn.init.normal_(parameter, 0.3, 0.5)
    return layer


def accelerated(layer):
    twin = copy.deepcopy(layer)
    for module in twin.modules():
        accelerate_layer(module)
    return twin


def draw(memory_format=torch.contiguous_format, dtype=torch.float32):
    x = torch.randn(3, C, 9, 6).to(dtype).contiguous(memory_format=memory_format)
    return x, torch.randn(x.shape).to(x)


def results(layer, x, upstream, call=None):
    """Output, every gradient and every buffer by name."""
    x = x.detach().clone().requires_grad_()
    y = (call or layer)(x)
    y.backward(upstream)
    grads = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
    return {"y": y.detach(), "x": x.grad, **grads, **dict(layer.named_buffers())}


def in_double(theirs, x, upstream):
    return results(copy.deepcopy(theirs).double(), x.double(), upstream.double())


def assert_near(found, expected, tolerance):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        worst = (found[name].double() - value.double()).norm() / value.double().norm().clamp(min=1e-6)
        assert worst <= tolerance, f"{name}: {worst}"


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", THEIRS)
def test_outputs_gradients_and_statistics(kernels, name, memory_format, training):
    theirs = build(name).train(training)
    x, upstream = draw(FORMATS[memory_format])
    found = results(ours := accelerated(theirs), x, upstream)
    assert_near(found, in_double(theirs, x, upstream), TOLERANCE[torch.float32])
    assert found["y"].is_contiguous(memory_format=FORMATS[memory_format])
    assert isinstance(ours, type(theirs))
    if kernels == "reference":
        expected = results(theirs, x, upstream)
        assert all(torch.equal(found[key], value) for key, value in expected.items())


@pytest.mark.parametrize("name", THEIRS)
def test_bfloat16(kernels, name):
    theirs = build(name).bfloat16()
    x, upstream = draw(dtype=torch.bfloat16)
    found = results(accelerated(theirs), x, upstream)
    assert {value.dtype for key, value in found.items() if "num_batches" not in key} == {torch.bfloat16}
    # Gradients of single parameters are sums of what cancels; the output and the gradient of x are not.
    expected = in_double(theirs, x, upstream)
    assert_near({k: found[k] for k in "yx"}, {k: expected[k] for k in "yx"}, TOLERANCE[torch.bfloat16])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", THEIRS)
def test_autocast(kernels, name, dtype):
    theirs = build(name)
    ours = accelerated(theirs)
    x, _ = draw(dtype=dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = ours(x), theirs(x)
    assert y.dtype == expected.dtype == dtype
    assert_near({"y": y}, {"y": expected}, TOLERANCE[torch.bfloat16])
    y.sum().backward()
    assert all(p.grad.dtype == p.dtype for p in ours.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", THEIRS)
def test_attend_ends_a_residual_block(kernels, name):
    theirs = build(name)
    ours = accelerated(theirs)
    x, upstream = draw()
    shortcut = torch.randn_like(x)
    expected = copy.deepcopy(theirs).double()
    found = results(ours, x, upstream, lambda x: ours.attend(x, shortcut=shortcut))
    reference = results(expected, x.double(), upstream.double(), lambda x: (expected(x) + shortcut).relu())
    assert_near(found, reference, TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", ["cbam", "lcbam"])
def test_parts_of_cbam_lend_and_borrow_weights(kernels, name):
    theirs = build(name)
    ours = accelerated(theirs)
    x, upstream = draw()
    w = torch.rand(3, C)
    shortcut = torch.randn_like(x)

    y, weights = ours.channel.attend_and_lend(x, shortcut)
    torch.testing.assert_close(weights[:, :, None, None] * x, theirs.channel(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(y, (theirs.channel(x) + shortcut).relu(), rtol=1e-5, atol=1e-6)

    expected = copy.deepcopy(theirs).double().spatial
    found = results(ours.spatial, x, upstream, lambda x: ours.spatial.attend(x, shortcut, w))
    reference = results(
        expected,
        x.double(),
        upstream.double(),
        lambda x: (expected(x * w[:, :, None, None].double()) + shortcut).relu(),
    )
    assert_near(found, reference, TOLERANCE[torch.float32])


@pytest.mark.parametrize("name", THEIRS)
def test_hooks_of_inner_modules_see_what_they_saw(kernels, name):
    theirs = build(name).eval()
    ours = accelerated(theirs)
    x, _ = draw()
    seen = {}
    for layer in (theirs, ours):
        seen[layer] = calls = []
        for key, module in layer.named_modules():
            if not isinstance(module, nn.AdaptiveAvgPool2d):
                module.register_forward_hook(lambda m, args, y, key=key, calls=calls: calls.append((key, args[0], y)))
        layer(x)
    for (key, given, made), (their_key, their_given, their_made) in zip(seen[ours], seen[theirs], strict=True):
        assert key == their_key
        torch.testing.assert_close(given, their_given, msg=key)
        torch.testing.assert_close(made, their_made, msg=key)


def test_a_hook_that_changes_the_output_ends_the_block_too(cpu_kernels):
    layer = accelerated(build("se"))
    x, _ = draw()
    plain = layer(x)
    layer.register_forward_hook(lambda module, args, y: 2 * y)
    with ops.use_kernels("cpu"):
        torch.testing.assert_close(layer.attend(x, x), (2 * plain + x).relu())


def test_another_pool_of_torchvisions_is_used(cpu_kernels):
    layer = accelerated(build("se of torchvision"))
    layer.avgpool = nn.AdaptiveMaxPool2d(1)
    x, _ = draw()
    with ops.use_kernels("cpu"):
        y = layer(x)
    assert torch.equal(y, layer._scale(x) * x)


def test_other_norms_of_cbams_spatial_step_are_called(cpu_kernels):
    theirs = build("cbam")
    theirs.spatial.conv.bn.act = nn.Tanh()
    ours = accelerated(theirs)
    x, upstream = draw()
    with ops.use_kernels("cpu"):
        found = results(ours, x, upstream)
    assert_near(found, in_double(theirs, x, upstream), TOLERANCE[torch.float32])
    norm = nn.InstanceNorm2d(1, affine=True)
    theirs.spatial.conv.bn, ours.spatial.conv.bn = norm, copy.deepcopy(norm)
    with ops.use_kernels("cpu"):
        torch.testing.assert_close(ours(x), theirs(x))


# Each differs in one thing from the convolution that the kernels know.
OTHER_CONVS = {
    "bias": partial(nn.Conv2d, padding=3, kernel_size=7),
    "border": partial(nn.Conv2d, padding=3, kernel_size=7, bias=False, padding_mode="reflect"),
    "named padding": partial(nn.Conv2d, padding="same", kernel_size=7, bias=False),
    "dilation": partial(nn.Conv2d, padding=2, kernel_size=3, bias=False, dilation=2),
    "ratio": partial(nn.Conv2d, padding=(2, 1), kernel_size=(5, 3), bias=False),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("changed", OTHER_CONVS)
def test_other_convolutions_of_cbams_spatial_step_are_called(cpu_kernels, changed, training):
    theirs = build("cbam").train(training)
    theirs.spatial.conv.conv = OTHER_CONVS[changed](2, 1)
    x, upstream = draw()
    with ops.use_kernels("cpu"):
        found = results(accelerated(theirs), x, upstream)
    expected = in_double(theirs, x, upstream)
    for values in (found, expected):
        values.pop("spatial.conv.conv.bias", None)  # its gradient is 0 before a norm in training, but for rounding
    assert_near(found, expected, TOLERANCE[torch.float32])


@pytest.mark.parametrize("hooked", [["drop"], ["act"], ["drop", "act"]])
def test_hooks_of_what_follows_the_norm_are_called(cpu_kernels, hooked):
    layer = accelerated(build("cbam"))
    calls = []
    for name in hooked:
        norm = layer.spatial.conv.bn
        getattr(norm, name).register_forward_hook(lambda *_, name=name: calls.append(name))
    with ops.use_kernels("cpu"):
        layer(draw()[0])
    assert calls == hooked


def test_a_single_value_is_refused_as_by_timm(kernels):
    layer = accelerated(build("cbam"))
    with pytest.raises(ValueError, match="more than 1 value"):
        layer(torch.randn(1, C, 1, 1))


@pytest.mark.parametrize("name", THEIRS)
def test_traced_symbolically(name):
    layer = accelerated(build(name)).eval()
    x, _ = draw()
    with ops.use_kernels("reference"):
        assert torch.equal(torch.fx.symbolic_trace(layer)(x), layer(x))


@pytest.mark.parametrize("name", ["se", "ese", "eca", "ecam", "ceca"])
def test_the_zoos_are_timms(kernels, name):
    theirs = timm.layers.create_attn(name, C)
    ours = csham.create_attention(name, C)
    ours.load_state_dict(theirs.state_dict())
    x, upstream = draw()
    shortcut = torch.randn_like(x)
    assert_near(results(ours, x, upstream), in_double(theirs, x, upstream), TOLERANCE[torch.float32])
    torch.testing.assert_close(ours.attend(x, shortcut), (theirs(x) + shortcut).relu())
    with pytest.raises(ValueError, match="C = 16 channels"):
        ours.attend(x[:, :3])

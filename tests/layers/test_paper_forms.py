"""The settings that the table gives for the papers' forms, against the papers' formulas, outputs and gradients.

Where timm's default is another form, the table says "after". The formulas here are written from the papers in plain
PyTorch and take the layer's parameters by name.
"""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import csham
from csham.layers.names import ATTENTIONS

# timm's own variants, and the gate that its authors' block does not have, have no paper's form.
OWN = ["ecam", "ceca", "gc", "lcbam", "scoord"]
CHANNELS = {"se": 48, "coord": 320}  # where timm's rounding shows


def dense(means, weight, bias=None):
    """A fully connected layer on the second axis."""
    return F.linear(means.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)


def se(x, p):
    """Eq. 2 to 4: z = mean, s = σ(W2 ReLU(W1 z)), y = s x, and C/16 hidden channels."""
    assert p["fc1.weight"].shape[:2] == (x.shape[1] // 16, x.shape[1])
    z = x.mean((2, 3))
    return x * dense(dense(z, p["fc1.weight"]).relu(), p["fc2.weight"]).sigmoid()[:, :, None, None]


def ese(x, p):
    """σ(W mean) x, section 3.3."""
    return x * dense(x.mean((2, 3)), p["fc.weight"], p["fc.bias"]).sigmoid()[:, :, None, None]


def ge(x, p):
    """The pair without parameters, over the whole map: y = x σ(mean)."""
    assert not p
    return x * x.mean((2, 3), keepdim=True).sigmoid()


def gca(x, p):
    """Eq. 6: y = x + Wv2 ReLU(LN(Wv1 Σ_j softmax_j(Wk x_j) x_j)), a sixteenth of the channels hidden."""
    assert p["mlp_add.fc1.weight"].shape[:2] == (x.shape[1] // 16, x.shape[1])
    flat = x.flatten(2)
    attention = dense(flat, p["conv_attn.weight"], p["conv_attn.bias"]).softmax(-1)
    hidden = dense((attention * flat).sum(-1), p["mlp_add.fc1.weight"], p["mlp_add.fc1.bias"])
    norm, bias = p["mlp_add.norm.weight"], p["mlp_add.norm.bias"]
    centred = hidden - hidden.mean(1, keepdim=True)
    hidden = centred / (centred.square().mean(1, keepdim=True) + 1e-6).sqrt() * norm + bias
    return x + dense(hidden.relu(), p["mlp_add.fc2.weight"], p["mlp_add.fc2.bias"])[:, :, None, None]


def cbam_channel(x, p):
    """Eq. 2: σ(W1 ReLU(W0 avg) + W1 ReLU(W0 max)); the authors' code adds biases."""

    def mlp(pooled):
        hidden = dense(pooled, p["channel.fc1.weight"], p.get("channel.fc1.bias")).relu()
        return dense(hidden, p["channel.fc2.weight"], p.get("channel.fc2.bias"))

    return x * (mlp(x.mean((2, 3))) + mlp(x.flatten(2).max(2).values)).sigmoid()[:, :, None, None]


def cbam(x, p):
    """Eq. 1 to 3: the channel step, then σ(f7x7([avg; max]))."""
    x = cbam_channel(x, p)
    pooled = torch.stack([x.mean(1), x.max(1).values], 1)
    return x * F.conv2d(pooled, p["spatial.conv.conv.weight"], padding=3).sigmoid()


def cbam_released(x, p):
    """The authors' code: biases in the MLP, and a batch norm behind the filter, here by its running statistics 0, 1."""
    x = cbam_channel(x, p)
    pooled = torch.stack([x.mean(1), x.max(1).values], 1)
    logits = F.conv2d(pooled, p["spatial.conv.conv.weight"], padding=3) / (1 + 1e-5) ** 0.5
    return x * (p["spatial.conv.bn.weight"] * logits + p["spatial.conv.bn.bias"]).sigmoid()


def coord(x, p):
    """Eq. 4 to 9, with the norm of figure 2 and max(8, C/32) hidden channels, as the authors' code has them."""
    assert p["conv1.weight"].shape[0] == max(8, x.shape[1] // 32)
    H = x.shape[2]
    f = dense(torch.cat([x.mean(3), x.mean(2)], 2), p["conv1.weight"], p["conv1.bias"])
    f = f / (1 + 1e-5) ** 0.5 * p["bn1.weight"][:, None] + p["bn1.bias"][:, None]
    f = f * F.relu6(f + 3) / 6
    rows = dense(f[:, :, :H], p["conv_h.weight"], p["conv_h.bias"]).sigmoid()
    columns = dense(f[:, :, H:], p["conv_w.weight"], p["conv_w.bias"]).sigmoid()
    return x * rows[:, :, :, None] * columns[:, :, None]


def ela(x, p):
    """Section 3.3: y = x σ(GN16(F_h(mean_w x))) σ(GN16(F_w(mean_h x))), F of seven positions of one channel."""

    def side(means, name):
        z = F.conv1d(means, p[f"conv_{name}.weight"].flatten(2), padding=3, groups=x.shape[1])
        B, C, n = z.shape
        grouped = z.reshape(B, 16, -1)
        centred = grouped - grouped.mean(2, keepdim=True)
        z = (centred / (centred.square().mean(2, keepdim=True) + 1e-5).sqrt()).reshape(B, C, n)
        return (z * p[f"norm_{name}.weight"][:, None] + p[f"norm_{name}.bias"][:, None]).sigmoid()

    return x * side(x.mean(3), "h")[:, :, :, None] * side(x.mean(2), "w")[:, :, None]


FORMULAS = {"se": se, "ese": ese, "ge": ge, "gca": gca, "cbam": cbam, "coord": coord, "ela": ela}


def compare(layer, formula, channels):
    """Compare outputs and every gradient, with all parameters and the upstream gradient drawn."""
    layer = layer.double().eval()
    x = torch.randn(2, channels, 6, 5, dtype=torch.float64, requires_grad=True)
    parameters = dict(layer.named_parameters())
    for parameter in parameters.values():
        nn.init.normal_(parameter)
    upstream = torch.randn_like(x)
    leaves = [x, *parameters.values()]
    results = []
    for y in (layer(x), formula(x, parameters)):
        # materialize_grads: what one of the two does not use has a gradient of zero there.
        results.append([y, *torch.autograd.grad(y, leaves, upstream, allow_unused=True, materialize_grads=True)])
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)


def test_every_after_has_a_papers_form_or_none():
    after = {name for name, entry in ATTENTIONS.items() if entry.source.startswith("after")}
    assert after == {*FORMULAS, *OWN}
    assert {name for name, entry in ATTENTIONS.items() if entry.paper} == set(FORMULAS)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_papers_form_is_the_papers_formula(name):
    channels = CHANNELS.get(name, 32)
    settings = eval(f"dict({ATTENTIONS[name].paper})", {"nn": nn})
    compare(csham.create_attention(name, channels, **settings), FORMULAS[name], channels)


@pytest.mark.parametrize("name", FORMULAS)
def test_the_default_is_another_form(name):
    channels = CHANNELS.get(name, 32)
    with pytest.raises((AssertionError, KeyError)):
        compare(csham.create_attention(name, channels), FORMULAS[name], channels)


def test_cbam_of_the_authors_code():
    compare(csham.create_attention("cbam", 32, mlp_bias=True), cbam_released, 32)


def test_cbam_without_a_norm_runs_on_kernels_too(cpu_kernels):
    layer = csham.create_attention("cbam", 16, spatial_norm=False)
    x = torch.randn(2, 16, 9, 7)
    with csham.ops.use_kernels("reference"):
        expected = layer(x)
    with csham.ops.use_kernels("cpu"):
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)


def test_ela_tiny_of_the_paper():
    build = partial(csham.create_attention, "ela", 64, kernel_size=5, groups=32, act_layer=nn.Identity)
    assert build().norm_h.num_groups == 32
    assert build().conv_w.kernel_size == (1, 5)


def test_weights_of_elas_default_stay_above_what_silu_leaves_of_them():
    default, paper = (
        csham.create_attention("ela", 32, **settings).eval()
        for settings in ({}, {"groups": 16, "act_layer": nn.Identity})
    )
    x = torch.randn(4, 32, 8, 8).abs() + 1
    weights = [(layer(x) / x).min().item() for layer in (default, paper)]
    assert weights[0] > 0.43**2 > weights[1]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ela", {"groups": 5}, "groups must divide the channels, got 5 groups for 32 channels"),
        ("ela", {"groups": 0}, "EfficientLocalAttention: groups must be a whole number of at least 1, got 0"),
        ("coord", {"reduction": 0}, "CoordinateAttention: reduction must be a whole number of at least 1, got 0"),
        ("coord", {"nonsense": 0}, "It takes: rd_ratio, .*, reduction"),
        ("lcbam", {"spatial_norm": False}, "lcbam does not take these settings: spatial_norm"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        csham.create_attention(name, 32, **settings)

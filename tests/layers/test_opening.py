"""Gates that start open."""

import copy
import io

import pytest
import torch
from torch import nn

import csham
from csham.errors import UserError
from csham.layers.attention import parts_of
from csham.layers.names import ATTENTIONS
from csham.layers.recording import record_weights
from csham.ops.choice import use_kernels

OPENS = [name for name, entry in ATTENTIONS.items() if entry.opens]


def weights_of(layer, x):
    found = []
    stop = record_weights(layer, lambda kind, weights: found.append(weights.detach()))
    y = layer(x)
    stop()
    return y, found


def built(name, *, open_gates, **settings):
    torch.manual_seed(0)
    return csham.create_attention(name, 64, open_gates=open_gates, **settings)


@pytest.fixture
def x():
    return torch.randn(4, 64, 14, 14, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", OPENS)
def test_the_weights_start_near_1_and_all_else_as_before(name, x):
    usual, opened = built(name, open_gates=False), built(name, open_gates=True)
    y, found = weights_of(opened, x)
    for weights, before in zip(found, weights_of(usual, x)[1], strict=True):
        assert weights.mean() > 0.8  # a product of two factors or three is further from 1
        assert weights.mean() > before.mean()
    before, after = dict(usual.named_parameters()), dict(opened.named_parameters())
    changed = {key for key, value in after.items() if key not in before or not torch.equal(value, before[key])}
    assert changed
    assert all("bias" in key for key in changed)
    for key in changed:
        assert (after[key] == after[key].flatten()[0]).all()
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in opened.parameters())


@pytest.mark.parametrize("name", OPENS)
def test_an_open_one_is_copied_and_loaded(name, x):
    opened = built(name, open_gates=True).eval()
    content = io.BytesIO()
    torch.save(opened.state_dict(), content)
    content.seek(0)
    torch.manual_seed(5)
    other = csham.create_attention(name, 64, open_gates=True).eval()
    other.load_state_dict(torch.load(content))
    for again in (copy.deepcopy(opened), other):
        assert torch.equal(again(x), opened(x))


@pytest.mark.parametrize("name", [name for name in OPENS if ATTENTIONS[name].two_part])
def test_the_parts_open_by_themselves(name, x):
    for part in parts_of(built(name, open_gates=True)):
        assert weights_of(part, x)[1][0].mean() > 0.85


@pytest.mark.parametrize("name", [name for name in ATTENTIONS if name not in OPENS])
def test_one_that_cannot_says_so(name):
    assert not callable(getattr(csham.create_attention(name, 64), "open_gates", None))
    with pytest.raises(UserError) as caught:
        csham.create_attention(name, 64, open_gates=True)
    assert f"{name} has no bias that its weights start from" in str(caught.value)
    assert "csham, csham_linear" in str(caught.value)
    assert "--gated" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "settings", "weight"),
    [
        ("se", {"gate_layer": "hard_sigmoid"}, 0.95),  # constant from 3 on
        ("se", {"bias": False}, 0.95),
        ("cbam", {"mlp_bias": True, "spatial_norm": False}, 0.95),
        ("ela", {"act_layer": nn.Identity}, 0.9),
    ],
)
def test_every_form_of_one_opens(name, settings, weight, x):
    for weights in weights_of(built(name, open_gates=True, **settings), x)[1]:
        assert weights.mean() == pytest.approx(weight, abs=0.04)
        assert weights.mean() < 1


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("se", {"gate_layer": lambda **_: nn.Hardtanh(0, 0.5)}, "Hardtanh makes no weights near 1"),
        ("ge", {"use_mlp": False}, "without its MLP has no parameters"),
    ],
)
def test_a_form_that_cannot_says_so(name, settings, message):
    with pytest.raises(UserError, match=message):
        built(name, open_gates=True, **settings)


@pytest.mark.parametrize("name", OPENS)
def test_kernels_know_the_new_biases(name, x):
    opened = built(name, open_gates=True)
    y = opened(x)
    with use_kernels("reference"):
        torch.testing.assert_close(built(name, open_gates=True)(x), y)


def test_the_modules_own_argument_is_the_same(x):
    for name, build in {"csham": csham.CSHAM, "csham_channel": csham.ChannelAttention,
                        "csham_spatial": csham.SpatialAttention}.items():  # fmt: skip
        torch.manual_seed(0)
        layer = build(64, open_gates=True)
        assert torch.equal(layer(x), built(name, open_gates=True)(x))


@pytest.mark.usefixtures("own_names")
def test_an_attention_of_ones_own_opens_by_a_method():
    class Closed(csham.layers.Gate):
        def __init__(self, channels):
            super().__init__(channels)
            self.bias = nn.Parameter(torch.zeros(channels))

        def weights(self, x):
            return (x.mean((2, 3)) + self.bias).sigmoid()

    class Opens(Closed):
        def open_gates(self):
            nn.init.constant_(self.bias, 3.0)

    csham.register_attention("closed", Closed)
    csham.register_attention("opens", Opens)
    assert csham.create_attention("opens", 8, open_gates=True).bias.eq(3).all()
    assert csham.create_attention("opens", 8).bias.eq(0).all()
    with pytest.raises(UserError, match="closed has no bias that its weights start from"):
        csham.create_attention("closed", 8, open_gates=True)

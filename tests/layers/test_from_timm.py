"""timm's attentions against the formulas of their papers, and what is put before them."""

import numpy as np
import pytest
import timm.layers
import torch

import csham
from csham.layers.names import ATTENTIONS


def gated(x, weights):
    return x * weights.reshape(*weights.shape, *[1] * (4 - weights.ndim))


def squeeze_excite(x, state, o, fc1="fc1", fc2="fc2"):
    return gated(x, o.sigmoid(o.dense(o.relu(o.dense(x.mean((2, 3)), state, fc1)), state, fc2)))


def effective_squeeze_excite(x, state, o):
    return gated(x, np.clip(o.dense(x.mean((2, 3)), state, "fc") / 6 + 0.5, 0, 1))


def filter_channels(means, weight, circular=False):
    """Correlation of (B, C) with k values along the channels, zeros outside or closed to a ring."""
    out, (B, C), k = np.zeros_like(means), means.shape, len(weight)
    for b, c, t in np.ndindex(B, C, k):
        source = c + t - k // 2
        if circular or 0 <= source < C:
            out[b, c] += weight[t] * means[b, source % C]
    return out


def eca(x, state, o):
    return gated(x, o.sigmoid(filter_channels(x.mean((2, 3)), state["conv.weight"][0, 0])))


def ceca(x, state, o):
    return gated(x, o.sigmoid(filter_channels(x.mean((2, 3)), state["conv.weight"][0, 0], circular=True)))


def ecam(x, state, o):
    logits = np.full(x.shape[:2], state["conv2.bias"][0])
    for r, weight in enumerate(state["conv2.weight"][0]):
        hidden = o.relu(state["conv.weight"][r, 0, 0] * x.mean((2, 3)) + state["conv.bias"][r])
        logits += filter_channels(hidden, weight)
    return gated(x, o.sigmoid(logits))


def gather_excite(x, state, o):
    return squeeze_excite(x, state, o, "mlp.fc1", "mlp.fc2")


def global_context(x, state, o, mlp):
    attention = o.dense(x, state, "conv_attn")
    attention = np.exp(attention) / np.exp(attention).sum((2, 3), keepdims=True)
    hidden = o.dense((x * attention).sum((2, 3)), state, f"{mlp}.fc1")
    mean, variance = hidden.mean(1, keepdims=True), hidden.var(1, keepdims=True)
    hidden = (hidden - mean) / np.sqrt(variance + 1e-6) * state[f"{mlp}.norm.weight"] + state[f"{mlp}.norm.bias"]
    return o.dense(o.relu(hidden), state, f"{mlp}.fc2")


def gc(x, state, o):
    return gated(x, o.sigmoid(global_context(x, state, o, "mlp_scale")))


def gca(x, state, o):
    return x + global_context(x, state, o, "mlp_add")[:, :, None, None]


def coord(x, state, o):
    def hidden(means):
        maps = o.batch_norm(o.dense(means, state, "conv1"), state, "bn1")
        return maps * np.clip(maps + 3, 0, 6) / 6

    rows = o.sigmoid(o.dense(hidden(x.mean(3)), state, "conv_h"))
    columns = o.sigmoid(o.dense(hidden(x.mean(2)), state, "conv_w"))
    return x * rows[:, :, :, None] * columns[:, :, None]


def scoord(x, state, o):
    rows = o.dense(o.silu(o.dense(x.mean(3), state, "fc1")), state, "fc_h")
    columns = o.dense(o.silu(o.dense(x.mean(2), state, "fc1")), state, "fc_w")
    return x * o.sigmoid(rows[:, :, :, None] + columns[:, :, None])


def sides(x, state, o):
    rows = o.convolve(x.mean(3, keepdims=True), state, "conv_h")
    columns = o.convolve(x.mean(2, keepdims=True), state, "conv_w")
    return rows, columns


def ela(x, state, o):
    rows, columns = sides(x, state, o)
    rows = o.sigmoid(o.silu(o.group_norm(rows, state, "norm_h", 1)))
    columns = o.sigmoid(o.silu(o.group_norm(columns, state, "norm_w", 1)))
    return x * rows * columns


def strip(x, state, o):
    rows, columns = sides(x, state, o)
    return x * o.sigmoid(rows + columns)


FORMULAS = {
    "se": squeeze_excite,
    "ese": effective_squeeze_excite,
    "eca": eca,
    "ecam": ecam,
    "ceca": ceca,
    "ge": gather_excite,
    "gc": gc,
    "gca": gca,
    "coord": coord,
    "scoord": scoord,
    "ela": ela,
    "strip": strip,
}
FROM_TIMM = [name for name, entry in ATTENTIONS.items() if entry.source.endswith("(timm)")]
# What timm calls them, with its own defaults; ge cannot be built there.
TIMM = [name for name in FROM_TIMM if name != "ge"]


def test_every_attention_of_timms_has_a_formula():
    assert {*FORMULAS, "cbam", "lcbam"} == set(FROM_TIMM)


@pytest.mark.parametrize("name", FORMULAS)
def test_equals_the_formula(drawn, loops, name):
    layer, state = drawn(name, 8)
    x = torch.randn(2, 8, 4, 5, dtype=torch.float64)
    np.testing.assert_allclose(layer(x).detach(), FORMULAS[name](x.numpy(), state, loops), rtol=1e-10, atol=1e-12)


@pytest.mark.usefixtures("reference")
@pytest.mark.parametrize("name", TIMM)
def test_is_timms_module(name):
    torch.manual_seed(1)
    theirs = timm.layers.create_attn(name, 16)
    torch.manual_seed(1)
    ours = csham.create_attention(name, 16)
    x = torch.randn(2, 16, 6, 5)
    assert torch.equal(ours(x), theirs(x))
    ours.load_state_dict(theirs.state_dict(), strict=True)


def test_gather_excite_over_parts_of_the_map(drawn, loops):
    layer, state = drawn("ge", 4, extent=2, rd_channels=3)
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    pooled = np.empty((2, 4, 3, 3))
    for i, j in np.ndindex(3, 3):  # windows of 3 with stride 2, which begin one before the map; only its values count
        window = x.numpy()[:, :, max(2 * i - 1, 0) : 2 * i + 2, max(2 * j - 1, 0) : 2 * j + 2]
        pooled[:, :, i, j] = window.mean((2, 3))
    logits = loops.dense(loops.relu(loops.dense(pooled, state, "mlp.fc1")), state, "mlp.fc2")
    expected = x.numpy().copy()
    for i, j in np.ndindex(5, 6):
        expected[:, :, i, j] *= loops.sigmoid(logits[:, :, i * 3 // 5, j * 3 // 6])
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-10, atol=1e-12)


def test_gather_excite_without_mlp(loops):
    x = torch.randn(2, 4, 5, 6, dtype=torch.float64)
    got = csham.create_attention("ge", 4, use_mlp=False)(x)
    np.testing.assert_allclose(got, gated(x.numpy(), loops.sigmoid(x.numpy().mean((2, 3)))), rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("ese", {"rd_ratio": 0.5}, "ese does not take these settings: rd_ratio"),
        ("eca", {"kernel_size": 5}, "eca does not take these settings: kernel_size. It takes: gamma"),
        ("eca", {"act_layer": torch.nn.ReLU}, "eca does not take these settings: act_layer"),
        ("gca", {"gate_layer": "sigmoid"}, "gca does not take these settings: gate_layer"),
        ("ge", {"extra_params": True}, "ge does not take these settings: extra_params"),
        ("ge", {"extent": 3}, r"extent must be 0 \(the whole map\) or an even number, got 3"),
        ("ge", {"rd_channels": 0}, "GatherExcite: rd_channels must be a whole number of at least 1, got 0"),
        ("strip", {"kernel_size": 4}, "StripAttention: kernel_size must be an odd whole number, got 4"),
        ("strip", {"nonsense": 4}, "strip does not take these settings: nonsense"),
        ("se", {"rd_channels": -1}, "SqueezeExcite: rd_channels must be a whole number of at least 1, got -1"),
    ],
)
def test_wrong_settings_are_named(name, settings, message):
    with pytest.raises(ValueError, match=message):
        csham.create_attention(name, 8, **settings)


def test_settings_reach_timm():
    assert csham.create_attention("ecam", 8, rd_channels=5).conv.out_channels == 5
    assert csham.create_attention("ela", 8, norm_layer=None).norm_h.__class__ is torch.nn.Identity
    assert csham.create_attention("gca", 8, rd_channels=5).mlp_add.fc1.out_channels == 5
    assert csham.create_attention("ge", 8, rd_channels=5).mlp.fc1.out_channels == 5

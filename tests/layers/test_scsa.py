"""Spatial and channel synergistic attention against its definition, head by head."""

import numpy as np
import pytest
import torch

CONVS = ("local_dwc", "global_dwc_s", "global_dwc_m", "global_dwc_l")


def along(means, state):
    """Depthwise correlation of (B, C, N), zeros outside, each quarter of the channels with its own filters."""
    out = np.empty_like(means)
    quarter = means.shape[1] // 4
    for b, c, n in np.ndindex(means.shape):
        weight = state[f"{CONVS[c // quarter]}.weight"][c % quarter, 0]
        out[b, c, n] = state[f"{CONVS[c // quarter]}.bias"][c % quarter]
        for t, value in enumerate(weight):
            if 0 <= n + t - len(weight) // 2 < means.shape[2]:
                out[b, c, n] += value * means[b, c, n + t - len(weight) // 2]
    return out


def pool(x, window):
    """Average over whole windows; what is left over at the end is dropped."""
    rows, columns = (min(window, side) for side in x.shape[2:])
    out = np.empty((*x.shape[:2], x.shape[2] // rows, x.shape[3] // columns))
    for i, j in np.ndindex(out.shape[2:]):
        out[:, :, i, j] = x[:, :, i * rows : (i + 1) * rows, j * columns : (j + 1) * columns].mean((2, 3))
    return out


def formula(x, state, o, heads, window):
    rows = o.sigmoid(o.group_norm(along(x.mean(3), state), state, "norm_h", 4))
    columns = o.sigmoid(o.group_norm(along(x.mean(2), state), state, "norm_w", 4))
    x = x * rows[:, :, :, None] * columns[:, :, None]
    pooled = o.group_norm(pool(x, window), state, "norm", 1)
    pooled = pooled.reshape(*pooled.shape[:2], -1)
    q, k, v = (pooled * state[f"{key}.weight"].reshape(-1, 1) for key in "qkv")
    y, size = np.empty_like(x), x.shape[1] // heads
    for b, c in np.ndindex(x.shape[:2]):
        head = range(c // size * size, c // size * size + size)
        scores = np.array([(q[b, c] * k[b, other]).sum() / np.sqrt(size) for other in head])
        attended = sum(p * v[b, other] for p, other in zip(o.softmax(scores, 0), head, strict=True))
        y[b, c] = x[b, c] * o.sigmoid(attended.mean())
    return y


# A map below the window, several windows with a row left over, and several heads.
@pytest.mark.parametrize(
    ("shape", "settings"), [((4, 5), {}), ((7, 4), {"window": 2, "heads": 4}), ((14, 7), {"heads": 2})]
)
def test_equals_the_formula(drawn, loops, shape, settings):
    layer, state = drawn("scsa", 8, **settings)
    x = torch.randn(2, 8, *shape, dtype=torch.float64)
    expected = formula(x.numpy(), state, loops, settings.get("heads", 1), settings.get("window", 7))
    np.testing.assert_allclose(layer(x).detach(), expected, rtol=1e-10, atol=1e-12)


def test_keys_are_the_authors(drawn):
    keys = [f"{name}.{kind}" for name in (*CONVS, "norm_h", "norm_w", "norm") for kind in ("weight", "bias")]
    assert sorted(drawn("scsa", 8)[0].state_dict()) == sorted([*keys, "q.weight", "k.weight", "v.weight"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"heads": 3}, "SCSA: heads must divide the 8 channels, got 3"),
        ({"heads": 0}, "SCSA: heads must be a whole number of at least 1"),
        ({"window": 0}, "SCSA: window must be a whole number of at least 1"),
        ({"kernel_sizes": (3, 5, 7)}, "SCSA: kernel_sizes must be four"),
        ({"kernel_sizes": (3, 5, 7, 8)}, "SCSA: kernel_sizes must be an odd whole number, got 8"),
    ],
)
def test_wrong_settings_are_named(drawn, settings, message):
    with pytest.raises(ValueError, match=message):
        drawn("scsa", 8, **settings)

"""Pooling, weights and scaling together, on the Triton kernels: outputs and all gradients against the reference."""

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings

from csham.ops import reference
from csham.ops.operators.hybrid_pool import hybrid_pool
from csham.ops.operators.position_pool import position_pool
from csham.ops.operators.scale import scale
from csham.ops.operators.spatial_gate import Norm, spatial_gate

# Smallest; odd, H != W; one past a block; a side too short to pool; pooled sides odd and even, three quads a row. Each
# in one layout (is it channels_last?), those of most interest in both.
SHAPES = [
    ((1, 1, 1, 1), False),
    ((2, 3, 5, 7), False),
    ((2, 3, 5, 7), True),
    ((2, 65, 8, 8), False),
    ((2, 65, 8, 8), True),
    ((2, 5, 1, 9), True),
    ((1, 6, 10, 12), False),
]
KINDS = ["channel", "position", "sequential", "parallel", "reapply"]
EPS = 1e-3


def parameters(C, device):
    """Leaves of CSHAM for a map of C channels, by name; norms as weight, bias, mean, var."""
    shapes = {"avg_weight": (1, 1, 3), "avg_bias": (1,), "max_weight": (1, 1, 3), "max_bias": (1,)}
    shapes |= {"fuse_weight": (1, 2, 3), "fuse_bias": (1,), "main": (1, 2, 7, 7), "neighbor": (1, C, 3, 3)}
    shapes |= dict.fromkeys(("norm_weight", "norm_bias", "neighbor_norm_weight", "neighbor_norm_bias"), (1,))
    leaves = {name: torch.randn(shape).div(2) for name, shape in shapes.items()}
    leaves["fuse_bias"] += 1  # past the ReLU, so that something flows back
    return {name: leaf.to(device).requires_grad_() for name, leaf in leaves.items()}


def norm(leaves, prefix, training):
    mean, var = torch.full((1,), 0.1), torch.full((1,), 0.8)
    weight, bias = leaves[f"{prefix}_weight"], leaves[f"{prefix}_bias"]

    def apply(x):
        running = (mean.to(x.device), var.to(x.device))
        return F.batch_norm(x, *((None, None) if training else running), weight, bias, training, eps=EPS)

    return apply, (weight, bias, mean.to(weight.device), var.to(weight.device))


def act(relu):
    return torch.relu if relu else lambda value: value


def expected(kind, x, leaves, training, relu):
    filters = [leaves[f"{name}_{part}"] for name in ("avg", "max", "fuse") for part in ("weight", "bias")]
    settings_ = (leaves["main"], norm(leaves, "norm", training)[0], leaves["neighbor"])
    settings_ = (*settings_, norm(leaves, "neighbor_norm", training)[0], act(relu))
    if kind == "position":
        w = leaves["avg_weight"].new_ones(x.shape[:2])
    else:
        w = reference.channel_weights(x, *filters, act(relu))
    t = w[:, :, None, None] * x
    if kind == "channel":
        return t
    s = reference.spatial_weights(x if kind == "parallel" else t, *settings_)
    return s * t * (w[:, :, None, None] if kind == "reapply" else 1)


def computed(kind, x, leaves, training, relu, end):
    filters = tuple(leaves[f"{name}_{part}"] for name in ("avg", "max", "fuse") for part in ("weight", "bias"))
    neighbor = leaves["neighbor"] if min(x.shape[2:]) >= 2 else None
    if kind == "channel":
        pooled = hybrid_pool("triton", x, None, filters, relu)
        return scale("triton", x, pooled.carry, pooled.w, **end)
    if kind == "position":
        w = None
        mean, maximum, neighbors, carry = position_pool("triton", x, None, None, neighbor)
    else:
        weighted = kind != "parallel"
        pooled = hybrid_pool("triton", x, None, filters, relu, True, weighted, neighbor)
        w, mean, maximum, neighbors, carry = pooled
    norms = [Norm(*norm(leaves, name, training)[1], training, EPS) for name in ("norm", "neighbor_norm")]
    gate = spatial_gate("triton", mean, maximum, neighbors, leaves["main"], *norms, relu)
    position_w = None if kind in ("parallel", "position") else w
    w = w * w if kind == "reapply" else w
    return scale("triton", x, carry, w, gate.s, position_w=position_w, position_max=maximum, **end)


def check(assert_close, kind, x, training=False, relu=True, shortcut=None, end_relu=False):
    leaves = parameters(x.shape[1], x.device)
    given_ = {"x": x, **leaves} | ({} if shortcut is None else {"shortcut": shortcut})
    given_ = {name: value.detach().requires_grad_() for name, value in given_.items()}
    exact = {name: value.detach().float().requires_grad_() for name, value in given_.items()}
    y = computed(kind, given_["x"], given_, training, relu, {"shortcut": given_.get("shortcut"), "relu": end_relu})
    want = expected(kind, exact["x"], exact, training, relu)
    want = want + exact["shortcut"] if shortcut is not None else want
    want = want.relu() if end_relu else want
    assert y.dtype == x.dtype
    assert y.stride() == x.stride()
    # What the epilogue keeps is known after rounding only: take its gate from there.
    grad = torch.randn_like(want).to(x.dtype)
    exact_grad = grad.float() * ((y > 0) == (want > 0)) if end_relu else grad.float()
    grads = torch.autograd.grad(y, list(given_.values()), exact_grad.to(x.dtype), allow_unused=True)
    wants = torch.autograd.grad(want, list(exact.values()), exact_grad, allow_unused=True)
    got = {"y": y} | {f"grad_{name}": value for name, value in zip(given_, grads, strict=True)}
    oracle = {"y": want} | {f"grad_{name}": value for name, value in zip(exact, wants, strict=True)}
    assert_close(got, oracle, x.dtype)


@pytest.mark.parametrize(("shape", "channels_last"), SHAPES, ids=str)
def test_sequential_agrees_with_the_reference_on_every_shape(make_map, assert_close, shape, channels_last):
    check(assert_close, "sequential", make_map(shape, channels_last=channels_last))


@pytest.mark.parametrize(("kind", "channels_last"), [*zip(KINDS, (0, 1, 0, 1, 0), strict=True), ("channel", 1)])
def test_every_way_to_connect_agrees_with_the_reference_where_maxima_are_tied(
    make_map, assert_close, kind, channels_last
):
    x = make_map((2, 5, 6, 9), channels_last=bool(channels_last), tied=True)
    check(assert_close, kind, x, training=True, relu=not channels_last)


@pytest.mark.parametrize(("kind", "dtype"), [("sequential", torch.bfloat16), ("channel", torch.float16)])
def test_half_precision_is_rounded_once(make_map, assert_close, kind, dtype):
    x = make_map((2, 9, 8, 5), dtype, channels_last=dtype == torch.float16)
    check(assert_close, kind, x, training=True)


@pytest.mark.parametrize("end_relu", [False, True])
def test_the_end_of_a_residual_block(make_map, assert_close, end_relu):
    x, shortcut = (make_map((2, 5, 7, 6), channels_last=end_relu) for _ in range(2))
    check(assert_close, "channel", x, shortcut=shortcut, end_relu=end_relu)


@pytest.mark.slow
@settings(max_examples=4)
@given(st.data())
def test_any_shape(make_map, assert_close, data):
    sides = st.integers(1, 13)
    shape = (data.draw(st.integers(1, 2)), data.draw(st.integers(1, 20)), data.draw(sides), data.draw(sides))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = make_map(shape, channels_last=data.draw(st.booleans()), tied=data.draw(st.booleans()))
    check(assert_close, data.draw(st.sampled_from(KINDS)), x)

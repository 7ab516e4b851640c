"""What the Triton operators alone do, beside what tests/ops/test_operators.py asks of each, and what they refuse."""

import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import csham
from csham import ops
from csham.errors import UserError
from csham.layers.norm import BatchNorm2d
from csham.ops.operators.carry import carry
from csham.ops.operators.position_pool import neighbor_shape
from csham.ops.operators.spatial_gate import Norm, spatial_gate
from csham.ops.triton import maps
from csham.ops.triton import spatial_gate as spatial_gates

triton_ops = torch.ops.csham_triton
CPU_ONLY = pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without a GPU")


def random(device, *shape):
    return torch.rand(shape, device=device) + 0.5


@pytest.mark.parametrize("channels_last", [False, True])
def test_channel_pool(make_map, assert_close, monkeypatch, channels_last):
    # More programs than there is work: every block of positions is a chunk of its own.
    monkeypatch.setattr(maps, "_PROGRAMS", 64)
    x = make_map((1, 3, 40, 60), channels_last=channels_last) + 1000  # a mean that cancellation would spoil
    mean, maximum, *_ = triton_ops.channel_pool(x, None, True)
    assert_close({"mean": mean, "max": maximum}, {"mean": x.double().mean((2, 3)), "max": x.amax((2, 3))})
    assert torch.equal(maximum, x.amax((2, 3)))
    assert torch.equal(triton_ops.channel_pool(x, None, False)[0], mean)


@pytest.mark.parametrize("channels_last", [False, True])
def test_position_pool_finds_the_exact_maximum_of_one_float32_product(make_map, device, channels_last):
    x = make_map((2, 37, 3, 6), torch.bfloat16, channels_last)
    w = random(device, 2, 37)
    _, maximum, neighbors, *_ = triton_ops.position_pool(x, None, w, None)
    assert torch.equal(maximum, (w[:, :, None, None] * x.float()).amax(1, keepdim=True))
    assert neighbors.numel() == 0


def test_ties_are_counted_without_weights(make_map):
    x = make_map((1, 6, 3, 4), torch.float16, tied=True)
    maximum = x.amax(1, keepdim=True).float()
    *rest, ties = triton_ops.scale_backward(torch.zeros_like(x), x, None, None, None, None, maximum, None)
    assert torch.equal(ties, (x == maximum).sum(1, keepdim=True).float())
    assert all(out.numel() == 0 for out in rest)


@pytest.mark.parametrize("channels_last", [False, True])
def test_not_a_number_reaches_means_and_maxima(make_map, channels_last):
    x = make_map((1, 5, 4, 9), channels_last=channels_last)
    x[0, 2, 3, 8] = float("nan")
    mean, maximum, *_ = triton_ops.channel_pool(x, None, True)
    assert mean.isnan().nonzero().tolist() == maximum.isnan().nonzero().tolist() == [[0, 2]]
    mean, maximum, *_ = triton_ops.position_pool(x, None, None, None)
    assert mean.isnan().nonzero().tolist() == maximum.isnan().nonzero().tolist() == [[0, 0, 3, 8]]


def gate_in_float64(mean, maximum, neighbors, main, norm, neighbor_norm, training, relu):
    """Spatial weights by plain formulas; norms as weight, bias, mean, var, their eps 1e-3."""

    def normalised(x, values, in_training):
        weight, bias, *running = values
        return F.batch_norm(x, *((None, None) if in_training else running), weight, bias, in_training, eps=1e-3)

    logits = normalised(F.conv2d(torch.cat([mean, maximum], 1), main, padding="same"), norm, training[0])
    logits = logits.relu() if relu else logits
    if neighbors is not None:
        around = normalised(neighbors, neighbor_norm, training[1])
        logits = logits + F.interpolate(around, logits.shape[2:], mode="nearest-exact")
    return logits.sigmoid()


@pytest.mark.parametrize(
    ("size", "k", "training", "affine", "term", "relu"),
    [
        ((2, 20, 21), 7, (True, True), True, True, True),  # several programs of each kind
        ((1, 5, 3), 7, (True, False), True, True, True),  # one value for five rows
        ((3, 13, 9), 3, (False, True), True, True, False),
        ((2, 6, 7), 1, (False, False), False, True, True),
        ((2, 1, 9), 5, (True, False), True, False, True),
    ],
)
def test_spatial_gate(assert_close, device, size, k, training, affine, term, relu):
    B, H, W = size
    position = (B, 1, H, W)
    shapes = {"mean": position, "maximum": position, "neighbors": neighbor_shape(torch.empty(position))}
    shapes |= {"main": (1, 2, k, k)} | dict.fromkeys(("weight", "bias", "neighbor_weight", "neighbor_bias"), (1,))
    leaves = {name: torch.randn(shape, device=device) for name, shape in shapes.items()}
    leaves["mean"] += 3
    leaves = {name: leaf.requires_grad_() for name, leaf in leaves.items() if term or "neighbor" not in name}
    if not affine:
        leaves = {name: leaf for name, leaf in leaves.items() if "weight" not in name and "bias" not in name}
    running = (torch.full((1,), 0.3, device=device), torch.full((1,), 40.0, device=device))
    exact = {name: leaf.detach().double().requires_grad_() for name, leaf in leaves.items()}

    def gate(values, function, dtype):
        now = [value.to(dtype) for value in running]
        norm = (values.get("weight"), values.get("bias"), *now)
        around = (values.get("neighbor_weight"), values.get("neighbor_bias"), *now)
        return function(values["mean"], values["maximum"], values.get("neighbors"), values["main"], norm, around)

    def kernels(mean, maximum, neighbors, main, *norms):
        norms = [Norm(*norm, now, 1e-3) for norm, now in zip(norms, training, strict=True)]
        return spatial_gate("triton", mean, maximum, neighbors, main, *norms, relu).s

    got = gate(leaves, kernels, torch.float32)
    want = gate(exact, lambda *given: gate_in_float64(*given, training, relu), torch.float64)
    grad = torch.randn_like(got)
    grads = torch.autograd.grad(got, list(leaves.values()), grad)
    wants = torch.autograd.grad(want, list(exact.values()), grad.double())
    again = torch.autograd.grad(gate(leaves, kernels, torch.float32), list(leaves.values()), grad)
    assert all(map(torch.equal, grads, again))
    got, want = ({"s": s} | dict(zip(leaves, found, strict=True)) for s, found in ((got, grads), (want, wants)))
    assert_close(got, want)


@pytest.mark.parametrize("size", [(70_000, 2), (2, 70_000)])
def test_spatial_gate_of_a_side_whose_products_need_64_bits(monkeypatch, device, size):
    if device == "cpu":  # one program
        monkeypatch.setattr(spatial_gates._Cut, "block", 1 << 18, raising=False)
        monkeypatch.setattr(spatial_gates, "_STRIP", 1 << 18)
    neighbors = torch.randn(neighbor_shape(torch.empty(1, 1, *size)), device=device, requires_grad=True)
    want = neighbors.double().repeat_interleave(size[0] // neighbors.shape[2], 2)
    want = want.repeat_interleave(size[1] // neighbors.shape[3], 3).sigmoid()
    zero, one = torch.zeros(1, device=device), torch.ones(1, device=device)
    norm = Norm(None, None, zero, one, False, 0.0)
    flat = torch.zeros(1, 1, *size, device=device)
    s = spatial_gate("triton", flat, flat, neighbors, torch.zeros(1, 2, 1, 1, device=device), norm, norm, True).s
    assert torch.allclose(s.double(), want, atol=1e-6)
    grad = torch.randn_like(s)
    (got,), (exact,) = (torch.autograd.grad(y, [neighbors], dy) for y, dy in ((s, grad), (want, grad.double())))
    assert torch.allclose(got, exact, atol=1e-5)


def test_spatial_gate_says_what_the_batch_was(device):
    mean, maximum = (torch.randn(3, 1, 17, 18, device=device) for _ in range(2))
    neighbors, main = torch.randn(3, 1, 4, 5, device=device) * 2 + 30, torch.randn(1, 2, 7, 7, device=device)
    given = (mean, maximum, neighbors, main, *(None,) * 8, True, True, 1e-3, 1e-3, True)
    _, position, *statistics = triton_ops.spatial_gate(*given)
    for values, average, variance in ((position, *statistics[:2]), (neighbors, *statistics[2:])):
        assert torch.allclose(average, values.mean(), rtol=1e-5)
        assert torch.allclose(variance, values.var(correction=0), rtol=1e-5)


def test_a_layer_takes_its_spatial_weights_from_the_kernels(make_map, device):
    layer = csham.SpatialAttention(5).to(device)
    called = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            called.append(str(function))
            return function(*args, **(kwargs or {}))

    with ops.use_kernels("triton"), Watch():
        layer(make_map((2, 5, 6, 7)).requires_grad_()).sum().backward()
    assert not [name for name in called if "convolution" in name or "batch_norm" in name or "upsample" in name]
    assert {"csham_triton.spatial_gate.default", "csham_triton.spatial_gate_backward.default"} <= set(called)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", [BatchNorm2d, torch.nn.BatchNorm2d])
def test_running_statistics_follow_as_the_reference_has_them(make_map, device, kind, compiled):
    layers = [csham.SpatialAttention(3).to(device) for _ in range(2)]
    for layer in layers:
        layer.main_bn, layer.neighbor_bn = kind(1, momentum=0.03).to(device), kind(1, momentum=0.6).to(device)
    layers[1].load_state_dict(layers[0].state_dict())
    by_kernels = torch.compile(layers[0], backend="aot_eager") if compiled else layers[0]
    for _ in range(3):
        x = make_map((2, 3, 5, 6))
        with ops.use_kernels("triton"):
            by_kernels(x)
        with ops.use_kernels("reference"):
            layers[1](x)
    for (name, got), want in zip(layers[0].named_buffers(), layers[1].buffers(), strict=True):
        assert torch.allclose(got, want, rtol=1e-5, atol=1e-6), name


@pytest.mark.slow
def test_running_statistics_keep_their_schema(device):
    one = torch.rand(1, device=device)
    running = [t for _ in range(2) for t in (one.clone(), one.clone(), torch.tensor(3, device=device))]
    given = (running, [one] * 4, [1.5, 1.2], [0.01, 0.1], [True, False])
    torch.library.opcheck(triton_ops.follow.default, given, test_utils=("test_schema", "test_faketensor"))


def turned(value):
    """The same values in the other memory format."""
    other = torch.channels_last if value.is_contiguous() else torch.contiguous_format
    return value.contiguous(memory_format=other)


def test_what_a_compiler_laid_otherwise_is_read_as_it_lies(make_map, device):
    x, shortcut, grad, y = (make_map((2, 3, 4, 5), channels_last=True) for _ in range(4))
    w, s, filters = random(device, 2, 3), random(device, 2, 1, 4, 5), random(device, 1, 3, 3, 3)
    neighbors, maximum = random(device, *neighbor_shape(x)), x.amax(1, keepdim=True)
    tie = carry(x)
    calls = [
        (triton_ops.scale, (x, None, w, s, shortcut, True, None, None, *tie), (4,)),
        (triton_ops.scale_backward, (grad, x, None, w, s, None, maximum, y), (0, 7)),
        (triton_ops.channel_pool_backward, (grad, x, None, w, s, w, None, None), (0,)),
        (triton_ops.position_pool, (x, None, w, filters), (3,)),
        (triton_ops.position_pool_backward, (grad, x, None, w, s, w, s, s, maximum, s, neighbors, filters), (0, 11)),
    ]
    for operator, given, turn in calls:
        want = operator(*given)
        got = operator(*(turned(value) if i in turn else value for i, value in enumerate(given)))
        got, want = ((found if isinstance(found, tuple) else (found,)) for found in (got, want))
        for one, other in zip(got, want, strict=True):
            assert one.stride() == other.stride()
            assert 0 in one.stride() or torch.equal(one, other)  # a carry has no data


def test_maps_of_another_kind_are_refused(make_map):
    x = make_map((1, 2, 3, 4))
    with pytest.raises(UserError, match="float32, bfloat16 or float16"):
        triton_ops.channel_pool(x.double(), None, True)
    with pytest.raises(UserError, match="contiguous or channels_last, got strides"):
        triton_ops.channel_pool(x.transpose(2, 3), None, True)
    with pytest.raises(UserError, match=r"shape and type of x, \(1, 2, 3, 4\)"):
        triton_ops.scale_backward(x.half(), x, None, None, None, None, None, x)
    with pytest.raises(UserError, match="expected 2 values of float32"):
        triton_ops.scale(x, None, torch.ones(1, 3), None, None, False, None, None, *carry(x))


@pytest.mark.long
@CPU_ONLY
@pytest.mark.slow
def test_a_cpu_without_the_interpreter_is_refused():
    script = "import torch, csham.ops.triton; torch.ops.csham_triton.channel_pool(torch.zeros(1, 1, 1, 1), None, True)"
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "the Triton kernels need tensors on a GPU, got 'cpu'" in done.stderr

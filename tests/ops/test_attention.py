"""The kernels against the reference in float64: outputs, every gradient, running statistics; where they are used."""

import copy
import gc
import os
import subprocess
import sys
import weakref

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from kernel_cases import SHAPES, STEPS, Case, differences, run
from torch import nn
from torch.autograd import forward_ad, functional
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import csham
from csham import ops
from csham.errors import UserError
from csham.layers.norm import BatchNorm2d

# float32: sums of thousands of terms in another order, which may cancel. bfloat16: the output is rounded once, and so
# is the gradient of x.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 6e-3}


def prune_half(conv):
    prune.l1_unstructured(conv, "weight", 0.5)


def parametrized(conv):
    nn.utils.parametrizations.spectral_norm(conv)


def check(case, kernels="cpu"):
    exact = run(case, "reference", torch.float64)
    found = differences(run(case, kernels), exact)
    wrong = {name: worst for name, worst in found.items() if not worst <= TOLERANCE[case.dtype]}
    if wrong and case.dtype == torch.float32:  # sums that cancel, which float32 cannot do better
        usual = differences(run(case, "reference"), exact)
        wrong = {name: (worst, usual[name]) for name, worst in wrong.items() if worst > 4 * usual[name]}
    assert not wrong, f"{case}: {wrong}"


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_kernels_equal_the_reference(cpu_kernels, step, shape, channels_last):
    check(Case(step, shape, channels_last=channels_last))
    check(Case(step, shape, channels_last=channels_last, training=False, relu=False, shortcut=True))


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
# The reversed connection is two steps, whose map between them is rounded to bfloat16 and then has other maxima.
@pytest.mark.parametrize("step", [step for step in STEPS if step != "reversed"])
def test_bfloat16_kernels_equal_the_reference(cpu_kernels, step, shape, channels_last):
    check(Case(step, shape, torch.bfloat16, channels_last=channels_last))
    check(Case(step, shape, torch.bfloat16, channels_last=channels_last, shortcut=True, ties=True))


@settings(max_examples=30)
@given(
    step=st.sampled_from(STEPS),
    shape=st.tuples(*(st.integers(1, n) for n in (4, 70, 20, 20))),
    flags=st.tuples(*(st.booleans() for _ in range(5))),
    kernel_size=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 1000),
)
def test_random_shapes_and_settings(cpu_kernels, step, shape, flags, kernel_size, seed):
    channels_last, training, relu, shortcut, ties = flags
    case = Case(step, shape, torch.float32, channels_last, training, relu, shortcut, ties, kernel_size, seed)
    got, expected = run(case, "cpu"), run(case, "reference", torch.float64)
    # A norm over a handful of values divides by almost nothing, and a ReLU may fall on either side: the map decides.
    assert differences(got, expected)["y"] < 1e-3 or shape[0] * shape[2] * shape[3] < 16


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
def test_every_value_equal(cpu_kernels, channels_last):
    """All channels and all positions share every maximum."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.full((2, 9, 6, 5), -1.5).to(memory_format=layout)
    results = []
    for kernels in ("cpu", "reference"):
        leaf = x.clone().requires_grad_()
        torch.manual_seed(0)
        layer = csham.CSHAM(9).eval()
        with ops.use_kernels(kernels):
            layer(leaf).mul(torch.arange(30).view(6, 5)).sum().backward()
        results.append(leaf.grad)
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mean", [1000.0, -1e4])
def test_large_means_do_not_cancel(cpu_kernels, mean):
    x = torch.randn(4, 12, 10, 10) + mean
    torch.manual_seed(0)
    layer = csham.CSHAM(12, act=None)
    with ops.use_kernels("cpu"):
        got = copy.deepcopy(layer)(x)
    with ops.use_kernels("reference"):
        expected = copy.deepcopy(layer).double()(x.double())
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3 * abs(mean))


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
def test_means_of_large_maps_keep_their_digits(cpu_kernels, channels_last):
    """Of one value nearly everywhere, whose sum is rounded to the same side again and again."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.full((1, 32, 768, 768), 0.3).to(memory_format=layout)
    x[:, ::2, 5, 5] = x[:, 1::2, -1, -1] = 7  # in the first part of the sum, and in the last
    exact = (x[0, 0, 0, 0].double() * (768**2 - 1) + 7) / 768**2
    with ops.use_kernels("cpu"):
        pooled = ops.pool_channels(x, maximum=True)
    torch.testing.assert_close(pooled.mean.double(), exact.expand(1, 32), rtol=1e-5, atol=0)
    assert (pooled.max == 7).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
def test_what_is_not_a_number_shows(cpu_kernels, bad, channels_last):
    x = torch.randn(2, 6, 8, 8)
    x[1, 3, 4, 5] = bad
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    layer = csham.CSHAM(6).eval()
    with ops.use_kernels("cpu"):
        y = layer(x)
    assert not y[1, 3, 4, 5].isfinite()
    assert y[0].isfinite().all()


@pytest.mark.parametrize("step", [step for step in STEPS if step != "reversed"])
def test_the_result_is_the_same_again_and_on_any_number_of_threads(cpu_kernels, step):
    case = Case(step, (5, 20, 24, 24), shortcut=True)
    threads = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            results.append(run(case, "cpu"))
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        for name, value in results[0].items():
            assert torch.equal(value, other[name]), name


def test_scratch_that_nobody_wrote_does_not_show(cpu_kernels):
    torch.use_deterministic_algorithms(True)  # fills new tensors with NaN
    try:
        for step in STEPS:
            check(Case(step, (2, 20, 9, 11), shortcut=True, seed=1))  # seed 0: a sum that cancels to a thousandth
    finally:
        torch.use_deterministic_algorithms(False)


def test_views_and_odd_strides(cpu_kernels):
    torch.manual_seed(0)
    layer = csham.CSHAM(8).eval()
    whole = torch.randn(4, 16, 10, 12)
    views = [whole[:, ::2], whole[:, :8, :, ::2], whole.transpose(2, 3)[:, 8:], whole[1:3, :8, 1:9, 2:9]]
    for view in views:
        with ops.use_kernels("cpu"):
            got = layer(view)
        with ops.use_kernels("reference"):
            torch.testing.assert_close(got, layer(view), rtol=1e-5, atol=1e-5)


def test_an_empty_batch_is_left_empty(cpu_kernels):
    x = torch.randn(0, 8, 6, 6, requires_grad=True)
    with ops.use_kernels("cpu"):
        assert csham.CSHAM(8).eval()(x).shape == x.shape


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
def test_the_memory_format_is_kept(cpu_kernels, channels_last):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 8, 6, 6).to(memory_format=layout).requires_grad_()
    with ops.use_kernels("cpu"):
        y = csham.CSHAM(8)(x)
        y.sum().backward()
    assert y.is_contiguous(memory_format=layout)
    assert x.grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("name", ["csham", "csham_channel", "csham_spatial", "cbam", "se"])
def test_the_memory_format_of_a_part_of_a_map_is_kept(cpu_kernels, name):
    """As a pointwise operation keeps it: channels innermost where they were."""
    x = torch.randn(2, 8, 12, 12).to(memory_format=torch.channels_last)
    for part in (x[:, :, ::2, ::2], x[:, 2:6], x[1:, :, 1:9, 2:9], x.contiguous()[:, ::2]):
        with ops.use_kernels("cpu"):
            y = csham.create_attention(name, part.shape[1])(part)
        assert y.stride() == (part * 1).stride()


def kept_bytes(step, kernels):
    """Bytes that autograd keeps for the backward pass, beside the leaves."""
    x = torch.randn(8, 64, 32, 32, requires_grad=True)
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), ops.use_kernels(kernels):
        csham.CSHAM(64)(x.mul(1))
    return sum(kept.values()), x.nbytes


def test_the_backward_pass_keeps_less_than_half_of_what_the_reference_keeps(cpu_kernels):
    kernels, map_bytes = kept_bytes("sequential", "cpu")
    reference, _ = kept_bytes("sequential", "reference")
    assert kernels < reference / 2
    assert kernels < 1.2 * map_bytes  # x, and what is small beside it


def test_autocast_keeps_the_type_of_the_map(cpu_kernels):
    torch.manual_seed(0)
    layer = csham.CSHAM(8)
    x = torch.randn(2, 8, 12, 12).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16), ops.use_kernels("cpu"):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert all(p.grad.dtype == torch.float32 for p in layer.parameters())


def test_layers_in_bfloat16(cpu_kernels):
    torch.manual_seed(0)
    layer = csham.CSHAM(8).bfloat16()
    x = torch.randn(2, 8, 12, 12).bfloat16()
    with ops.use_kernels("cpu"):
        got = layer(x)
        got.float().sum().backward()
    assert all(p.grad.dtype == torch.bfloat16 for p in layer.parameters())
    with ops.use_kernels("reference"):
        torch.testing.assert_close(got, layer(x), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(cpu_kernels, reentrant):
    torch.manual_seed(0)
    layer = csham.CSHAM(8)
    x = torch.randn(2, 8, 12, 12, requires_grad=True)
    grads = []
    with ops.use_kernels("cpu"):
        for run_layer in (layer, lambda x: checkpoint(layer, x, use_reentrant=reentrant)):
            layer.zero_grad()
            x.grad = None
            run_layer(x).square().sum().backward()
            grads.append([x.grad.clone(), *(p.grad.clone() for p in layer.parameters())])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("loss", [torch.sum, torch.linalg.norm], ids=["sum", "norm"])
@pytest.mark.parametrize("name", ["csham", "cbam", "se"])
def test_gradients_of_gradients_are_refused_and_the_error_says_what_to_do(cpu_kernels, name, loss):
    layer = csham.create_attention(name, 8)
    x = torch.randn(2, 8, 6, 6, requires_grad=True)
    with ops.use_kernels("cpu"):
        grads = torch.autograd.grad(loss(layer(x)), [x, *layer.parameters()], create_graph=True)
    penalty = x.square().sum() + grads[0].square().sum()  # which has a gradient without the second term, a wrong one
    with pytest.raises(UserError, match=r"CSHAM_KERNELS=reference in the environment, or csham.ops.use_kernels"):
        penalty.backward()


def penalty_of(net, x):
    (grad,) = torch.autograd.grad(net(x).square().sum(), x, create_graph=True)
    return x.square().sum() + grad.square().sum()


# With respect to one tensor alone, which may lie before the attention, in it or behind it.
SECOND = {
    "grad of x": lambda net, x: torch.autograd.grad(penalty_of(net, x), x),
    "grad before": lambda net, x: torch.autograd.grad(penalty_of(net, x), net[0].weight),
    "grad within": lambda net, x: torch.autograd.grad(penalty_of(net, x), next(net[1].parameters())),
    "grad behind": lambda net, x: torch.autograd.grad(penalty_of(net, x), net[2].weight),
    "backward": lambda net, x: penalty_of(net, x).backward(inputs=[x]),
    "hessian": lambda net, x: functional.hessian(lambda x: net(x).square().sum(), x),
    "vectorized hessian": lambda net, x: functional.hessian(lambda x: net(x).square().sum(), x, vectorize=True),
    "hvp": lambda net, x: functional.hvp(lambda x: net(x).square().sum(), x, torch.ones_like(x)),
    "vhp": lambda net, x: functional.vhp(lambda x: net(x).square().sum(), x, torch.ones_like(x)),
    "jvp": lambda net, x: functional.jvp(net, x, torch.ones_like(x)),
}


@pytest.mark.parametrize("name", ["csham", "csham_spatial", "cbam", "se"])
@pytest.mark.parametrize("way", SECOND)
def test_no_way_leads_past_the_refusal(cpu_kernels, way, name):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), csham.create_attention(name, 8), nn.Conv2d(8, 2, 1)).eval()
    with ops.use_kernels("cpu"), pytest.raises(UserError, match="cannot be differentiated again"):
        SECOND[way](net, torch.randn(1, 3, 4, 4, requires_grad=True))


@pytest.mark.parametrize("name", ["csham", "cbam", "se"])
def test_a_graph_of_the_gradients_changes_nothing_as_long_as_nobody_follows_it(cpu_kernels, name):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), csham.create_attention(name, 8)).eval()
    x = torch.randn(2, 3, 6, 6, requires_grad=True)
    gc.disable()
    try:
        with ops.use_kernels("cpu"):
            inside = net(x)
            loss = inside.square().sum()
            grads = [torch.autograd.grad(loss, [x, *net.parameters()], create_graph=again) for again in (True, False)]
        assert all(map(torch.equal, *grads))
        # Beside what leads to the gradients, there is still a gradient.
        assert torch.equal(torch.autograd.grad(x.square().sum() + grads[1][0].sum(), x)[0], 2 * x)
        kept = [weakref.ref(value) for value in (inside, *grads[0])]
        del inside, loss, grads
        assert not [one for one in kept if one() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["csham", "cbam", "se"])
def test_a_batch_of_gradients_is_each_of_them(cpu_kernels, name, channels_last):
    layer = csham.create_attention(name, 4).eval()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(2, 4, 3, 3).to(memory_format=layout).requires_grad_()
    with ops.use_kernels("cpu"):
        y = layer(x)
        upstream = torch.randn(3, *y.shape)
        each = torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in upstream])
        mapped = torch.vmap(lambda one: torch.autograd.grad(y, x, one, retain_graph=True)[0])(upstream)
        batched = torch.autograd.grad(y, x, upstream, is_grads_batched=True)[0]
    torch.testing.assert_close(mapped, each, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(batched, each, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("grad", [False, True], ids=["no_grad", "grad"])
@pytest.mark.parametrize("tangents_of", ["x", "parameters"])
@pytest.mark.parametrize("name", ["csham", "csham_channel", "csham_spatial", "cbam", "se"])
def test_tangents_are_kept(cpu_kernels, name, tangents_of, grad):
    """In evaluation mode, whose running statistics the differences below do not move."""
    torch.manual_seed(0)
    layer = csham.create_attention(name, 8, dtype=torch.float64).eval()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    values = {key: parameter.detach() for key, parameter in layer.named_parameters()} | {"x": x}
    moved = {key for key in values if (key == "x") == (tangents_of == "x")}
    directions = {key: torch.randn_like(values[key]) for key in moved}

    def apply(given):
        parameters = {key: value for key, value in given.items() if key != "x"}
        return torch.func.functional_call(layer, parameters, (given["x"],))

    def at(step):
        return apply({key: value + step * directions.get(key, 0) for key, value in values.items()})

    with ops.use_kernels("reference"):
        expected = (at(1e-6) - at(-1e-6)) / 2e-6
    to = {key: value.float() for key, value in values.items()}
    layer.float()
    with ops.use_kernels("cpu"), torch.set_grad_enabled(grad), forward_ad.dual_level():
        dual = {k: forward_ad.make_dual(v, directions[k].float()) if k in moved else v for k, v in to.items()}
        tangent = forward_ad.unpack_dual(apply(dual)).tangent
    torch.testing.assert_close(tangent.double(), expected.detach(), rtol=1e-3, atol=1e-3)
    with ops.use_kernels("cpu"):
        assert ops.has_kernels(x.float())  # again


def test_a_second_derivative_by_the_reference():
    layer = csham.CSHAM(4).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    with ops.use_kernels("reference"):
        (grad,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        grad.square().sum().backward()
    assert x.grad.abs().sum() > 0


def test_torch_func_sees_plain_operations(cpu_kernels):
    layer = csham.CSHAM(4).eval()
    x = torch.randn(3, 2, 4, 8, 8)
    with ops.use_kernels("cpu"):
        together = torch.func.vmap(layer)(x)
        one = layer(x[1])
    torch.testing.assert_close(together[1], one, rtol=1e-5, atol=1e-5)


def test_weights_alone_have_gradients(cpu_kernels):
    """Lent weights may be used where the lender's own map is not."""
    torch.manual_seed(0)
    layer = csham.ChannelAttention(5)
    x = torch.randn(2, 5, 6, 6)
    grads = []
    for kernels in ("cpu", "reference"):
        leaf = x.clone().requires_grad_()
        with ops.use_kernels(kernels):
            _, w = layer.attend_and_lend(leaf)
        w.square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-7)


def test_other_types_run_by_the_reference_unless_kernels_are_forced(cpu_kernels, monkeypatch):
    layer = csham.CSHAM(4).double()
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    monkeypatch.delenv("CSHAM_KERNELS", raising=False)
    assert layer(x).dtype == torch.float64
    with ops.use_kernels("cpu"), pytest.raises(UserError, match="float32 and bfloat16, got float64"):
        layer(x)


def test_norms_that_a_kernel_does_not_know_run_as_they_are(cpu_kernels):
    torch.manual_seed(0)
    layer = csham.SpatialAttention(4, dropout=0.5).eval()
    layer.main_bn = nn.GroupNorm(1, 1)
    x = torch.randn(2, 4, 8, 8)
    with ops.use_kernels("cpu"):
        got = layer(x)
    with ops.use_kernels("reference"):
        torch.testing.assert_close(got, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["channel", "spatial"])
def test_hooks_on_the_parts_of_a_layer_are_called(cpu_kernels, kind):
    layer = csham.CSHAM(4)
    seen = []
    getattr(layer, kind).register_forward_hook(lambda *args: seen.append(args[-1].shape))
    with ops.use_kernels("cpu"):
        layer(torch.randn(2, 4, 8, 8))
    assert seen == [(2, 4, 8, 8)]


INSIDE = ["channel.avg", "channel.max", "channel.join", "channel.act", "spatial.main", "spatial.main_bn"]
HOOKS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("inside", [*INSIDE, "spatial.neighbor", "spatial.neighbor_bn", "spatial.act"])
def test_hooks_on_what_is_inside_are_called(cpu_kernels, inside, hook):
    layer = csham.CSHAM(4)
    seen = []
    getattr(layer.get_submodule(inside), f"register_{hook}")(lambda *args: seen.append(inside) and None)
    with ops.use_kernels("cpu"):
        layer(torch.randn(2, 4, 8, 8, requires_grad=True)).sum().backward()
    assert len(seen) == (3 if inside == "channel.act" else 1)


class Capped(nn.ReLU):
    def forward(self, x):
        return x.clamp(0, 0.1)


class Halved(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) / 2


class Doubled(BatchNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("change", ["act", "filter", "forward", "norm"])
def test_a_replaced_part_does_what_it_says(cpu_kernels, change):
    torch.manual_seed(0)
    layer = csham.CSHAM(4).eval()
    x = torch.randn(2, 4, 8, 8)
    plain = layer(x)
    if change == "act":
        layer.channel.act = layer.spatial.act = Capped()
    elif change == "filter":
        halved = Halved(2, 1, 7, padding=3, bias=False)
        halved.load_state_dict(layer.spatial.main.state_dict())
        layer.spatial.main = halved
    elif change == "norm":
        layer.spatial.main_bn = Doubled(1).eval()
    else:
        layer.spatial.main_bn.forward = torch.zeros_like
    with ops.use_kernels("cpu"):
        got = layer(x)
    assert not torch.allclose(got, plain)
    with ops.use_kernels("reference"):
        torch.testing.assert_close(got, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("change", [prune_half, nn.utils.weight_norm, nn.utils.spectral_norm, parametrized])
@pytest.mark.parametrize("kernels", ["cpu", "reference"])
def test_filters_that_are_made_anew_at_each_call_train(cpu_kernels, kernels, change):
    torch.manual_seed(0)
    layer = csham.CSHAM(4)
    convs = [part for part in layer.modules() if isinstance(part, nn.Conv1d | nn.Conv2d)]
    for conv in convs:
        change(conv)
    x = torch.randn(2, 4, 8, 8)
    before = [conv.weight.detach().clone() for conv in convs]
    optimizer = torch.optim.SGD(layer.parameters(), 0.5)
    with ops.use_kernels(kernels):
        for _ in range(2):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
            assert all(parameter.grad is not None for parameter in layer.parameters())
            optimizer.step()
        layer(x)
    assert len(convs) == 5
    assert not any(torch.equal(conv.weight, old) for conv, old in zip(convs, before, strict=True))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_less_capable_processors_compute_the_same(cpu_kernels, capability):
    if torch.backends.cpu.get_cpu_capability().lower() in (capability, "default"):
        pytest.skip("this processor can do no more, and every other test runs so")
    code = (
        "import torch; from kernel_cases import *; from csham import ops\n"
        "torch.set_num_threads(1); print(torch.backends.cpu.get_cpu_capability())\n"
        "for dtype, most in ((torch.float32, 2e-4), (torch.bfloat16, 6e-3)):\n"
        "    for step in STEPS[:-1]:\n"
        "        for last in (False, True):\n"
        "            case = Case(step, (2, 21, 11, 9), dtype, last, shortcut=True)\n"
        "            found = differences(run(case, 'cpu'), run(case, 'reference', torch.float64))\n"
        "            assert max(found.values()) < most, (case, found)\n"
    )
    env = {**os.environ, "ATEN_CPU_CAPABILITY": capability, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split()[0].lower() in (capability, "default")


def graph_of(run, x):
    """The names of everything that torch.compile puts into the graph of a call."""
    names = []

    def keep(graph, _):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    torch.compiler.reset()
    torch.compile(run, fullgraph=True, backend=keep)(x)
    return names


@pytest.mark.parametrize("strict", [False, True], ids=["not strict", "strict"])
@pytest.mark.parametrize("kernels", ["cpu", "triton"])
def test_a_compiled_graph_has_the_kernels_and_an_exported_one_plain_operations(cpu_kernels, kernels, strict):
    if kernels == "triton":
        pytest.importorskip("triton", reason="Triton is not installed")
    layer, x = csham.CSHAM(4).eval(), torch.randn(2, 4, 6, 6)
    with ops.use_kernels(kernels):
        assert [name for name in graph_of(layer, x) if name.startswith(f"csham_{kernels}.hybrid_pool")]
        exported = torch.export.export(layer, (x,), strict=strict).module()
        assert not [node for node in exported.graph.nodes if "csham" in str(node.target)]
        torch.testing.assert_close(exported(x), layer(x))

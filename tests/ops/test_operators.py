"""The same questions to every operator on the list, by every kind of kernels.

``operator_cases`` has a file for each: ``examples(x)``, arguments by name for a map, and ``plain(...)``, the results
that mean something, by name, from plain formulas. Neither knows of norms, whose input can stand for the map.
"""

import gc
import importlib
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import csham
from csham import ops
from csham.ops.operators import OPERATORS
from csham.ops.operators.operator import NAMESPACES

# Relative to the largest value: sums in another order; a map is rounded once to bfloat16.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 6e-3}
# With 16 channels and 4 n columns two positions may share a block (ops/cpu/blocks.h).
SHAPES = [(2, 9, 8, 10), (3, 33, 7, 5), (2, 5, 1, 6), (1, 1, 1, 1), (2, 16, 7, 12), (3, 16, 5, 4)]
LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}


@pytest.fixture(params=["cpu", "triton"])
def kernels(request):
    if request.param == "triton":
        pytest.importorskip("csham.ops.triton", reason="Triton is not installed")
        if torch.cuda.is_available():
            pytest.skip("with a GPU the interpreter is off")
        request.getfixturevalue("few_programs")
    else:
        request.getfixturevalue("cpu_kernels")
    return request.param


@pytest.fixture
def few_programs(monkeypatch):
    """Keep the interpreter quick, in which every program is a loop in Python; loops still come in chunks."""
    monkeypatch.setattr("csham.ops.triton.maps._PROGRAMS", 3)


def cases(name):
    return importlib.import_module(f"operator_cases.{name}")


def run(name, kernels, arguments):
    """Results by name; a scaling is tied to a pooling of its map, which then has the map's gradient."""
    tie = {}
    if takes_norms(name):
        arguments = {"affine": None} | arguments
    if "carry_z" in OPERATORS[name].arguments._fields:
        pooled = OPERATORS["channel_pool"](kernels, arguments["x"], arguments["affine"], False)
        tie = {field: value for field, value in pooled._asdict().items() if field.startswith("carry")}
    given = OPERATORS[name].arguments(**arguments, **tie)
    return OPERATORS[name](kernels, *given)._asdict()


def takes_norms(name):
    return "affine" in OPERATORS[name].arguments._fields


def fresh(value):
    return value.detach().clone(memory_format=torch.preserve_format) if isinstance(value, torch.Tensor) else value


def leaves_of(arguments, dtype=None):
    """The arguments anew, floating tensors as leaves; those that a norm keeps have no gradient."""
    found = {name: fresh(value) for name, value in arguments.items()}
    for name, value in found.items():
        if isinstance(value, torch.Tensor):
            found[name] = leaf = value.to(dtype or value.dtype)
            leaf.requires_grad_(
                not name.endswith(("norm_mean", "norm_var")) and not name.startswith(("position_", "affine"))
            )
    return found


def results_and_gradients(found, arguments):
    generator = torch.Generator().manual_seed(1)
    upstream = [torch.randn(result.shape, generator=generator, dtype=torch.float64) for result in found.values()]
    leaves = {name: value for name, value in arguments.items() if getattr(value, "requires_grad", False)}
    grads = torch.autograd.grad(
        list(found.values()),
        list(leaves.values()),
        [grad.to(result.dtype) for grad, result in zip(upstream, found.values(), strict=True)],
        allow_unused=True,
    )
    return {k: v.detach() for k, v in found.items()} | {
        f"grad_{name}": torch.zeros_like(leaf) if grad is None else grad
        for (name, leaf), grad in zip(leaves.items(), grads, strict=True)
    }


def check(name, kernels, x):
    for arguments in cases(name).examples(x):
        exact = leaves_of(arguments, torch.float64)
        want = cases(name).plain(*exact.values())
        given = leaves_of(arguments)
        found = run(name, kernels, given)
        got = results_and_gradients({result: found[result] for result in want}, given)
        for key, expected in results_and_gradients(want, exact).items():
            assert got[key].shape == expected.shape, key
            if key in ("grad_x", "y"):
                assert got[key].stride() == x.stride(), key
            wrong = (got[key].double() - expected).abs().max() / (expected.abs().max() + 1e-3)
            assert wrong <= TOLERANCE[x.dtype], f"{name}, {key} of {tuple(x.shape)}: off by {float(wrong):.2e}"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OPERATORS)
def test_results_and_gradients_are_those_of_plain_formulas(kernels, name, layout):
    for dtype in TOLERANCE if kernels == "cpu" else [torch.float32]:
        for shape in SHAPES if kernels == "cpu" else [(2, 5, 4, 6)]:
            check(name, kernels, torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout]))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_gradient_passes_the_relu_where_it_returned_no_number(kernels, layout):
    for dtype in TOLERANCE if kernels == "cpu" else [torch.float32]:
        for shape in [(2, 9, 7, 5), (2, 16, 4, 12)] if kernels == "cpu" else [(2, 5, 4, 6)]:
            x = torch.randn(shape).to(dtype).contiguous(memory_format=LAYOUTS[layout])
            x[1, 3, 2, 1] = x[0, 4, 3, 4] = float("nan")
            arguments = cases("scale").examples(x)[-1]
            given, plain = leaves_of(arguments), leaves_of(arguments, torch.float64)
            got = results_and_gradients(run("scale", kernels, given), given)
            want = results_and_gradients(cases("scale").plain(*plain.values()), plain)
            for key in ("y", "grad_shortcut"):
                torch.testing.assert_close(got[key].double(), want[key], rtol=0.01, atol=0.01, equal_nan=True)
            assert (got["grad_shortcut"][x.isnan()] != 0).all()


def norm_of(x):
    """A norm's input and its affine, and its output: in few bits, so that every way of rounding finds the same."""
    u = (4 * torch.randn(x.shape)).round() / 4
    affine = (8 * torch.randn(2, x.shape[1])).round() / 8
    scale, shift = affine[:, :, None, None]
    layout = torch.contiguous_format if x.is_contiguous() else torch.channels_last
    return *(value.to(x.dtype).contiguous(memory_format=layout) for value in (u, scale * u + shift)), affine


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name in OPERATORS if takes_norms(name)])
def test_a_norms_input_with_its_affine_is_its_output(kernels, name, layout):
    for dtype in TOLERANCE if kernels == "cpu" else [torch.bfloat16]:
        for shape in SHAPES if kernels == "cpu" else [(1, 3, 5, 7)]:
            u, y, affine = norm_of(torch.empty(shape, dtype=dtype).contiguous(memory_format=LAYOUTS[layout]))
            for arguments in cases(name).examples(y):
                results = []
                for change in ({}, {"x": u, "affine": affine}):
                    given = leaves_of(arguments | change)
                    found = run(name, kernels, given)
                    differentiable = {k: v for k, v in found.items() if v.requires_grad and not k.startswith("carry")}
                    results.append(results_and_gradients(differentiable, given))
                assert results[0].keys() == results[1].keys()
                assert not [key for key, value in results[0].items() if not torch.equal(value, results[1][key])]


class Calls(TorchDispatchMode):
    """Notes the calls of csham's operators."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace in NAMESPACES:
            self.noted.append((function, args, kwargs or {}))
        return function(*args, **(kwargs or {}))


def calls_of(name, kernels, examples):
    """Every call of an operator and of its backward pass in the examples."""
    with Calls() as calls:
        for arguments in examples:
            given = leaves_of(arguments)
            found = run(name, kernels, given)
            results = [value for key, value in found.items() if value.requires_grad and not key.startswith("carry")]
            torch.autograd.backward(results, [torch.randn_like(value) for value in results])
    kept = [call for call in calls.noted if call[0].name().partition("::")[2] in (name, f"{name}_backward")]
    assert {function.name().partition("::")[2] for function, *_ in kept} == {name, f"{name}_backward"}
    return kept


def apart(value, x):
    """A small array with something between its values; maps as they are."""
    if not isinstance(value, torch.Tensor) or value.shape == x.shape or 0 in value.stride():
        return value
    return torch.stack([value, torch.full_like(value, torch.nan)], -1)[..., 0]


@pytest.mark.parametrize("name", OPERATORS)
def test_small_arrays_may_lie_in_any_way(kernels, name):
    x = torch.randn(2, 5, 4, 6)
    examples = cases(name).examples(x)
    examples = examples if kernels == "cpu" else examples[-1:]
    if takes_norms(name):
        examples.append(examples[-1] | {"affine": torch.randn(2, 5)})
    for function, given, _ in calls_of(name, kernels, examples):
        want, got = (function(*args) for args in (given, [apart(one, x) for one in given]))
        pairs = [(want, got)] if isinstance(want, torch.Tensor) else zip(want, got, strict=True)
        for one, other in pairs:
            assert one.stride() == other.stride()
            assert 0 in one.stride() or torch.equal(one, other)  # a carry has no data


def _is_filter(value):
    return isinstance(value, torch.Tensor) and value.dim() == 4 and value.shape[0] == 1 and value.shape[1] > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", OPERATORS)
def test_schemas_fakes_and_registration(kernels, name):
    x = torch.randn(1, 3, 5, 6).contiguous(memory_format=torch.channels_last)
    examples, only = cases(name).examples(x), {}
    if takes_norms(name):
        examples.append(examples[-1] | {"affine": torch.randn(2, 3)})
    if kernels == "triton":  # slowly interpreted
        examples, only = examples[-1:], {"test_utils": ("test_schema", "test_faketensor")}
    for function, args, kwargs in calls_of(name, kernels, examples):
        given = tuple(fresh(value) for value in args)
        named = {key: fresh(value) for key, value in kwargs.items()}
        torch.library.opcheck(function, given, named, **only)
        if kernels == "cpu" and function.name().endswith("backward"):  # filters of a network in channels_last
            filters = [a.contiguous(memory_format=torch.channels_last) if _is_filter(a) else a for a in given]
            torch.library.opcheck(function, tuple(filters), named, test_utils="test_faketensor")
        if kernels == "cpu" and not function.name().endswith("backward"):
            torch.library.opcheck(function, (given[0].requires_grad_(), *given[1:]), named)


@pytest.mark.parametrize("name", OPERATORS)
def test_an_empty_batch(kernels, name):
    """Of the right shapes, as the fakes have them; and its parameters' gradients are zeros."""
    x = torch.randn(0, 3, 6, 6)
    for arguments in cases(name).examples(x):
        arguments |= {key: False for key in ("training", "neighbor_training") if key in arguments}
        given = leaves_of(arguments)
        want = cases(name).plain(*(v.double() if isinstance(v, torch.Tensor) else v for v in arguments.values()))
        found = run(name, kernels, given)
        assert {key: found[key].shape for key in want} == {key: value.shape for key, value in want.items()}
        got = results_and_gradients({key: found[key] for key in want}, given)
        assert not any(got[f"grad_{key}"].any() for key in given if f"grad_{key}" in got)


@pytest.mark.parametrize("name", OPERATORS)
def test_arrays_go_with_the_backward_pass_without_a_garbage_collector(cpu_kernels, name):
    gc.disable()
    try:
        given = leaves_of(cases(name).examples(torch.randn(2, 3, 4, 4))[0])
        found = {key: run(name, "cpu", given)[key] for key in cases(name).plain(*given.values())}
        kept = [weakref.ref(value) for value in (*given.values(), *found.values()) if isinstance(value, torch.Tensor)]
        results_and_gradients(found, given)
        del given, found
        assert not [one for one in kept if one() is not None]
    finally:
        gc.enable()


@pytest.mark.parametrize("wrong", ["shape", "dtype"])
def test_operators_refuse_what_does_not_fit(cpu_kernels, wrong):
    x = torch.randn(2, 9, 8, 10)
    w = torch.randn(2, 8) if wrong == "shape" else torch.randn(2, 9).double()
    with pytest.raises(RuntimeError, match="expected 18 float32 values"):
        torch.ops.csham_cpu.position_pool(x, None, w, None)


class Block(nn.Module):
    """A residual block's end, then weights that are lent."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(6, 6, 3, padding=1), csham.CSHAM(6)
        self.lender, self.borrower = csham.ChannelAttention(6), csham.SpatialAttention(6)

    def forward(self, x):
        y = self.attention.attend(self.conv(x), shortcut=x)
        y, w = self.lender.attend_and_lend(y)
        return self.borrower.attend(y, channel_weights=w)


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_compiled_is_eager(cpu_kernels, backend, layout):
    layout = LAYOUTS[layout]
    torch.manual_seed(0)
    results = []
    block = Block().to(memory_format=layout)
    x = torch.randn(2, 6, 12, 10).to(memory_format=layout)
    state = {name: value.clone() for name, value in block.state_dict().items()}
    with ops.use_kernels("cpu"):
        for run_block in (block, torch.compile(block, backend=backend, fullgraph=True)):
            block.load_state_dict(state)
            block.zero_grad()
            leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
            y = run_block(leaf)
            y.square().sum().backward()
            grads = {name: p.grad for name, p in block.named_parameters()}
            buffers = {name: b.clone() for name, b in block.named_buffers()}
            results.append({"y": y.detach(), "x": leaf.grad, **grads, **buffers})
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)

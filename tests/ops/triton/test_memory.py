"""Where the Triton kernels read and write, with as many programs as a GPU would get; every test of theirs looks on."""

import contextlib

import hypothesis.strategies as st
import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings

import csham
from csham import ops
from csham.ops.triton import maps

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU the interpreter is off")


@triton.jit
def _beside_arrays(x, y):
    at = 3 * tl.program_id(0) + tl.arange(0, 4)
    tl.store(y + at, tl.load(x + at), at < 8)


@triton.jit
def _twice(x, y):
    at = 3 * tl.program_id(0) + tl.arange(0, 4)
    tl.store(y + at, tl.load(x + at, at < 8), at < 8)


@triton.jit
def _of_another(x, y):
    at = 4 * tl.program_id(0) + tl.arange(0, 4)
    tl.store(x + at, tl.load(x + 7 - at))


@triton.jit
def _own_again(x, y):
    at = 4 * tl.program_id(0) + tl.arange(0, 4)
    tl.store(x + at, tl.load(y + at))
    tl.store(y + at, tl.load(x + at))


@triton.jit
def _in_place(x, y):
    at = 4 * tl.program_id(0) + tl.arange(0, 4)
    tl.store(x + at, tl.load(x + at) + tl.load(y + at))


@pytest.mark.parametrize(
    ("kernel", "fault"),
    [
        (_beside_arrays, "_beside_arrays.* reads outside its arrays"),
        (_twice, "_twice writes an address twice"),
        (_of_another, "_of_another reads what another program writes"),
        (_own_again, "_own_again.* reads again what it wrote"),
    ],
)
def test_what_a_gpu_would_do_wrong_is_found(kernel, fault):
    with pytest.raises(Exception, match=fault):
        kernel[(3 if kernel is _beside_arrays else 2,)](torch.zeros(8), torch.zeros(8))


def test_an_array_may_be_changed_in_place():
    x = torch.zeros(8)
    _in_place[(2,)](x, torch.ones(8))
    assert torch.equal(x, torch.ones(8))


@contextlib.contextmanager
def many_programs():
    """As many programs as a GPU would get, and NaN in all memory that nobody has written to."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maps, "_PROGRAMS", 1024)
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


@pytest.mark.slow
@given(
    name=st.sampled_from(["csham", "csham", "csham", "cbam", "se", "eca"]),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 70), st.integers(1, 17), st.sampled_from([1, 5, 9, 13, 6, 7, 8])),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    channels_last=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_programs_keep_to_their_arrays_and_to_themselves(make_map, name, shape, dtype, channels_last, training, seed):
    torch.manual_seed(seed)
    layer = csham.create_attention(name, shape[1]).train(training)
    x = make_map(shape, dtype, channels_last, tied=seed % 2 == 0).requires_grad_()
    with many_programs(), ops.use_kernels("triton"), torch.autocast("cpu", torch.bfloat16, enabled=name != "csham"):
        y = layer(x)
        y.backward(torch.ones_like(y))
    assert y.isfinite().all()
    assert all(one.grad is None or one.grad.isfinite().all() for one in (x, *layer.parameters()))

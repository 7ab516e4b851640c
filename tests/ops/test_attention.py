"""The kernels against the reference in float64: outputs, every gradient, running statistics."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from kernel_cases import SHAPES, STEPS, Case, differences, run

from csham import ops
from csham.errors import UserError

# float32: sums of thousands of terms in another order. bfloat16: the output is rounded once, and so is the gradient of x.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 6e-3}


def check(case, kernels="cpu"):
    found = differences(run(case, kernels), run(case, "reference", torch.float64))
    wrong = {name: worst for name, worst in found.items() if not worst <= TOLERANCE[case.dtype]}
    assert not wrong, f"{case}: {wrong}"


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_kernels_equal_the_reference(cpu_kernels, step, shape, channels_last):
    check(Case(step, shape, channels_last=channels_last))
    check(Case(step, shape, channels_last=channels_last, training=False, relu=False, shortcut=True))


@pytest.mark.parametrize("channels_last", [False, True], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("step", STEPS)
def test_bfloat16_kernels_equal_the_reference(cpu_kernels, step, shape, channels_last):
    check(Case(step, shape, torch.bfloat16, channels_last=channels_last, shortcut=True))


@given(
    step=st.sampled_from(STEPS),
    shape=st.tuples(*(st.integers(1, n) for n in (4, 40, 20, 20))),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    flags=st.tuples(*(st.booleans() for _ in range(5))),
    kernel_size=st.sampled_from([1, 3, 5]),
    seed=st.integers(0, 1000),
)
def test_random_shapes_and_settings(cpu_kernels, step, shape, dtype, flags, kernel_size, seed):
    check(Case(step, shape, dtype, *flags, kernel_size=kernel_size, seed=seed))

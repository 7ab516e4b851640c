"""Running statistics of norms of one channel, moved towards a batch's: one launch, where PyTorch takes nine a norm.

Not among the operators of :mod:`csham.ops.operators`: it has no gradient, and changes what it is given.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from csham.ops.triton.maps import OPTIONS

__all__ = ["follow"]

torch.library.define(
    "csham_triton::follow",
    "(Tensor(a!)[] running, Tensor[] batch, float[] unbiased, float[] momentum, bool[] from_first) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.register_fake("csham_triton::follow", lambda *_: None)


def follow(
    running: list[Tensor], batch: list[Tensor], unbiased: list[float], momentum: list[float], from_first: list[bool]
) -> None:
    """Count a batch, and move what is averaged towards its mean and ``unbiased`` times its variance.

    Args:
        running: Running mean, running variance and number of batches, of one norm or of two; changed in place.
        batch: Mean and biased variance of each norm's batch.
        unbiased: n / (n - 1) for n values, of each norm.
        momentum: Weight of a batch, between 0 and 1, of each norm.
        from_first: True for norms that average as :meth:`csham.layers.norm.BatchNorm2d.averaging_rate` has it, and not
            by ``momentum`` alone.
    """
    given: list[Any] = []
    for norm in range(len(momentum)):
        given += [*running[3 * norm : 3 * norm + 3], *batch[2 * norm : 2 * norm + 2]]
        given += [unbiased[norm], momentum[norm], math.log1p(-momentum[norm])]
    from_first = [*from_first, False]
    given += [None] * (16 - len(given))
    options = OPTIONS | {"num_warps": 1}
    follow_kernel[(1,)](*given, FROM_FIRST=from_first[0], FROM_FIRST_2=from_first[1], **options)


@triton.jit
def _moved(running, batch, rate):
    """``running.lerp(batch, rate)``, which is the batch itself at rate 1."""
    away = batch - running
    return tl.where(rate < 0.5, running + rate * away, batch - away * (1 - rate))


@triton.jit
def _follow(
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,
    mean_ptr,
    var_ptr,
    unbiased,
    momentum,
    keeping,
    FROM_FIRST: tl.constexpr,
):
    batches = tl.load(batches_ptr) + 1
    tl.store(batches_ptr, batches)
    rate = momentum + 0.0 * unbiased
    if FROM_FIRST:
        # 1 - exp loses digits where the exponent is small.
        rate = (rate / (1 - tl.exp(batches.to(tl.float64) * keeping))).to(tl.float32)
    running_mean, running_var = tl.load(running_mean_ptr), tl.load(running_var_ptr)
    tl.store(running_mean_ptr, _moved(running_mean, tl.load(mean_ptr), rate))
    tl.store(running_var_ptr, _moved(running_var, tl.load(var_ptr) * unbiased, rate))


@triton.jit
def follow_kernel(
    running_mean_ptr,
    running_var_ptr,
    batches_ptr,
    mean_ptr,
    var_ptr,
    unbiased,
    momentum,
    keeping,
    running_mean_2_ptr,
    running_var_2_ptr,
    batches_2_ptr,
    mean_2_ptr,
    var_2_ptr,
    unbiased_2,
    momentum_2,
    keeping_2,
    FROM_FIRST: tl.constexpr,
    FROM_FIRST_2: tl.constexpr,
):
    _follow(running_mean_ptr, running_var_ptr, batches_ptr, mean_ptr, var_ptr, unbiased, momentum, keeping, FROM_FIRST)
    if batches_2_ptr is not None:
        _follow(
            running_mean_2_ptr, running_var_2_ptr, batches_2_ptr, mean_2_ptr, var_2_ptr, unbiased_2, momentum_2,
            keeping_2, FROM_FIRST_2,
        )  # fmt: skip

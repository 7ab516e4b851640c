"""Running statistics of a norm of one channel, moved towards a batch's: one launch, where PyTorch takes nine.

Not among the operators of :mod:`csham.ops.operators`: it has no gradient, and changes what it is given.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["follow"]

torch.library.define(
    "csham_triton::follow",
    "(Tensor(a!) running_mean, Tensor(b!) running_var, Tensor(c!) batches, Tensor mean, Tensor var, float unbiased, "
    "float momentum, bool from_first) -> ()",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.register_fake("csham_triton::follow", lambda *_: None)


def follow(
    running_mean: Tensor,
    running_var: Tensor,
    batches: Tensor,
    mean: Tensor,
    var: Tensor,
    unbiased: float,
    momentum: float,
    from_first: bool,
) -> None:
    """Count a batch, and move what is averaged towards its mean and ``unbiased`` times its variance.

    Args:
        running_mean: (1), float32, changed in place; ``running_var`` likewise.
        running_var: See there.
        batches: Number of batches before this one, int64, changed in place.
        mean: (1), of the batch.
        var: (1), of the batch, biased.
        unbiased: n / (n - 1) for n values.
        momentum: Weight of a batch, between 0 and 1.
        from_first: As :meth:`csham.layers.norm.BatchNorm2d.averaging_rate` has it, and not ``momentum`` alone.
    """
    keeping = math.log1p(-momentum)
    follow_kernel[(1,)](
        running_mean, running_var, batches, mean, var, unbiased, momentum, keeping, FROM_FIRST=from_first, num_warps=1
    )


@triton.jit
def _moved(running, batch, rate):
    """``running.lerp(batch, rate)``, which is the batch itself at rate 1."""
    away = batch - running
    return tl.where(rate < 0.5, running + rate * away, batch - away * (1 - rate))


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

"""The operators of :mod:`csham.ops.operators` as Triton kernels, for GPUs: importing this registers them.

Their results were tested with Triton's interpreter, and but for ``spatial_gate``, ``running``, ``sums`` and ``normed``
on an H200; their block sizes are estimates, which no measurement chose. Start with ``register``; each file opens with
the arithmetic of its operator. Importing needs the package ``triton``.
"""

from csham.ops.triton.register import interpreted

__all__ = ["interpreted"]

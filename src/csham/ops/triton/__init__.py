"""The operators of :mod:`csham.ops.library` as Triton kernels, for GPUs: importing this registers them.

The kernels were tested with Triton's interpreter on a CPU and compiled for a GPU, but never run or measured on one: the
block sizes are estimates. Start with ``register``; each file opens with the arithmetic of its operator. Importing needs
the package ``triton``.
"""

from csham.ops.triton.register import interpreted

__all__ = ["interpreted"]

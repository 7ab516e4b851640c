"""The operators that the kernels implement, one a file: what it takes and returns, its gradients, and who calls it.

Each exists once for each kind of kernels: ``torch.ops.csham_cpu`` (C++, ``cpu/<name>.cpp``, registered by the library
that ``ops.cpu`` loads) and ``torch.ops.csham_triton`` (``triton/<name>.py``, registered by importing ``ops.triton``).
A file here with an :class:`~csham.ops.operators.operator.Operator` is on the list; nothing else names it, and the tests
ask their questions of the whole list.

``x`` is a feature map (B, C, H, W), contiguous or channels_last; all other arrays are float32 and contiguous: channel
weights and statistics (B, C), spatial ones (B, 1, H, W), the neighbour term (B, 1, ceil(H // 2 / 2), ceil(W // 2 / 2)).
Start with ``operator``, then ``carry``, which ties a pooling to the scaling that follows, and ``normed``, which lets a
norm's input stand for ``x``.
"""

from importlib import import_module
from pkgutil import iter_modules

from csham.ops.operators.operator import OPERATORS, Operator

__all__ = ["OPERATORS", "Operator"]

for _module in iter_modules(__path__, f"{__name__}."):
    import_module(_module.name)

"""Attaching: put attention into a network that somebody else wrote.

``points`` finds where, ``strategies`` decides which step goes to which point and who lends weights to whom,
``attached`` is the module that sits at a point, ``transfer`` carries lent weights, ``install`` does it all. Imports
``layers``; works on any ``nn.Module``. Start with :func:`attach`, which calling this package does too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from csham.attach.install import AttachedPoint, attach
    from csham.attach.names import POSITIONS, STRATEGIES

__all__ = ["POSITIONS", "STRATEGIES", "AttachedPoint", "attach"]

__getattr__ = lazy_names(
    __name__,
    {
        "POSITIONS": "csham.attach.names",
        "STRATEGIES": "csham.attach.names",
        "AttachedPoint": "csham.attach.install",
        "attach": "csham.attach.install",
    },
)
make_callable(__name__)

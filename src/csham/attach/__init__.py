"""Attaching: put attention into third-party networks.

``trace`` runs the network once, ``residuals``, ``hosts`` and ``positions`` read off it where branches and blocks end,
``kinds`` says of other networks what they work on instead, ``points`` chooses among them, ``strategies`` decides which
step goes to which point and what weights are lent, ``checks`` refuses what cannot work, ``attached`` is the module
that sits at a point, ``transfer`` carries lent weights, ``keeping`` sees that attention stays where modules are
replaced, ``host_class`` that torch.fx sees it, ``subclass`` changes a module's class, ``forward_graph`` reads what a
block does, ``endings`` finds those whose end the attention can compute too, ``epilogue`` lets it, ``install`` does it
all and undoes it, ``maps`` records what the points weigh. ``acceleration`` lets the attentions that a network has of
its own run on the kernels. Imports ``layers``; works on any ``nn.Module``. Start with :func:`attach`, which calling
this package does too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from csham.attach.acceleration import AcceleratedModule, accelerate
    from csham.attach.install import AttachedPoint, attach, detach
    from csham.attach.maps import attention_maps
    from csham.attach.names import POSITIONS, STRATEGIES

__all__ = [
    "POSITIONS",
    "STRATEGIES",
    "AcceleratedModule",
    "AttachedPoint",
    "accelerate",
    "attach",
    "attention_maps",
    "detach",
]

__getattr__ = lazy_names(
    __name__,
    {
        "POSITIONS": "csham.attach.names",
        "STRATEGIES": "csham.attach.names",
        "AcceleratedModule": "csham.attach.acceleration",
        "AttachedPoint": "csham.attach.install",
        "accelerate": "csham.attach.acceleration",
        "attach": "csham.attach.install",
        "attention_maps": "csham.attach.maps",
        "detach": "csham.attach.install",
    },
)
make_callable(__name__)

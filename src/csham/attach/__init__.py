"""Attaching: put attention into third-party networks.

``graph`` finds the points, ``strategies`` decides which step goes to which and what weights are lent, ``installed`` is
what stays in the network, ``fusing`` lets it compute the ends of blocks too, ``trial`` runs it once, and ``install``
does it all and undoes it. ``maps`` records what the points weigh, and ``memory`` lets them keep less for the backward
pass; ``acceleration`` lets the attentions that a network has of its own run on the kernels; ``names`` has the positions
and strategies, without torch. Imports ``layers``; works on any ``nn.Module``.
Start with :func:`attach`, which calling this package does too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from csham.attach.acceleration import AcceleratedModule, accelerate
    from csham.attach.install import AttachedPoint, attach, detach
    from csham.attach.maps import attention_maps
    from csham.attach.memory import recompute_norms
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
    "recompute_norms",
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
        "recompute_norms": "csham.attach.memory",
    },
)
make_callable(__name__)

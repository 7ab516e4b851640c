"""Channel-spatial hybrid attention for convolutional networks.

The layers (:class:`CSHAM`, :class:`ChannelAttention`, :class:`SpatialAttention`), one call that puts them into a
network (:func:`attach`), networks by name (:func:`create_model`) and what a network costs (:func:`cost`). Rooms, from
the mathematics outwards: ``ops``, ``layers``, ``attach``, ``backbones``, ``data`` and ``cost``, ``training``,
``inference``, ``study``, then ``explain``, ``export``, ``share`` and ``report``, ``app``, ``cli``; each imports only
those named before it. ``keras`` has the layers for Keras 3, and reads the authors' weights. Start with :func:`attach`.
The names below are imported when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names
from csham._version import __version__ as __version__

if TYPE_CHECKING:
    from csham.attach import (
        AcceleratedModule,
        AttachedPoint,
        accelerate,
        attach,
        attention_maps,
        detach,
        recompute_norms,
    )
    from csham.backbones import create_model, register_backbone
    from csham.cost import Cost, cost
    from csham.explain import Explanation, explain
    from csham.export import export
    from csham.inference import Trained, load
    from csham.keras import load_keras_weights
    from csham.layers import CSHAM, ChannelAttention, SpatialAttention, create_attention, register_attention
    from csham.memory import retain_memory
    from csham.study.verdict import verdict

__all__ = [
    "CSHAM",
    "AcceleratedModule",
    "AttachedPoint",
    "ChannelAttention",
    "Cost",
    "Explanation",
    "SpatialAttention",
    "Trained",
    "accelerate",
    "attach",
    "attention_maps",
    "cost",
    "create_attention",
    "create_model",
    "detach",
    "explain",
    "export",
    "load",
    "load_keras_weights",
    "recompute_norms",
    "register_attention",
    "register_backbone",
    "retain_memory",
    "verdict",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CSHAM": "csham.layers",
        "ChannelAttention": "csham.layers",
        "SpatialAttention": "csham.layers",
        "create_attention": "csham.layers",
        "register_attention": "csham.layers",
        "AcceleratedModule": "csham.attach",
        "AttachedPoint": "csham.attach",
        "accelerate": "csham.attach",
        "attach": "csham.attach",
        "attention_maps": "csham.attach",
        "detach": "csham.attach",
        "recompute_norms": "csham.attach",
        "Cost": "csham.cost",
        "cost": "csham.cost",
        "create_model": "csham.backbones",
        "register_backbone": "csham.backbones",
        "Explanation": "csham.explain",
        "explain": "csham.explain",
        "Trained": "csham.inference",
        "export": "csham.export",
        "load": "csham.inference",
        "load_keras_weights": "csham.keras",
        "retain_memory": "csham.memory",
        "verdict": "csham.study.verdict",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

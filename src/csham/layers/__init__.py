"""Attention layers: modules that own parameters and settings and call ``ops``.

``channel``, ``spatial`` and ``hybrid`` are CSHAM's, ``from_timm`` and ``cbam`` timm's, the other attentions have a file
each; ``names`` has them all by name, without importing torch, ``own`` those that users bring, and ``create`` builds one
of either. ``attention`` says what one may offer and what is made of
it, ``recording`` shows the weights they use, ``opaque`` what tools that read their code make of them, ``accelerated``
the layers that others' networks have already. Imports only ``ops``. Start with :class:`CSHAM`; an attention of your own
begins as a :class:`Gate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names

if TYPE_CHECKING:
    from csham.layers.attention import Gate
    from csham.layers.channel import ChannelAttention
    from csham.layers.create import create_attention
    from csham.layers.hybrid import CSHAM
    from csham.layers.names import ATTENTIONS
    from csham.layers.own import register_attention
    from csham.layers.recording import record_weights
    from csham.layers.spatial import SpatialAttention

__all__ = [
    "ATTENTIONS",
    "CSHAM",
    "ChannelAttention",
    "Gate",
    "SpatialAttention",
    "create_attention",
    "record_weights",
    "register_attention",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ATTENTIONS": "csham.layers.names",
        "CSHAM": "csham.layers.hybrid",
        "ChannelAttention": "csham.layers.channel",
        "Gate": "csham.layers.attention",
        "SpatialAttention": "csham.layers.spatial",
        "create_attention": "csham.layers.create",
        "register_attention": "csham.layers.own",
        "record_weights": "csham.layers.recording",
    },
)

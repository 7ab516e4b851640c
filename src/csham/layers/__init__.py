"""Attention layers: modules that own parameters and settings and call ``ops``.

``channel``, ``spatial`` and ``hybrid`` are CSHAM's, ``from_timm`` and ``cbam`` timm's, the other attentions have a file
each; ``names`` says which there are and where, without importing torch, ``zoo`` builds any by its name, ``recording``
shows the weights they use, ``opaque`` what tools that read their code make of them. Imports only ``ops``. Start with
:class:`CSHAM`; an attention of your own begins as a :class:`Gate`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names

if TYPE_CHECKING:
    from csham.layers.channel import ChannelAttention
    from csham.layers.gate import Gate
    from csham.layers.hybrid import CSHAM
    from csham.layers.names import ATTENTIONS
    from csham.layers.recording import record_weights
    from csham.layers.spatial import SpatialAttention
    from csham.layers.zoo import create_attention

__all__ = ["ATTENTIONS", "CSHAM", "ChannelAttention", "Gate", "SpatialAttention", "create_attention", "record_weights"]

__getattr__ = lazy_names(
    __name__,
    {
        "ATTENTIONS": "csham.layers.names",
        "CSHAM": "csham.layers.hybrid",
        "ChannelAttention": "csham.layers.channel",
        "Gate": "csham.layers.gate",
        "SpatialAttention": "csham.layers.spatial",
        "create_attention": "csham.layers.zoo",
        "record_weights": "csham.layers.recording",
    },
)

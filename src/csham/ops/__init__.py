"""The mathematics of one call, as functions of tensors.

``reference`` is plain PyTorch and the definition that every faster implementation is tested against. ``layers`` calls
the functions below; nothing here knows of modules or networks. Start with :func:`channel_weights`.
"""

from csham.ops.reference import channel_weights, scale, spatial_weights

__all__ = ["channel_weights", "scale", "spatial_weights"]

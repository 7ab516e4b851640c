"""CSHAM for Keras 3, on the TensorFlow, JAX and PyTorch backends, and weights from there and back.

``layers`` has the layers, which mirror those of :mod:`csham.layers`; ``functional`` puts them into functional models;
``exchange`` copies weights between them and PyTorch's; ``reading`` takes those of the authors' layers out of HDF5
files, without Keras; ``slots`` is what both know of PyTorch's. Keras is imported when a name that needs it is used, and
``layers`` and ``functional`` do not import torch. Start with :class:`CSHAM`, or :func:`attach_keras`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names

if TYPE_CHECKING:
    from csham.keras.exchange import copy_weights
    from csham.keras.functional import attach_keras
    from csham.keras.layers import CSHAM, ChannelAttention, Gated, SpatialAttention
    from csham.keras.reading import load_keras_weights

__all__ = [
    "CSHAM",
    "ChannelAttention",
    "Gated",
    "SpatialAttention",
    "attach_keras",
    "copy_weights",
    "load_keras_weights",
]

__getattr__ = lazy_names(
    __name__,
    {
        "CSHAM": "csham.keras.layers",
        "ChannelAttention": "csham.keras.layers",
        "Gated": "csham.keras.layers",
        "SpatialAttention": "csham.keras.layers",
        "attach_keras": "csham.keras.functional",
        "copy_weights": "csham.keras.exchange",
        "load_keras_weights": "csham.keras.reading",
    },
)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

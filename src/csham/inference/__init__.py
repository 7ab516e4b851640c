"""A trained network, ready for images: what every command after training starts from.

:func:`load` gives it back from a run folder, a shared folder or a file of weights, as a :class:`Trained`: network,
classes and the :class:`ImageTransform` that makes of any image what the network was trained on. Start with
:func:`load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names

if TYPE_CHECKING:
    from csham.inference.load import load
    from csham.inference.trained import Trained
    from csham.inference.transform import ImageTransform

__all__ = ["ImageTransform", "Trained", "load"]

__getattr__ = lazy_names(
    __name__,
    {
        "ImageTransform": "csham.inference.transform",
        "Trained": "csham.inference.trained",
        "load": "csham.inference.load",
    },
)

"""A trained network, ready for images: what every command after training starts from.

:func:`load` gives it back from a run folder, a shared folder or a file of weights, as a :class:`Trained`: network,
classes and the :class:`ImageTransform` that makes of any image what the network was trained on; ``Trained.of`` takes
any module for one (``modules``). :func:`predict` asks it about any number of files. Start with :func:`load`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names

if TYPE_CHECKING:
    from csham.inference.image_files import ImageFiles
    from csham.inference.prediction import NotSure, Prediction, predict
    from csham.inference.trained import Trained, load
    from csham.inference.transform import ImageTransform, UnreadableImageError

__all__ = [
    "ImageFiles",
    "ImageTransform",
    "NotSure",
    "Prediction",
    "Trained",
    "UnreadableImageError",
    "load",
    "predict",
]

__getattr__ = lazy_names(
    __name__,
    {
        "ImageFiles": "csham.inference.image_files",
        "ImageTransform": "csham.inference.transform",
        "NotSure": "csham.inference.prediction",
        "Prediction": "csham.inference.prediction",
        "Trained": "csham.inference.trained",
        "UnreadableImageError": "csham.inference.transform",
        "load": "csham.inference.trained",
        "predict": "csham.inference.prediction",
    },
)

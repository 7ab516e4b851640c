"""A trained network as one file for deployment, its outputs checked against the network.

``exporting`` does it all: ``program`` captures the network, with its preprocessing if wanted, for images of any size
where it can; ``formats`` says what files there are, and ``files`` writes them and runs what was written; ``parity``
compares that with the network, on ``real_images``. ``quantization`` makes an 8-bit file of an ONNX one and measures
both. Start with :func:`export`, which calling this package does too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names, make_callable

if TYPE_CHECKING:
    from csham.export.exporting import Exported, export
    from csham.export.quantization import Quantized, quantize
    from csham.export.real_images import LabelledImages, folder_images, run_images

__all__ = ["Exported", "LabelledImages", "Quantized", "export", "folder_images", "quantize", "run_images"]

__getattr__ = lazy_names(
    __name__,
    {
        "Exported": "csham.export.exporting",
        "LabelledImages": "csham.export.real_images",
        "Quantized": "csham.export.quantization",
        "export": "csham.export.exporting",
        "folder_images": "csham.export.real_images",
        "quantize": "csham.export.quantization",
        "run_images": "csham.export.real_images",
    },
)
make_callable(__name__)

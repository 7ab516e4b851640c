"""A trained network as a folder for others, such as the Hugging Face Hub takes.

``folder`` writes it, ``card`` is its model card, ``citation`` what to cite, ``hub`` the module that huggingface_hub's
mixin pushes. Reading it back is :func:`csham.load`, in ``inference``. Start with :func:`share`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from csham._lazy import lazy_names

if TYPE_CHECKING:
    from csham.share.card import model_card
    from csham.share.folder import share
    from csham.share.hub import HubModel

__all__ = ["HubModel", "model_card", "share"]

__getattr__ = lazy_names(
    __name__,
    {"HubModel": "csham.share.hub", "model_card": "csham.share.card", "share": "csham.share.folder"},
)

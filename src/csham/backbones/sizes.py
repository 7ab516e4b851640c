"""Check that a network can run on images of a size, before the first epoch."""

from __future__ import annotations

from textwrap import shorten

import torch
from torch import nn

from csham.errors import UserError
from csham.probing import blank_image, evaluating

__all__ = ["check_size"]

# Sides that networks are made for, in pixels.
_USUAL = (32, 48, 64, 75, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 331, 384, 448, 512)


def check_size(model: nn.Module, name: str, num_classes: int, in_chans: int, image_size: int) -> None:
    """Refuse a network that does not turn an image of this size into logits.

    Runs it on one blank image; on meta tensors torch would import its compiler first, which takes longer.

    Args:
        model: The network, without attention; left as it was.
        name: Its name, for the message.
        num_classes: Width that the logits must have; 0 for any.
        in_chans: Channels of the images.
        image_size: Side of the images, in pixels.

    Raises:
        UserError: It does not run, or returns something else; says which size would do.
    """
    problem = _problem(model, num_classes, in_chans, image_size)
    if problem is None:
        return
    larger = [side for side in _USUAL if side > image_size]
    smaller = [side for side in reversed(_USUAL) if side < image_size]
    found = next((s for s in larger + smaller if _problem(model, num_classes, in_chans, s) is None), None)
    advice = (
        f"It runs at {found} pixels: image_size={found} (--image-size {found})."
        if found is not None
        else "It runs at none of the usual sizes; take another backbone (csham list backbones)."
    )
    raise UserError(f"{name} cannot classify images of {image_size} pixels ({problem}). {advice}")


def _problem(model: nn.Module, num_classes: int, in_chans: int, image_size: int) -> str | None:
    """Say what goes wrong, or None."""
    try:
        with evaluating(model):
            output = model(blank_image(model, (in_chans, image_size, image_size)))
    except Exception as err:
        return shorten(str(err) or type(err).__name__, 120, placeholder=" ...").rstrip(".")
    if not isinstance(output, torch.Tensor) or output.ndim != 2 or num_classes not in (0, output.shape[1]):
        return "it does not return one row of logits an image"
    return None

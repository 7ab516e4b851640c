"""Any image to what a trained network saw in training and evaluation."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from csham.data.batches import scale_and_shift
from csham.data.dataset import stored_side
from csham.data.decode import BadFile, decode, reason, square_pixels
from csham.errors import UserError

__all__ = ["ImageLike", "ImageTransform", "UnreadableImageError"]

ImageLike = str | Path | Image.Image | np.ndarray


class UnreadableImageError(UserError):
    """A file that cannot be decoded.

    Attributes:
        file: File that cannot be read, and why.
    """

    def __init__(self, file: BadFile) -> None:
        super().__init__(f"{file.path}: {file.reason}.")
        self.file = file


@dataclass(frozen=True)
class ImageTransform:
    """The preprocessing of a run: upright, over white, RGB, the centre square, resized and normalised.

    The same steps as those of evaluation, so that a file gets the same values as in :func:`csham.training.evaluate`: up
    to 64 px the square is resized to ``image_size``, above to ``image_size / 0.875``, of which the centre is taken.

    Attributes:
        image_size: S, side in pixels of what the network sees.
        mean: Of each channel, of values from 0 to 1.
        std: Likewise.

    Examples:
        >>> trained = csham.load("runs/...")
        >>> logits = trained.network(trained.transform("cat.jpg")[None])
    """

    image_size: int
    mean: Sequence[float]
    std: Sequence[float]

    def __call__(self, image: ImageLike) -> Tensor:
        """Return the normalised values of an image, (3, S, S) float32.

        Args:
            image: See :meth:`pixels`.
        """
        return self.normalise(torch.from_numpy(self.pixels(image)))

    def pixels(self, image: ImageLike) -> np.ndarray:
        """Return what of an image the network sees, as bytes: (S, S, 3) uint8, RGB.

        Args:
            image: A file, an image of Pillow (left as it is), or an array, (H, W), (H, W, 3) or (H, W, 4) uint8.

        Raises:
            UnreadableImageError: The file cannot be decoded.
            UserError: The array is no image.
        """
        square = self.square(image)
        edge, S = (len(square) - self.image_size) // 2, self.image_size
        # A copy: what Pillow lends cannot be written to, which torch warns of.
        return np.array(square[edge : edge + S, edge : edge + S], order="C")

    def square(self, image: ImageLike) -> np.ndarray:
        """Return the whole square of which :meth:`pixels` is the centre, (P, P, 3) uint8: P is S up to 64 px.

        Args:
            image: See :meth:`pixels`, and for what is raised.
        """
        side = stored_side(self.image_size)
        square = _decode(image, side) if isinstance(image, str | Path) else square_pixels(_as_image(image), side)
        return np.asarray(square)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return the values that the network takes of bytes.

        Args:
            pixels: (..., S, S, 3) uint8, of any size S.

        Returns:
            (..., 3, S, S) float32, channels innermost in memory.
        """
        scale, shift = (values.to(pixels.device) for values in scale_and_shift(self.mean, self.std))
        return pixels.to(torch.float32).mul_(scale).add_(shift).movedim(-1, -3)


def _decode(path: str | Path, side: int) -> np.ndarray:
    try:
        return decode(path, side)[0]
    except Exception as err:  # Pillow's plugins raise anything from SyntaxError to struct.error
        raise UnreadableImageError(BadFile(str(path), reason(str(path), err))) from err


def _as_image(image: Image.Image | np.ndarray) -> Image.Image:
    if isinstance(image, np.ndarray):
        with contextlib.suppress(TypeError, ValueError):
            if image.dtype == np.uint8 and image.size:
                return Image.fromarray(image)
    elif isinstance(image, Image.Image) and all(image.size):
        return image.copy()
    what = f"an array of {image.dtype}, {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
    raise UserError(f"an image is a file, Pillow's, or an array of uint8, (H, W) or (H, W, 3 or 4), got {what}.")

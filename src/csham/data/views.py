"""Views of an image for test-time augmentation: crops and mirror images, whose answers are averaged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from csham.data.dataset import stored_side
from csham.errors import UserError

__all__ = ["Views"]


@dataclass(frozen=True)
class Views:
    """Views that fit how images are prepared: those that training may have shown, and no others.

    Above 64 px more of an image is stored than the network sees: there are its corners beside its centre. Mirrored are
    images where a mirrored one still belongs to its class. With both these are the ten views of Krizhevsky et al.,
    "ImageNet Classification with Deep Convolutional Neural Networks", NeurIPS 2012, section 4.1.

    Attributes:
        image_size: S, side in pixels of what the network sees.
        mirrored: True if every crop is also mirrored.

    Raises:
        UserError: There would be but one view.
    """

    image_size: int
    mirrored: bool

    def __post_init__(self) -> None:
        if len(self) == 1:
            raise UserError(
                f"test-time augmentation has nothing to average here: up to 64 px (here {self.image_size}) the network "
                "sees all that is kept of an image, and mirror images are asked about only where the run folder says "
                "that training mirrors."
            )

    @property
    def corners(self) -> bool:
        """True if there are corners beside the centre."""
        return stored_side(self.image_size) > self.image_size

    def __len__(self) -> int:
        return (5 if self.corners else 1) * (2 if self.mirrored else 1)

    def __str__(self) -> str:
        """Say what is averaged."""
        crops = "the centre and the four corners" if self.corners else "the image"
        mirrored = ", each also mirrored" if self.corners else " and its mirror image"
        return f"mean probabilities of {len(self)} views: {crops}{mirrored if self.mirrored else ''}"

    def cut(self, squares: Tensor) -> Iterator[Tensor]:
        """Give view after view of stored squares, (B, 3, P, P), the centre first: (B, 3, S, S)."""
        S = self.image_size
        last = squares.shape[-1] - S
        places = [(last // 2, last // 2)]
        if self.corners:
            places += [(0, 0), (0, last), (last, 0), (last, last)]
        for y, x in places:
            crop = squares[..., y : y + S, x : x + S]
            yield crop
            if self.mirrored:
                yield crop.flip(-1)

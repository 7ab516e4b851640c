"""Random resized crops: boxes drawn on the host, and a whole batch resampled from them on the device."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from csham.data.dataset import stored_side
from csham.data.names import CROPS
from csham.errors import UserError, unknown_name

__all__ = ["check_crop", "draw_boxes", "resampled"]

_LARGEST_RATIO = 4 / 3
_TRIES = 10


def check_crop(crop: str, crop_scale: float, image_size: int) -> str:
    """Check a way of cropping and resolve ``"auto"``: ``"pad"`` up to 64 px, ``"resized"`` above.

    Raises:
        UserError: There is no such way, or ``crop_scale`` is not above 0 and at most 1.
    """
    if crop not in CROPS:
        raise unknown_name("crop", crop, CROPS)
    if not 0 < crop_scale <= 1:
        raise UserError(f"the least area of a crop must be above 0 and at most 1, got {crop_scale}.")
    if crop == "auto":
        return "pad" if stored_side(image_size) == image_size else "resized"
    return crop


def draw_boxes(rng: np.random.Generator, count: int, side: int, least_area: float) -> np.ndarray:
    """Draw boxes within a square: area uniform, ratio of width to height log-uniform in 3/4 to 4/3, place uniform.

    As torchvision's RandomResizedCrop: a box that does not fit is drawn again, up to ten times; then the whole
    square is taken.

    Args:
        rng: Generator of the draws; it always gives the same number of them.
        count: Number of boxes.
        side: P, of the square, in pixels.
        least_area: Of a box, as a fraction of the square's.

    Returns:
        Top, left, height and width in whole pixels, (count, 4) int64.

    Source: Szegedy et al., "Going Deeper with Convolutions", arXiv:1409.4842, section 6, gives area and ratio.
    """
    area, turn = np.moveaxis(rng.random((count, _TRIES, 2)), -1, 0)
    area = side**2 * (least_area + (1 - least_area) * area)
    ratio = np.exp(math.log(_LARGEST_RATIO) * (2 * turn - 1))
    sizes = np.rint(np.sqrt(area[..., None] * np.stack([1 / ratio, ratio], -1))).astype(np.int64)  # height, width
    fits = ((sizes > 0) & (sizes <= side)).all(-1)
    first = np.take_along_axis(sizes, fits.argmax(1)[:, None, None], 1)[:, 0]
    chosen = np.where(fits.any(1)[:, None], first, side)
    corner = (rng.random((count, 2)) * (side - chosen + 1)).astype(np.int64)
    return np.concatenate([corner, chosen], 1)


def resampled(pixels: Tensor, boxes: Tensor, mirrored: Tensor, size: int) -> Tensor:
    """Resample one box of each image to a square, each its own, mirrored where asked.

    Antialiased bilinear, as Pillow's and torchvision's ``resize(antialias=True)`` of the cut-out box: along each
    direction a pixel of the result is the sum of the few source pixels under a triangle, weighted by its height.

    Args:
        pixels: (B, P, P, 3) uint8.
        boxes: Top, left, height and width, (B, 4) int64, within the squares.
        mirrored: (B,) bool.
        size: S, side of the result in pixels.

    Returns:
        (B, S, S, 3) float32: whole numbers in 0..255, contiguous.
    """
    B, P = pixels.shape[:2]
    tall = _blended(pixels.reshape(B, P, P * 3).to(torch.float32), *_triangles(boxes[:, 0], boxes[:, 2], P, size))
    taps, weights = (
        torch.where(mirrored[:, None, None], values.flip(1), values)
        for values in _triangles(boxes[:, 1], boxes[:, 3], P, size)
    )
    turned = tall.view(B, size, P, 3).transpose(1, 2).reshape(B, P, size * 3)
    square = _blended(turned, taps, weights).view(B, size, size, 3)
    # Rounded as bytes would be: what little depends on the device or the order of a sum is lost again.
    return square.transpose(1, 2).contiguous().round_()


def _triangles(start: Tensor, length: Tensor, side: int, size: int) -> tuple[Tensor, Tensor]:
    """Give the K source pixels of each of ``size`` pixels of a stretch, and their weights: (B, S, K) each.

    Args:
        start: Beginning of the stretch, (B,).
        length: Length of the stretch, (B,).
        side: Of the source; none is longer, which bounds K.
        size: S.
    """
    count = math.ceil(2 * max(1, side / size))  # whole pixels within the widest triangle
    extent = length[:, None, None].to(torch.float32)
    scale = extent / size
    reach = scale.clamp_min(1)
    middle = (torch.arange(size, device=start.device)[:, None] + 0.5) * scale
    taps = (middle - reach - 0.5).floor() + 1 + torch.arange(count, device=start.device)
    weights = (1 - (taps + 0.5 - middle).abs() / reach).clamp_min(0)
    weights = torch.where((taps >= 0) & (taps < extent), weights, 0)
    inside = taps.long().clamp_min(0).minimum(length[:, None, None] - 1)
    return inside + start[:, None, None], weights / weights.sum(-1, keepdim=True)


def _blended(lines: Tensor, taps: Tensor, weights: Tensor) -> Tensor:
    """Sum weighted lines of each image: (B, P, L) with (B, S, K) to (B, S, L), all float32 but ``taps``."""
    B, P, L = lines.shape
    rows = taps + P * torch.arange(B, device=taps.device)[:, None, None]
    # Made for tables of words, but just this: a weighted sum of a few rows, in one pass.
    sampled = F.embedding_bag(
        rows.flatten(0, 1), lines.flatten(0, 1), mode="sum", per_sample_weights=weights.flatten(0, 1)
    )
    return sampled.view(B, -1, L)

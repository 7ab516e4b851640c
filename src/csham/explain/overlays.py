"""A map over its image, as pixels: what pictures and the app show."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F

__all__ = ["COLOUR_MAP", "OPACITY", "colours_between", "enlarged", "overlay", "upsampled"]

# Perceptually uniform, and in order also for those who do not see red from green.
COLOUR_MAP = "viridis"
OPACITY = 0.6


def overlay(
    pixels: np.ndarray, weights: np.ndarray, limits: tuple[float, float], *, side: int | None = None
) -> np.ndarray:
    """Lay a map over its image, in grey so that colour means weight alone.

    Args:
        pixels: (S, S, 3) uint8.
        weights: (h, w); upsampled bilinearly, the image to whole multiples of its pixels.
        limits: Values of the darkest and the lightest colour.
        side: Least side of the result in pixels; by default S.

    Returns:
        (P, P, 3) uint8.
    """
    image = enlarged(pixels, side or len(pixels))
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32) / 255
    colours = colours_between(upsampled(weights, image.shape[:2]), limits)
    mixed = OPACITY * colours + (1 - OPACITY) * grey[..., None]
    return (255 * mixed).round().astype(np.uint8)


def colours_between(values: np.ndarray, limits: tuple[float, float]) -> np.ndarray:
    """Return the colour of each value, (..., 3) from 0 to 1."""
    from matplotlib import colormaps  # noqa: PLC0415  takes a second

    low, high = limits
    shares = (values - low) / (high - low) if high > low else np.full_like(values, 0.5)
    return np.asarray(colormaps[COLOUR_MAP](np.clip(shares, 0, 1)))[..., :3]


def upsampled(weights: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize a map, (h, w), bilinearly; pixels are areas, as in the convolutions that made it."""
    maps = torch.from_numpy(np.ascontiguousarray(weights, dtype=np.float32))[None, None]
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)[0, 0].numpy()


def enlarged(pixels: np.ndarray, side: int) -> np.ndarray:
    """Repeat each pixel so often that the image is at least ``side`` pixels wide; small images keep their squares."""
    times = max(1, -(-side // len(pixels)))
    return pixels.repeat(times, 0).repeat(times, 1)

"""Metadata of an exported file, so that it can be used with nothing else at hand."""

from __future__ import annotations

import json
from typing import Any

from csham._version import __version__
from csham.data.dataset import stored_side
from csham.inference import Trained

__all__ = ["describe"]


def describe(trained: Trained, *, preprocessing: bool, least: int | None) -> dict[str, str]:
    """Return names and values, as texts: what ONNX keeps as the model's ``metadata_props``.

    Lists and mappings are JSON.

    Args:
        trained: The network and its preprocessing.
        preprocessing: True if the graph takes bytes.
        least: The smallest side of the images it takes, in pixels; None if it takes one size only.
    """
    info = trained.info
    network = {key: value for key, value in info.to_dict().items() if key not in ("classes", "mean", "std")}
    values: dict[str, Any] = {
        "classes": info.classes,
        "image_size": info.image_size,
        "resize_to": stored_side(info.image_size),
        "mean": info.mean,
        "std": info.std,
        "input": _input(preprocessing, info.image_size, least),
        "output": f"logits: (batch, {len(info.classes)}) float32, in the order of classes; softmax gives probabilities",
        "preprocessing": _steps(info.image_size, preprocessing),
        "network": network,
        "weights": trained.weights,
        "epoch": trained.epoch,
        "name": trained.label,
        "csham_version": __version__,
    }
    return {
        key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) for key, value in values.items()
    }


def _input(preprocessing: bool, image_size: int, least: int | None) -> str:
    sides = f"{image_size}, {image_size}" if least is None else "height, width"
    limit = "" if least is None else f"; sides from {least} pixels on"
    if preprocessing:
        return f"images: (batch, {sides}, 3) uint8, RGB{limit}"
    return f"images: (batch, 3, {sides}) float32, RGB, normalised{limit}"


def _steps(image_size: int, preprocessing: bool) -> list[str]:
    """Say what must be done to an image before the graph gets it."""
    side = stored_side(image_size)
    steps = [
        "turn the image as its EXIF orientation says, put it over white, convert it to RGB of 8 bits",
        f"cut its centre square and resize that to {side} x {side} pixels, bicubic with antialiasing, as Pillow does",
    ]
    if side != image_size:
        steps.append(f"cut the centre, {image_size} x {image_size} pixels")
    if not preprocessing:
        steps += ["divide by 255, subtract mean, divide by std, channel by channel", "put the channels first"]
    return steps

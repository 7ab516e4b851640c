"""Keras, or a sentence on what is missing."""

from __future__ import annotations

try:
    import keras
except ModuleNotFoundError as err:
    if err.name not in ("tensorflow", "jax"):
        raise
    raise ModuleNotFoundError(
        f"Keras runs on {err.name}, its default or what it was told, which is not installed. Install it, or set "
        "the environment's KERAS_BACKEND to tensorflow, jax or torch before Keras is imported.",
        name=err.name,
    ) from err

__all__ = ["keras"]

"""Keras, or a sentence on what is missing."""

from __future__ import annotations

try:
    import keras
except ModuleNotFoundError as err:
    backend = (err.name or "").partition(".")[0]
    if backend not in ("tensorflow", "jax"):
        raise
    raise ModuleNotFoundError(
        f"Keras runs on {backend}, its default or what it was told, which is not installed. Install it, or set "
        "the environment's KERAS_BACKEND to tensorflow, jax or torch before Keras is imported.",
        name=backend,
    ) from err

__all__ = ["keras"]

"""Keras, or a sentence on what is missing."""

from __future__ import annotations

try:
    import keras
except ModuleNotFoundError as err:
    if err.name not in ("tensorflow", "jax"):
        raise
    raise ModuleNotFoundError(
        f"Keras was told to run on {err.name}, its default being tensorflow, which is not installed. Install it, or set "
        "KERAS_BACKEND to torch, jax or tensorflow before Keras is imported.",
        name=err.name,
    ) from err

__all__ = ["keras"]

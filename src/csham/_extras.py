"""Extras of csham and what they install, for the error that a missing package ends in."""

from __future__ import annotations

__all__ = ["EXTRAS", "how_to_install"]

EXTRAS = {
    "train": (
        *("PIL", "accelerate", "filelock", "joblib", "matplotlib", "rich", "safetensors", "sklearn", "tensorboard"),
        *("torchvision", "typer", "yaml"),
    ),
    "report": ("jinja2", "openpyxl", "scipy"),
    "ray": ("ray",),
    "export": ("onnx", "onnxruntime", "onnxscript"),
    "app": ("gradio",),
    "share": ("huggingface_hub",),
    "keras": ("h5py",),
}
"""The packages of each extra, as they are imported; of those in several the smallest extra that has them."""


def how_to_install(what: str, err: ImportError) -> str | None:
    """Return a sentence on a package that is not there, or None where it is none of an extra's.

    Args:
        what: Subject of the sentence, which needs the package.
        err: From its import.
    """
    package = (err.name or "").partition(".")[0]
    for extra, packages in EXTRAS.items():
        if package in packages:
            return f'{what} needs {package}. Install it: pip install "csham[{extra}]".'
    return None

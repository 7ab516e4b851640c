"""Packages as their users see them: names that are imported when they are first used, and the extra that each needs.

``csham.attach``, ``csham.cost``, ``csham.explain`` and ``csham.export`` are each a package that is called like the
function of its name: whenever a part of it is imported, Python puts the package there, whatever stood there before.
:func:`make_callable` lets it be called, by the way that Python's reference documents for it: a module's class.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from inspect import Signature, signature
from types import ModuleType
from typing import Any

__all__ = ["EXTRAS", "how_to_install", "lazy_names", "make_callable"]

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
    "cam": ("pytorch_grad_cam",),
    "keras": ("h5py", "keras"),
    "tracking": ("mlflow", "wandb"),
    "parquet": ("pyarrow",),
}
"""The packages of each extra, as they are imported; of those in several the smallest extra that has them."""


def lazy_names(package: str, modules: Mapping[str, str]) -> Callable[[str], Any]:
    """Build a package's module-level ``__getattr__`` (PEP 562), which knows the modules in the package too.

    Args:
        package: ``__name__`` of the package.
        modules: For each public name, the module that defines it.
    """

    def resolve(name: str) -> Any:
        if name not in modules and (name.startswith("_") or find_spec(f"{package}.{name}") is None):
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        own = f"{package}.{name}"
        module = modules.get(name, own)
        try:
            value = import_module(module) if module == own else getattr(import_module(module), name)
        except ModuleNotFoundError as err:
            message = how_to_install(own, err)
            if message is None:
                raise
            raise ModuleNotFoundError(message, name=err.name) from err
        setattr(sys.modules[package], name, value)
        return value

    return resolve


def make_callable(package: str) -> None:
    """Let a package, or a module of one, be called like its function of the same name."""
    sys.modules[package].__class__ = _CallableModule


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


class _CallableModule(ModuleType):
    @property
    def __call__(self) -> Callable[..., Any]:
        # The function itself: a method around it would be the caller that its warnings name.
        return getattr(self, self._function)

    @property
    def __signature__(self) -> Signature:
        return signature(self.__call__)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        return import_module, (self.__name__,)  # as a function is pickled: by its name

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), self._function})  # so that help() tells of the function

    @property
    def _function(self) -> str:
        return self.__name__.rpartition(".")[2]

"""Choice of the implementation that runs: the C++ kernels, the Triton kernels, or the reference; and why.

``CSHAM_KERNELS`` in the environment, or :func:`use_kernels` around a piece of code, names one of them, which then runs
or says why it cannot. Otherwise (``auto``) the kernels of the tensor's device run, and where they cannot the reference
does, after one warning.
"""

from __future__ import annotations

import importlib
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch

from csham.errors import UserError, unknown_name
from csham.ops import cpu

__all__ = ["SETTINGS", "Choice", "choose", "kernels", "kernels_setting", "use_kernels"]

SETTINGS = ("auto", "reference", "cpu", "triton")

_VARIABLE = "CSHAM_KERNELS"
_within: ContextVar[str | None] = ContextVar("csham_kernels", default=None)
_lock = threading.Lock()
_chosen: dict[tuple[str, str], Choice] = {}


@dataclass(frozen=True)
class Choice:
    """The implementation that runs for the tensors of a device.

    Attributes:
        name: ``"reference"``, ``"cpu"`` or ``"triton"``.
        reason: Reason for the choice.
    """

    name: str
    reason: str


def kernels(device_type: str) -> str:
    """Return the name of the implementation that runs for tensors of a device: :func:`choose` without the reason.

    Under torch.compile it is called while tracing, and what it returned stays in what was compiled.
    """
    return choose(device_type).name


# What torch.compiler.assume_constant_result does, which would import torch._dynamo first: six seconds.
kernels._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(device_type: str) -> Choice:
    """Return which implementation runs for tensors of a device, and why.

    The first call for a device makes the kernels ready, which may take the time of building them; later ones repeat the
    answer.

    Args:
        device_type: ``x.device.type``.

    Raises:
        UserError: The implementation that was named cannot run, or there is none of this name.
    """
    setting = kernels_setting()
    found = _chosen.get((setting, device_type))
    if found is None:
        with _lock:
            found = _chosen.get((setting, device_type)) or _choose(setting, device_type)
            _chosen[setting, device_type] = found
    return found


@contextmanager
def use_kernels(name: str) -> Iterator[None]:
    """Let one implementation run within a ``with`` block, in this thread, whatever the environment says.

    A network that was compiled (torch.compile) keeps what ran when it was traced.

    Args:
        name: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``.

    Raises:
        UserError: There is none of this name.
    """
    token = _within.set(_known(name))
    try:
        yield
    finally:
        _within.reset(token)


def kernels_setting() -> str:
    """Return which implementation was asked for: by :func:`use_kernels`, or else by the environment, or ``auto``.

    Raises:
        UserError: There is none of this name.
    """
    return _within.get() or _known(os.environ.get(_VARIABLE) or "auto")


def _known(name: str) -> str:
    if name not in SETTINGS:
        raise unknown_name("kernels", name, SETTINGS, hint=f"({_VARIABLE} in the environment, or use_kernels.)")
    return name


def _choose(setting: str, device_type: str) -> Choice:
    if device_type == "meta":
        return Choice("reference", "there is nothing to compute on meta tensors")
    if setting == "reference":
        return Choice("reference", "it was asked for by name")
    if setting == "auto":
        return _automatic(device_type)
    try:
        return _cpu(device_type) if setting == "cpu" else _triton(device_type)
    except (OSError, RuntimeError) as err:
        raise UserError(
            f"kernels {setting!r} were asked for and cannot run on {device_type} tensors: {err} {_VARIABLE}=auto takes "
            "those that can."
        ) from err


def _automatic(device_type: str) -> Choice:
    """The kernels made for this device, or the reference and a warning that says why."""
    ready = {"cpu": _cpu, "cuda": _triton}.get(device_type)
    if ready is None:
        return Choice("reference", f"there are no kernels for {device_type} tensors")
    try:
        return ready(device_type)
    except (OSError, RuntimeError) as err:
        warnings.warn(
            f"csham runs its slower reference on {device_type} tensors: {err} ({_VARIABLE}=reference asks for it and "
            "silences this; `csham doctor` says more.)",
            stacklevel=2,
        )
        return Choice("reference", str(err))


def _cpu(device_type: str) -> Choice:
    if device_type != "cpu":
        raise cpu.Unavailable("the C++ kernels run on CPU tensors only.")
    library = cpu.load()
    about = library.about()
    capability = torch.backends.cpu.get_cpu_capability()
    built = f"built by {about.get('compiler', 'an unknown compiler')}"
    made = "ready, from the wheel" if library.state == "ready" else built
    alone = "" if about.get("threads") else ", on one thread: PyTorch lends this compiler more from 2.10 on"
    return Choice("cpu", f"C++ kernels for {capability}, {made}{alone}")


def _triton(device_type: str) -> Choice:
    interpreted = os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")
    if device_type == "cpu" and not interpreted:
        raise RuntimeError("Triton kernels run on CUDA tensors, and on CPU tensors with TRITON_INTERPRET=1 alone.")
    if device_type not in ("cpu", "cuda"):
        raise RuntimeError("Triton kernels run on CUDA tensors only.")
    if torch.version.cuda and not interpreted and torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        if major < 7:
            raise RuntimeError(
                f"Triton needs a GPU of compute capability 7.0 or later, and this one has {major}.{minor}."
            )
    try:
        importlib.import_module("csham.ops.triton")
    except Exception as err:  # an old Triton lacks all sorts of things
        raise RuntimeError(
            f"the Triton kernels cannot be imported ({type(err).__name__}: {err}). `pip install -U triton` installs or "
            "renews what they need."
        ) from err
    if not interpreted and torch.cuda.is_available():
        _make_launcher()
    return Choice("triton", "Triton's interpreter" if interpreted else "Triton kernels")


def _make_launcher() -> None:
    """Let Triton compile what launches its kernels, which would otherwise fail in the first of them."""
    try:
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except Exception as err:  # no compiler, no headers, a folder that cannot be written, no driver's library
        raise RuntimeError(
            f"Triton cannot launch kernels here ({type(err).__name__}: {err}). What launches them is compiled once: "
            "install gcc (or name a C compiler by CC=...) and Python's headers, and let TRITON_CACHE_DIR be a folder "
            "that can be written."
        ) from err

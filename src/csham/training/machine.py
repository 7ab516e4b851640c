"""Settings that this machine should train with: device, precision, memory format, compiler, graphs; and why."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from dataclasses import dataclass, replace

import torch

from csham.errors import UserError, unknown_name
from csham.training.config import MachineSettings, TrainConfig

__all__ = ["Choices", "choose", "choose_device", "choose_precision", "cpu_multiplies_bf16", "missing_compiler"]

# Compiling takes about a minute: worth it where many follow. A CPU trains on a thousand images of 32 px in a second, a
# GPU that replays its steps on tens of thousands, or thousands of 224 px; compiled, each on a part more.
_IMAGES_WORTH_COMPILING = 150_000
_IMAGES_WORTH_COMPILING_ON_CUDA = 5_000_000

_PRECISION_VARIABLE = "CSHAM_AUTO_PRECISION"


@dataclass(frozen=True)
class Choices:
    """The settings with every ``auto`` replaced, and why."""

    config: TrainConfig
    reasons: tuple[str, ...]


def choose(config: TrainConfig, train_images: int) -> Choices:
    """Replace every ``auto`` in ``config`` by what this machine does best.

    Args:
        config: The settings, as given.
        train_images: Images of one epoch.

    Raises:
        UserError: Something asked for explicitly is not there.
    """
    device = choose_device(config.device)
    kind = device.partition(":")[0]
    precision, precision_reason = choose_precision(config.precision, device)
    channels_last = kind in ("cpu", "cuda") if config.channels_last == "auto" else config.channels_last
    compiled, compile_reason = _compile(config, kind, train_images)
    reasons: tuple[str, ...] = (
        f"{device} ({torch.cuda.get_device_name(device)})" if kind == "cuda" else device,
        _because(precision, precision_reason),
        "channels_last" if channels_last else "channels first",
        _because("torch.compile" if compiled else "no torch.compile", compile_reason),
    )
    graphed, graph_reason = _graph(config.graph, kind, precision)
    if kind == "cuda":
        reasons += (_because("CUDA graphs" if graphed else "no CUDA graphs", graph_reason),)
    resolved = replace(
        config, device=device, precision=precision, channels_last=channels_last, compile=compiled, graph=graphed
    )
    return Choices(resolved, reasons)


def _because(choice: str, reason: str) -> str:
    return f"{choice} ({reason})" if reason else choice


def choose_device(asked: str) -> str:
    """Replace ``auto`` by the fastest kind of device there is; refuse a device that is not there."""
    MachineSettings(device=asked)  # refuses a kind that csham does not know
    if asked == "auto":
        if torch.cuda.is_available():
            return "cuda"
        return "mps" if torch.backends.mps.is_available() else "cpu"
    kind = asked.partition(":")[0]
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {asked}: this machine shows PyTorch no CUDA device. Use --device cpu.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError("--device mps: PyTorch finds no Metal device here. Use --device cpu.")
    count = torch.cuda.device_count() if kind == "cuda" else int(kind != "auto")
    there = [kind, *(f"{kind}:{number}" for number in range(count))]
    if asked not in there:
        raise unknown_name("device", asked, there)
    return asked


def choose_precision(asked: str, device: str) -> tuple[str, str]:
    """Replace ``auto`` by the precision that a device is fastest in, and say why; refuse what it lacks.

    ``CSHAM_AUTO_PRECISION`` in the environment, ``fp32`` or ``bf16``, stands in for the device's answer.
    """
    kind = device.partition(":")[0]
    if asked == "fp16" and kind != "cuda":
        raise UserError(f"--precision fp16 needs CUDA, this run is on {kind}. Use bf16 or fp32.")
    if asked != "auto":
        return asked, ""
    if said := os.environ.get(_PRECISION_VARIABLE):
        if said not in ("fp32", "bf16"):
            hint = f"({_PRECISION_VARIABLE} in the environment, what precision auto is.)"
            raise unknown_name("precision", said, ("fp32", "bf16"), hint=hint)
        return said, f"{_PRECISION_VARIABLE} says so"
    if kind == "cuda":
        with torch.cuda.device(device):
            supported = torch.cuda.is_bf16_supported(including_emulation=False)
        if supported:
            return "bf16", "the GPU has it"
        return "fp32", "the GPU has no bf16"
    if kind == "cpu" and cpu_multiplies_bf16():
        return "bf16", "the processor has it"
    return "fp32", "no fast bf16 here"


def cpu_multiplies_bf16() -> bool:
    """Return True if the processor has instructions that multiply bf16."""
    # Without these instructions bf16 is emulated and about ten times slower than float32.
    checks = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    return any(check() for check in checks if check is not None)


def _compile(config: TrainConfig, kind: str, train_images: int) -> tuple[bool, str]:
    missing = missing_compiler(kind)
    if config.compile is True and missing:
        raise UserError(f"--compile: {missing}. Install it, or use --no-compile.")
    if config.compile is True and config.recompute_norms:
        raise UserError(
            "--recompute-norms: it acts in eager code, and in compiled code kernels do without norms' outputs by "
            "themselves. Leave it out, or use --no-compile."
        )
    if config.compile != "auto":
        return config.compile is True, ""
    if missing:
        return False, missing
    if config.recompute_norms:
        return False, "norms are recomputed in eager code alone"
    enough = _IMAGES_WORTH_COMPILING_ON_CUDA if kind == "cuda" else _IMAGES_WORTH_COMPILING
    if config.epochs * train_images < enough:
        return False, "compiling would take longer than it saves"
    return True, "many images to come"


def _graph(asked: bool | str, kind: str, precision: str) -> tuple[bool, str]:
    """Replace ``auto`` by whether steps are replayed as CUDA graphs, and say why not; refuse what cannot be."""
    why_not = _no_graph(kind, precision)
    if asked is True and why_not:
        raise UserError(f"--graph: {why_not}. Use --no-graph, or leave it out.")
    if asked != "auto":
        return asked is True, ""
    return why_not is None, why_not or ""


def _no_graph(kind: str, precision: str) -> str | None:
    """Say what keeps steps from being replayed, as far as it is known before the first of them."""
    if kind != "cuda":
        return f"only CUDA has graphs, and this run is on {kind}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return "several processes wait for each other in every step"
    if precision == "fp16":
        return "the scale of fp16's loss is changed on the host"
    return None


def missing_compiler(kind: str) -> str | None:
    """Say what torch.compile lacks on this kind of device, if anything."""
    if kind == "cuda":
        if importlib.util.find_spec("triton") is None:
            return "torch.compile needs the package triton on CUDA, and it is not installed"
        # The same choice as Triton makes.
        compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
        if not any(map(shutil.which, compilers)):
            return f"torch.compile needs a C compiler on CUDA, and there is no {compilers[0]}"
        return None
    if kind == "mps":
        return None
    # The same choice as torch._inductor.config.cpp.cxx makes.
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler.split()[0]) is None:
        return f"torch.compile needs a C++ compiler, and there is no {compiler}"
    return None

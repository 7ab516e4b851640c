"""``csham doctor``: which kernels run here and why, what they were built with, and what precision ``auto`` is."""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from csham._version import __version__
from csham.cli.common import print_json, print_table
from csham.cli.options import DebugOption, JsonOption
from csham.errors import UserError
from csham.memory import retain_memory
from csham.provenance import processor, versions
from csham.words import counted

__all__ = ["doctor"]

Found = dict[str, Any]
CACHE = "Built kernels"

_FLAGS = ("avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16", "asimd", "bf16", "sve")


def doctor(
    *,
    build: Annotated[
        bool, typer.Option("--build", help="Build the CPU kernels now if there are none.", rich_help_panel=CACHE)
    ] = False,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Build them anew, also after a failure.", rich_help_panel=CACHE)
    ] = False,
    clear: Annotated[
        bool, typer.Option("--clear", help="First remove all that were ever built.", rich_help_panel=CACHE)
    ] = False,
    as_json: JsonOption = False,
    debug: DebugOption = False,
) -> None:
    """Show which kernels run here, why, and in what precision; exit code 1 if the kernels of CSHAM_KERNELS cannot."""
    # Imported here, so that csham --help does not import PyTorch.
    from csham.ops.choice import kernels_setting  # noqa: PLC0415
    from csham.ops.cpu import build as library  # noqa: PLC0415

    setting = kernels_setting()
    if clear:
        library.clear()
    if build or rebuild:
        _build(again=rebuild)
    kernels = {device: _kernels(device) for device in ("cpu", "cuda")}
    found = {
        "versions": _versions(),
        **_machine(),
        "compiler": _compiler(),
        "cache": _cache(),
        "CSHAM_KERNELS": setting,
        "kernels": kernels,
        "precision": _precision(),
    }
    if as_json:
        print_json(found)
    else:
        print_table("", ["", ""], _rows(found))
    if not any(choice["name"] for choice in kernels.values()):
        raise typer.Exit(1)


def _build(*, again: bool) -> None:
    from csham.ops.cpu import Unavailable  # noqa: PLC0415
    from csham.ops.cpu.build import build_library, find_library, own_library  # noqa: PLC0415

    try:
        library = own_library() if again else find_library()
        if library.compiler is None and again:
            raise UserError("doctor --rebuild: there is no C++ compiler. Install g++, or name one by CXX.")
        if again or library.state == "not built":
            build_library(library, again=again)
        if library.state == "failed":
            raise library.failure()
    except Unavailable as err:
        raise UserError(str(err)) from err


def _versions() -> dict[str, str]:
    import torch  # noqa: PLC0415

    own = {"csham": __version__, "python": platform.python_version(), "torch": torch.__version__}
    return own | versions(("timm", "triton"))


def _machine() -> Found:
    import torch  # noqa: PLC0415

    return {
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "flags": _processor_flags(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "memory_retention": retain_memory(),
    }


def _processor_flags() -> list[str]:
    """Those of the processor's instruction sets that matter here, as far as Linux tells."""
    try:
        words = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    except OSError:
        return []
    return [flag for flag in _FLAGS if flag in words]


def _compiler() -> Found | None:
    from csham.ops.cpu.compiler import find_compiler  # noqa: PLC0415

    compiler = find_compiler()
    if compiler is None:
        return None
    return {"command": list(compiler.command), "version": compiler.name, "openmp": compiler.openmp}


def _cache() -> Found:
    """The library for this very csham and PyTorch, and the others beside it."""
    from csham.ops.cpu import Unavailable  # noqa: PLC0415
    from csham.ops.cpu.build import find_library, kernels_root  # noqa: PLC0415

    root = kernels_root()
    folders = [folder for folder in root.glob("*") if folder.is_dir()]
    found: Found = {"folder": str(root), "versions": len(folders), "bytes": sum(map(_size, folders))}
    try:
        library = find_library()
    except Unavailable as err:
        return found | {"state": "not built", "detail": str(err), "library": None}
    detail = str(library.failure()) if library.state == "failed" else ""
    if library.refused:
        detail = f"{detail} (those that came with csham are not used: {library.refused})".strip()
    return found | {
        "state": library.state,
        "detail": detail,
        "library": str(library.folder),
        "about": library.about(),
    }


def _size(folder: Path) -> int:
    return sum(file.lstat().st_size for file in folder.rglob("*") if file.is_file())


def _kernels(device: str) -> Found:
    """Find what runs for the tensors of a device, without building anything for the answer; no name if nothing can."""
    import torch  # noqa: PLC0415

    from csham.ops.choice import choose  # noqa: PLC0415

    if device == "cuda" and not torch.cuda.is_available():
        return {"name": None, "reason": "PyTorch sees no CUDA device"}
    if device == "cpu" and _would_build():
        return {"name": "cpu", "reason": "built on first use, or now by csham doctor --build"}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the reason is shown
            choice = choose(device)
    except UserError as err:
        return {"name": None, "reason": str(err)}
    return {"name": choice.name, "reason": choice.reason}


def _precision() -> Found:
    """The precision that ``auto`` is on the device that ``auto`` is."""
    from csham.training.machine import choose_device, choose_precision  # noqa: PLC0415

    device = choose_device("auto")
    name, reason = choose_precision("auto", device)
    return {"device": device, "name": name, "reason": reason}


def _would_build() -> bool:
    from csham.ops.choice import kernels_setting  # noqa: PLC0415
    from csham.ops.cpu import Unavailable  # noqa: PLC0415
    from csham.ops.cpu.build import find_library, kernels_root  # noqa: PLC0415

    if kernels_setting() not in ("auto", "cpu"):
        return False
    try:
        state = find_library().state
    except Unavailable:
        return False
    place = kernels_root()
    place = next(folder for folder in (place, *place.parents) if folder.exists())
    return state == "not built" and os.access(place, os.W_OK | os.X_OK)


def _rows(found: Found) -> Iterator[tuple[str, str]]:
    for device, choice in found["kernels"].items():
        yield f"{device} tensors", f"{choice['name'] or 'nothing'}: {choice['reason']}"
    yield "CSHAM_KERNELS", found["CSHAM_KERNELS"]
    precision = found["precision"]
    yield "precision auto", f"{precision['name']} on {precision['device']}: {precision['reason']}"
    yield "versions", ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    yield "processor", f"{found['processor']}; {found['capability']}; {' '.join(found['flags'])}".rstrip("; ")
    yield "gpu", found["gpu"] or "none"
    yield "threads", str(found["threads"])
    yield "memory retention", "yes, in every command" if found["memory_retention"] else "no: it needs glibc"
    compiler = found["compiler"]
    yield "compiler", f"{' '.join(compiler['command'])}: {compiler['version']}" if compiler else "none"
    cache = found["cache"]
    about = cache.get("about") or {}
    took = f" in {about['seconds']} s on {about['date']}" if about and cache["state"] != "ready" else ""
    yield "library", f"{cache['state']}{took} {cache['library'] or ''} {cache['detail']}".strip()
    count = cache["versions"]
    yield "cache", f"{cache['folder']}: {counted(count, 'version')}, {cache['bytes'] / 2**20:.1f} MiB"

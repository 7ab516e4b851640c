"""Turn the C++ sources into one shared library: the compiler, its flags, and running its commands side by side."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from csham.errors import UserError

__all__ = [
    "Compiler",
    "Unavailable",
    "compile_library",
    "estimated_seconds",
    "extra_flags",
    "find_compiler",
    "own_flags",
]

_COMMON = (
    "-std=c++20",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    # A product and a sum are rounded one by one unless the code says fmadd: the same bits from any compiler.
    "-ffp-contract=off",
    "-Wall",
    "-Wno-unknown-pragmas",
    "-Wno-uninitialized",
)
# Names and macros are those of PyTorch's own kernels, whose at::vec ours use.
_INSTRUCTION_SETS = {
    "DEFAULT": ("-Wno-psabi",),
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"),
}
# On a core of 2021, for the kernels and for the operators; only the progress line says so.
_KERNELS_SECONDS = 28
_OPERATORS_SECONDS = 5
_LONGEST_SECONDS = 1800


class Unavailable(RuntimeError):  # noqa: N818 - a finding, not a fault
    """The C++ kernels cannot run here; the message says why and what to do about it."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler.

    Attributes:
        command: The words that call it.
        version: All that it says about itself.
    """

    command: tuple[str, ...]
    version: str

    @property
    def name(self) -> str:
        """The first line of its version."""
        return self.version.partition("\n")[0]

    @property
    def openmp(self) -> bool:
        """True if its threads can be those of the OpenMP library that PyTorch has loaded, which is GCC's."""
        return sys.platform == "linux" and "clang" not in self.version

    @property
    def shares_threads(self) -> bool:
        """True if what it builds runs on PyTorch's threads: by the same OpenMP, or because PyTorch can start them."""
        return self.openmp or torch.torch_version.TorchVersion(torch.__version__) >= "2.10"


def find_compiler() -> Compiler | None:
    """Return ``$CXX``, or else the first C++ compiler on the path that answers."""
    # GCC first: its OpenMP is the one that PyTorch brings on Linux.
    chosen = _environment_words("CXX")
    for command in [chosen] if chosen else [["g++"], ["c++"], ["clang++"]]:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            answer = subprocess.run(
                [*command, "--version"], capture_output=True, text=True, check=True, timeout=60, env=_environment()
            )
            return Compiler(tuple(command), answer.stdout)
    return None


def compile_library(sources: Path, compiler: Compiler, target: Path) -> str:
    """Compile the sources for each instruction set, and once for the operators that call them, and link them.

    Args:
        sources: Folder of the sources, ``*.cpp``, and of their headers.
        compiler: Compiler to call.
        target: The shared library to be; object files and logs are left beside it, named ``*.o`` and ``*.o.log``.

    Returns:
        An empty text; or the command that failed and what it said.

    Raises:
        Unavailable: The compiler was ended from outside, which says nothing about the sources.
        OSError: The disk is full.
    """
    compiled = _compile_commands(sources, compiler, target.parent)
    linked = _link_command(compiler, list(compiled), target)
    operators, *kernels = compiled.values()  # which takes least, and best fills the end
    return _run_all([*kernels, operators], target.parent) or _run_all([linked], target.parent)


def own_flags(compiler: Compiler) -> list[str]:
    """All flags that tell one build from another: those that say where things are do not."""
    objects = (" ".join(flags) for flags in _objects().values())
    return [*_common(compiler), *objects, *extra_flags()]


def extra_flags() -> list[str]:
    """Flags that the user adds, by ``CSHAM_CXXFLAGS``; both compiler and linker get them, last."""
    return _environment_words("CSHAM_CXXFLAGS")


def estimated_seconds() -> int:
    """About how long a build takes here."""
    total = _KERNELS_SECONDS * (len(_objects()) - 1) + _OPERATORS_SECONDS
    return max(_KERNELS_SECONDS, total // _cores())


def _compile_commands(sources: Path, compiler: Compiler, folder: Path) -> dict[str, list[str]]:
    """The object files and what makes each, in the order of linking."""
    # Named alike wherever they lie: the names are in what an assertion says.
    search = ["-isystem", str(Path(torch.__file__).parent / "include"), f"-ffile-prefix-map={sources}=csham/ops/cpu"]
    # All in one go, because at::vec takes longest: one after the other, before a file of nothing.
    included = [word for source in sorted(sources.glob("*.cpp")) for word in ("-include", str(source))]
    commands = {}
    for name, flags in _objects().items():
        target = str(folder / f"{name}.o")
        start = [*compiler.command, *_common(compiler), *search, *flags]
        commands[target] = [*start, *extra_flags(), *included, "-x", "c++", "-c", os.devnull, "-o", target]
    return commands


def _link_command(compiler: Compiler, objects: Sequence[str], target: Path) -> list[str]:
    # Without -fopenmp, which would name the system's libgomp: the one that libtorch_cpu has loaded fills its place. Nor
    # a search path: PyTorch is loaded before the kernels are. macOS has no library without one.
    library = Path(torch.__file__).parent / "lib"
    search = [f"-Wl,-rpath,{library}"] if sys.platform == "darwin" else []
    inputs = [*objects, f"-L{library}", *search, "-ltorch_cpu"]
    return [*compiler.command, "-shared", *extra_flags(), *inputs, "-o", str(target)]


def _common(compiler: Compiler) -> list[str]:
    openmp = ["-fopenmp"] if compiler.openmp else []
    return [*openmp, *_COMMON, f"-D_GLIBCXX_USE_CXX11_ABI={int(torch.compiled_with_cxx11_abi())}"]


def _objects() -> dict[str, tuple[str, ...]]:
    """The flags of each object file, in the order of linking.

    Of an inline function that several objects hold the linker keeps the first, so what runs on every processor leads.
    """
    on_x86 = platform.machine().lower() in ("x86_64", "amd64")
    sets = {name: flags for name, flags in _INSTRUCTION_SETS.items() if on_x86 or name == "DEFAULT"}
    if on_x86:
        # For processors of before 2013, which are to get the right result, and the build half its time.
        sets["DEFAULT"] = (*sets["DEFAULT"], "-O1")
    macros = {name: (f"-DCPU_CAPABILITY={name}", f"-DCPU_CAPABILITY_{name}") for name in sets}
    return {"operators": ()} | {name: (*flags, *macros[name]) for name, flags in sets.items()}


def _environment_words(variable: str) -> list[str]:
    """Split what an environment variable holds as a shell would."""
    try:
        return shlex.split(os.environ.get(variable, ""))
    except ValueError as err:
        raise UserError(f"{variable}={os.environ[variable]}: {err}.") from err


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_all(commands: list[list[str]], folder: Path) -> str:
    """Run commands side by side, as many as there are cores.

    Returns:
        The command that failed and what it said; an empty text if none did.

    Raises:
        Unavailable: One was ended from outside, which says nothing about the sources.
    """
    waiting = [(command, folder / f"{number}.o.log") for number, command in enumerate(commands)]
    running: list[tuple[subprocess.Popen[bytes], list[str], Path]] = []
    deadline = time.monotonic() + _LONGEST_SECONDS
    try:
        while waiting or running:
            while waiting and len(running) < _cores():
                command, log = waiting.pop(0)
                with log.open("wb") as file:
                    # A group of its own: Ctrl-C comes here first, and the driver goes together with its compiler.
                    process = subprocess.Popen(
                        command, stdout=file, stderr=subprocess.STDOUT, env=_environment(), process_group=0
                    )
                running.append((process, command, log))
            time.sleep(0.02)
            for process, command, log in running:
                if process.poll():
                    said = log.read_text(encoding="utf-8", errors="replace")
                    return _failure(process.returncode, command, said, folder)
            running = [entry for entry in running if entry[0].returncode is None]
            if time.monotonic() > deadline:
                return f"{shlex.join(running[0][1])}\nerror: not done after {_LONGEST_SECONDS} s\n"
    finally:
        for process, *_ in running:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    return ""


def _failure(code: int, command: list[str], log: str, folder: Path) -> str:
    if code < 0 or "signal terminated program" in log:
        raise Unavailable(
            "the C++ compiler was killed while it built the CPU kernels; if the system ended it for want of memory, "
            "about 2 GB for each core are needed. The next process tries again."
        )
    if "No space left on device" in log:
        raise OSError(errno.ENOSPC, f"no space left on the disk of {folder} or of {tempfile.gettempdir()}")
    return f"{shlex.join(command)}\n{log}"


def _environment() -> dict[str, str]:
    # The same version and errors in every language; and a sanitizer that is loaded before Python is for Python alone.
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"} | {"LC_ALL": "C"}

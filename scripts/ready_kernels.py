"""Builds the CPU kernels that a wheel carries, in the folder that is named; what is there and still fits is kept.

CSHAM_READY_KERNELS=FOLDER in the environment then puts them into the wheel (setup.py).
"""

import platform
import shutil
import sys
import time
from pathlib import Path

from csham.ops.cpu.build import SOURCES
from csham.ops.cpu.compiler import compile_library, find_compiler
from csham.ops.cpu.ready import LIBRARY, describe, why_not


def main(folder: Path) -> None:
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        sys.exit("ready_kernels: wheels with kernels are for Linux on x86-64; elsewhere they are built on first use.")
    compiler = find_compiler()
    if compiler is None or not compiler.openmp:
        sys.exit("ready_kernels: needs GCC, whose OpenMP is the one that PyTorch brings; CXX names it.")
    if folder.is_dir() and not why_not(folder, SOURCES):
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    began = time.monotonic()
    failed = compile_library(SOURCES, compiler, folder / LIBRARY)
    for scratch in folder.glob("*.o*"):
        scratch.unlink()
    if failed:
        sys.exit(failed)
    describe(folder, SOURCES, compiler, round(time.monotonic() - began, 1))


main(Path(sys.argv[1]))

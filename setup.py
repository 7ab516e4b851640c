"""Puts kernels into the wheel where CSHAM_READY_KERNELS names their folder (scripts/ready_kernels.py); else nothing."""

import os
import shutil
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

READY = os.environ.get("CSHAM_READY_KERNELS")


class BuildPackage(build_py):
    """The package's files, and the kernels."""

    def run(self) -> None:
        super().run()
        if READY and not self.editable_mode:
            shutil.copytree(READY, Path(self.build_lib) / "csham/ops/cpu/ready", dirs_exist_ok=True)


class Wheel(bdist_wheel):
    """A wheel for every Python, and with kernels for Linux on x86-64 with the glibc that PyTorch's own wheels need."""

    def get_tag(self) -> tuple[str, str, str]:
        return ("py3", "none", "manylinux_2_28_x86_64") if READY else super().get_tag()


class WithKernels(Distribution):
    """A distribution for one kind of machine."""

    def has_ext_modules(self) -> bool:
        return bool(READY)


setup(cmdclass={"build_py": BuildPackage, "bdist_wheel": Wheel}, distclass=WithKernels)

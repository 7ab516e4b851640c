"""The library that comes with a wheel is used where it fits; where it does not, one is built, and it is said why."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from csham.ops.cpu import Unavailable, load
from csham.ops.cpu.build import SOURCES, build_library, find_library, own_library
from csham.ops.cpu.compiler import compile_library, find_compiler
from csham.ops.cpu.ready import LIBRARY, describe, find_ready

STAND_IN = Path(__file__).parent / "stand_in"
# Of a wheel that is installed, or as make dist leaves it.
PACKED = next(
    (
        folder
        for folder in (SOURCES / "ready", Path(__file__).parents[3] / "build/ready")
        if (folder / LIBRARY).is_file()
    ),
    None,
)

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def cache(no_kernels_yet):
    return no_kernels_yet


def pack(sources):
    """Build a library of the sources, and lay it beside them as a wheel does."""
    folder = sources / "ready"
    folder.mkdir(exist_ok=True)
    assert compile_library(sources, find_compiler(), folder / LIBRARY) == ""
    describe(folder, sources, find_compiler(), 1.0)
    return folder


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    sources = Path(shutil.copytree(STAND_IN, tmp_path_factory.mktemp("packed") / "sources"))
    pack(sources)
    return sources


@pytest.fixture
def sources(packed, tmp_path):
    return Path(shutil.copytree(packed, tmp_path / "sources"))


def test_what_came_with_the_wheel_is_loaded_without_a_compiler(cache, sources, monkeypatch, capfd):
    monkeypatch.setenv("PATH", "/nowhere")
    library = load(sources)
    assert (library.state, library.path) == ("ready", sources / "ready" / LIBRARY)
    assert str(library.path) in Path("/proc/self/maps").read_text()
    assert library.about()["threads"] is True
    assert not cache.exists()
    assert capfd.readouterr().err == ""


def shorten(sources, monkeypatch):
    library = sources / "ready" / LIBRARY
    library.write_bytes(library.read_bytes()[:-1000])


def flip_a_bit(sources, monkeypatch):
    library = sources / "ready" / LIBRARY
    held = bytearray(library.read_bytes())
    held[len(held) // 2] ^= 1
    library.write_bytes(held)


def lose_the_library(sources, monkeypatch):
    (sources / "ready" / LIBRARY).unlink()


def lose_the_description(sources, monkeypatch):
    (sources / "ready/about.json").unlink()


def mangle_the_description(sources, monkeypatch):
    (sources / "ready/about.json").write_text("[1, 2]")


def another_processor(sources, monkeypatch):
    about = json.loads((sources / "ready/about.json").read_text())
    (sources / "ready/about.json").write_text(json.dumps(about | {"machine": "riscv64"}))


def an_older_torch(sources, monkeypatch):
    monkeypatch.setattr("torch.__version__", "2.7.1+cpu")


def other_sources(sources, monkeypatch):
    (sources / "more.h").write_text("#pragma once\n")


def other_flags(sources, monkeypatch):
    monkeypatch.setenv("CSHAM_CXXFLAGS", "-g")


def link_elsewhere(sources, monkeypatch):
    (sources / "ready").rename(sources.parent / "elsewhere")
    (sources / "ready").symlink_to(sources.parent / "elsewhere")


def need_what_is_not_there(sources, monkeypatch):
    shutil.copy(STAND_IN.with_name("lacking.cpp"), sources)
    pack(sources)
    (sources / "lacking.cpp").unlink()
    describe(sources / "ready", sources, find_compiler(), 1.0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (shorten, "csham_kernels.so is damaged; installing csham again mends it"),
        (flip_a_bit, "csham_kernels.so is damaged"),
        (lose_the_library, "is incomplete (FileNotFoundError"),
        (lose_the_description, "is incomplete (FileNotFoundError"),
        (mangle_the_description, "is incomplete (TypeError"),
        (another_processor, "they are for riscv64 on linux, and this is "),
        (an_older_torch, "they need PyTorch 2.8 or later, and this is 2.7.1+cpu"),
        (other_sources, "they were built from other sources than those beside them"),
        (other_flags, "CSHAM_CXXFLAGS asks for other flags"),
        (link_elsewhere, "is a link to elsewhere"),
        (need_what_is_not_there, "they cannot be loaded: "),
    ],
)
def test_what_does_not_fit_is_built_instead_and_the_reason_is_said(
    cache, sources, monkeypatch, capfd, compiler, change, reason
):
    change(sources, monkeypatch)
    compiler()
    library = load(sources)
    assert library.state == "built"
    assert library.path.is_relative_to(cache / "kernels")
    said = capfd.readouterr().err
    assert "the kernels that came with csham are not used: " in said
    assert reason in said
    assert reason in library.refused


def test_without_a_compiler_the_reason_is_in_the_error(sources, monkeypatch):
    flip_a_bit(sources, monkeypatch)
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match=r"are not used: .* is damaged; .*there is no g\+\+"):
        load(sources)


def test_what_was_built_here_by_request_comes_first(sources, compiler):
    compiler()
    assert find_library(sources).state == "ready"
    build_library(own_library(sources), again=True)
    assert find_library(sources).state == "built"


def test_without_a_wheel_there_is_nothing_to_say(tmp_path):
    assert find_ready(STAND_IN) == (None, "")
    assert find_library(STAND_IN).refused == ""


RUN = """
import sys
from pathlib import Path
import torch
import csham
from csham import ops
from csham.ops import cpu

cpu._loaded[cpu.SOURCES] = cpu.load(Path(sys.argv[2]))
results = {}
for shape in ((2, 3, 5, 7), (3, 65, 8, 8), (2, 16, 32, 32)):
    for layout in (torch.contiguous_format, torch.channels_last):
        for dtype in (torch.float32, torch.bfloat16):
            torch.manual_seed(0)
            attention = csham.CSHAM(shape[1])
            x = torch.randn(shape).to(dtype).to(memory_format=layout).requires_grad_()
            with ops.use_kernels("cpu"):
                y = attention(x)
                y.backward(torch.randn(shape).to(dtype))
            assert y.is_contiguous(memory_format=layout)
            results[f"{shape} {layout} {dtype}"] = [y.detach(), x.grad, *(p.grad for p in attention.parameters())]
print(ops.choose("cpu").reason)
torch.save(results, sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(PACKED is None, reason="no library for a wheel was built: scripts/ready_kernels.py build/ready")
def test_the_library_of_the_wheel_computes_what_the_built_one_does(cpu_kernels, tmp_path):
    said = []
    for name in ("built", "ready"):
        sources = tmp_path / f"{name} sources"
        shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__", "ready"))
        if name == "ready":
            shutil.copytree(PACKED, sources / "ready")
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(tmp_path / name), str(sources)],
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
            env=os.environ | {"CSHAM_CACHE": str(Path(__file__).parents[3] / "build" if name == "built" else tmp_path)},
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert "built by" in said[0]
    assert "ready, from the wheel" in said[1]
    built, ready = (torch.load(tmp_path / name) for name in ("built", "ready"))
    for case, tensors in built.items():
        for one, other in zip(tensors, ready[case], strict=True):
            torch.testing.assert_close(other, one, msg=lambda text, case=case: f"{case}: {text}")

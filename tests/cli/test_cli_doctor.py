"""csham doctor says which kernels run and why, and mends what can be mended."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from csham.ops import choice, cpu
from csham.ops.cpu.build import find_library, own_library
from csham.ops.cpu.compiler import compile_library, find_compiler
from csham.ops.cpu.ready import LIBRARY, describe

BROKEN = "echo 'scale.cpp:3: error: broken' >&2; exit 1"


@pytest.fixture
def doctor(csham, no_kernels_yet, compiler, monkeypatch):
    compiler()

    def call(*words, code=0):
        for module, name in ((cpu, "_loaded"), (cpu, "_failed"), (choice, "_chosen")):
            monkeypatch.setattr(module, name, {})  # as in a process of its own
        found, out, err = csham("doctor", "--json", *words)
        assert found == code, err
        return json.loads(out) if out else err

    return call


def test_nothing_is_built_for_the_answer(doctor, no_kernels_yet):
    found = doctor()
    assert found["kernels"]["cpu"] == {"name": "cpu", "reason": "built on first use, or now by csham doctor --build"}
    assert found["cache"]["state"] == "not built"
    assert not no_kernels_yet.exists()
    assert found["versions"]["torch"] == torch.__version__
    assert found["threads"] == torch.get_num_threads()
    assert found["compiler"]["version"] == "stand-in 1.0"


def test_build_and_clear(doctor, no_kernels_yet):
    found = doctor("--build")
    assert found["kernels"]["cpu"]["name"] == "cpu"
    assert "built by stand-in 1.0" in found["kernels"]["cpu"]["reason"]
    cache = found["cache"]
    assert (cache["state"], cache["versions"]) == ("built", 1)
    assert cache["folder"] == str(no_kernels_yet / "kernels")
    assert cache["bytes"] > 1000
    assert doctor("--clear")["cache"]["versions"] == 0


def test_what_came_with_the_wheel_until_something_is_built(doctor, monkeypatch, no_kernels_yet, tmp_path):
    sources = Path(shutil.copytree(Path(__file__).parents[1] / "ops/cpu/stand_in", tmp_path / "sources"))
    (sources / "ready").mkdir()
    compile_library(sources, find_compiler(), sources / "ready" / LIBRARY)
    describe(sources / "ready", sources, find_compiler(), 1.0)
    monkeypatch.setattr(cpu.load, "__defaults__", (sources,))
    monkeypatch.setattr(find_library, "__defaults__", (sources,))
    monkeypatch.setattr(own_library, "__defaults__", (sources, ""))
    for found in (doctor(), doctor("--build")):
        assert found["kernels"]["cpu"]["reason"].endswith(", ready, from the wheel")
        assert (found["cache"]["state"], found["cache"]["library"]) == ("ready", str(sources / "ready"))
    assert not no_kernels_yet.exists()
    assert "built by stand-in 1.0" in doctor("--rebuild")["kernels"]["cpu"]["reason"]
    assert doctor("--clear")["cache"]["state"] == "ready"
    (sources / "more.h").touch()
    cache = doctor()["cache"]
    assert cache["state"] == "not built"
    assert "those that came with csham are not used: they were built from other sources" in cache["detail"]


def test_a_failed_build_and_another_try(doctor, compiler, monkeypatch):
    calls = compiler(BROKEN)
    assert "error: broken" in doctor("--build", code=2)
    tried = len(calls())
    found = doctor()
    assert found["kernels"]["cpu"]["name"] == "reference"
    assert "error: broken" in found["kernels"]["cpu"]["reason"]
    assert "failed.log" in found["cache"]["detail"]
    doctor("--build", code=2)
    assert len(calls()) == tried
    monkeypatch.setenv("CSHAM_KERNELS", "cpu")
    assert doctor(code=1)["kernels"]["cpu"]["name"] is None
    compiler()
    assert doctor("--rebuild")["kernels"]["cpu"]["name"] == "cpu"


def test_no_compiler(doctor, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = doctor()
    assert found["compiler"] is None
    assert found["kernels"]["cpu"]["name"] == "reference"
    assert "no CXX=no-such-compiler" in found["kernels"]["cpu"]["reason"]
    assert "no C++ compiler" in doctor("--rebuild", code=2) or "no-such-compiler" in doctor("--rebuild", code=2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_triton_without_a_gpu(doctor, monkeypatch):
    monkeypatch.setenv("CSHAM_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    kernels = doctor(code=1)["kernels"]
    assert kernels["cuda"] == {"name": None, "reason": "PyTorch sees no CUDA device"}
    assert "TRITON_INTERPRET=1" in kernels["cpu"]["reason"]


def test_an_unknown_name(doctor, monkeypatch):
    monkeypatch.setenv("CSHAM_KERNELS", "cuda")
    assert "unknown kernels 'cuda'" in doctor(code=2)


def test_the_precision_that_auto_is(doctor, monkeypatch):
    monkeypatch.setenv("CSHAM_AUTO_PRECISION", "bf16")
    found = doctor()["precision"]
    assert (found["name"], found["reason"]) == ("bf16", "CSHAM_AUTO_PRECISION says so")
    monkeypatch.delenv("CSHAM_AUTO_PRECISION")
    assert doctor()["precision"]["name"] in ("fp32", "bf16")


def test_the_table(doctor, csham):
    doctor("--build")
    code, out, _ = csham("doctor")
    assert code == 0
    for words in ("cpu tensors", "built by stand-in 1.0", "memory retention", "1 version, ", "precision auto"):
        assert words in out

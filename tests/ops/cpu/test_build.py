"""The kernels are built once, whole or not at all, by whoever comes first; what goes wrong is said and survived."""

import ctypes
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest

from csham.errors import UserError
from csham.ops import cpu
from csham.ops.cpu import Unavailable, load
from csham.ops.cpu.build import SOURCES, build_library, clear, find_library
from csham.ops.cpu.compiler import find_compiler
from csham.ops.operators import OPERATORS

STAND_IN = Path(__file__).parent / "stand_in"

pytestmark = pytest.mark.skipif(find_compiler() is None, reason="there is no C++ compiler")


@pytest.fixture
def sources(tmp_path):
    return Path(shutil.copytree(STAND_IN, tmp_path / "sources"))


@pytest.fixture(autouse=True)
def cache(no_kernels_yet):
    return no_kernels_yet


def left_over(cache):
    return [path.name for path in (cache / "kernels").iterdir() if path.name.startswith(".") and path.name != ".lock"]


def test_built_on_first_use_and_found_afterwards(cache, sources, capfd, monkeypatch):
    library = load(sources)
    first, second = capfd.readouterr().err.splitlines()
    assert first.startswith("csham: building the CPU kernels (once, about ")
    assert second.startswith("csham: built in ")
    every_set = 160804 if platform.machine() == "x86_64" else 4
    assert ctypes.CDLL(str(library.path)).stand_in_widths() == every_set
    assert library.path.is_relative_to(cache / "kernels")
    assert {path.name for path in library.folder.iterdir()} == {library.path.name, "about.json"}
    assert left_over(cache) == []
    monkeypatch.setattr(cpu, "_loaded", {})  # as another process would find it
    assert load(sources) == library
    assert capfd.readouterr().err == ""


def test_a_name_for_all_that_the_library_is_made_of(sources, monkeypatch, compiler):
    names = [find_library(sources).folder.name]
    (sources / "more.h").write_text("#pragma once\n")
    names.append(find_library(sources).folder.name)
    (sources / "more.h").write_text("#pragma once\n\n")
    names.append(find_library(sources).folder.name)
    monkeypatch.setattr("torch.__version__", "2.99")
    names.append(find_library(sources).folder.name)
    for flags in ("-g", "-march=native"):
        monkeypatch.setenv("CSHAM_CXXFLAGS", flags)
        names.append(find_library(sources).folder.name)
    monkeypatch.setattr("csham.ops.cpu.build._processor_flags", lambda: "flags: another processor")
    names.append(find_library(sources).folder.name)
    compiler()
    names.append(find_library(sources).folder.name)
    assert len(set(names)) == len(names)
    assert find_library(sources).folder.name == names[-1]


def test_a_failed_build_shows_the_compilers_words_and_is_remembered(sources, compiler, monkeypatch, capfd):
    calls = compiler("echo 'width.cpp:3: error: no such thing' >&2; exit 1")
    with pytest.raises(Unavailable, match=r"width.cpp:3: error: no such thing.*failed.log.*--rebuild") as caught:
        load(sources)
    library = find_library(sources)
    assert library.state == "failed"
    assert str(library.log) in str(caught.value)
    assert "no such thing" in library.log.read_text()
    assert "failed after" in capfd.readouterr().err
    tried = len(calls())
    with pytest.raises(Unavailable, match="no such thing"):
        load(sources)  # again in this process
    monkeypatch.setattr(cpu, "_failed", {})
    with pytest.raises(Unavailable, match="no such thing"):
        load(sources)  # in the next one
    assert len(calls()) == tried
    compiler()
    build_library(find_library(sources), again=True)
    assert find_library(sources).state == "built"


def test_an_error_in_the_sources(sources):
    (sources / "width.cpp").write_text("#error this is wrong\n")
    with pytest.raises(Unavailable, match="this is wrong"):
        load(sources)


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ("kill -9 $$", "was killed while it built"),
        ("echo 'fatal error: Killed signal terminated program cc1plus'; exit 1", "was killed while it built"),
        ("echo 'as: No space left on device'; exit 1", "no space left on the disk"),
    ],
)
def test_what_says_nothing_about_the_sources_is_not_remembered(cache, sources, compiler, first, message):
    compiler(first)
    with pytest.raises(Unavailable, match=message):
        load(sources)
    assert find_library(sources).state == "not built"
    assert left_over(cache) == []


def test_a_library_that_cannot_be_loaded(sources):
    shutil.copy(STAND_IN.with_name("lacking.cpp"), sources)
    with pytest.raises(Unavailable, match=r"cannot be loaded: .*nowhere.*--rebuild"):
        load(sources)


def test_no_compiler(sources, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(Unavailable, match=r"there is no CXX=no-such-compiler. Install one .*CXX"):
        load(sources)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(Unavailable, match=r"there is no g\+\+, c\+\+ or clang\+\+"):
        find_library(sources)


def test_no_compiler_where_another_machine_has_built(sources, monkeypatch):
    built = load(sources)
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert find_library(sources).path == built.path


@pytest.mark.parametrize("variable", ["CXX", "CSHAM_CXXFLAGS"])
def test_flags_that_no_shell_would_read(sources, monkeypatch, variable):
    monkeypatch.setenv(variable, "'-O1")
    with pytest.raises(UserError, match=f"{variable}='-O1: No closing quotation"):
        find_library(sources)


def test_a_cache_that_cannot_be_written(sources, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CSHAM_CACHE", str(tmp_path / "file"))
    with pytest.raises(Unavailable, match=r"cannot be kept in .*file.*Not a directory.*CSHAM_CACHE"):
        load(sources)


def test_a_cache_from_which_nothing_runs(sources, tmp_path, monkeypatch, capfd):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "noexec,size=64m", "none", disk]
    if shutil.which("mount") is None or subprocess.run(mount, check=False).returncode:
        pytest.skip("cannot mount a disk in memory")
    capfd.readouterr()
    monkeypatch.setenv("CSHAM_CACHE", str(disk))
    try:
        with pytest.raises(Unavailable, match=r"cannot be kept in .*disk.*mounted noexec.*CSHAM_CACHE"):
            load(sources)
        assert capfd.readouterr().err == ""  # and nothing was compiled
        assert left_over(disk) == []
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)


def test_parts_of_a_library_are_replaced(sources):
    library = find_library(sources)
    library.folder.mkdir(parents=True)
    (library.folder / "about.json").write_text("{")
    assert library.about() == {}
    assert load(sources).about()["torch"]


def test_ctrl_c_ends_the_compilers_and_leaves_nothing(cache, sources, compiler, monkeypatch):
    calls = compiler("sleep 60")

    def interrupt(seconds):
        while not calls():
            pass
        raise KeyboardInterrupt

    clock = types.SimpleNamespace(monotonic=time.monotonic, sleep=interrupt)
    monkeypatch.setattr("csham.ops.cpu.compiler.time", clock)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        load(sources)
    assert time.monotonic() - began < 30
    assert left_over(cache) == []
    assert find_library(sources).state == "not built"


def test_clear_removes_every_version(cache, sources):
    clear()  # nothing yet
    load(sources)
    (sources / "more.h").touch()
    build_library(find_library(sources))
    clear()
    assert [path.name for path in (cache / "kernels").iterdir()] == [".lock"]


def test_the_package_has_its_sources():
    names = {path.name for path in SOURCES.iterdir()}
    assert {"kernel.h", "vectors.h", *(f"{operator}.cpp" for operator in OPERATORS)} <= names


LOAD = """
import sys
from pathlib import Path
from csham.ops.cpu import load
print(load(Path(sys.argv[1])).path, flush=True)
"""


def process(sources, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", LOAD, str(sources)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        start_new_session=True,
    )


@pytest.mark.long
@pytest.mark.slow
def test_of_many_processes_one_builds(sources, compiler):
    calls = compiler("sleep 1")
    processes = [process(sources) for _ in range(3)]
    said = [entry.communicate(timeout=300) for entry in processes]
    assert [entry.returncode for entry in processes] == [0] * 3, said
    assert len({out for out, _ in said}) == 1
    assert len(calls()) == len(set(calls())) > 0
    assert sum("building" in err and "built in" in err for _, err in said) == 1
    assert all(len(err.splitlines()) <= 1 for _, err in said if "built in" not in err)


@pytest.mark.long
@pytest.mark.slow
def test_after_kill_9_the_next_process_builds(cache, sources, compiler):
    calls = compiler("sleep 20")
    killed, waiting = process(sources), None
    while not calls():
        assert killed.poll() is None
        time.sleep(0.05)
    compiler()  # for those who come after
    waiting = process(sources)
    while "waiting for another process" not in waiting.stderr.readline():
        assert waiting.poll() is None
    os.kill(killed.pid, signal.SIGKILL)  # and not its compilers
    killed.communicate(timeout=60)
    out, _ = waiting.communicate(timeout=300)
    assert waiting.returncode == 0
    assert Path(out.strip()).is_file()
    assert left_over(cache) == []


THREADS = """
import sys
from pathlib import Path
import torch
from csham.ops.cpu import load
load(Path(sys.argv[1]))
torch.set_num_threads(2)
print(torch.ops.csham_stand_in.threads(64))
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line or "libomp" in line}))
"""


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="GCC's OpenMP is shared with PyTorch on Linux")
def test_threads_are_pytorchs_own():
    done = subprocess.run(
        [sys.executable, "-c", THREADS, str(STAND_IN)],
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
        env=os.environ | {"CSHAM_CXXFLAGS": "-DWITH_TORCH", "OMP_NUM_THREADS": "2"},
    )
    assert done.stdout.split() == ["2", "1"], done.stderr

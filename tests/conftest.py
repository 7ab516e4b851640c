"""What every test shares: settings of hypothesis, seeds, threads, a cache folder of its own, and small images."""

import gc
import importlib
import json
import os
import shutil
import sys
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

# Without a GPU the Triton kernels run in its interpreter, which has to be said before anything imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Torch reads it once, in the first product on a GPU; a deterministic run may come after others in one process.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

# One thread in the processes that tests start, as in this one (_one_thread).
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A slow shared machine must not turn a property test red.
hypothesis.settings.register_profile(
    "csham",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    max_examples=40,
    derandomize=bool(os.environ.get("CI")),
)
hypothesis.settings.load_profile("csham")


def pytest_collection_modifyitems(items):
    """Leave out what takes a minute or more: make test is to take less than ten on two cores."""
    if not os.environ.get("CSHAM_LONG_TESTS"):
        for item in items:
            if item.get_closest_marker("long"):
                item.add_marker(pytest.mark.skip(reason="takes a minute or more: make test-long"))


def pytest_collection_finish():
    """Let no later garbage collection, which csham asks for between runs, go through every module and test again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def own_names():
    """Names of attentions, backbones and modules of a user's own, which are forgotten after the test."""
    from csham.backbones.names import BACKBONES
    from csham.layers.names import ATTENTIONS

    tables = [(table, dict(table)) for table in (ATTENTIONS, BACKBONES)]
    modules, path = set(sys.modules), list(sys.path)
    yield
    for table, before in tables:
        table.clear()
        table.update(before)
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("own_"):
            del sys.modules[name]


@pytest.fixture(autouse=True)
def _no_width(monkeypatch):
    # Readline, which debuggers load, writes it into the environment; tables would then be cut to a terminal's width.
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")
    # But for the kernels, which take a minute to build: all test processes share them, today's and tomorrow's.
    kernels = Path(__file__).parent.parent / "build/kernels"
    kernels.mkdir(parents=True, exist_ok=True)
    (cache / "kernels").symlink_to(kernels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSHAM_CACHE", str(cache))
        yield


# Compiles anything into an empty library, and writes a line for every object file.
COMPILER = """#!/bin/sh
[ "$1" = --version ] && echo "stand-in 1.0" && exit
for target; do :; done
case " $* " in
*" -c "*) echo "$target" >> "$0.log"; %s; : > "$target" ;;
*) exec g++ -shared -x c++ /dev/null -o "$target" ;;
esac
"""


@pytest.fixture
def no_kernels_yet(tmp_path, monkeypatch):
    """A process and a cache without kernels, nor those of a wheel that is installed; returns the cache folder."""
    from csham.ops import choice, cpu
    from csham.ops.cpu import build

    find = build.find_ready
    monkeypatch.setattr(build, "find_ready", lambda sources: (None, "") if sources == build.SOURCES else find(sources))
    for module, name in ((cpu, "_loaded"), (cpu, "_failed"), (choice, "_chosen")):
        monkeypatch.setattr(module, name, {})
    monkeypatch.delenv("CSHAM_KERNELS", raising=False)
    monkeypatch.setenv("CSHAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    """Function that makes CXX a compiler of no time, which first does what it is told; returns the list of calls."""
    script = tmp_path / "compiler"
    log = tmp_path / "compiler.log"

    def install(first=":"):
        script.write_text(COMPILER % first)
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return lambda: log.read_text().splitlines() if log.exists() else []

    return install


@pytest.fixture(scope="session", autouse=True)
def _no_waiting_for_disks():
    # What tests write need not outlive a power cut. Those about power cuts write down the calls themselves.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield


@pytest.fixture(autouse=True)
def _blank_curves(monkeypatch):
    # A fifth of a second at the end of each training; runs that tests share, and those of other processes, are drawn.
    finish = sys.modules.get("csham.training.finish")
    if finish:
        blank = lambda folder, _: finish.write_atomically(folder.path / "curves.png", lambda file: file.write(b"blank"))  # noqa: E731
        monkeypatch.setattr(finish, "_draw_curves", blank)


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # Two threads on maps this small, on a machine that others use too, mostly wait for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _write_images(root, classes=("ant", "bee", "cow"), count=20, seed=0):
    """Noise of 16 pixels with one channel lighter for each class: learnt within an epoch."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 120, (16, 16, 3)).astype(np.uint8)
            pixels[:, :, number % 3] += 100
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture
def benchmark_script(monkeypatch):
    """Function that imports a script of benchmarks/ by its name."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module


@pytest.fixture(scope="session")
def write_images():
    """Function that writes a folder of images and returns it."""
    return _write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory, write_images):
    """A folder of three easy classes."""
    return write_images(tmp_path_factory.mktemp("images") / "animals")


@pytest.fixture(scope="session")
def cpu_kernels():
    """The C++ kernels, ready or built, and loaded."""
    from csham import ops
    from csham.ops.cpu.build import SOURCES
    from csham.ops.cpu.ready import find_ready

    compilers = filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++"))
    if find_ready(SOURCES)[0] is None and not any(map(shutil.which, compilers)):
        pytest.skip("needs a C++ compiler")
    with ops.use_kernels("cpu"):
        assert ops.choose("cpu").name == "cpu"


@pytest.fixture
def reference():
    """Plain PyTorch instead of kernels."""
    from csham import ops

    with ops.use_kernels("reference"):
        yield


@pytest.fixture(scope="session")
def settings(images):
    """What makes a run of 42 training images, 6 steps an epoch."""
    return {
        "data": str(images),
        "backbone": "resnet20",
        "image_size": 16,
        "epochs": 2,
        "batch_size": 8,
        "lr": 0.05,
        "compile": False,
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def finished(settings, tmp_path_factory):
    """The folder of a finished run of a plain network."""
    from csham.training.config import resolve
    from csham.training.loop import train

    run = tmp_path_factory.mktemp("runs") / "finished"
    train(resolve({**settings, "track_test": True}), run=run)
    return run


@pytest.fixture(scope="session")
def copy_unlisted():
    """Function that copies a run folder as earlier versions wrote it: without sums, so that a test may change it."""

    def copy(run, place):
        return shutil.copytree(run, place, ignore=shutil.ignore_patterns("csham.sha256"))

    return copy


@pytest.fixture
def older(finished, copy_unlisted, tmp_path):
    """A finished run of before summaries said which images it had, without its checkpoints."""
    run = copy_unlisted(finished, tmp_path / "older")
    shutil.rmtree(run / "checkpoints")
    summary = json.loads((run / "summary.json").read_text())
    del summary["data_fingerprint"]
    (run / "summary.json").write_text(json.dumps(summary))
    return run


@pytest.fixture(scope="session")
def attended(settings, tmp_path_factory):
    """The folder of a finished run of the same network with CSHAM, strategy transfer, on the reference."""
    from csham import ops
    from csham.training.config import resolve
    from csham.training.loop import train

    run = tmp_path_factory.mktemp("runs") / "attended"
    with ops.use_kernels("reference"):
        train(resolve({**settings, "attention": "csham", "strategy": "transfer", "epochs": 1}), run=run)
    return run

"""One function says which kernels run and why; what was named runs or fails, what was not falls back once, aloud."""

import re
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
import torch

from csham.errors import UserError
from csham.ops import choice, cpu
from csham.ops.choice import Choice, choose, kernels, use_kernels


@pytest.fixture(autouse=True)
def fresh(no_kernels_yet):
    pass


@pytest.fixture
def loads(monkeypatch):
    """The C++ kernels load at once; returns a list that grows with every time."""
    done = []

    def load():
        done.append(1)
        return cpu.Library(Path("nowhere"), Path("nowhere"), None)

    monkeypatch.setattr(cpu, "load", load)
    return done


@pytest.fixture
def cannot_load(monkeypatch):
    def load():
        raise cpu.Unavailable("the compiler is on holiday.")

    monkeypatch.setattr(cpu, "load", load)


@pytest.fixture
def triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "csham.ops.triton", types.ModuleType("csham.ops.triton"))


@pytest.fixture
def no_triton(monkeypatch):
    monkeypatch.setitem(sys.modules, "csham.ops.triton", None)


def test_auto_takes_the_kernels_of_the_device(loads, triton):
    assert kernels("cpu") == "cpu"
    assert kernels("cuda") == "triton"
    assert kernels("cpu") == "cpu"
    assert loads == [1]


@pytest.fixture
def launcher(triton, monkeypatch):
    """A machine with a GPU; function that says how Triton's driver is made, and returns how often it was."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))

    def is_made(error=None):
        made = []

        def get_current_target():
            made.append(1)
            if error is not None:
                raise error

        runtime = types.ModuleType("triton.runtime")
        runtime.driver = types.SimpleNamespace(active=types.SimpleNamespace(get_current_target=get_current_target))
        monkeypatch.setitem(sys.modules, "triton.runtime", runtime)
        return made

    return is_made


def test_triton_is_asked_once_whether_it_can_launch(launcher, monkeypatch):
    made = launcher()
    assert kernels("cuda") == kernels("cuda") == "triton"
    assert made == [1]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use_kernels("triton"):
        assert kernels("cpu") == "triton"
    assert made == [1]


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("Failed to find C compiler."),
        PermissionError(13, "Permission denied", "/.triton"),
        AssertionError("libcuda.so cannot found!"),
    ],
)
def test_auto_falls_back_where_triton_cannot_launch(launcher, error):
    made = launcher(error)
    said = re.escape(f"reference on cuda tensors: Triton cannot launch kernels here ({type(error).__name__}: {error})")
    with pytest.warns(UserWarning, match=said + r".*install gcc .*CC=.*TRITON_CACHE_DIR"):
        assert kernels("cuda") == "reference"
    assert kernels("cuda") == "reference"
    assert made == [1]
    with use_kernels("triton"), pytest.raises(UserError, match=r"'triton' were asked for .*install gcc"):
        kernels("cuda")


@pytest.mark.parametrize(("device", "reason"), [("mps", "no kernels for mps"), ("meta", "nothing to compute")])
def test_other_devices_have_the_reference(device, reason):
    assert choose(device).name == "reference"
    assert reason in choose(device).reason


def test_auto_falls_back_with_one_warning(cannot_load, no_triton):
    with pytest.warns(UserWarning, match=r"reference on cpu tensors: the compiler is on holiday\. .*CSHAM_KERNELS"):
        assert kernels("cpu") == "reference"
    with pytest.warns(UserWarning, match=r"reference on cuda tensors: .*Triton.*pip install"):
        assert kernels("cuda") == "reference"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose("cpu") == Choice("reference", "the compiler is on holiday.")
        assert kernels("cuda") == "reference"


def test_the_environment_names_one(loads, monkeypatch):
    monkeypatch.setenv("CSHAM_KERNELS", "reference")
    assert kernels("cpu") == kernels("cuda") == "reference"
    assert loads == []
    monkeypatch.setenv("CSHAM_KERNELS", "cpu")
    assert kernels("cpu") == "cpu"
    monkeypatch.setenv("CSHAM_KERNELS", "")
    assert kernels("mps") == "reference"


@pytest.mark.parametrize(
    ("named", "device", "message"),
    [
        ("cpu", "cpu", r"'cpu' .* cpu tensors: the compiler is on holiday\."),
        ("cpu", "cuda", "run on CPU tensors only"),
        ("triton", "cpu", "with TRITON_INTERPRET=1"),
        ("triton", "mps", "run on CUDA tensors only"),
        ("triton", "cuda", "cannot be imported .*pip install"),
    ],
)
def test_what_was_named_and_cannot_run_is_an_error(cannot_load, no_triton, monkeypatch, named, device, message):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with use_kernels(named), pytest.raises(UserError, match=message) as caught:
        kernels(device)
    assert caught.value.__cause__ is not None
    assert "CSHAM_KERNELS=auto" in str(caught.value)


def test_tritons_interpreter_takes_cpu_tensors(triton, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with use_kernels("triton"):
        assert choose("cpu") == Choice("triton", "Triton's interpreter")


def test_an_unknown_name(monkeypatch):
    with pytest.raises(
        UserError, match=r"unknown kernels 'tritn'. Did you mean 'triton'.*auto, reference, cpu, triton"
    ):
        use_kernels("tritn").__enter__()
    monkeypatch.setenv("CSHAM_KERNELS", "fast")
    with pytest.raises(UserError, match=r"unknown kernels 'fast'.*CSHAM_KERNELS"):
        kernels("cpu")


def test_use_kernels_nests_and_ends(loads):
    with use_kernels("reference"):
        with use_kernels("auto"):
            assert kernels("cpu") == "cpu"
        assert kernels("cpu") == "reference"
        with pytest.raises(KeyError), use_kernels("cpu"):
            raise KeyError
        assert kernels("cpu") == "reference"
    assert kernels("cpu") == "cpu"


def test_use_kernels_is_of_this_thread(loads):
    seen = []
    with use_kernels("reference"):
        thread = threading.Thread(target=lambda: seen.append(kernels("cpu")))
        thread.start()
        thread.join()
    assert seen == ["cpu"]


def test_threads_that_come_together_load_once(loads):
    together = threading.Barrier(8)
    seen = []

    def call():
        together.wait()
        seen.append(kernels("cpu"))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == ["cpu"] * 8
    assert loads == [1]


@pytest.mark.slow
def test_the_choice_is_made_while_tracing_and_breaks_no_graph(loads):
    def f(x):
        return x * {"cpu": 2, "reference": 3}[choice.kernels(x.device.type)]

    x = torch.ones(2)
    with use_kernels("reference"):
        assert torch.compile(f, fullgraph=True, backend="eager")(x)[0] == 3
    assert loads == []
    torch.compiler.reset()
    assert torch.compile(f, fullgraph=True, backend="eager")(x)[0] == 2
    assert loads == [1]

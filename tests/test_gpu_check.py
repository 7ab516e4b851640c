"""scripts/gpu-check walks through all that it would measure on a GPU, and ends with a table."""

import ast
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def long(test):
    return pytest.mark.long(pytest.mark.slow(pytest.mark.timeout(3000)(test)))


def check(*words):
    environment = {**os.environ, "PYTHON": sys.executable, "CSHAM_KERNELS": "reference"}
    command = [ROOT / "scripts/gpu-check", "--device", "cpu", "--tiny", "--no-record", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_tests_that_it_runs_are_there():
    written = ast.parse((ROOT / "benchmarks/gpu_check.py").read_text(encoding="utf-8")).body
    listed = [
        one.value for one in written if isinstance(one, ast.Assign) and getattr(one.targets[0], "id", "") == "TESTS"
    ]
    paths = ast.literal_eval(listed[0])
    assert paths
    assert not [path for path in paths if not (ROOT / path).exists()]


@pytest.mark.slow
def test_what_a_stage_lacks_is_said_first_and_keeps_nothing_from_starting():
    script = "import runpy, sys; sys.modules |= dict.fromkeys(['hypothesis', 'rich', 'sklearn']); "
    script += "sys.argv[0] = 'benchmarks/gpu_check.py'; runpy.run_path(sys.argv[0], run_name='__main__')"
    words = ["--device", "cpu", "--tiny", "--no-record", "--seconds", "0", "--stages", "training"]
    path = os.pathsep.join(map(str, (ROOT / "src", ROOT / "benchmarks")))
    environment = {**os.environ, "PYTHONPATH": path, "CSHAM_KERNELS": "reference"}
    command = [sys.executable, "-c", script, *words]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "training: fails, or some of it, without rich, scikit-learn\n" in done.stdout
    assert "tests: fails" not in done.stdout
    assert "training: no time left before" in done.stdout


@pytest.mark.parametrize(
    ("code", "output", "errors", "said"),
    [
        (0, "\n5 passed in 1 s\n", "nanobind: leaked", "5 passed in 1 s"),
        (1, "FAILED tests/a.py\n1 failed\n", "nanobind: leaked", "1 failed"),
        (1, "", "/bin/python: No module named pytest\n", "/bin/python: No module named pytest"),
        (4, "", "E   ModuleNotFoundError: No module named 'hypothesis'\n", "No module named 'hypothesis'"),
        (4, "", "a.py: error: unrecognized arguments: -n\n  inifile: a\n  rootdir: b\n", "unrecognized arguments: -n"),
        (5, "", "", "no output"),
    ],
)
def test_why_pytest_could_not_run_is_noted(benchmark_script, monkeypatch, code, output, errors, said):
    gpu_check, noted = benchmark_script("gpu_check"), []
    done = subprocess.CompletedProcess([], code, output, errors)
    monkeypatch.setattr(gpu_check.subprocess, "run", lambda *given, **named: done)
    monkeypatch.setattr(gpu_check, "note", lambda *given, note: noted.append(note))
    gpu_check.run_tests(gpu_check.parse(["--device", "cpu"]))
    assert said in noted[0]


def test_what_is_compiled_is_for_one_shape_as_in_a_process_of_its_own(benchmark_script, monkeypatch):
    gpu_check = benchmark_script("gpu_check")
    seen = []

    def look(graph, inputs):
        seen.append([value.shape for value in inputs if isinstance(value, torch.Tensor)])
        assert not any(isinstance(size, torch.SymInt) for shape in seen[-1] for size in shape)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=look))
    monkeypatch.setattr(gpu_check, "MAPS", [((2, 8, n, n), "channels_last") for n in (4, 5, 6)])
    monkeypatch.setattr(gpu_check, "OPS", ["se"])
    monkeypatch.setattr(gpu_check, "timed", lambda args, stage, what, steps: {name: run(step) for name, step in steps})
    monkeypatch.setattr(gpu_check, "note", lambda *given, **figures: None)
    list(gpu_check.modules(gpu_check.parse(["--device", "cpu"])))
    assert len(seen) == 3


def run(step):
    step()
    return 1.0


@long
def test_every_stage_leaves_figures():
    done = check("--stages", "modules,networks,kernels,training")
    assert done.returncode == 0, done.stderr
    _, _, table = done.stdout.rpartition("\n\n")
    figures = [line for line in table.splitlines() if line.startswith(("modules", "networks", "kernels", "training"))]
    assert {line.split()[0] for line in figures} == {"modules", "networks", "kernels", "training"}
    assert not [line for line in figures if "Error" in line]
    assert "csham train, 2 at once" in table
    assert "csham compare, 2 in turns" in table


@long
def test_what_is_cut_off_leaves_what_there_is():
    done = check("--stages", "modules,training", "--seconds", "0")
    assert done.returncode == 0, done.stderr
    assert "no time left before" in done.stdout

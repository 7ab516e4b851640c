"""Four files are a new operator, on every kind of kernels, and the tests of all operators are its tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ADDITION = Path(__file__).parent / "addition"


@pytest.fixture
def checkout(tmp_path):
    """A copy of package and tests, with the four files of the addition in their places."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "zoo", "ready"))
    for name in ("tests/conftest.py", "tests/ops/test_operators.py", "pyproject.toml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "tests/ops/operator_cases", tmp_path / "tests/ops/operator_cases")
    for name, place in (
        ("operators/variance_pool.py", "src/csham/ops"),
        ("cpu/variance_pool.cpp", "src/csham/ops"),
        ("triton/variance_pool.py", "src/csham/ops"),
        ("operator_cases/variance_pool.py", "tests/ops"),
    ):
        shutil.copy(ADDITION / name, tmp_path / place / name)
    return tmp_path


def asked(checkout, words):
    """The questions that were asked of the addition, by kernels, and how each ended."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/ops/test_operators.py", "-k", words, "-v", "-p", "no:cacheprovider"],
        cwd=checkout,
        env=os.environ | {"PYTHONPATH": str(checkout / "src"), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    found = re.findall(r"::(test_\w+)\[(\w+)-variance_pool\S* (PASSED|FAILED|ERROR|SKIPPED)", done.stdout)
    assert found, done.stdout + done.stderr
    return found, done.stdout


@pytest.mark.slow
def test_its_triton_kernels_are_tested_unasked(checkout):
    pytest.importorskip("triton", reason="Triton is not installed")
    found, said = asked(checkout, "variance_pool and triton")
    assert {kernels for _, kernels, _ in found} == {"triton"}
    assert {ended for *_, ended in found} == {"PASSED"}, said
    assert len({question for question, *_ in found}) == 4


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_its_cpp_kernels_are_built_and_tested_unasked(checkout):
    found, said = asked(checkout, "variance_pool and cpu")
    assert {ended for *_, ended in found} == {"PASSED"}, said
    assert len({question for question, *_ in found}) == 4
    operator = checkout / "src/csham/ops/operators/variance_pool.py"
    operator.write_text(operator.read_text().replace("saved.mean, grads", "saved.mean + 1, grads"))
    found, said = asked(checkout, "variance_pool and cpu")
    assert ("test_results_and_gradients_are_those_of_plain_formulas", "cpu", "FAILED") in found, said

"""csham.keras on each backend, which is chosen when Keras is imported: a process each, for the checks and the page."""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from csham import keras as csham_keras

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs/keras.md"
slow = pytest.mark.slow


def run(backend, *arguments, cwd=None):
    for module in ("keras", backend):
        if find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    env = {**os.environ, "KERAS_BACKEND": backend, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTEST_ADDOPTS": ""}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stdout[-10_000:] + done.stderr[-3000:]
    return done.stdout


@pytest.mark.timeout(1300)
@pytest.mark.parametrize(
    ("backend", "which"),
    [
        pytest.param("torch", "not slow", marks=slow),
        *(
            pytest.param(backend, which, marks=[slow, pytest.mark.long])
            for backend, which in [("torch", "slow"), ("jax", ""), ("tensorflow", "")]
        ),
    ],
)
def test_the_layers(backend, which):
    pytest_ = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", which]
    out = run(backend, *pytest_, str(TESTS / "keras_checks.py"), cwd=TESTS.parent)
    assert re.search(r"\d+ passed", out)
    assert not re.search(r"\d+ failed", out)


@slow
@pytest.mark.long
@pytest.mark.timeout(1300)
@pytest.mark.parametrize("backend", ["torch", "jax", "tensorflow"])
def test_the_pages_python_does_what_it_says(backend, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    (tmp_path / "page.py").write_text("\n".join(blocks), encoding="utf-8")
    run(backend, "page.py", cwd=tmp_path)


def test_keras_is_imported_when_a_layer_is_used_and_torch_is_not():
    out = run("jax", "-c", "import csham, csham.keras, sys; print('keras' in sys.modules); csham.keras.attach_keras\n"
        "print('keras' in sys.modules, 'torch' in sys.modules)")  # fmt: skip
    assert out == "False\nTrue False\n"


def in_a_process(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def test_what_is_missing_is_named():
    code = "import sys; sys.modules[{!r}] = None; import csham.keras; csham.keras.CSHAM"
    done = in_a_process(code.format("keras"))
    assert 'csham.keras.CSHAM needs keras. Install it: pip install "csham[keras]".' in done.stderr
    if find_spec("keras") is None:
        pytest.skip("keras is not installed")
    done = in_a_process(code.format("tensorflow"), KERAS_BACKEND="tensorflow")
    assert "Keras runs on tensorflow, its default or what it was told, which is not installed" in done.stderr


def test_every_public_name_is_listed():
    assert set(csham_keras.__all__) <= set(dir(csham_keras))

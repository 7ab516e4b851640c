"""One finished run on a small image folder, and a way to call a command."""

from importlib.util import find_spec

import pytest

from csham.cli import main

# Of what csham export asks for before it reads what it is given.
NOT_THERE = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]


@pytest.fixture(scope="session")
def small(images):
    """Words for a run of 42 training images."""
    words = f"train {images} --backbone resnet20 --image-size 16 --epochs 1 --batch-size 8 --no-compile --quiet"
    return [*words.split(), "--device", "cpu", "--lr", "0.05"]


@pytest.fixture(scope="session")
def finished(small, tmp_path_factory):
    """The folder of a finished run."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    assert main([*small, "--run", str(run)]) == 0
    return run


@pytest.fixture
def csham(capsys):
    """Call a command in this process: exit code, standard output, standard error."""

    def call(*words):
        if words[0] == "export" and NOT_THERE:
            pytest.skip(f"{NOT_THERE[0]} is not installed")
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call

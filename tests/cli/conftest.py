"""A small image folder, one finished run on it, and a way to call a command."""

import numpy as np
import pytest
import torch
from PIL import Image

from csham.cli import main

CLASSES = ("ant", "bee", "cow")


def _write_images(root, classes=CLASSES, count=20, seed=0):
    """Noise of 16 pixels with one channel lighter for each class: learnt within an epoch."""
    rng = np.random.default_rng(seed)
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 120, (16, 16, 3)).astype(np.uint8)
            pixels[:, :, number % 3] += 100
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSHAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    # Two threads on images this small, on a machine that others use too, mostly wait for each other.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def write_images():
    """Function that writes a folder of images and returns it."""
    return _write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory, write_images):
    return write_images(tmp_path_factory.mktemp("images") / "animals")


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
        capsys.readouterr()
        code = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return code, out, err

    return call

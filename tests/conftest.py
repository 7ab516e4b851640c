"""What every test shares: settings of hypothesis, seeds, threads, a cache folder of its own, and small images."""

import os

import hypothesis
import numpy as np
import pytest
import torch
from PIL import Image

# Without a GPU the Triton kernels run in its interpreter, which has to be said before anything imports triton.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

# A slow shared machine must not turn a property test red.
hypothesis.settings.register_profile("csham", deadline=None, max_examples=40, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("csham")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CSHAM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


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


@pytest.fixture(scope="session")
def write_images():
    """Function that writes a folder of images and returns it."""
    return _write_images


@pytest.fixture(scope="session")
def images(tmp_path_factory, write_images):
    """A folder of three easy classes."""
    return write_images(tmp_path_factory.mktemp("images") / "animals")

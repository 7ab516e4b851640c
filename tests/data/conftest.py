"""Image folders made on the spot."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def noise(side, seed):
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)


@pytest.fixture
def fill():
    """Fill ``folder`` with PNG noise: ``fill(folder, {"train/cat": 3}, side=32)``."""

    def fill(folder: Path, counts: dict[str, int], side: int = 32) -> Path:
        for number, (name, count) in enumerate(counts.items()):
            (folder / name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                pixels = noise(side, 1000 * number + index)
                Image.fromarray(pixels).save(folder / name / f"{index:03}.png")
        return folder

    return fill


@pytest.fixture
def two_classes(tmp_path, fill):
    return fill(tmp_path / "pets", {"cat": 6, "dog": 5})


@pytest.fixture
def cache_dir(tmp_path):
    return tmp_path / "cache"

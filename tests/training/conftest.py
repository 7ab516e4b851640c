"""One finished run on a small image folder."""

import pytest


@pytest.fixture(scope="session")
def settings(images):
    """What makes a run of 42 training images, 5 steps an epoch."""
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
    """The folder of a finished run."""
    from csham.training.config import resolve
    from csham.training.loop import train

    run = tmp_path_factory.mktemp("runs") / "finished"
    train(resolve({**settings, "track_test": True}), run=run)
    return run

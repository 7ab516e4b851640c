"""A run whose answers are exact on every machine."""

import pytest


@pytest.fixture(scope="session")
def finished(settings, tmp_path_factory):
    """The folder of a finished run in float32, whatever precision this machine is fastest in."""
    from csham.training.config import resolve
    from csham.training.loop import train

    run = tmp_path_factory.mktemp("runs") / "finished"
    train(resolve({**settings, "precision": "fp32"}), run=run)
    return run

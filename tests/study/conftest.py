"""A study without a folder."""

import pytest


def _make_study(networks=None, seeds=(0, 1), **given):
    from csham.study.grid import Data, Network, Study, shared_settings
    from csham.training.config import resolve

    networks = networks or (Network("lenet5"), Network("lenet5", "se"))
    config = resolve(
        {"data": "digits", "epochs": 1, "batch_size": 128, "image_size": 32, "crop": "pad", "precision": "fp32"} | given
    )
    settings = shared_settings(config)
    return Study(Data("digits", 10, 1797, 32, "ab" * 32), settings, tuple(networks), tuple(seeds))


@pytest.fixture(scope="session")
def make_study():
    """Function that makes a study of lenet5, plain and with SE, of digits for one epoch."""
    return _make_study

"""Settings that every test shares."""

import os

import hypothesis
import pytest

# A slow shared machine must not turn a property test red.
hypothesis.settings.register_profile("csham", deadline=None, max_examples=40, derandomize=bool(os.environ.get("CI")))
hypothesis.settings.load_profile("csham")


@pytest.fixture(autouse=True)
def _seed():
    import torch

    torch.manual_seed(0)

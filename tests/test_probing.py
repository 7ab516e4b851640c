"""A network that was run once is what it was before."""

import pytest
from torch import nn

from csham.probing import evaluating


class Merged(nn.Conv2d):
    """Adds what it learns to its weight for evaluation, and takes it off again for training, as loralib's layers do."""

    merged = False

    def train(self, mode=True):
        self.merged = not mode
        return super().train(mode)


class Frozen(nn.BatchNorm2d):
    """Never trains, once it was told to."""

    def train(self, mode=True):
        return super().train(False)


@pytest.fixture
def model():
    return nn.Sequential(Merged(3, 4, 1), nn.Sequential(Merged(4, 4, 1), Frozen(4)), nn.Dropout())


def modes(model):
    return [(module.training, getattr(module, "merged", None)) for module in model.modules()]


def test_modules_that_act_on_their_mode_are_told_of_it_on_the_way_back(model):
    model[1].eval()
    model[1][1].training = True
    before = modes(model)
    with evaluating(model):
        assert not any(module.training for module in model.modules())
        assert model[0].merged
    assert modes(model) == before


def test_an_error_puts_the_modes_back_too(model):
    before = modes(model)
    with pytest.raises(ZeroDivisionError), evaluating(model):
        raise ZeroDivisionError
    assert modes(model) == before

"""Classes of modules that are changed in place: copies and pickles have them too, and they can be taken back."""

import copy
import pickle
from functools import cache

import pytest
import torch
from torch import nn

from csham.module_class import base_class, can_subclass, change_class, is_made_by, subclass, take_back


@cache
def doubled(kind, times=2):
    def forward(self, x):
        return times * kind.forward(self, x)

    return subclass(kind, doubled, times, forward=forward)


@cache
def other(kind):
    return subclass(kind, other)


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_changed_module_stays_what_it_is_and_its_copies_are_changed_too(again):
    layer, x = nn.Linear(3, 2), torch.randn(4, 3)
    plain, keys = layer(x), list(layer.state_dict())
    change_class(layer, doubled(nn.Linear, 3))
    for module in (layer, again(layer)):
        torch.testing.assert_close(module(x), 3 * plain)
        assert isinstance(module, nn.Linear)
        assert repr(module) == repr(nn.Linear(3, 2))
        assert list(module.state_dict()) == keys
        assert is_made_by(module, doubled)
        assert not can_subclass(module)


def test_a_class_is_taken_back_by_who_gave_it_and_was_the_last():
    layer = nn.Linear(3, 2)
    change_class(layer, doubled(nn.Linear))
    take_back(layer, other)
    assert (type(layer), base_class(layer, doubled)) == (doubled(nn.Linear), nn.Linear)
    take_back(layer, doubled)
    take_back(layer, doubled)
    assert type(layer) is nn.Linear


def test_modules_that_copy_in_their_own_way_or_run_anothers_forward_are_left_alone():
    class Own(nn.Linear):
        def __reduce__(self):
            return Own, (self.in_features, self.out_features)

    layer = nn.Linear(3, 2)
    assert can_subclass(layer)
    layer.forward = nn.Identity().forward
    assert not can_subclass(layer)
    assert not can_subclass(Own(3, 2))

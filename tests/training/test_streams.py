"""Streams that nobody else has, of the few that torch hands out again and again."""

import itertools

import pytest
import torch

from csham.training import streams
from csham.training.streams import MOST_HOLDERS, own_stream

NUMBERS = {0: itertools.cycle(range(32)), -1: itertools.cycle(range(32, 64))}


class Stream:
    """As torch's: 32 of each priority, in turns, equal to the one that was handed out before."""

    def __init__(self, device, priority=0):
        self.number = next(NUMBERS[priority])

    def __eq__(self, other):
        return self.number == other.number

    def __hash__(self):
        return self.number


@pytest.fixture
def device(monkeypatch):
    monkeypatch.setattr(streams, "_held", type(streams._held)())
    if torch.cuda.is_available():
        return torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    return torch.device("cpu")


def test_no_stream_is_held_twice(device):
    held = [own_stream(device) for _ in range(MOST_HOLDERS)]
    assert len(set(held)) == MOST_HOLDERS
    with pytest.raises(RuntimeError, match=r"all 64 streams of .* are in use"):
        own_stream(device)
    del held[40]
    assert own_stream(device) not in held


def test_a_stream_that_is_let_go_is_handed_out_again(device):
    for _ in range(3 * MOST_HOLDERS):
        own_stream(device)

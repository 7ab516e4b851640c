import gc
from itertools import islice

import torch

from csham.cost.result import Spread
from csham.cost.timing import calls_for, orders, seconds_per_call

CPU = torch.device("cpu")


def test_quartiles_of_known_samples():
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([1.0, 2.0]) == Spread(1.5, 1.25, 1.75)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)
    assert Spread.of([]) is None


def test_every_order_holds_every_item_and_depends_on_the_seed():
    items = list("abcdefgh")
    drawn = list(islice(orders(items, 3), 20))
    assert all(sorted(order) == items for order in drawn)
    assert len({tuple(order) for order in drawn}) > 15
    assert drawn == list(islice(orders(items, 3), 20))
    assert drawn != list(islice(orders(items, 4), 20))
    # Nobody always comes first.
    assert len({order[0] for order in drawn}) > 4


def test_a_block_is_as_long_as_needed():
    assert calls_for(1.0) == 1
    assert calls_for(0.02) == 1
    assert calls_for(0.006) == 4
    assert calls_for(0.0) > 1000


def test_calls_are_made_with_the_collector_at_rest():
    seen = []
    assert seconds_per_call(lambda: seen.append(gc.isenabled()), CPU, 5) >= 0
    assert seen == [False] * 5
    assert gc.isenabled()

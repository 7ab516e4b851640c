"""Who gets which step, and who lends to whom."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from csham.attach.graph.points import Point
from csham.attach.names import STRATEGIES, check_strategy
from csham.attach.strategies import plan
from csham.layers.names import ATTENTIONS


def points(lengths):
    return [Point(f"s{stage}.b{b}", 8 << stage, stage) for stage, length in enumerate(lengths) for b in range(length)]


LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=5)


@given(LENGTHS)
def test_sequential_puts_the_whole_everywhere(lengths):
    steps = plan(points(lengths), "sequential")
    assert [s.point for s in steps] == points(lengths)
    assert {(s.part, s.lends, s.weights_from) for s in steps} == {("whole", False, None)}


@given(LENGTHS.filter(lambda lengths: max(lengths) > 1))
def test_transfer_alternates_within_a_stage_and_never_crosses_one(lengths):
    steps = plan(points(lengths), "transfer")
    assert [s.point for s in steps] == points(lengths)
    by_name = {s.point.name: s for s in steps}
    for step in steps:
        number = int(step.point.name.rpartition("b")[2])
        assert step.part == ("spatial" if number % 2 else "channel")
        if step.part == "spatial":
            lender = by_name[step.weights_from]
            assert lender.lends
            assert lender.point.stage == step.point.stage
            assert lender.part == "channel"
        else:
            assert step.weights_from is None
    assert sum(s.lends for s in steps) == sum(s.part == "spatial" for s in steps)


@pytest.mark.parametrize("strategy", ["transfer", "alternate"])
def test_alternating_without_a_second_point_is_refused(strategy):
    with pytest.raises(ValueError, match="needs a stage with two attachment points"):
        plan(points([1, 1, 1]), strategy)


@given(LENGTHS)
def test_entry_is_the_first_point_of_each_stage(lengths):
    steps = plan(points(lengths), "entry")
    assert [s.point.name for s in steps] == [f"s{stage}.b0" for stage in range(len(lengths))]
    assert {s.part for s in steps} == {"whole"}


@given(LENGTHS.filter(lambda lengths: max(lengths) > 1), st.integers(2, 8))
def test_a_period_has_one_lender(lengths, period):
    steps = plan(points(lengths), "transfer", period)
    lent = [s for s in steps if s.part == "channel"]
    assert len(lent) == sum(-(-length // period) for length in lengths)
    for step in lent:
        borrowers = [s for s in steps if s.weights_from == step.point.name]
        assert step.lends == bool(borrowers)
        assert len(borrowers) <= period - 1
        assert {s.point.stage for s in borrowers} <= {step.point.stage}


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_only_two_part_attentions_take_every_strategy(attention, strategy):
    if STRATEGIES[strategy].needs_parts and not ATTENTIONS[attention].two_part:
        with pytest.raises(ValueError, match=rf"'{attention}' has none\. Use strategy 'sequential'"):
            check_strategy(attention, strategy)
    else:
        check_strategy(attention, strategy)

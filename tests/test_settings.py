"""The checker of settings, on settings of our own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest

from csham.errors import UserError
from csham.settings import (
    InFile,
    Mark,
    OneOf,
    Settings,
    Within,
    check_keys,
    count,
    list_of,
    marked,
    read_described,
    split_names,
)


@dataclass(frozen=True, kw_only=True)
class Oven(Settings):
    heat: Annotated[float, Within(lambda v: v > 0, "above 0"), InFile(count(1, 9), "from 1 to 9")] = 2
    mode: Annotated[str, OneOf(("top", "both")), Mark.MACHINE] = "top"


@dataclass(frozen=True, kw_only=True)
class Kitchen(Oven):
    rooms: Annotated[tuple[int, ...] | None, InFile(list_of(count(0, 5), 3), "some rooms", or_null=True)] = None


def test_values_take_the_types_of_their_fields_and_go_back_as_plain_ones():
    kitchen = Kitchen(heat=3, rooms=[1, 2])
    assert (kitchen.heat, type(kitchen.heat), kitchen.rooms) == (3.0, float, (1, 2))
    assert kitchen.to_dict() == {"heat": 3.0, "mode": "top", "rooms": [1, 2]}
    assert marked(Kitchen, Mark.MACHINE) == ("mode",)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"heat": 0}, "--heat must be above 0, got 0.0."),
        ({"heat": "3"}, "--heat must be a number, got '3'."),
        ({"mode": "tob"}, "unknown mode 'tob'. Did you mean 'top'"),
        ({"rooms": [1.5]}, "--rooms must be a whole number, got 1.5."),
        ({"heat": 10**400}, "--heat must be a finite number, got 1000"),
        ({"heat": "A" * 10_000}, "AAA ..."),
        ({"mode": "A" * 10_000}, "AAA'. Known: top, both."),
    ],
)
def test_what_people_write_is_checked_in_bases_too(values, message):
    with pytest.raises(UserError) as caught:
        Kitchen(**values)
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "k.json does not describe its network."),
        ({"heat": 1, "rooms": None}, "['mode'] are missing"),
        ({"heat": 10, "mode": "top"}, "heat should be from 1 to 9, got 10."),
        ({"heat": True, "mode": "top"}, "heat should be from 1 to 9, got True."),
        ({"heat": 1, "mode": "top", "rooms": []}, "rooms should be some rooms, got []."),
        ({"heat": 1, "mode": "top", "rooms": [1, 2, 3, 4]}, "rooms should be some rooms, got [1, 2, 3, 4]."),
        ({"heat": 1, "mode": "top", "rooms": [9]}, "rooms should be some rooms, got [9]."),
    ],
)
def test_what_files_say_is_checked(values, message):
    with pytest.raises(UserError) as caught:
        read_described(Kitchen, values, "k.json", ("rooms",))
    assert message in str(caught.value)


def test_a_file_may_leave_out_what_is_optional_and_hold_null_and_more():
    assert read_described(Kitchen, {"heat": 1, "mode": "top", "x": 1}, "k", ("rooms",)) == {"heat": 1, "mode": "top"}
    assert read_described(Kitchen, {"heat": 1, "mode": "top", "rooms": None}, "k", ())["rooms"] is None


def test_keys_are_exactly_the_known_ones():
    check_keys({"a": 1, "b": 2}, ("b", "a"), "k.json")
    with pytest.raises(UserError, match=r"k\.json lacks a and has the unknown 'c'\."):
        check_keys({"b": 1, "c": 2}, ("a", "b"), "k.json")


def test_names_with_commas_between_and_within_them():
    assert split_names("resnet20@width=1.25,depth=26, lenet5 ,") == ["resnet20@width=1.25,depth=26", "lenet5"]

"""Settings: dataclasses whose fields say once what they hold, and the checker of all that people and files give.

A field is ``Annotated`` with its rules: :class:`Within` and :class:`OneOf` for people, :class:`InFile` for files that
anyone may have written, :class:`Mark` for what the setting does to a result; and with its :class:`Help`, of which the
option of the command line and the docstring of the class are made. Where annotations are postponed, a lambda in one
sees builtins only. Imports neither PyTorch nor YAML.
"""

from __future__ import annotations

import inspect
import math
import re
import types
import typing
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from enum import Enum, auto
from textwrap import shorten
from typing import Any, Literal

from csham.errors import UserError, unknown_name

__all__ = [
    "Auto",
    "Help",
    "InFile",
    "Mark",
    "OneOf",
    "Settings",
    "Within",
    "check_choice",
    "check_keys",
    "check_known",
    "count",
    "declared",
    "is_name",
    "list_of",
    "marked",
    "names_of",
    "read_described",
    "split_names",
]

Auto = Literal["auto"]


class Mark(Enum):
    """Effect of a setting of a run on its result.

    Attributes:
        MACHINE: It says where, when and how fast a run works, not what it computes.
        SOURCE: It says where input comes from, which counts by its content.
        LATER: Keys of studies from before it are without it, so it counts where it is not at its default.
    """

    MACHINE = auto()
    SOURCE = auto()
    LATER = auto()


@dataclass(frozen=True)
class Within:
    """Range of a setting; ``expected`` ends "--name must be"."""

    holds: Callable[[Any], bool]
    expected: str


@dataclass(frozen=True)
class OneOf:
    """Choices of a setting, or of each item of one that is a list; ``part`` gives what must be among them."""

    choices: tuple[str, ...]
    part: Callable[[str], str] = str


@dataclass(frozen=True)
class InFile:
    """Values, of any type, that a file may have for a field; ``expected`` ends "name should be"."""

    holds: Callable[[Any], bool]
    expected: str
    or_null: bool = False


@dataclass(frozen=True)
class Help:
    """Words on a setting, for people.

    Attributes:
        text: The setting in a sentence.
        default: Value that applies where nothing is set, if the field's own default does not say it.
        plural: Name of its option where a command takes several.
        counted: True if a number alone under that name says how many.
        names: Values to offer, where no :class:`OneOf` says them.
        option: False if it has no option, so that only files and Python set it.
    """

    text: str
    default: str = ""
    plural: str = ""
    counted: bool = False
    names: Iterable[str] = ()
    option: bool = True


@dataclass(frozen=True)
class Settings:
    """Base of dataclasses that are checked, type and range of every field, when one is created.

    Attributes:
        panel: Heading of their options in the help of a command.
    """

    panel = ""

    def __init_subclass__(cls) -> None:
        """Add to the docstring what its own fields say of themselves."""
        helps = {
            name: rule.text
            for name, hint in inspect.get_annotations(cls, eval_str=True).items()
            for rule in getattr(hint, "__metadata__", ())
            if isinstance(rule, Help)
        }
        if cls.__doc__ and helps:
            lines = [f"    {name}: {text}" for name, text in helps.items()]
            cls.__doc__ = "\n".join([inspect.cleandoc(cls.__doc__), "", "Attributes:", *lines])

    def __post_init__(self) -> None:
        for name, (hint, rules) in declared(type(self)).items():
            value = _checked_type(name, getattr(self, name), hint)
            object.__setattr__(self, name, value)
            _check_rules(name, value, rules)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values, as YAML, JSON and checkpoints hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def names_of(cls: type[Settings]) -> tuple[str, ...]:
    """Return the names of the fields."""
    return tuple(field.name for field in fields(cls))


def marked(cls: type[Settings], mark: Mark) -> tuple[str, ...]:
    """Return the names of the fields with a mark."""
    return tuple(name for name, (_, rules) in declared(cls).items() if mark in rules)


def declared(cls: type[Settings]) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return type and rules of every field by its name."""
    if cls not in _DECLARED:
        hints, rules = typing.get_type_hints(cls), typing.get_type_hints(cls, include_extras=True)
        _DECLARED[cls] = {name: (hints[name], getattr(rules[name], "__metadata__", ())) for name in names_of(cls)}
    return _DECLARED[cls]


# Not functools.cache, whose arguments mypy takes classes of dataclasses for unfit for.
_DECLARED: dict[type, dict[str, tuple[Any, tuple[Any, ...]]]] = {}


def split_names(text: str) -> list[str]:
    """Take names apart at their commas, but for those within one: ``resnet20@width=1.25,depth=26``."""
    return [name.strip() for name in re.split(r",(?!\s*\w+=)", text) if name.strip()]


def check_choice(kind: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices, with the nearest."""
    choices = list(choices)
    if value not in choices:
        raise unknown_name(kind, value, choices)


def check_known(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names of which one is not known, with the nearest."""
    known = list(known)
    for name in names:
        check_choice(kind, name, known)


def check_keys(content: Any, known: Iterable[str], where: object) -> None:
    """Refuse a file's content that is no mapping of exactly the known keys."""
    if not isinstance(content, dict):
        raise UserError(f"{where} should be an object of JSON.")
    known = set(known)
    missing, unknown = sorted(known - set(content)), sorted(set(content) - known)
    if missing or unknown:
        what = [f"lacks {', '.join(missing)}"] * bool(missing)
        what += [f"has the unknown {', '.join(ascii(key)[:60] for key in unknown[:5])}"] * bool(unknown)
        raise UserError(f"{where} {' and '.join(what)}.")


def read_described(
    cls: type[Settings], values: Mapping[str, Any], where: object, optional: Container[str]
) -> dict[str, Any]:
    """Read the fields of a class from a file's content, which anyone may have written.

    Args:
        cls: Each of its fields has an :class:`InFile`.
        values: By the names of the fields; others are left alone.
        where: The file, for the message.
        optional: Names of fields that may be missing.

    Raises:
        UserError: Something is missing, of the wrong kind or out of range.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where} does not describe its network.")
    missing = {name for name in names_of(cls) if name not in optional} - set(values)
    if missing:
        raise UserError(f"{where} does not describe its network: {sorted(missing)} are missing.")
    given = {name: values[name] for name in names_of(cls) if name in values}
    for name, value in given.items():
        for rule in declared(cls)[name][1]:
            if isinstance(rule, InFile) and not (rule.holds(value) or (rule.or_null and value is None)):
                got = shorten(ascii(value), 80, placeholder=" ...")
                raise UserError(f"{where} does not describe a network: {name} should be {rule.expected}, got {got}.")
    return given


# Of names, in characters.
_LONGEST_NAME = 255


def is_name(value: object) -> bool:
    """Return True if a value from a file is a name: short, and of printable ASCII."""
    return isinstance(value, str) and 0 < len(value) <= _LONGEST_NAME and value.isascii() and value.isprintable()


def count(least: int, most: int) -> Callable[[object], bool]:
    """Make the rule of a whole number in a range, of :class:`InFile`."""
    return lambda value: type(value) is int and least <= value <= most


def list_of(holds: Callable[[Any], bool], most: int = 10_000) -> Callable[[object], bool]:
    """Make the rule of a list, neither empty nor too long, whose items all hold, of :class:`InFile`."""
    return lambda value: isinstance(value, list) and 0 < len(value) <= most and all(map(holds, value))


def _check_rules(name: str, value: Any, rules: Iterable[Any]) -> None:
    for rule in rules:
        if isinstance(rule, OneOf):
            for one in value if isinstance(value, tuple) else (value,):
                if rule.part(one) not in rule.choices:
                    raise unknown_name(name, one, rule.choices)
        if isinstance(rule, Within) and not rule.holds(value):
            raise _wrong(name, value, rule.expected)


def _checked_type(name: str, value: Any, hint: Any, other: str = "") -> Any:
    """Return ``value`` as the type of the field, or refuse it; a number as text is refused too.

    Args:
        name: Of the field.
        value: Given for it.
        hint: The type.
        other: Says what else may be given.
    """
    kind = typing.get_origin(hint)
    if kind in (tuple, list):
        item_type = typing.get_args(hint)[0]
        if isinstance(value, list | tuple):
            return kind(_checked_type(name, item, item_type) for item in value)
        raise _wrong(name, value, f"a list of {_PLURALS[item_type]}")
    if kind in (types.UnionType, typing.Union):
        return _checked_union(name, value, typing.get_args(hint))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:  # a whole number beyond all floats
            number = math.inf
        if not math.isfinite(number):
            raise _wrong(name, value, f"a finite number{other}")
        return number
    if type(value) is hint:
        return value
    raise _wrong(name, value, f"{_TYPE_NAMES[hint]}{other}")


def _checked_union(name: str, value: Any, options: tuple[Any, ...]) -> Any:
    for option in options:
        if (option is type(None) and value is None) or (option == Auto and value == "auto"):
            return value
    if isinstance(value, list | tuple):
        several = [option for option in options if typing.get_origin(option) is tuple]
        if several:
            return _checked_type(name, value, several[0])
    first = next((option for option in options if option in _TYPE_NAMES), None)
    if first is None:
        raise _wrong(name, value, "a list or empty")
    return _checked_type(name, value, first, " or 'auto'" if Auto in options else " or empty")


_TYPE_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}

_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}


def _wrong(name: str, value: object, expected: str) -> UserError:
    got = repr(value)
    got = got if len(got) <= _LONGEST_NAME else f"{got[:_LONGEST_NAME]} ..."
    return UserError(f"--{name.replace('_', '-')} must be {expected}, got {got}.")

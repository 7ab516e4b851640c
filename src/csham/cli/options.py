"""Options: those of settings, made from the fields that declare them, and those that commands share besides.

A command that has settings takes one mapping, ``settings``, of what was given, and says by :func:`takes_settings` of
which classes. A new field with a :class:`csham.settings.Help` is an option of every such command.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer

from csham.errors import UserError
from csham.settings import Help, OneOf, Settings, declared, names_of, split_names
from csham.training.config import Images, MachineSettings, TrainConfig
from csham.training.run_folder import DEFAULT

__all__ = [
    "DATA_HELP",
    "IMAGES_HELP",
    "MACHINE",
    "OUTPUT",
    "TRAINED_HELP",
    "WEIGHTS_HELP",
    "CodeOption",
    "DebugOption",
    "DeviceOption",
    "JsonOption",
    "MinutesOption",
    "PageOption",
    "QuietOption",
    "TrainedArgument",
    "TtaOption",
    "WeightsOption",
    "given_words",
    "names_in",
    "option",
    "setting_option",
    "split_numbers",
    "takes_settings",
]


def takes_settings(
    *classes: type[Settings],
    only: Collection[str] = (),
    without: Collection[str] = (),
    several: Mapping[str, Help] | None = None,
    defaults: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of settings, in the place of its parameter ``settings``.

    That parameter gets what was given, by the names of the fields. An option that takes one name in some command and
    several in another is understood in both by both its names; help shows one.

    Args:
        classes: Their fields become options, under the heading of the class.
        only: Names of the fields, if not all.
        without: Names of fields that are left out.
        several: Words on the options that take several names, with commas between them, by the name that help shows.
        defaults: What help shows as the default, where the command has another than the field says.
    """
    options = [
        made
        for cls in classes
        for field in names_of(cls)
        if (field in only or not only) and field not in without
        for made in _options(cls, field, several or {}, defaults or {})
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(**values: Any) -> None:
            given = [(made, values.pop(made.name)) for made in options]
            command(settings=_settings(given), **values)

        signature = inspect.signature(command, eval_str=True)
        parameters = list(signature.parameters.values())
        place = [parameter.name for parameter in parameters].index("settings")
        parameters[place : place + 1] = [made.parameter for made in options]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return run

    return decorate


def option(help: str, panel: str, default: str | bool = True, *names: str) -> Any:
    """Describe an option; ``default`` is what help shows, where the default itself does not say it."""
    return typer.Option(*names, help=help, rich_help_panel=panel, show_default=default)


def setting_option(cls: type[Settings], field: str, default: str = "") -> Any:
    """Describe the option of one setting, for a command that has few; ``default`` is what help shows."""
    (made, *_) = _options(cls, field, {}, {field: default} if default else {})
    return made.info


def given_words(ctx: typer.Context, panel: str, settings: Mapping[str, Any]) -> list[str]:
    """Write options of a call as words of another call.

    Args:
        ctx: Of the call.
        panel: Heading of the options that are written.
        settings: Settings of a run that are written too, where they are not at their default: a file may say them.
    """
    more = {name: value for name, value in settings.items() if value != _default(TrainConfig, name)}
    words: list[str] = []
    for made in ctx.command.params:
        if made.name in more or getattr(made, "rich_help_panel", None) == panel:
            value = {**ctx.params, **more}[str(made.name)]
            words += [] if value in (None, made.default) else _written(made, value)
    return words


def _written(made: Any, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [made.opts[0] if value else made.secondary_opts[0]]
    if isinstance(value, tuple):
        return [made.opts[0], ",".join(map(str, value))]
    return [made.opts[0], f"{value:g}" if isinstance(value, float) else str(value)]


def split_numbers(flag: str, text: str) -> list[int]:
    """Take an option's value apart into whole numbers."""
    try:
        return [int(word) for word in split_names(text)]
    except ValueError:
        raise UserError(f"{flag} takes whole numbers with commas between them, got {text!r}.") from None


def names_in(flag: str, text: str) -> tuple[str, ...]:
    """Take an option's value apart into names, each once, of which there must be one."""
    names = tuple(dict.fromkeys(split_names(text)))
    if not names:
        raise UserError(f"{flag} names nothing.")
    return names


@dataclass(frozen=True)
class _Option:
    """Option of a setting, by one of its names.

    Attributes:
        field: Name of the setting.
        name: Name of the parameter.
        kind: Type that Typer reads.
        read: Makes the setting of what was read; the first argument is the flag.
        info: Description that Typer takes.
    """

    field: str
    name: str
    kind: type
    read: Callable[[str, Any], Any]
    info: Any

    @property
    def parameter(self) -> inspect.Parameter:
        annotation: Any = Annotated[self.kind | None, self.info]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _options(
    cls: type[Settings], field: str, several: Mapping[str, Help], defaults: Mapping[str, str]
) -> list[_Option]:
    """Make the option of a field, and a hidden one of its other name if it has two; none where it is no option."""
    hint, rules = declared(cls)[field]
    words = next((rule for rule in rules if isinstance(rule, Help) and rule.option), None)
    if words is None:
        return []
    offered = words.names or next((rule.choices for rule in rules if isinstance(rule, OneOf)), ())
    names = [name for name in (field, words.plural) if name]
    shown = next((name for name in names if name in several), field)
    kind, read = (str, names_in) if shown in several else _reader(hint, one=len(names) > 1)
    words = several.get(shown, words)
    default = defaults.get(field) or words.default or _shown(field, _default(cls, field))
    made = []
    for name in sorted(names, key=lambda name: name != shown):
        flag = _flag(name)
        if words.counted and name == words.plural and shown not in several:
            read = functools.partial(_one_of_so_many, field)
        info = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            help=words.text,
            rich_help_panel=cls.panel,
            show_default=default,
            hidden=name != shown,
            metavar="N" if hint is int and kind is str else None,
            autocompletion=_completion(offered) if offered else None,
        )
        made.append(_Option(field, name, kind, read, info))
    return made


def _settings(given: list[tuple[_Option, Any]]) -> dict[str, Any]:
    """Read what was given, each setting by one name."""
    settings: dict[str, Any] = {}
    flags: dict[str, str] = {}
    for made, value in given:
        if value is None:
            continue
        flag = _flag(made.name)
        if made.field in settings:
            raise UserError(f"{flags[made.field]} and {flag} are the same option. Give it once.")
        settings[made.field], flags[made.field] = made.read(flag, value), flag
    return settings


def _reader(hint: Any, *, one: bool) -> tuple[type, Callable[[str, Any], Any]]:
    """Return what Typer reads for a field of this type, and what makes a value of the field of it."""
    for kind in (hint,) if get_origin(hint) is tuple else get_args(hint) or (hint,):
        if get_origin(kind) is tuple:
            return str, _numbers if get_args(kind)[0] is int else _texts
        if kind in (bool, int, float, str):
            return (str, functools.partial(_one, kind)) if one else (kind, lambda _, value: value)
    raise TypeError(f"no option can be made of {hint}")


def _texts(_: str, text: str) -> tuple[str, ...]:
    return tuple(split_names(text))


def _numbers(flag: str, text: str) -> tuple[int, ...]:
    return tuple(split_numbers(flag, text))


def _one(kind: type, flag: str, text: str) -> Any:
    """Read the value of an option that takes several in other commands."""
    values = names_in(flag, text)
    if len(values) > 1:
        raise UserError(f"{flag} takes one here, got {text!r}. Several: csham compare does that.")
    try:
        return kind(values[0])
    except ValueError:
        raise UserError(f"{flag} must be a whole number, got {text!r}.") from None


def _one_of_so_many(field: str, flag: str, text: str) -> int:
    """Read how many, of which there may be one here, number 0."""
    count: int = _one(int, flag, text)
    if count != 1:
        raise UserError(
            f"{flag} {count} is how many, and one run has one. Several: csham compare does that. "
            f"{_flag(field)} {count} is number {count}."
        )
    return 0


def _default(cls: type[Settings], field: str) -> Any:
    return next(each.default for each in fields(cls) if each.name == field)


def _shown(field: str, default: Any) -> str:
    if isinstance(default, bool):
        return field.replace("_", "-") if default else f"no-{field.replace('_', '-')}"
    if default is None:
        return "none"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _completion(offered: Iterable[str]) -> Callable[[str], list[str]]:
    """Make the function that completes the last of names with commas between them."""

    def complete(incomplete: str) -> list[str]:
        before, comma, last = incomplete.rpartition(",")
        return [before + comma + name for name in offered if name.startswith(last)]

    return complete


OUTPUT = "Output"
MACHINE = MachineSettings.panel
DATA_HELP = next(rule.text for rule in declared(Images)["data"][1] if isinstance(rule, Help)).rstrip(".")
IMAGES_HELP = "Image files, folders (searched to the bottom), or - for paths on standard input, one a line."

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print the result as JSON on standard output.", rich_help_panel=OUTPUT)
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress.", rich_help_panel=OUTPUT)]
PageOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="Folder of a page with pictures and tables, replaced as a whole.",
        rich_help_panel=OUTPUT,
        show_default="none",
    ),
]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=OUTPUT)]
DeviceOption = Annotated[str | None, setting_option(MachineSettings, "device")]
CodeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--code",
        metavar="MODULE[:NAME]",
        help="Run this code of your own first: my_module:MyGate, of my_module.py here or installed. Runs and studies "
        "with an attention or a backbone of one's own need it; no file makes csham run code. May be repeated.",
        show_default="none",
        rich_help_panel="Own code",
    ),
]
MinutesOption = Annotated[
    float | None,
    typer.Option(
        help="Time that the command may take. Before it is over, what runs stops and saves, and the command says how "
        "to go on.",
        show_default="as long as it takes",
        rich_help_panel=MACHINE,
    ),
]
WEIGHTS_HELP = "last: of the last epoch; best: chosen by the validation part."
WeightsOption = Annotated[
    str | None,
    typer.Option(
        help=WEIGHTS_HELP,
        show_default=f"{DEFAULT}, or what a file or a shared folder holds",
    ),
]
TtaOption = Annotated[
    bool,
    typer.Option(
        "--tta",
        help="Average the answers to several views of each image: mirrored where training mirrors, and above 64 px the "
        "corners beside the centre.",
    ),
]
TRAINED_HELP = "A run folder, one that csham share wrote, a file model.safetensors, hf:user/name, or zoo:name."
TrainedArgument = Annotated[Path, typer.Argument(help=TRAINED_HELP, show_default=False)]

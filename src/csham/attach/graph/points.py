"""Points where attention can be attached, by position or by name, with their channels and their stages."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import groupby
from operator import index
from typing import Any

from torch import nn

from csham.attach.graph.hosts import Ends
from csham.attach.graph.kinds import map_modules, token_branches, works_otherwise
from csham.attach.graph.positions import (
    auto_ends,
    block_ends,
    last_map,
    residual_branches,
    residual_ends,
    stage_ends,
)
from csham.attach.graph.values import Trace
from csham.errors import UserError, nearest_names
from csham.words import counted

__all__ = ["Point", "PointChoice", "common_path", "find_points", "in_stages"]

PointChoice = str | Iterable[str] | Callable[[str, nn.Module], bool]

_FINDERS: dict[str, Callable[[Trace], Ends]] = {
    "auto": auto_ends,
    "residual": residual_ends,
    "post": block_ends,
    "stage": stage_ends,
    "last": last_map,
}

# Those that look at the way from the images to the output computed last.
_ON_THE_WAY = ("stage", "last")

# From so many convolutions on it is a surprise that there is a single point; and how many modules are then named.
_MANY_LAYERS, _EXAMPLES = 4, 6

# From so many on, one after the other, layers are a way of their own to an output, and not its head.
_LAYERS_OF_A_WAY = 2


@dataclass(frozen=True)
class Point:
    """A place in a network whose output attention can rescale.

    Attributes:
        name: The module whose output it is, as ``named_modules`` spells it.
        channels: Channels of that output.
        stage: Number of the stage, from 0; a stage is a run of points with the same number of channels.
    """

    name: str
    channels: int
    stage: int


def find_points(
    model: nn.Module, trace: Trace, position: str = "auto", points: PointChoice | None = None
) -> list[Point]:
    """Find a network's attachment points, in the order in which it reaches them.

    Args:
        model: The network.
        trace: One run of it.
        position: One of :data:`csham.attach.POSITIONS`.
        points: Instead of a position: names of modules, a pattern, or a function of a module's name and the module.

    Raises:
        UserError: A network without such points, or a choice that names no module or one without a feature map.
    """
    if points is not None:
        return _staged(trace, _chosen(model, trace, points))
    return _staged(trace, _at_position(model, trace, position))


def in_stages(points: Sequence[Point], stages: Iterable[int] | int | None) -> list[Point]:
    """Keep the points of some stages; negative numbers count from the last stage.

    Raises:
        UserError: A stage that the network does not have.
    """
    if stages is None:
        return list(points)
    count = points[-1].stage + 1
    given: Any = stages
    try:
        wanted = list(given)
    except TypeError:  # a number, or an array of one without axes
        wanted = [given]
    if not (wanted and all(_is_whole(s) and -count <= index(s) < count for s in wanted)):
        raise UserError(
            f"attach: stages={stages!r} must be numbers of stages, from 0 to {count - 1} here: {_describe(points)}."
        )
    return [point for point in points if point.stage in {index(s) % count for s in wanted}]


def _is_whole(number: Any) -> bool:
    try:
        index(number)
    except TypeError:
        return False
    return not isinstance(number, bool)


def _at_position(model: nn.Module, trace: Trace, position: str) -> list[str]:
    kind = type(model).__name__
    other = works_otherwise(kind, trace)
    if other is not None:
        raise UserError(f"attach: {other}")
    names, lost = _FINDERS[position](trace)
    if not names:
        raise UserError(_no_points(kind, trace, position, lost))
    modules = dict(model.named_modules())
    for name in names:
        if name not in modules:
            raise UserError(
                f"attach: {name} is a module of {kind} in evaluation mode only, and attention in it would be lost. "
                "Name others with points=."
            )
        _check_gives_map(trace, name, modules[name])
    doubts = (_lost(kind, names, lost), _mostly_tokens(kind, trace), _only_one(kind, trace, position, names))
    aside = _left_aside(kind, trace, position) or _ways_aside(kind, trace)
    for doubt in (*doubts, aside, _never_ran(model, trace, names)):
        if doubt:
            warnings.warn(f"attach: {doubt}", stacklevel=4)
    return names


def _lost(kind: str, names: list[str], lost: list[str]) -> str:
    if not lost:
        return ""
    return (
        f"{len(lost)} of {len(names) + len(lost)} points of {kind} are the output of no module of their own and were "
        f"left out, in {', '.join(dict.fromkeys(name or kind for name in lost))}."
    )


def _mostly_tokens(kind: str, trace: Trace) -> str:
    tokens, maps = len(token_branches(trace)), len(residual_branches(trace))
    if tokens <= maps:
        return ""
    return (
        f"{tokens} of the {tokens + maps} residual branches of {kind} carry tokens, not feature maps (B, C, H, W), and "
        "get no attention."
    )


def _only_one(kind: str, trace: Trace, position: str, names: list[str]) -> str:
    """Say what else could be chosen in a network of many layers where one point was found."""
    if position != "auto" or len(names) > 1 or max(trace.depths) < _MANY_LAYERS:
        return ""
    counts = {other: len(finder(trace)[0]) for other, finder in _FINDERS.items() if other in ("post", "stage")}
    more = " or ".join(f"position={other!r} ({number} points)" for other, number in counts.items() if number > 1)
    modules = [name for name in map_modules(trace, range(len(trace.values))) if name not in names]
    if not modules:  # of one size throughout: others of that
        modules = [name for name in _beside(trace, names[0]) if name not in names]
    choices = [f"Use {more}."] if more else []
    if modules:
        choices.append(f"Name modules with points=, such as {', '.join(modules[-_EXAMPLES:])}.")
    # A layer that a network runs again and again leaves nothing to choose.
    return f"found only one point in {kind}, {names[0]}. {' '.join(choices)}" if choices else ""


def _beside(trace: Trace, found: str) -> list[str]:
    """Name the modules that put out feature maps, as deep in the network as one of them."""
    deep = [call for call in trace.calls if call.output and call.name and call.name.count(".") == found.count(".")]
    return list(dict.fromkeys(call.name for call in deep if trace.values[call.output or 0].layout == "NCHW"))


def _never_ran(model: nn.Module, trace: Trace, names: list[str]) -> str:
    """Say which modules of the kinds that get attention the one run left out."""
    modules = dict(model.named_modules())
    called = {call.name for call in trace.calls}
    ran = {outer for name in called for outer in (name, *_around(name))}
    kinds = {type(modules[outer]) for name in names for outer in (name, *_around(name)) if outer in called}
    kinds = {kind for kind in kinds if not kind.__module__.startswith("torch.nn.")}
    idle = [name for name, module in modules.items() if name not in ran and type(module) in kinds]
    idle = [name for name in idle if not any(outer in idle for outer in _around(name))]
    if not idle:
        return ""
    return (
        f"{counted(len(idle), 'module')} of {type(model).__name__} like those that get attention, such as {idle[0]} "
        f"({type(modules[idle[0]]).__name__}), were not called when the network was run once, and get none. Where "
        "training or the images decide what runs, attach to each such part by itself."
    )


def _around(name: str) -> Iterator[str]:
    """Name the modules around one, the innermost first, without the network itself."""
    while name := name.rpartition(".")[0]:
        yield name


def _left_aside(kind: str, trace: Trace, position: str) -> str:
    """Say which blocks a position leaves out because they lead to another output than the one it looks at."""
    if position not in _ON_THE_WAY:
        return ""
    blocks = block_ends(trace)[0]
    aside = [name for name in blocks if (trace.outputs_of(name)[-1] or 0) not in trace.above_output]
    if not aside:
        return ""
    return (
        f"{len(aside)} of the {len(blocks)} blocks of {kind}, such as {aside[-1]}, lead to other outputs than the one "
        f"that is computed last, and position={position!r} follows the way to that one alone. Use position='post', or "
        "name modules with points=."
    )


def _ways_aside(kind: str, trace: Trace) -> str:
    """Say that layers lead to another output, where blocks are looked for on the way to the last one alone."""
    if residual_branches(trace):
        return ""
    aside = [trace.values[number] for number in trace.aside]
    longest: dict[int, int] = {}  # the layers in a row up to each value
    for value in aside:
        longest[value.index] = max(longest.get(parent, 0) for parent in value.parents) + value.is_layer
    if max(longest.values(), default=0) < _LAYERS_OF_A_WAY:
        return ""
    modules = map_modules(trace, trace.aside)
    return (
        f"{sum(value.is_layer for value in aside)} layers of {kind} lead to other outputs than the "
        "one that is computed last, and get no attention. Name modules with points=, such as "
        f"{', '.join(modules[-_EXAMPLES:])}."
    )


def _no_points(kind: str, trace: Trace, position: str, lost: list[str]) -> str:
    if lost:
        inside = ", ".join(dict.fromkeys(name or kind for name in lost))
        return (
            f"attach: position={position!r}: the {len(lost)} points of {kind} are the output of no module, they are "
            f"computed within {inside}. Name modules with points=, or make each a module, if only nn.Identity; "
            "modules in a list are the network's in an nn.ModuleList."
        )
    if position == "residual":
        return (
            f"attach: found no residual branches in {kind}: nothing adds a feature map to what was computed from it. "
            "Use position='post' (end of every block), 'stage', 'last', or name modules with points=."
        )
    modules = map_modules(trace, range(len(trace.values)))
    if not modules:
        return f"attach: no module of {kind} puts out feature maps (B, C, H, W), which are what attention rescales."
    why = (
        f"found no points in {kind} for position={position!r}"
        if any(trace.values[number].is_map for number in trace.trunk()[1:])
        else f"several ways run beside one another through {kind}, and position={position!r} looks at feature maps "
        "that everything flows through"
    )
    blocks = len(block_ends(trace)[0])
    other = f"Use position='post' ({blocks} points), or name" if blocks else "Name"
    return f"attach: {why}. {other} modules with points=, such as {', '.join(modules)}."


def _chosen(model: nn.Module, trace: Trace, points: PointChoice) -> list[str]:
    modules = dict(model.named_modules())
    if callable(points) and not isinstance(points, nn.Module):
        names = [name for name, module in modules.items() if name and points(name, module)]
        if not names:
            raise UserError(f"attach: points= chose none of the {len(modules) - 1} modules of {type(model).__name__}.")
    else:
        single = isinstance(points, str | nn.Module)
        patterns: list[Any] = list(points) if isinstance(points, Iterable) and not single else [points]
        if not patterns:
            raise UserError("attach: points= is empty. Name at least one module.")
        names = [name for pattern in patterns for name in _matching(pattern, modules, model, trace)]
    order = {call.name: number for number, call in reversed(list(enumerate(trace.calls)))}
    for name in names:
        _check_gives_map(trace, name, modules[name])
    # By the end of its call, not its start: a module that holds another puts its output out later.
    return sorted(dict.fromkeys(names), key=lambda name: (trace.outputs_of(name)[0] or 0, -order[name]))


def _matching(pattern: object, modules: dict[str, nn.Module], model: nn.Module, trace: Trace) -> list[str]:
    if not isinstance(pattern, str):
        got = f"a {type(pattern).__name__}" if isinstance(pattern, nn.Module) else repr(pattern)
        raise UserError(f"attach: points= takes names of modules, a pattern or a function, got {got}.")
    if pattern and pattern in modules:
        return [pattern]
    names = [name for name in modules if name and fnmatchcase(name, pattern)]
    if names:
        return names
    hint = nearest_names(pattern, filter(None, modules))
    blocks = block_ends(trace)[0]
    stages = f"Its stages: {_describe(_staged(trace, blocks))}. " if blocks else ""
    raise UserError(
        f"attach: points={pattern!r} names no module of {type(model).__name__}. {hint}{stages}"
        "attach(model, ..., dry_run=True) lists every point."
    )


def _check_gives_map(trace: Trace, name: str, module: nn.Module) -> None:
    outputs = trace.outputs_of(name)
    if not outputs:
        raise UserError(f"attach: {name} ({type(module).__name__}) did not run when the network was run once.")
    values = [trace.values[output] if output is not None else None for output in outputs]
    if not all(value is not None and value.is_map for value in values):
        got = next(("no single tensor" if v is None else str(v.shape)) for v in values if v is None or not v.is_map)
        raise UserError(f"attach: {name} ({type(module).__name__}) puts out {got}, not a feature map (B, C, H, W).")
    if any(value is not None and value.dtype is not None and value.dtype.is_complex for value in values):
        raise UserError(
            f"attach: {name} ({type(module).__name__}) puts out complex numbers, which channel and spatial attention "
            "do not weigh. Name modules whose maps are real with points=."
        )
    channels = sorted({value.shape[1] for value in values if value is not None})
    if len(channels) > 1:
        raise UserError(
            f"attach: {name} ({type(module).__name__}) is used in several places, with {channels} channels. "
            "Choose modules that are used in one."
        )


def _staged(trace: Trace, names: Iterable[str]) -> list[Point]:
    sized = [(name, trace.values[trace.outputs_of(name)[0] or 0].shape[1]) for name in names]
    stages = enumerate(groupby(sized, key=lambda item: item[1]))
    return [Point(name, channels, stage) for stage, (channels, group) in stages for name, _ in group]


def _describe(points: Sequence[Point]) -> str:
    """Name each stage by the module that holds its points."""
    words = []
    for stage, group in groupby(points, key=lambda point: point.stage):
        run = list(group)
        words.append(f"{stage}: {common_path([p.name for p in run]) or run[0].name} ({run[0].channels} channels)")
    return ", ".join(words)


def common_path(names: Sequence[str]) -> str:
    """Return the name of the innermost module that holds all of these, or one of them if that holds the others."""
    paths = [name.split(".") for name in names]
    depth = next((d for d, parts in enumerate(zip(*paths, strict=False)) if len(set(parts)) > 1), min(map(len, paths)))
    return ".".join(paths[0][:depth])

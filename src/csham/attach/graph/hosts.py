"""Name the modules of a traced network whose output is a given value: a hook there sees that value and no other."""

from __future__ import annotations

from collections.abc import Iterator

from csham.attach.graph.values import DROPOUTS, LONGEST_BRANCH, SUMS, Trace, Value

__all__ = ["Ends", "around_joins", "host_of", "norm_within", "outermost_at", "outputs_at", "within_call"]

# Names of the modules whose output is attended to, in execution order; and of the modules that hold an addition or a
# concatenation where no module's output is.
Ends = tuple[list[str], list[str]]

# Layers after a join that still belong to its block: VoVNet's projects what it has concatenated, and weighs that.
_LONGEST_PROJECTION = {True: 0, False: 2}  # by whether the join is an addition


def outputs_at(trace: Trace, ends: list[int]) -> Ends:
    """Name a module for every value, the innermost that puts out that value or one that is only rescaled to give it."""
    ways = {end: list(_as_computed(trace, trace.values[end])) for end in ends}
    wanted = {value.index for way in ways.values() for value in way}
    names: dict[str, None] = {}
    lost = []
    for end, way in ways.items():
        name = next((host for value in way if (host := host_of(trace, value, wanted))), None)
        if name is None:
            lost.append(trace.calls[trace.values[end].call].name)
        else:
            names[name] = None
    return list(names), lost


def around_joins(trace: Trace, joins: list[int]) -> Ends:
    """Name, for every addition or concatenation, the module whose result it is."""
    names: dict[str, None] = {}
    lost = []
    taken = set()
    for join in reversed(joins):
        call = trace.values[join].call
        if call in taken:
            continue  # a block that adds twice ends with the second addition
        name = _module_around(trace, join, joins) or _module_after(trace, join)
        if name is None:
            lost.append(trace.calls[call].name)
        else:
            taken.add(call)
            names[name] = None
    return list(names)[::-1], lost[::-1]


def host_of(trace: Trace, value: Value, wanted: set[int] | None = None) -> str | None:
    """Return the innermost module that puts out a value, one with weights rather than an identity within it."""
    hosts = [host for host in value.hosts if _sees_only(trace, host, wanted) and not value.goes_round(host)]
    layers = [host for host in hosts if host in trace.weighted - trace.containers]
    if len(layers) > 1 and _has_placeholder(value, *layers[:2]):
        return layers[1]
    return next(iter(layers), hosts[0] if hosts else None)


def norm_within(trace: Trace, host: str) -> str:
    """Return the norm, by its name below a host, in whose place :func:`host_of` took the host; else ''."""
    value = trace.values[trace.outputs_of(host)[0] or 0]
    inner = next(iter(value.hosts), "")
    return inner.rpartition(".")[2] if inner in trace.weighted and _has_placeholder(value, inner, host) else ""


def _has_placeholder(value: Value, norm: str, around: str) -> bool:
    """Return True if a module ends with a norm and an identity in an activation's place.

    Ultralytics' convolutions do, and fold the norm away for inference: its output is then that of the module around.
    """
    after = value.hosts[value.hosts.index(norm) + 1 :][:1]
    return value.op == "batch_norm" and [around] != after and {h.rpartition(".")[0] for h in (norm, *after)} == {around}


def outermost_at(trace: Trace, end: int, ends: list[int]) -> str | None:
    """Return the outermost module that puts out a value and holds no other of ``ends``."""
    for name in reversed(trace.values[end].hosts):
        number = next(number for number, call in enumerate(trace.calls) if call.name == name)
        if (
            _sees_only(trace, name)
            and not trace.values[end].goes_round(name)
            and len(within_call(trace, number, ends)) <= 1
        ):
            return name
    return None


def within_call(trace: Trace, number: int, values: list[int]) -> list[int]:
    """Return those values that were computed within a module call."""
    held = []
    for value in values:
        call = trace.values[value].call
        while call > number:
            call = trace.calls[call].parent
        if call == number:
            held.append(value)
    return held


def _as_computed(trace: Trace, value: Value) -> Iterator[Value]:
    """Go back from a value over what only rescales it; what drops parts of it at random in training comes last."""
    dropouts = []
    while value.op in DROPOUTS and len(value.parents) == 1:
        dropouts.append(value)
        value = trace.values[value.parents[0]]
    yield value
    yield from dropouts
    while (parent := _rescaled_from(trace, value)) is not None:
        value = parent
        yield value


def _rescaled_from(trace: Trace, value: Value) -> Value | None:
    """Return the map that an elementwise operation or a slice of channels was given, if it was given one."""
    if value.is_conv or value.is_join or value.is_pooled or not value.is_map:
        return None
    parents = [trace.values[parent] for parent in value.parents]
    alike = [p for p in parents if p.is_map and (p.shape == value.shape or value.takes_channels_of(p))]
    return alike[0] if len(alike) == 1 and alike[0].shape[2:] == value.shape[2:] else None


def _module_around(trace: Trace, join: int, joins: list[int]) -> str | None:
    """Return the module that holds ``join``, and with it the activation or the layers by which the block ends."""
    number, name = trace.values[join].call, None
    output = join
    while number:
        call = trace.calls[number]
        # A module around the block that puts out the very same, such as a stage of one block, is not meant.
        if call.output is None or (name and (call.output == output or len(within_call(trace, number, joins)) > 1)):
            break
        if not _ends_block(trace, join, call.output):
            break
        if _sees_only(trace, call.name):
            name, output = call.name, call.output
        number = call.parent
    return name


def _module_after(trace: Trace, join: int) -> str | None:
    """Return the last module, such as an activation, that only rescales what ``join`` gave."""
    name = None
    for value in trace.values[join:]:
        if _ends_block(trace, join, value.index):
            name = host_of(trace, value) or name
        elif value.is_conv:
            break
    return name


def _ends_block(trace: Trace, join: int, output: int) -> bool:
    """Return True if ``output`` is ``join``, rescaled, shuffled, put beside other channels, or projected."""
    start, end = trace.values[join], trace.values[output]
    if output < join or not end.is_map or end.shape[2:] != start.shape[2:]:
        return False
    return trace.layers_above(end).get(join, LONGEST_BRANCH) <= _LONGEST_PROJECTION[start.op in SUMS]


def _sees_only(trace: Trace, name: str, wanted: set[int] | None = None) -> bool:
    """Return True if a hook of this module sees points alone: called once, or always at one, with the same channels."""
    outputs = trace.outputs_of(name)
    if not name or None in outputs:
        return False
    if len(outputs) == 1:
        return True
    # Called more than once without weights it is an activation that several places share; with weights it is repeated.
    alike = len({trace.values[index].shape[1] for index in outputs if index is not None}) == 1
    return alike and name in trace.weighted and (wanted is None or set(outputs) <= wanted)

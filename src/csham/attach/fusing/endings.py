"""Find the blocks that end with ``relu(branch + shortcut)``, the branch ending with a module that is attended to."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, Node

from csham.attach.fusing.epilogue import End, Epilogue, can_bypass, can_open
from csham.attach.fusing.forward_graph import ForwardGraph, forward_graph
from csham.attach.graph.values import ADDITIONS, Trace
from csham.module_class import can_subclass

__all__ = ["find_epilogues"]

_ADDS = (operator.add, operator.iadd, torch.add, "add", "add_")
_ADDS_IN_PLACE = (operator.iadd, "add_")
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_, "relu", "relu_")


def find_epilogues(model: nn.Module, trace: Trace, attached: Mapping[str, str]) -> dict[str, Epilogue]:
    """Find what can be fused.

    Args:
        model: The network.
        trace: One run of it.
        attached: For every host, by its name, the path below it where its attention lives or is to live.

    Returns:
        Epilogues by the names of their blocks.
    """
    blocks: dict[str, list[str]] = {}
    for host in attached:
        block = _block_of(trace, host)
        if block is not None:
            blocks.setdefault(block, []).append(host)
    reader = _Reader(model, trace, attached, blocks)
    epilogues = {block: reader.epilogue(block, hosts) for block, hosts in blocks.items()}
    return {block: epilogue for block, epilogue in epilogues.items() if epilogue is not None}


def _block_of(trace: Trace, host: str) -> str | None:
    """Name the module that adds a host's output to one map of its shape, and does nothing else with it."""
    outputs = trace.outputs_of(host)
    if len(outputs) != 1 or outputs[0] is None:
        return None
    end = trace.values[outputs[0]]
    users = [value for value in trace.values if end.index in value.parents]
    if len(users) != 1 or users[0].op not in ADDITIONS or len(users[0].parents) != 2:
        return None
    total = users[0]
    activated = [value.op for value in trace.values if total.index in value.parents]
    alike = all(trace.values[parent].shape == end.shape for parent in total.parents)
    block = trace.calls[total.call].name
    inside = host.startswith(block + ".") if block else True
    once = len(trace.outputs_of(block)) == 1
    return block if alike and inside and once and activated in (["relu"], ["relu_"]) else None


class _Read(NamedTuple):
    """A block's epilogue, and what its forward calls in training and in evaluation."""

    epilogue: Epilogue
    called: list[list[str]]


class _Reader:
    """Reader of a network's blocks; of those that are built alike, and in which a forward reads the same, of one."""

    def __init__(
        self, model: nn.Module, trace: Trace, attached: Mapping[str, str], blocks: Mapping[str, Sequence[str]]
    ) -> None:
        self._model = model
        self._trace = trace
        self._attached = attached
        # What is fused itself runs another forward than was read.
        self._closed = {*attached, *blocks}
        self._known: dict[Any, list[_Read]] = {}

    def epilogue(self, name: str, hosts: Sequence[str]) -> Epilogue | None:
        """Return a block's epilogue, if it can have one, with the ends of those of its hosts that can be reached."""
        block, prefix = self._model.get_submodule(name), f"{name}." if name else ""
        inside = [host.removeprefix(prefix) for host in hosts]
        inside = [host for host in inside if all(self._is_readable(prefix + path) for path in _above(host))]
        opened = sorted({path for host in inside for path in _above(host)})
        ran = _calls_of(self._trace, name, opened)
        if not inside or not can_subclass(block) or not all(path.startswith(prefix) for path in ran):
            return None
        ran = [path.removeprefix(prefix) for path in ran]
        points = {host.removeprefix(prefix): path for host, path in self._attached.items() if host.startswith(prefix)}
        ends = {host: points[host] for host in inside}
        likes = self._known.setdefault((_build(block), *map(tuple, (opened, ends.items(), points.items()))), [])
        for read in likes:
            if _holds(read, block) and all(_are_same(block, ran, drawn) for drawn in read.called):
                return read.epilogue
        new = _read(block, opened, ran, ends, list(points))
        likes += [] if new is None else [new]
        return None if new is None else new.epilogue

    def _is_readable(self, path: str) -> bool:
        module = self._model.get_submodule(path)
        return can_subclass(module) and can_open(module) and path not in self._closed


def _read(
    block: nn.Module, opened: Sequence[str], ran: Sequence[str], ends: Mapping[str, str], points: Sequence[str]
) -> _Read | None:
    routes, called = [], []
    for training in (True, False):
        forward = forward_graph(block, opened, training=training)
        if forward is None:
            return None
        called.append([str(node.target) for node in forward.graph.nodes if node.op == "call_module"])
        if not _are_same(block, ran, called[-1]):
            return None
        routes.append(_route(block, forward, ends, points))
    return _Read(routes[0], called) if routes[0] is not None and routes[0] == routes[1] else None


def _holds(read: _Read, block: nn.Module) -> bool:
    conditions = read.epilogue.conditions
    try:
        return conditions is not None and conditions.hold(block)
    except (AttributeError, KeyError):
        return False


def _build(block: nn.Module) -> Any:
    """Say how a block is built: its modules, which of them and of their tensors are the same, and which are watched."""
    numbers: dict[int, int] = {}

    def number(part: Any) -> int | None:
        return None if part is None else numbers.setdefault(id(part), len(numbers))

    return tuple(
        (path, number(module), type(module), can_open(module), *((name, number(t)) for name, t in tensors))
        for path, module in block.named_modules(remove_duplicate=False)
        for tensors in [[*module._parameters.items(), *module._buffers.items()]]
    )


def _above(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]


def _calls_of(trace: Trace, block: str, opened: Sequence[str]) -> list[str]:
    """Name the modules that a block called when it ran, and those that what is opened called in the place of that."""
    prefix = f"{block}." if block else ""
    inlined = {prefix + path for path in opened}

    def called(number: int) -> list[str]:
        names = []
        for index, call in enumerate(trace.calls):
            if index and call.parent == number:
                names += called(index) if call.name in inlined else [call.name]
        return names

    return called(next(number for number, call in enumerate(trace.calls) if call.name == block))


def _are_same(block: nn.Module, ran: Sequence[str], drawn: Sequence[str]) -> bool:
    """Return True if a graph calls what the block called when it ran: a forward may look at the type of its input."""
    if len(ran) != len(drawn):
        return False
    return all(block.get_submodule(one) is block.get_submodule(other) for one, other in zip(ran, drawn, strict=True))


def _route(
    block: nn.Module, forward: ForwardGraph, attached: Mapping[str, str], points: Sequence[str]
) -> Epilogue | None:
    """Rewrite a block's graph so that its attentions are given their shortcuts."""
    graph = forward.graph
    if any(node.op == "placeholder" and (node.args or str(node.target).startswith("*")) for node in graph.nodes):
        return None  # an argument that may be left out
    # All are found before one is rewritten: the graph then calls attentions that the block need not have yet.
    candidates = [_find_end(block, graph, host, path, points) for host, path in attached.items()]
    ends = [end for end in candidates if end is not None]
    if not ends:
        return None
    for end, nodes in ends:
        _rewrite(graph, end, nodes)
    for node in graph.nodes:
        node.type = None  # annotations of a module that is not imported here
    code = graph.python_code("self")
    known = Graph().python_code("self").globals
    if code.globals.keys() - known.keys():
        return None
    return Epilogue(code.src, tuple(end for end, _ in ends), forward.conditions)


class _Nodes(NamedTuple):
    """One end in a graph: the host's call, the end of the branch, its sum with the shortcut, and that activated."""

    call: Node
    branch: Node
    total: Node
    activated: Node


def _find_end(
    block: nn.Module, graph: Graph, host: str, attached: str, points: Sequence[str]
) -> tuple[End, _Nodes] | None:
    calls = [n for n in graph.nodes if n.op == "call_module" and _module(block, n) is block.get_submodule(host)]
    if len(calls) != 1 or len(calls[0].args) != 1 or calls[0].kwargs:
        return None
    identities: list[Node] = []
    branch = _follow(block, calls[0], identities)
    total = _only_user(branch)
    if total is None or not _is_addition(total, branch):
        return None
    activated = _only_user(_follow(block, total, identities))
    if activated is None or not _is_relu(block, activated) or _points_between(calls[0], activated, points):
        return None
    end = End(
        host,
        f"{host}.{attached}",
        str(activated.target) if activated.op == "call_module" else None,
        tuple(str(node.target) for node in identities),
    )
    bypassed = {end.activation, *end.identities}
    if not can_open(block.get_submodule(host)) or not can_bypass(block, end) or not bypassed.isdisjoint(points):
        return None
    return end, _Nodes(calls[0], branch, total, activated)


def _rewrite(graph: Graph, end: End, nodes: _Nodes) -> None:
    # The host without its hook, which would attend to what it puts out.
    with graph.inserting_before(nodes.call):
        host = graph.get_attr(end.host)
        output = graph.call_method("forward", (host, *nodes.call.args))
    # Asked for only now: the shortcut may be the end before, rewritten.
    shortcut = next(arg for arg in nodes.total.args if arg is not nodes.branch)
    with graph.inserting_before(nodes.activated):
        kwargs: dict[str, Any] = {"inplace": True} if nodes.total.target in _ADDS_IN_PLACE else {}
        kwargs["made_by"] = (host, *nodes.call.args)
        fused = graph.call_module(end.attached, (output, shortcut), kwargs)
    nodes.activated.replace_all_uses_with(fused)
    for node in _chain(nodes.activated, nodes.call):
        graph.erase_node(node)


def _chain(last: Node, first: Node) -> list[Node]:
    """List the nodes from ``last`` back to ``first``, each the only user of the next."""
    nodes, way = [], first
    while way is not last:
        nodes.append(way)
        way = next(iter(way.users))
    return [last, *reversed(nodes)]


def _follow(block: nn.Module, node: Node, identities: list[Node]) -> Node:
    """Go on from a node over modules that do nothing."""
    user = _only_user(node)
    while user is not None and user.op == "call_module" and type(_module(block, user)) is nn.Identity:
        identities.append(user)
        node, user = user, _only_user(user)
    return node


def _only_user(node: Node) -> Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _module(block: nn.Module, node: Node) -> nn.Module:
    return block.get_submodule(str(node.target))


def _is_addition(node: Node, branch: Node) -> bool:
    """Return True if a node adds exactly one other tensor, and does not write into that."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDS or len(node.args) != 2:
        return False
    others = [arg for arg in node.args if arg is not branch]
    plain = not node.kwargs or dict(node.kwargs) == {"alpha": 1}
    written = node.target in _ADDS_IN_PLACE and node.args[0] is not branch
    return plain and not written and len(others) == 1 and isinstance(others[0], Node)


def _is_relu(block: nn.Module, node: Node) -> bool:
    if node.op == "call_module":
        return type(_module(block, node)) is nn.ReLU and len(node.args) == 1
    inplace = dict(node.kwargs).keys() <= {"inplace"}
    return node.op in ("call_function", "call_method") and node.target in _RELUS and len(node.args) == 1 and inplace


def _points_between(first: Node, last: Node, points: Sequence[str]) -> bool:
    """Return True if another point comes before the shortcut is added: it would attend before this one, not after."""
    node = first.next
    while node is not last:
        target = str(node.target)
        if node.op == "call_module" and any(f"{point}.".startswith(f"{target}.") for point in points):
            return True
        node = node.next
    return False

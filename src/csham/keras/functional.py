"""Attention in functional Keras models, whose graphs are rebuilt with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import count, groupby
from typing import Any

from csham.attach.names import STRATEGIES, check_strategy
from csham.attach.strategies import Step, plan
from csham.errors import UserError, nearest_names
from csham.keras._keras import keras
from csham.keras.layers import CONNECTIONS, CSHAM, ChannelAttention, Gated, SpatialAttention

__all__ = ["attach_keras"]

PointChoice = str | Iterable[str] | Callable[[Any], bool]


def attach_keras(
    model: Any,
    attention: Callable[..., Any] = CSHAM,
    *,
    strategy: str = "sequential",
    period: int | None = None,
    points: PointChoice | None = None,
    gated: bool = False,
    **settings: Any,
) -> Any:
    """Build a functional Keras model anew, with attention in it; the given one stays as it is.

    Attention goes to the end of every residual branch, before the addition. Of what is added the branch is the one that
    more layers have worked on since both parted. The new model has layers of its own, with the names, weights and
    ``trainable`` of the given one's, and is compiled as that was. Models within it, such as a backbone, are rebuilt
    too. So are layers by their ``get_config``, as ``keras.models.clone_model`` does it.

    Args:
        model: A functional model, such as those of ``keras.applications``, or a sequential one that holds such.
        attention: :class:`csham.keras.CSHAM`, or a class or function that makes another layer from ``name``, ``dtype``
            and the settings.
        strategy: One of ``csham list strategies``, those but ``sequential`` and ``entry`` for CSHAM only.
        period: For ``strategy="transfer"``: points to each channel step, whose weights serve the others; default 2.
        points: Instead of the residual branches: names of layers, a glob pattern such as ``"conv4_block*_3_bn"``, or a
            function of a layer. Their outputs are attended to.
        gated: Wrap every attention in :class:`csham.keras.Gated`, so that the output is unchanged until training lets
            attention in.
        **settings: Settings of the attention, such as ``kernel_size`` or ``act`` of CSHAM.

    Returns:
        Model with a layer ``<point>_attention`` for every point.

    Raises:
        UserError: A model that is not made of a graph of layers; one without such points; a name or setting that cannot
            work.

    Examples:
        >>> model = keras.applications.ResNet50(weights="imagenet")
        >>> model = csham.keras.attach_keras(model, strategy="transfer", gated=True)
    """
    check_strategy("csham", strategy, period)
    if attention is not CSHAM and STRATEGIES[strategy].needs_parts:
        raise UserError(f"attach_keras: strategy {strategy!r} is one of CSHAM's. Use 'sequential' or 'entry'.")
    if not _is_graph(model) and not isinstance(model, keras.Sequential):
        raise UserError(
            f"attach_keras: {type(model).__name__} is no functional model: what calls its layers is code. Call "
            "csham.keras.CSHAM there, like any layer."
        )
    found = _find(model, points)
    if attention is CSHAM:
        settings.setdefault("data_format", _data_format(model))
    steps = {step.point.name: step for step in plan(list(found.values()), strategy, period)}
    attached = {
        operation: (steps[point.name], _layer(attention, steps[point.name], operation, gated, settings))
        for operation, point in found.items()
        if point.name in steps
    }
    return _rebuild(model, attached)


@dataclass(frozen=True)
class _Point:
    """A layer whose output is attended to; what :func:`csham.attach.strategies.plan` asks of a point."""

    name: str
    channels: int
    stage: int


def _is_graph(model: Any) -> bool:
    return hasattr(model, "_nodes_by_depth")


def _parts(model: Any) -> dict[Any, None]:
    """List the layers of a model and of models within it, and itself, each once; what comes first in it first."""
    parts: dict[Any, None] = {}
    for layer in model.layers:
        parts.update(_parts(layer) if isinstance(layer, keras.Model) else {layer: None})
    return {**parts, model: None}


def _data_format(model: Any) -> str:
    formats = (getattr(part, "data_format", None) for part in _parts(model))
    return next(filter(None, formats), None) or keras.config.image_data_format()


def _find(model: Any, choice: PointChoice | None) -> dict[Any, Any]:
    """Find the points, and what computes them."""
    axis = 3 if _data_format(model) == "channels_last" else 1
    found: dict[Any, _Point] = {}
    stages = count()
    for graph in filter(_is_graph, _parts(model)):
        nodes = [node for depth in sorted(graph._nodes_by_depth, reverse=True) for node in graph._nodes_by_depth[depth]]
        ends = _residual_ends(nodes) if choice is None else _chosen(nodes, choice)
        for channels, run in groupby(ends.items(), key=lambda end: _channels(end[0], end[1], axis)):
            stage = next(stages)
            for operation, _ in run:
                taken = {point.name for point in found.values()}
                name = f"{graph.name}_{operation.name}" if operation.name in taken else operation.name
                found.setdefault(operation, _Point(name, channels, stage))
    if found:
        return found
    if choice is None:
        raise UserError(
            f"attach_keras: nothing in {model.name!r} adds a branch to a shortcut. Name layers with points=, such as "
            f"{[part.name for part in _parts(model) if isinstance(part, keras.layers.Conv2D)][-3:]}."
        )
    raise UserError(
        f"attach_keras: points={choice!r} names no layer of {model.name!r}. "
        f"{nearest_names(choice, [part.name for part in _parts(model)])}model.summary() lists them."
    )


def _residual_ends(nodes: list[Any]) -> dict[Any, Any]:
    """Find what computes the branches that are added to a shortcut, and its output, in the order of the graph."""
    before: dict[int, frozenset[int]] = {}  # what a tensor was computed from, and itself
    maker: dict[int, Any] = {}
    ends = {}
    for node in nodes:
        inputs = [before.setdefault(id(tensor), frozenset([id(tensor)])) for tensor in node.input_tensors]
        for output in node.outputs:
            before[id(output)] = frozenset([id(output)]).union(*inputs)
            maker[id(output)] = node.operation
        # The layer's name, and that of the operation of keras.ops.
        if type(node.operation).__name__ != "Add" or len(inputs) != 2 or not inputs[0] & inputs[1]:
            continue
        alone = [len(inputs[0] - inputs[1]), len(inputs[1] - inputs[0])]
        branch = node.input_tensors[alone.index(max(alone))]
        if alone[0] != alone[1] and len(branch.shape) == 4:
            ends[maker[id(branch)]] = branch
    return ends


def _chosen(nodes: list[Any], choice: PointChoice) -> dict[Any, Any]:
    """Find the layers that a user names, and their outputs."""
    if not callable(choice):
        patterns = [choice] if isinstance(choice, str) else list(choice)
        choice = partial(_is_named, patterns)
    return {
        node.operation: node.outputs[0]
        for node in nodes
        if isinstance(node.operation, keras.layers.Layer) and not node.is_input and choice(node.operation)
    }


def _is_named(patterns: Iterable[str], layer: Any) -> bool:
    return any(fnmatchcase(layer.name, pattern) for pattern in patterns)


def _channels(operation: Any, output: Any, axis: int) -> int:
    if len(output.shape) != 4 or output.shape[axis] is None:
        raise UserError(
            f"attach_keras: {operation.name!r} returns {tuple(output.shape)}, no feature map of known channels."
        )
    return int(output.shape[axis])


def _layer(attention: Callable[..., Any], step: Step, operation: Any, gated: bool, settings: dict[str, Any]) -> Any:
    """Build the attention of a step, in the types of the layer before it."""
    own = {"dtype": getattr(operation, "dtype_policy", None), **settings}
    if step.part == "channel":
        attention, _ = ChannelAttention, own.pop("dropout", None)
    elif step.part == "spatial":
        attention, _ = SpatialAttention, own.pop("kernel_size", None)
    elif step.part in CONNECTIONS:
        own["connection"] = step.part
    name = f"{step.point.name}_attention"
    if not gated:
        return attention(**own, name=name)
    return Gated(attention(**own, name="layer"), dtype=own["dtype"], name=name)


def _rebuild(model: Any, attached: dict[Any, tuple[Step, Any]]) -> Any:
    """Clone a model and the models in it, with attention after some of their layers, and copy the weights."""
    originals: dict[Any, Any] = {}  # of each clone
    lent: dict[str, Any] = {}

    def cloned(layer: Any) -> Any:
        inner = isinstance(layer, keras.Sequential) or _is_graph(layer)
        clone = rebuilt(layer) if inner else layer.__class__.from_config(layer.get_config())
        originals[clone] = layer
        return clone

    def rebuilt(part: Any) -> Any:
        if isinstance(part, keras.Sequential):
            return keras.models.clone_model(part, clone_function=cloned)
        # Clones of its own would be called after tensors, not after the layers of the given model.
        inputs = keras.tree.map_structure(_input_like, part.input)
        return keras.models.clone_model(part, inputs, clone_function=cloned, call_function=called)

    def called(clone: Any, *args: Any, **kwargs: Any) -> Any:
        y = clone(*args, **kwargs)
        if originals[clone] not in attached:
            return y
        step, layer = attached[originals[clone]]
        if step.lends:
            y, lent[step.point.name] = layer(y, return_weights=True)
            return y
        borrowed = {} if step.weights_from is None else {"channel_weights": lent[step.weights_from]}
        return layer(y, **borrowed)

    new = rebuilt(model)
    for clone, original in originals.items():
        if not isinstance(clone, keras.Model) and getattr(original, "weights", None):
            clone.set_weights(original.get_weights())
    return new


def _input_like(tensor: Any) -> Any:
    layer = tensor._keras_history.operation
    return layer.__class__.from_config(layer.get_config()).output

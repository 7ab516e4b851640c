"""Weights of the authors' TensorFlow layers, from Keras' HDF5 files into csham's layers.

The files differ by the version of Keras, and the authors' names of their variables are not known here. So weights are
found by what they are: the two steps are made of five kinds of layers that can be told apart by the shapes of their
variables, and layers of one kind are taken in the file's order. :func:`load_keras_weights` returns what went where.
"""

from __future__ import annotations

import re
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from csham.errors import UserError
from csham.keras.slots import Slot, in_torch_order, list_slots, store
from csham.words import some

__all__ = ["load_keras_weights"]

# Of a file's groups and arrays, and how deep they lie: a ResNet-152 with attention has 3,000, ten deep.
_MOST, _DEEPEST = 100_000, 40


@dataclass(frozen=True)
class _Variable:
    """An array of the file that is not read yet.

    Attributes:
        path: Its name in the file.
        shape: Of the array.
        data: The open dataset.
    """

    path: str
    shape: tuple[int, ...]
    data: Any


_WORDS = {
    "pool": "convolution of the average or the maximum, (k, 1, 1) with bias",
    "join": "convolution of both, (k, 2, 1) with bias",
    "main": "7x7 convolution, (7, 7, 2, 1) without bias",
    "neighbor": "3x3 convolution, (3, 3, C, 1) without bias",
    "norm": "batch norm of one channel",
    "gate": "scalar",
}


def load_keras_weights(
    module: nn.Module, path: Path | str, name: str | None = None, *, names: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Load the attention weights of a Keras file into csham's layers, in place; all of them or none.

    Reads what ``model.save_weights("x.h5")``, ``model.save("x.h5")`` and Keras 3's
    ``model.save_weights("x.weights.h5")`` write. Convolutions are transposed, (k, in, out) to (out, in, k) and
    (H, W, in, out) to (out, in, H, W). Weights of the backbone are left alone.

    Layers are told apart by the shapes of their variables; of the same kind the first in the file goes to the first in
    the module. Of two convolutions in a channel step the first is that of the average, unless their names say
    ``max`` and ``avg`` (or ``mean``) the other way round. The file does not say whether ReLU follows (``act``).

    Args:
        module: A :class:`csham.ChannelAttention`, :class:`csham.SpatialAttention` or :class:`csham.CSHAM`, or a network
            with these, such as :func:`csham.attach` makes.
        path: The file.
        name: Only take what is in the layer of this name, or path, in the file.
        names: For each of our layers that is not to be found by itself (``"avg"``, ``"spatial.main_bn"``, a gate), the
            path of theirs in the file.

    Returns:
        For each parameter and buffer that was loaded, the path of the array in the file.

    Raises:
        UserError: It is no HDF5 file, has no such layer, more or fewer than the module, or others in shape; or it
            holds links or arrays that lie outside of it, which are not followed, or numbers that are not finite.

    Examples:
        >>> layer = csham.CSHAM(64)
        >>> load_keras_weights(layer, "resnet.h5", name="csham_3")
    """
    try:
        import h5py  # noqa: PLC0415  optional
    except ImportError as err:
        raise UserError('reading Keras files needs h5py. Install it: pip install "csham[keras]".') from err
    path = Path(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}.")
    slots = list_slots(module)
    try:
        with h5py.File(path, "r", locking=False) as file:
            layers = _layers(_variables(file, h5py, path))
            chosen = _assign(slots, _under(layers, name, path), dict(names or {}), layers, path)
            values = [(tensor, _value(variable, ours, tensor, path)) for ours, tensor, variable in chosen]
    except UserError:
        raise
    except (OSError, RuntimeError, ValueError, TypeError, LookupError, AttributeError, MemoryError) as err:
        problem = shorten(str(err) or type(err).__name__, 200, placeholder=" ...")
        raise UserError(f"{path} is damaged or not an HDF5 file of Keras: {problem}") from err
    store(module, values)
    return {ours: variable.path for ours, _, variable in chosen}


@dataclass(frozen=True)
class _Layer:
    """A layer of the file: its variables, kernel before bias, and for a norm in the order of a slot of a norm."""

    path: str
    kind: str
    variables: tuple[_Variable, ...]


_ORDER = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance")


def _layers(variables: Iterable[_Variable]) -> list[_Layer]:
    """Group variables by the layer that owns them, and keep the layers that an attention could be made of."""
    owners: dict[str, list[_Variable]] = defaultdict(list)
    for variable in variables:
        owners[variable.path.rpartition("/")[0].removesuffix("/vars")].append(variable)
    layers = []
    for owner, written in owners.items():
        words = [v.path.rpartition("/")[2].partition(":")[0] for v in written]
        ordered = written
        if set(words) <= set(_ORDER):
            ordered = [v for _, v in sorted(zip(words, written, strict=True), key=lambda pair: _ORDER.index(pair[0]))]
        kind = _kind(ordered, words)
        if kind is not None:
            layers.append(_Layer(owner, kind, tuple(ordered)))
    return _averages_first(layers)


def _kind(variables: list[_Variable], words: list[str]) -> str | None:
    shapes = [variable.shape for variable in variables]
    first = shapes[0]
    if any("depthwise" in word for word in words) or "depthwise" in variables[0].path:
        return None
    if len(shapes) == 2 and len(first) == 3 and first[2] == 1 and shapes[1] == (1,):
        return {1: "pool", 2: "join"}.get(first[1])
    if shapes == [(7, 7, 2, 1)]:
        return "main"
    if len(shapes) == 1 and len(first) == 4 and first[:2] == (3, 3) and first[3] == 1:
        return "neighbor"
    if shapes == [(1,)] * 4:
        return "norm"
    return "gate" if shapes in ([()], [(1,)]) else None


def _averages_first(layers: list[_Layer]) -> list[_Layer]:
    """Exchange two convolutions of pooled values whose names say that the maximum's comes first."""
    places = [number for number, layer in enumerate(layers) if layer.kind == "pool"]
    for first, second in zip(places[::2], places[1::2], strict=False):
        one, other = (layers[place].path.rpartition("/")[2].lower() for place in (first, second))
        if "max" in one and re.search("avg|average|mean", other):
            layers[first], layers[second] = layers[second], layers[first]
    return layers


def _under(layers: list[_Layer], name: str | None, path: Path) -> list[_Layer]:
    """Keep what is in the layer of this name."""
    if name is None:
        return layers
    wanted = name.strip("/")
    kept: dict[str, list[_Layer]] = defaultdict(list)
    for layer in layers:
        at = f"/{layer.path}/".find(f"/{wanted}/")
        if at >= 0:
            kept[layer.path[:at] + wanted].append(layer)
    if len(kept) > 1:
        raise UserError(f"{path} has several layers {name!r}: {_some(kept)}. Give the whole path as name=.")
    if not kept:
        raise UserError(f"{path} has no attention weights in a layer {name!r}. {_there(layers)}")
    return next(iter(kept.values()))


def _assign(
    slots: list[Slot], layers: list[_Layer], names: dict[str, str], every: list[_Layer], path: Path
) -> list[tuple[str, Tensor, _Variable]]:
    """Decide which layer of the file goes into which of ours."""
    chosen: dict[str, _Layer] = {}
    by_path = {layer.path: layer for layer in every}
    for ours, theirs in names.items():
        if ours not in {slot.name for slot in slots}:
            raise UserError(
                f"names= has {ours!r}, which is no layer of the module. Its: {_some(s.name for s in slots)}."
            )
        if theirs.strip("/") not in by_path:
            raise UserError(f"names= has {theirs!r}, which {path} does not have. {_there(every)}")
        chosen[ours] = by_path[theirs.strip("/")]
    taken = {layer.path for layer in chosen.values()}
    free = [layer for layer in layers if layer.path not in taken]
    for kind, words in _WORDS.items():
        open_slots = [slot for slot in slots if slot.kind == kind and slot.name not in chosen]
        there = [layer for layer in free if layer.kind == kind]
        if kind == "norm":
            open_slots = _as_their_convolutions(open_slots, chosen, free)
        if kind == "gate" and not there and open_slots:
            warnings.warn(
                f"{path} has no scalars for the {len(open_slots)} gates, which stay as they are", stacklevel=3
            )
            continue
        if open_slots and len(there) != len(open_slots):
            raise UserError(
                f"{path} has {len(there)} of kind '{words}', the module takes {len(open_slots)}"
                f"{': ' + _some(layer.path for layer in there) if there else ''}. Say which with name= or names=."
                f"{'' if there else ' ' + _there(every)}"
            )
        chosen.update({slot.name: layer for slot, layer in zip(open_slots, there, strict=False)})
    return [pair for slot in slots if slot.name in chosen for pair in _pairs(slot, chosen[slot.name], path)]


def _as_their_convolutions(norms: list[Slot], chosen: Mapping[str, _Layer], layers: list[_Layer]) -> list[Slot]:
    """Put the two norms of each step in the order in which the file has their convolutions."""
    order = {layer.path: number for number, layer in enumerate(layers)}

    def place(slot: Slot) -> tuple[int, int]:
        step = slot.name.rpartition(".")[0]
        ours = [chosen[f"{step}.{n}".removeprefix(".")] for n in ("main", "neighbor")]
        own = chosen[slot.name.removesuffix("_bn")]
        return min(order.get(layer.path, -1) for layer in ours), order.get(own.path, -1)

    return sorted(norms, key=place)


def _pairs(slot: Slot, layer: _Layer, path: Path) -> list[tuple[str, Tensor, _Variable]]:
    there = [variable.shape for variable in layer.variables]
    wanted = [shape for *_, shape in slot.tensors]
    if there != wanted and not (slot.kind == "gate" and there in ([()], [(1,)])):
        raise UserError(
            f"{path}: {layer.path} has the shapes {there}, {slot.name} takes {wanted}. The order of layers may differ: "
            "say which is which with name= or names=."
        )
    return [(ours, tensor, variable) for (ours, tensor, _), variable in zip(slot.tensors, layer.variables, strict=True)]


def _value(variable: _Variable, ours: str, tensor: Tensor, path: Path) -> Tensor:
    """Read an array whose shape is known to be right, and transpose it to torch's order."""
    data = variable.data
    if data.dtype.kind != "f":
        raise UserError(f"{path}: {variable.path} holds {data.dtype}, not floating-point numbers.")
    if data.chunks is not None and np.prod(data.chunks, dtype=float) > 2**24:
        raise UserError(f"{path}: {variable.path} is stored in parts far larger than itself. It was not read.")
    with np.errstate(over="ignore"):
        value = torch.from_numpy(np.asarray(data[()], dtype=np.float32))
    if not value.isfinite().all():
        raise UserError(f"{path}: {variable.path} holds NaN, infinity or numbers too large for float32.")
    if ours.endswith("running_var") and (value < 0).any():
        raise UserError(f"{path}: {variable.path} holds variances below 0.")
    return in_torch_order(value).reshape(tensor.shape)


def _variables(file: Any, h5py: Any, path: Path) -> list[_Variable]:
    """List the arrays of a file in the order in which Keras wrote its layers; links are not followed."""
    seen: set[Any] = set()
    variables: list[_Variable] = []

    def walk(group: Any, prefix: str, depth: int, listed: Iterable[str]) -> None:
        if depth > _DEEPEST or len(seen) > _MOST:
            raise UserError(f"{path} has more or deeper groups than any file of Keras. It was not read.")
        for key, below in _in_order(group, listed):
            where = f"{path}: {(prefix + key)[-200:]!r}"
            if group.id.links.get_info(key.encode()).type != h5py.h5l.TYPE_HARD:
                raise UserError(f"{where} is a link, which Keras does not write. It was not followed.")
            item = group[key]
            address = h5py.h5o.get_info(item.id).addr
            if address in seen:
                raise UserError(f"{where} is there twice, which Keras does not write. It was not read.")
            seen.add(address)
            if isinstance(item, h5py.Group):
                walk(item, f"{prefix}{key}/", depth + 1, below)
            elif isinstance(item, h5py.Dataset):
                if item.is_virtual or item.external:
                    raise UserError(f"{where} lies in another file, which Keras does not write. It was not read.")
                if item.shape is not None:
                    variables.append(_Variable(prefix + key, tuple(item.shape), item))

    whole = file.id.links.exists(b"model_weights")
    if whole and file.id.links.get_info(b"model_weights").type != h5py.h5l.TYPE_HARD:
        raise UserError(f"{path}: 'model_weights' is a link, which Keras does not write. It was not followed.")
    walk(file["model_weights"] if whole else file, "", 0, ())
    return variables


def _in_order(group: Any, listed: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Return a group's keys as names of layers or weights list them; those listed nowhere as people count.

    Args:
        group: With names in its attributes, or without.
        listed: Names below the group that were listed further up.

    Returns:
        For each key the names listed below it.
    """
    own = [name for attribute in ("layer_names", "weight_names") for name in _listed(group, attribute)]
    below: dict[str, list[str]] = defaultdict(list)
    for name in own or listed:
        first, _, rest = name.strip("/").partition("/")
        below[first].append(rest)
    places = {key: number for number, key in enumerate(below)}
    keys = sorted(group.keys(), key=lambda key: (places.get(key, len(places)), _as_counted(key)))
    return [(key, below.get(key, [])) for key in keys]


def _as_counted(key: str) -> list[Any]:
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d{1,18})", key) if part]


def _listed(group: Any, attribute: str) -> list[str]:
    """Read an attribute of names, which Keras divides among several where it is large."""
    parts = [attribute] if attribute in group.attrs else []
    while f"{attribute}{len(parts)}" in group.attrs and attribute not in parts:
        parts.append(f"{attribute}{len(parts)}")
    names: list[str] = []
    for part in parts:
        stored = group.attrs.get_id(part)
        if stored.dtype.kind not in "SO" or np.prod(stored.shape, dtype=float) > _MOST:
            raise ValueError(f"the attribute {part} lists no names")
        for name in np.atleast_1d(group.attrs[part]).tolist():
            names.append(name.decode() if isinstance(name, bytes) else str(name))
    return names


def _there(layers: list[_Layer]) -> str:
    if not layers:
        return "No layer in it has variables of the shapes that CSHAM's have."
    return f"Those there that could be part of one: {_some(layer.path for layer in layers)}."


def _some(names: Iterable[str]) -> str:
    return some((name[:100] for name in names), 12)

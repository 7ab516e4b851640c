"""Facts that must be known to build a trained network again and to feed it, and the file its weights travel in."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from textwrap import shorten
from threading import get_ident
from typing import Annotated, Any

import safetensors
import safetensors.torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)

from csham.backbones.spec import CODE_FIELDS, CONNECTION_FIELDS, NetworkSpec
from csham.backbones.weights import check_finite
from csham.data.sources.layout import is_class_name
from csham.errors import UserError
from csham.files import SEAL, parse_json, sealed
from csham.layers.channel import in_todays_names
from csham.settings import InFile, count, list_of, names_of, read_described
from csham.training.checkpoints import check_weights
from csham.training.config import TrainConfig
from csham.training.run_folder import RunWeights
from csham.training.sums import check_seal, write_listed

__all__ = ["SELDOM", "NetworkInfo", "build_for", "held_weights", "read_network", "write_weights"]


def _is_fraction(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


def _are_class_names(value: Any) -> bool:
    return list_of(is_class_name, 2**24)(value) and len(set(value)) == len(value)


def _are_means(value: Any) -> bool:
    return list_of(_is_fraction)(value) and len(value) == 3


def _are_deviations(value: Any) -> bool:
    return _are_means(value) and min(value) >= 1e-6


@dataclass(frozen=True, kw_only=True)
class NetworkInfo(NetworkSpec):
    """A trained network without its weights.

    Attributes:
        num_classes: Number of classes.
        image_size: Height and width of the images it was trained on, in pixels.
        classes: Name of each class.
        mean: Of each channel of the training images, of values from 0 to 1.
        std: Likewise.
    """

    num_classes: Annotated[int, InFile(count(1, 2**24), "a whole number of at least 1")]
    image_size: Annotated[int, InFile(count(8, 1024), "a whole number from 8 to 1024")]
    classes: Annotated[
        list[str],
        InFile(_are_class_names, "a list of distinct names as folders have them, without / and control characters"),
    ]
    mean: Annotated[list[float], InFile(_are_means, "three numbers from 0 to 1")]
    std: Annotated[list[float], InFile(_are_deviations, "three numbers above 0, at most 1")]

    @classmethod
    def of(
        cls, config: TrainConfig, classes: list[str], image_size: int, mean: list[float], std: list[float]
    ) -> NetworkInfo:
        """Describe the network that a run with these settings trains."""
        return cls(
            **config.network_settings,
            num_classes=len(classes),
            image_size=image_size,
            classes=classes,
            mean=mean,
            std=std,
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], where: Path) -> NetworkInfo:
        """Read the description back from a file's content, which anyone may have written.

        Args:
            values: By the names of the attributes; others are left alone.
            where: The file, for the message.

        Raises:
            UserError: Something is missing, of the wrong kind, out of range, or names what csham does not have.
        """
        info = cls(**read_described(cls, values, where, (*_LATER, *CONNECTION_FIELDS)))
        try:
            if info.num_classes != len(info.classes):
                raise UserError(f"it has {info.num_classes} classes and names {len(info.classes)}.")
            info.check_names()
        except UserError as err:
            raise UserError(f"{where} does not describe a network that can be built: {err}") from err
        read_described(cls, values, where, _LATER)  # last: of a module, which cannot be built, not all of it is known
        return info

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values."""
        values = super().to_dict()
        for name in SELDOM:
            if not values[name]:
                del values[name]
        return {name: values[name] for name in sorted(values, key=_LATER.__contains__)}

    def build(self, **settings: Any) -> nn.Module:
        """Create the network, with new weights but for what :func:`csham.create_model` loads into its backbone."""
        return super().build(num_classes=self.num_classes, image_size=self.image_size, **settings)

    def rebuild(self) -> nn.Module:
        """Create the network for weights that are there already; warns where its code has changed since."""
        if changed := self.changed_code:
            warnings.warn(f"{changed}. The weights were trained with the old code.", stacklevel=3)
        return self.without_code().build()


SELDOM = ("open_gates", *CODE_FIELDS)
"""Fields that a description is without where they say nothing, as all were before there was any of them."""

# Older files are without these, and newer ones have them last.
_LATER = ("period", "points", "stages", *SELDOM)


def write_weights(
    path: Path, weights: Mapping[str, Tensor], info: NetworkInfo, which: RunWeights | None = None
) -> None:
    """Write weights as safetensors, with ``info`` and which ones of a run they are as JSON in its metadata."""
    values = info.to_dict() | (which.to_dict() if which is not None else {})
    metadata = {key: json.dumps(value, ensure_ascii=False) for key, value in values.items()} | {"seal": SEAL}
    tensors = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    content = sealed(safetensors.torch.save(tensors, metadata={"format": "pt", **metadata}))
    write_listed({path: lambda file: file.write(content)})


def held_weights(path: Path) -> RunWeights:
    """Return which weights of its run a file of :func:`write_weights` holds; where it does not say, the best.

    Raises:
        UserError: The file is missing or damaged.
    """
    with _opened(path) as file:
        metadata = file.metadata() or {}
        return RunWeights.from_dict({key: parse_json(metadata[key]) for key in ("weights", "epoch") if key in metadata})


def read_network(path: Path, info: NetworkInfo | None = None) -> tuple[nn.Module, NetworkInfo]:
    """Build the network of a file that :func:`write_weights` wrote, on the CPU.

    Nothing but the file's header is read before its names and shapes are known to be the network's, and no network is
    built that is much larger than the file.

    Args:
        path: The file, which anyone may have written.
        info: Description of the network, if that is known from elsewhere; the file must not say otherwise.

    Raises:
        UserError: The file is missing, damaged, does not say what network it is for, or does not fit it.
    """
    with _opened(path) as file:
        if info is None or "backbone" in (file.metadata() or {}):
            described = _described(file, path)
            if info is not None and info != described:
                differ = [f.name for f in fields(info) if getattr(info, f.name) != getattr(described, f.name)]
                raise UserError(
                    f"{path} describes another network than the file beside it, in {', '.join(differ)}. "
                    "Take both from one place."
                )
            info = described
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        network = build_for(info, {name: tuple(part.get_shape()) for name, part in slices.items()}, str(path))
        check_seal(path, _ANEW)
        weights = in_todays_names(network, {name: file.get_tensor(name) for name in slices})
    for name, own_weight in network.state_dict().items():
        if weights[name].is_floating_point() != own_weight.is_floating_point():
            raise UserError(f"{path}: {name!r} holds numbers of {weights[name].dtype}, not {own_weight.dtype}.")
    check_finite(weights, str(path))
    network.load_state_dict(weights)
    return network, info


def build_for(info: NetworkInfo, shapes: Mapping[str, tuple[int, ...] | str], where: str) -> nn.Module:
    """Build a network for weights of which only the shapes are known.

    Args:
        info: Description of the network.
        shapes: Of each weight of a file.
        where: The file, for the message.

    Raises:
        UserError: There is no such network, it is much larger than the file, or its weights are others.
    """
    what = f"{where} does not fit {info.backbone} with attention {info.attention}"
    # Layers that a stem or head for small images takes the place of are built first: those of VGG are the largest.
    most = 4 * sum(math.prod(shape) for shape in shapes.values() if not isinstance(shape, str)) + 2**26
    try:
        with _at_most(most, 4 * len(shapes) + 1000, what):
            network = info.rebuild()
    except UserError:
        raise
    except Exception as err:  # what timm raises for settings that a network does not have
        problem = shorten(str(err) or type(err).__name__, 200, placeholder=" ...")
        raise UserError(f"{where} describes a network that cannot be built: {problem}") from err
    check_weights(network, shapes, what)
    return network


@contextmanager
def _at_most(values: int, tensors: int, what: str) -> Iterator[None]:
    """Stop the building of a network of more values or tensors than that; a new tensor costs no memory yet."""
    thread, count, number = get_ident(), 0, 0

    def add(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal count, number
        if tensor is not None and get_ident() == thread:
            count, number = count + tensor.numel(), number + 1
            if count > values or number > tensors:
                raise UserError(f"{what}: other architecture, the network is far larger than the file.")

    hooks = register_module_parameter_registration_hook(add), register_module_buffer_registration_hook(add)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a safetensors file that anyone may have written."""
    if not path.is_file():
        raise UserError(f"there is no file of weights {path}.")
    try:
        _check_header(path)
        with safetensors.safe_open(path, framework="pt") as file:
            yield file
    except UserError:
        raise
    except (safetensors.SafetensorError, ValueError, TypeError, LookupError, RuntimeError) as err:
        problem = shorten(str(err), 200, placeholder=" ...")
        raise UserError(f"{path} is damaged or not a safetensors file: {problem}") from err


def _check_header(path: Path) -> None:
    """Refuse what the library would accept: a header of up to 100 MB, in which the last of two equal keys wins."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_LONGEST_HEADER, path.stat().st_size - 8):
            raise ValueError(f"its header would be {length:,} bytes")
        parse_json(file.read(length))


def _described(file: Any, path: Path) -> NetworkInfo:
    metadata = file.metadata() or {}
    known = [key for key in names_of(NetworkInfo) if key in metadata]
    return NetworkInfo.from_dict({key: parse_json(metadata[key]) for key in known}, path)


_ANEW = "Take it anew from where it came from, or export it again."

# Names of weights take a tenth of a megabyte in large networks, those of 21,000 classes half of one.
_LONGEST_HEADER = 2**24

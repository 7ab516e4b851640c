"""Every setting of a run: its type, its range, where it comes from, and the YAML file it is kept in."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import yaml

from csham.attach.checks import check_position, check_strategy
from csham.attach.names import STRATEGIES
from csham.backbones.lookup import check_backbone
from csham.data.names import CROP_SCALE, CROPS, LAST_BATCHES
from csham.errors import UserError, unknown_name
from csham.layers.names import ATTENTIONS
from csham.training.recipes import RECIPES

__all__ = ["BEFORE", "TrainConfig", "read_settings", "resolve"]

BEFORE: dict[str, Any] = {"crop": "pad", "last_batch": "drop"}
"""What a run or a study did before there was a setting for it."""

Auto = Literal["auto"]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Every setting of one run. Creating it checks types and ranges; :meth:`check_names` checks the names.

    Attributes:
        data: Name of a dataset, or the path of images, as :func:`csham.data.prepare` takes it.
        backbone: Name of the network.
        attention: Name of the attention attached to it, or ``"none"``.
        strategy: How the attention's steps are arranged.
        period: Of strategy ``"transfer"``: points to each channel step.
        position: Where in the network it sits.
        points: Names or patterns of modules instead of a position.
        stages: Only points of these stages.
        gated: Start attention as the identity.
        pretrained: Start from the backbone's published weights.
        weights_file: Start from the backbone's weights in this local file; goes before ``pretrained``.
        recipe: The recipe that gave what was not set otherwise.
        epochs: Passes over the training part.
        batch_size: Images per step, over all devices; ``"auto"`` fits the training part
            (:func:`csham.training.steps.fit_batch`).
        last_batch: The images left over at an epoch's end: ``"drop"`` leaves them out, ``"fill"`` makes a batch of
            them and of the epoch's first, as :func:`resolve` sets it.
        lr: Highest learning rate.
        momentum: Momentum of SGD, in Nesterov's form.
        weight_decay: On every parameter but the gates.
        schedule: ``"one-cycle"``, ``"steps"`` or ``"constant"``.
        warmup_epochs: Linear warm-up, of the schedules other than one-cycle.
        milestones: Fractions of the run after which ``"steps"`` multiplies the rate by ``decay``.
        decay: See ``milestones``.
        label_smoothing: Of the training loss; the other losses are without.
        seed: Of the first weights, the split, the order of images and their augmentation.
        image_size: Height and width in pixels; None takes the dataset's own.
        crop: How training images are cut: ``"pad"``, a square of the image in a black border (above 64 px of the
            larger stored image); ``"resized"``, a box of random area and ratio, resampled; ``"auto"``, padded up to
            64 px and resized above.
        crop_scale: Least area of a resized crop, as a fraction of the stored image's.
        validation: Fraction of the training images held out to choose the best checkpoint.
        track_test: Measure the test part after every epoch too (never to choose by).
        max_bad: Unreadable image files to skip before giving up.
        allow_leaks: Train although most test images are training images.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        compile: Use torch.compile; ``"auto"`` does where it pays.
        channels_last: Keep channels innermost in memory; ``"auto"`` does on CPU and CUDA.
        checkpoint_seconds: Longest time between two checkpoints.
        checkpoint_steps: Most steps between two checkpoints, if any.
    """

    data: str
    backbone: str = "resnet18"
    attention: str = "none"
    strategy: str = "sequential"
    period: int | None = None
    position: str = "auto"
    points: tuple[str, ...] | None = None
    stages: tuple[int, ...] | None = None
    gated: bool = False
    pretrained: bool = False
    weights_file: str | None = None
    recipe: str = "fast"
    epochs: int = 30
    batch_size: int | Auto = 128
    last_batch: str = "drop"
    lr: float = 0.2
    momentum: float = 0.9
    weight_decay: float = 5e-4
    schedule: str = "one-cycle"
    warmup_epochs: float = 0.0
    milestones: tuple[float, ...] = ()
    decay: float = 0.2
    label_smoothing: float = 0.0
    seed: int = 0
    image_size: int | None = None
    crop: str = "auto"
    crop_scale: float = CROP_SCALE
    validation: float = 0.1
    track_test: bool = False
    max_bad: int = 10
    allow_leaks: bool = False
    device: str = "auto"
    precision: str = "auto"
    compile: bool | Auto = "auto"
    channels_last: bool | Auto = "auto"
    checkpoint_seconds: float = 60.0
    checkpoint_steps: int | None = None

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in fields(self):
            value = _checked_type(field.name, getattr(self, field.name), hints[field.name])
            object.__setattr__(self, field.name, value)
            _check_range(field.name, value)

    def check_names(self) -> None:
        """Refuse unknown backbones, attentions, strategies and positions, mostly without importing PyTorch."""
        check_backbone(self.backbone, pretrained=self.pretrained, weights_file=self.weights_file)
        _check_choice("attention", self.attention, ["none", *(n for n in ATTENTIONS if n != "none")])
        _check_choice("strategy", self.strategy, STRATEGIES)
        check_position(self.position, self.points)
        if self.attention != "none":
            check_strategy(self.attention, self.strategy, self.period)

    @property
    def images_per_step(self) -> int:
        """``batch_size``, of settings in which it has been fitted to the training part."""
        assert self.batch_size != "auto"
        return self.batch_size

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as plain values, as YAML, JSON and checkpoints hold them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def to_yaml(self) -> str:
        """Return the settings as YAML, in the order of the fields."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)

    def default_name(self) -> str:
        """Name a run folder after the settings that tell runs apart."""
        parts = [Path(self.data).name or "data", self.backbone.replace("/", "-"), self.attention]
        if self.attention != "none":
            parts += [self.strategy] if self.strategy != "sequential" else []
            parts += [f"period{self.period}"] if self.period else []
            parts += [self.position] if self.position != "auto" else []
            parts += ["points"] if self.points else []
            parts += [f"stages{'+'.join(map(str, self.stages))}"] if self.stages else []
            parts += ["gated"] if self.gated else []
        parts += [Path(self.weights_file).stem] if self.weights_file else ["pretrained"] if self.pretrained else []
        parts += [self.recipe, f"{self.epochs}epochs", f"seed{self.seed}"]
        return "-".join(parts)


def resolve(given: Mapping[str, Any], file: Mapping[str, Any] | None = None) -> TrainConfig:
    """Put settings together: ``given`` wins over ``file``, which wins over the recipe.

    A recipe named in ``given`` wins over ``file`` as a whole.

    Args:
        given: What the command line or the caller set.
        file: What a configuration file set (:func:`read_settings`).
    """
    file = dict(file or {})
    name = given.get("recipe", file.get("recipe", "fast"))
    _check_choice("recipe", name, RECIPES)
    recipe = {"recipe": name, **_FITTED, **RECIPES[name].settings}
    layers = (file, recipe, given) if "recipe" in given else (recipe, file, given)
    settings = {key: value for layer in layers for key, value in layer.items()}
    known = [field.name for field in fields(TrainConfig)]
    for key in settings:
        if key not in known:
            raise unknown_name("setting", key, known)
    if "data" not in settings:
        raise UserError("no data: name a dataset (such as digits) or the path of an image folder.")
    return TrainConfig(**settings)


# What no recipe sets, and a run that is begun today does.
_FITTED = {"batch_size": "auto", "last_batch": "fill"}


def read_settings(path: Path) -> dict[str, Any]:
    """Read a configuration file; its keys and values are checked by :func:`resolve`."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as err:
        raise UserError(f"{path} is not a YAML file: {' '.join(str(err).split())}") from err
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold settings such as 'epochs: 30', one on a line.")
    return {str(key): value for key, value in content.items()}


_UNSIGNED_64 = 2**63

_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": (lambda v: v >= 1, "at least 1"),
    "batch_size": (lambda v: v == "auto" or v >= 2, "at least 2 (batch normalisation needs two values)"),
    "lr": (lambda v: v > 0, "above 0"),
    "momentum": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "weight_decay": (lambda v: v >= 0, "0 or more"),
    "warmup_epochs": (lambda v: v >= 0, "0 or more"),
    "milestones": (lambda v: list(v) == sorted(v) and all(0 < m < 1 for m in v), "rising, between 0 and 1"),
    "decay": (lambda v: 0 < v <= 1, "above 0, at most 1"),
    "label_smoothing": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "seed": (lambda v: 0 <= v < _UNSIGNED_64, "from 0 to below 2**63"),
    "image_size": (lambda v: v is None or 8 <= v <= 1024, "from 8 to 1024"),
    "crop_scale": (lambda v: 0 < v <= 1, "above 0, at most 1"),
    "validation": (lambda v: 0 <= v < 1, "from 0 to below 1"),
    "max_bad": (lambda v: v >= 0, "0 or more"),
    "checkpoint_seconds": (lambda v: v >= 0, "0 or more"),
    "checkpoint_steps": (lambda v: v is None or v >= 1, "at least 1"),
}

_CHOICES: dict[str, tuple[str, ...]] = {
    "schedule": ("one-cycle", "steps", "constant"),
    "crop": CROPS,
    "last_batch": LAST_BATCHES,
    "recipe": tuple(RECIPES),
    "precision": ("auto", "fp32", "bf16", "fp16"),
}


def _check_range(name: str, value: Any) -> None:
    if name in _CHOICES:
        _check_choice(name, value, _CHOICES[name])
    elif name == "device" and value.partition(":")[0] not in ("auto", "cpu", "cuda", "mps"):
        raise unknown_name("device", value, ["auto", "cpu", "cuda", "cuda:0", "mps"])
    elif name in _RANGES and not _RANGES[name][0](value):
        raise UserError(f"{_option(name)} must be {_RANGES[name][1]}, got {value!r}.")


def _check_choice(kind: str, value: object, choices: typing.Iterable[str]) -> None:
    choices = list(choices)
    if value not in choices:
        raise unknown_name(kind, value, choices)


def _checked_type(name: str, value: Any, hint: Any) -> Any:
    """Return ``value`` as the type of the field, or refuse it; a number as text is refused too."""
    if typing.get_origin(hint) is tuple:
        item_type = typing.get_args(hint)[0]
        if isinstance(value, list | tuple):
            return tuple(_checked_type(name, item, item_type) for item in value)
        raise _wrong_type(name, value, f"a list of {_PLURALS[item_type]}")
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return _checked_union(name, value, typing.get_args(hint))
    if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise UserError(f"{_option(name)} must be a finite number, got {value!r}.")
        return float(value)
    if type(value) is hint:
        return value
    raise _wrong_type(name, value, _TYPE_NAMES[hint])


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
        raise _wrong_type(name, value, "a list or empty")
    other = "'auto'" if Auto in options else "empty"
    if type(value) is not first:
        raise _wrong_type(name, value, f"{_TYPE_NAMES[first]} or {other}")
    return value


_TYPE_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
}

_PLURALS: dict[Any, str] = {int: "whole numbers", float: "numbers", str: "texts"}


def _wrong_type(name: str, value: object, expected: str) -> UserError:
    return UserError(f"{_option(name)} must be {expected}, got {value!r}.")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")

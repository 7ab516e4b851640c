"""Any module as a trained network: what it does not say of itself, asked for and checked once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor, nn

from csham.attach.install import attached_modules
from csham.attach.installed.attached import Attached
from csham.attach.names import STRATEGIES
from csham.backbones.spec import CONNECTION_FIELDS
from csham.errors import UserError
from csham.own_code import described, kind_of
from csham.probing import blank_image, eagerly, evaluating, likeness, unchanged
from csham.training.network import NetworkInfo

__all__ = ["ModuleFacts", "info_of"]

# Of ImageNet, by which torchvision's and most of timm's published weights are trained.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_LARGEST = 4096


class ModuleFacts(TypedDict, total=False):
    """Arguments of :meth:`csham.inference.Trained.of` that say what a module does not."""

    image_size: int
    classes: Sequence[str]
    mean: Sequence[float]
    std: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class _ModuleInfo(NetworkInfo):
    """Description of a module, with the settings that its attached attention shows."""

    def to_dict(self) -> dict[str, Any]:
        """Return the description as plain values, without the settings that are not known."""
        values = super().to_dict()
        if self.attention == "none":
            return values
        shown = ["gated", *(["strategy"] if self.strategy != "sequential" else [])]
        return {name: value for name, value in values.items() if name in shown or name not in CONNECTION_FIELDS}


def info_of(network: nn.Module, facts: ModuleFacts) -> NetworkInfo:
    """Describe a module that is a classifier.

    Args:
        network: The module; it is run once on a blank image, and left as it was.
        facts: Facts that it does not say itself.

    Raises:
        UserError: It is no module or no classifier, or what is said of it cannot be.
    """
    if not isinstance(network, nn.Module):
        raise UserError(
            f"expected a network, what csham.load returned or an nn.Module, got {kind_of(network)}. csham.load(path) "
            "reads a run, a shared folder or a file of weights."
        )
    kind = type(network).__name__
    if likeness(network).device.type == "meta":
        raise UserError(f"{kind} is on the meta device, so it has no weights. Load them first.")
    published = _published(network)
    side = _image_size(kind, facts.get("image_size", published.get("image_size")))
    count = _count_classes(network, kind, side)
    classes = [str(name) for name in facts.get("classes", range(count))]
    if len(classes) != count:
        raise UserError(f"{kind} tells {count} classes apart, and classes= names {len(classes)}.")
    points = attached_modules(network)
    return _ModuleInfo(
        backbone=kind,
        attention=" and ".join(dict.fromkeys(type(point.attention).__name__ for point in points)) or "none",
        strategy=_strategy(points),
        gated=any(point.gate is not None for point in points),
        num_classes=count,
        image_size=side,
        classes=classes,
        mean=_numbers("mean", facts.get("mean", published.get("mean", _MEAN)), 0),
        std=_numbers("std", facts.get("std", published.get("std", _STD)), 1e-6),
    )


def _strategy(points: Sequence[Attached]) -> str:
    """Return the strategy that the points show, else the usual: whole attentions may be of two strategies."""
    parts = {point.part for point in points}
    if parts == {"channel", "spatial"}:
        return "transfer" if any(point.lends is not None for point in points) else "alternate"
    return parts.pop() if len(parts) == 1 and parts <= set(STRATEGIES) else "sequential"


def _published(network: nn.Module) -> dict[str, Any]:
    """Return what timm says of the images of its networks."""
    config = getattr(network, "pretrained_cfg", None)
    if not isinstance(config, dict):
        return {}
    size = config.get("input_size")
    known = {name: config[name] for name in ("mean", "std") if config.get(name) is not None}
    return known | ({"image_size": size[-1]} if size is not None and size[-1] == size[-2] else {})


def _image_size(kind: str, size: Any) -> int:
    if size is None:
        raise UserError(f"{kind} does not say how large its images are. Give image_size=, their side in pixels: 224.")
    if type(size) is not int or not 1 <= size <= _LARGEST:
        raise UserError(f"image_size= is the side of square images, in pixels, up to {_LARGEST}, got {size!r}.")
    return size


def _count_classes(network: nn.Module, kind: str, side: int) -> int:
    """Run a network once, and refuse what is no row of logits."""
    try:
        with unchanged(network), evaluating(network), eagerly():
            logits = network(blank_image(network, (3, side, side)))
    except Exception as err:  # whatever a third-party network fails with
        raise UserError(f"{kind} could not be run on an image of {side} pixels: {described(err)}.") from err
    shape = tuple(logits.shape) if isinstance(logits, Tensor) and logits.is_floating_point() else ()
    if len(shape) == 2 and shape[0] == 1 and shape[1] > 1:
        return shape[1]
    if shape == (1, 1):
        raise UserError(
            f"{kind} makes one logit of an image, z, whose softmax is always 1. Give a module around it whose forward "
            "returns two, torch.cat([-z, z], 1) / 2: of these the second one's probability is the sigmoid of z."
        )
    what = kind_of(logits)
    if isinstance(logits, Tensor):
        kinds = {4: "a map of "} if logits.is_floating_point() else {}
        what = f"{kinds.get(logits.ndim, '')}{tuple(logits.shape)} {str(logits.dtype).removeprefix('torch.')}"
    raise UserError(
        f"{kind} makes {what} of one image, not logits, (1, classes), which is what can be asked, explained and "
        "exported here. Give a module around it whose forward returns the logits alone."
    )


def _numbers(name: str, values: Any, least: float) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        numbers = []
    if len(numbers) != 3 or not all(least <= number <= 1 for number in numbers):
        raise UserError(f"{name}= is three numbers of red, green and blue, of values from 0 to 1, got {values!r}.")
    return numbers

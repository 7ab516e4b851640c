"""create_model: a backbone by name, with a stem for the image size, and attention by name."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from operator import index
from pathlib import Path
from textwrap import shorten
from typing import Any
from weakref import WeakSet

import torch
from torch import nn

from csham.attach import attach
from csham.attach.graph.points import PointChoice
from csham.attach.names import check_position, check_strategy
from csham.backbones.cifar import CifarResNet, WideResNet
from csham.backbones.lenet import LeNet5
from csham.backbones.lookup import Meaning, check_backbone, find_backbone
from csham.backbones.names import BackboneName
from csham.backbones.own import Backbone, OwnBackbone
from csham.backbones.scale import Scale
from csham.backbones.weights import NewWeightsWarning, load_weights_file
from csham.errors import UserError
from csham.layers.own import Attention, find_attention
from csham.own_code import described, kind_of
from csham.probing import blank_image, evaluating, unchanged

__all__ = ["check_size", "create_model"]

# Up to this side, in pixels, a stem that divides by four would leave the stages too little to look at.
_SMALL_IMAGE = 64

# Sides that networks are made for, in pixels.
_USUAL = (32, 48, 64, 75, 96, 112, 128, 160, 192, 224, 240, 256, 288, 299, 320, 331, 384, 448, 512)


def create_model(
    backbone: Backbone,
    *,
    attention: Attention | None = None,
    strategy: str = "sequential",
    period: int | None = None,
    position: str = "auto",
    points: PointChoice | None = None,
    stages: Iterable[int] | int | None = None,
    gated: bool = False,
    open_gates: bool = False,
    num_classes: int = 1000,
    image_size: int = 224,
    in_chans: int = 3,
    pretrained: bool = False,
    weights_file: Path | str | None = None,
    **settings: Any,
) -> nn.Module:
    """Build a backbone, and attach an attention to it.

    The backbone's weights are drawn before the attention's: after the same ``torch.manual_seed`` every attention starts
    from the same backbone. For images of up to 64 pixels the networks of the table get a stem and head for small images
    (:func:`csham.backbones.small.fit_small_images`), for larger ones they are timm's and torchvision's as they are.

    Args:
        backbone: One of ``csham list backbones``, or any network of timm's or torchvision's
            (:func:`csham.backbones.lookup.find_backbone` says which of them a name means). ``NAME@width=1.25`` and
            ``NAME@depth=26`` give many of them other channels or layers. Or a network of your own: a name of
            :func:`csham.register_backbone`, or a function or class of ``num_classes``.
        attention: One of ``csham list attentions``, or a class or function of a number of channels
            (:func:`csham.attach`); None or ``"none"`` for the plain backbone.
        strategy: Connection of the attention, one of ``csham list strategies``.
        period: Of strategy ``"transfer"``; see :func:`csham.attach`, and for the next four.
        position: Place where it is attached, one of ``csham list positions``.
        points: Modules instead of a position.
        stages: Only points of these stages.
        gated: Start every attention closed.
        open_gates: Let the weights of every attention start near 1.
        num_classes: Width of the logits.
        image_size: Side of the images, in pixels; decides the stem.
        in_chans: Channels of the images; the first convolution of pretrained weights is converted.
        pretrained: Load the weights that timm or torchvision publish. A stem or head for small images and a classifier
            for another number of classes start from new weights.
        weights_file: Load the backbone's weights from this local file, published or not, in safetensors' or torch's
            format, or from ``"zoo:NAME"``; goes before ``pretrained``. Warns of what did not fit by design and stays
            new.
        **settings: Settings of the attention.

    Returns:
        A network from (B, in_chans, image_size, image_size) to logits, (B, num_classes).

    Raises:
        UserError: A name or setting that cannot work, images that are too small, weights out of reach, or a file of
            another architecture.
    """
    plain = attention is None or attention == "none"
    check_backbone(backbone, pretrained=pretrained, weights_file=weights_file)
    check_position(position, points)
    if attention is not None and not plain:
        attention = find_attention(attention)
        check_strategy(attention, strategy, period)
    if plain and settings:
        raise UserError(
            f"create_model: {', '.join(settings)}: no such setting; attentions have settings of their own, and there "
            "is none. Name one with attention=, or leave it out."
        )
    num_classes = _whole("num_classes", num_classes, 0)
    image_size, in_chans = _whole("image_size", image_size, 1), _whole("in_chans", in_chans, 1)
    model = _create_backbone(backbone, num_classes, image_size, in_chans, pretrained, weights_file)
    if attention is not None and not plain:
        side = max(image_size, 32)
        attach(
            model,
            attention,
            strategy=strategy,
            period=period,
            position=position,
            points=points,
            stages=stages,
            gated=gated,
            open_gates=open_gates,
            input_size=(in_chans, side, side),
            **settings,
        )
    return model


def _whole(name: str, value: int, least: int) -> int:
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise UserError(f"create_model: {name} must be a whole number of at least {least}, got {value!r}.")
    return number


def check_size(model: nn.Module, name: str, num_classes: int, in_chans: int, image_size: int) -> None:
    """Refuse a network that does not turn an image of this size into logits.

    Runs it on one blank image; on meta tensors torch would import its compiler first, which takes longer.

    Args:
        model: The network, without attention; left as it was.
        name: Its name, for the message.
        num_classes: Width that the logits must have; 0 for any.
        in_chans: Channels of the images.
        image_size: Side of the images, in pixels.

    Raises:
        UserError: It does not run, or returns something else; says which size would do.
    """
    output, problem = _output(model, in_chans, image_size)
    if problem is None:
        if (wrong := _wrong_logits(output, num_classes)) is not None:
            raise UserError(f"{name} is no classifier of {num_classes or 'any'} classes: {wrong}.")
        return
    larger = [side for side in _USUAL if side > image_size]
    smaller = [side for side in reversed(_USUAL) if side < image_size]
    fitting = next((s for s in larger + smaller if _output(model, in_chans, s)[1] is None), None)
    advice = (
        f"It runs at {fitting} pixels: image_size={fitting} (--image-size {fitting})."
        if fitting is not None
        else "It runs at none of the usual sizes; take another backbone (csham list backbones)."
    )
    raise UserError(f"{name} cannot classify images of {image_size} pixels ({problem}). {advice}")


def _create_backbone(
    backbone: Backbone,
    num_classes: int,
    image_size: int,
    in_chans: int,
    pretrained: bool,
    weights_file: Path | str | None,
) -> nn.Module:
    meaning = find_backbone(backbone)
    name = meaning.entry.name if meaning.library == "own" and meaning.entry is not None else str(backbone)
    if meaning.entry is not None and image_size < meaning.entry.min_size:
        raise UserError(
            f"{name} cannot classify images of {image_size} pixels, it needs {meaning.entry.min_size}: "
            f"image_size={meaning.entry.min_size} (--image-size {meaning.entry.min_size})."
        )
    new: tuple[str, ...] = ()
    if isinstance(meaning.entry, OwnBackbone):
        given = {"pretrained": pretrained and weights_file is None, "in_chans": in_chans, "image_size": image_size}
        model = _users(meaning.entry, num_classes, given)
        check_size(model, name, num_classes, in_chans, image_size)
        _check_in_training(model, name, num_classes, in_chans, image_size)
    elif meaning.library == "csham":
        assert meaning.entry is not None
        model = _cshams(meaning.entry, meaning.scale or Scale(), num_classes, in_chans)
    else:
        model = _from_library(meaning, num_classes, in_chans, pretrained and weights_file is None)
        new = _change(model, meaning.entry, small=image_size <= _SMALL_IMAGE)
        if meaning.entry is None:
            check_size(model, name, num_classes, in_chans, image_size)
    if weights_file is not None:
        load_weights_file(model, weights_file, name, in_chans, new)
    elif pretrained and new:
        text = f"the published weights of {name} are for larger images: new weights in {', '.join(new)}"
        warnings.warn(NewWeightsWarning(text, new), stacklevel=3)
    return model


def _cshams(entry: BackboneName, scale: Scale, num_classes: int, in_chans: int) -> nn.Module:
    factor = scale.width or 1.0
    if entry.depth is None:
        return LeNet5(num_classes, in_chans, width=factor)
    depth = scale.depth or entry.depth
    if entry.width is None:
        return CifarResNet(depth, num_classes, in_chans, width=factor)
    return WideResNet(depth, entry.width * factor, num_classes, in_chans)


# Networks of the user's own, so that one that is returned twice is noticed: its weights would be trained twice.
_MADE: WeakSet[nn.Module] = WeakSet()


def _users(entry: OwnBackbone, num_classes: int, given: dict[str, Any]) -> nn.Module:
    """Build a network of the user's own, with what its function or class takes."""
    settings = {name: value for name, value in given.items() if name in entry.takes}
    if given["in_chans"] != 3 and "in_chans" not in entry.takes:
        raise UserError(f"{entry.name} takes no in_chans, so its images have 3 channels, got {given['in_chans']}.")
    words = ", ".join(f"{name}={value}" for name, value in {"num_classes": num_classes, **settings}.items())
    try:
        model = entry.build(num_classes=num_classes, **settings)
    except UserError:
        raise
    except Exception as err:
        raise UserError(f"{entry.name}({words}) failed: {described(err)}.") from err
    if not isinstance(model, nn.Module):
        raise UserError(f"{entry.name}({words}) returned {kind_of(model)}, and a backbone is an nn.Module.")
    if model in _MADE:
        raise UserError(f"{entry.name} returned the network it had made before. It is to make a new one each time.")
    _MADE.add(model)
    return model


def _check_in_training(model: nn.Module, name: str, num_classes: int, in_chans: int, image_size: int) -> None:
    """Refuse a network that returns something else in training, such as what auxiliary heads say."""
    images = blank_image(model, (in_chans, image_size, image_size)).expand(2, -1, -1, -1)
    try:
        trained = copy.deepcopy(model).train()  # whose norms may learn from the blank image
    except Exception:  # what cannot be copied is seen in its first step
        return
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            output = trained(images)
    except Exception as err:
        raise UserError(f"{name} fails in training, on two blank images: {described(err)}.") from err
    if (problem := _wrong_logits(output, num_classes)) is not None:
        raise UserError(f"{name} is trained by its logits, and in training {problem}. Return the logits alone.")


def _from_library(meaning: Meaning, num_classes: int, in_chans: int, pretrained: bool) -> nn.Module:
    from csham.backbones.libraries import scaled_timm_network, timm_network, torchvision_network  # noqa: PLC0415  slow

    if meaning.scale is not None:
        return scaled_timm_network(meaning.name, meaning.scale, num_classes, in_chans)
    build = timm_network if meaning.library == "timm" else torchvision_network
    return build(meaning.name, num_classes, in_chans, pretrained=pretrained)


def _change(model: nn.Module, entry: BackboneName | None, *, small: bool) -> tuple[str, ...]:
    """Make what csham's table says of a library's network, and name the modules with new weights."""
    from csham.backbones.small import fit_small_images, group_first_convolutions  # noqa: PLC0415

    if entry is None:
        return ()
    if entry.made_from:
        group_first_convolutions(model)
    return fit_small_images(model) if small else ()


def _output(model: nn.Module, in_chans: int, image_size: int) -> tuple[Any, str | None]:
    """Return what a network makes of a blank image, and what goes wrong, if anything does."""
    try:
        with unchanged(model), evaluating(model):
            return model(blank_image(model, (in_chans, image_size, image_size))), None
    except Exception as err:
        return None, shorten(str(err) or type(err).__name__, 120, placeholder=" ...").rstrip(".")


def _wrong_logits(output: Any, num_classes: int) -> str | None:
    """Say what a network returned, if that is not a row of logits for each image."""
    if not isinstance(output, torch.Tensor):
        return f"it returns {kind_of(output)}, not logits, (B, {num_classes or 'classes'})"
    if output.ndim != 2 or num_classes not in (0, output.shape[1]):
        return f"it returns {tuple(output.shape)}, not logits, ({len(output) if output.ndim else 'B'}, {num_classes})"
    return None

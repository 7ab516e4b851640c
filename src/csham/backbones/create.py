"""create_model: a backbone by name, with a stem for the image size, and attention by name."""

from __future__ import annotations

from typing import Any

from torch import nn

from csham.attach import attach
from csham.attach.names import POSITIONS
from csham.attach.strategies import check_strategy
from csham.backbones.cifar import CifarResNet
from csham.backbones.names import BACKBONES
from csham.errors import UserError, unknown_name

__all__ = ["create_model"]

# Up to this side, in pixels, a stem that divides by four would leave the stages too little to look at.
_SMALL_IMAGE = 64


def create_model(
    backbone: str,
    *,
    attention: str | None = None,
    strategy: str = "sequential",
    position: str = "residual",
    gated: bool = False,
    num_classes: int = 1000,
    image_size: int = 224,
    in_chans: int = 3,
    pretrained: bool = False,
    **settings: Any,
) -> nn.Module:
    """Build a backbone, and attach an attention to it.

    The backbone's weights are drawn before the attention's: after the same ``torch.manual_seed`` every attention starts
    from the same backbone. For images of up to 64 pixels timm's ResNets get the usual small stem, a 3x3 convolution of
    stride 1 and no pooling.

    Args:
        backbone: One of ``csham list backbones``.
        attention: One of ``csham list attentions``; None or ``"none"`` for the plain backbone.
        strategy: How the attention is connected, one of ``csham list strategies``.
        position: Where it is attached, one of ``csham list positions``.
        gated: Start every attention closed; see :func:`csham.attach`.
        num_classes: Width of the logits.
        image_size: Side of the images, in pixels; decides the stem.
        in_chans: Channels of the images.
        pretrained: Load timm's pretrained weights (not for the CIFAR ResNets, which have none). A small stem starts
            from new weights.
        **settings: What the attention takes.

    Returns:
        A network from (B, in_chans, image_size, image_size) to logits, (B, num_classes).

    Raises:
        UserError: A name or setting that cannot work.
    """
    plain = attention is None or attention == "none"
    if backbone not in BACKBONES:
        raise unknown_name("backbone", backbone, BACKBONES)
    if position not in POSITIONS:
        raise unknown_name("position", position, POSITIONS)
    if not plain:
        check_strategy(str(attention), strategy)
    model = _create_backbone(backbone, num_classes, image_size, in_chans, pretrained)
    if not plain:
        side = max(image_size, 32)
        attach(
            model,
            str(attention),
            strategy=strategy,
            position=position,
            gated=gated,
            input_size=(in_chans, side, side),
            **settings,
        )
    return model


def _create_backbone(backbone: str, num_classes: int, image_size: int, in_chans: int, pretrained: bool) -> nn.Module:
    depth = BACKBONES[backbone].depth
    if depth is not None:
        if pretrained:
            raise UserError(f"{backbone} has no pretrained weights. Leave pretrained=False.")
        return CifarResNet(depth, num_classes, in_chans)
    import timm  # noqa: PLC0415  takes seconds to import

    model = timm.create_model(backbone, pretrained=pretrained, num_classes=num_classes, in_chans=in_chans)
    if image_size <= _SMALL_IMAGE:
        model.conv1 = nn.Conv2d(in_chans, model.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
        model.maxpool = nn.Identity()
    return model

"""What the attentions of a network keep for the backward pass."""

from __future__ import annotations

from torch import nn

from csham.attach.install import attached_modules
from csham.errors import UserError

__all__ = ["recompute_norms"]


def recompute_norms(model: nn.Module, recompute: bool = True) -> None:
    """Let attached attentions recompute the batch norms' outputs that they would keep for the backward pass.

    An attention behind a batch norm keeps one map more than the plain network does, which in a ResNet is a fifth of
    all that training keeps. With this, it is what the plain network keeps and little more, whatever the attention; a
    training step takes some percent longer, and every gradient is the same to the bit. It acts in eager training;
    compiled networks do without by themselves where kernels run. Attentions behind anything else than a batch norm with
    a bias that learns keep what they did; under activation checkpointing nothing changes.

    Args:
        model: A network that :func:`csham.attach` changed.
        recompute: False to let them keep the outputs again.

    Raises:
        UserError: A network without attached attention; a ``ValueError``.

    Examples:
        >>> import csham, timm
        >>> model = timm.create_model("resnet50")
        >>> points = csham.attach(model, "eca")
        >>> csham.recompute_norms(model)
    """
    attentions = attached_modules(model)
    if not attentions:
        raise UserError(f"recompute_norms: {type(model).__name__} has no attached attention. csham.attach puts it in.")
    for attached in attentions:
        attached.recomputes_norm = recompute

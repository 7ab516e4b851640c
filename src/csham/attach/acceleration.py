"""accelerate: let the attentions that a network of timm's or torchvision's has already run on the kernels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from csham.attach.installed.host_class import with_plain_class
from csham.errors import UserError
from csham.probing import is_compiled

__all__ = ["AcceleratedModule", "accelerate"]


@dataclass(frozen=True)
class AcceleratedModule:
    """An attention of a network that runs on the kernels now.

    Attributes:
        name: The module's name in the network.
        attention: The attention's name, as in ``csham list attentions``.
    """

    name: str
    attention: str


def accelerate(model: nn.Module) -> list[AcceleratedModule]:
    """Let the attentions that a network has already run on csham's kernels, in place.

    These are timm's squeeze-and-excitation modules (its EfficientNets', MobileNets' and SENets' too), effective SE,
    ECA with its variants and CBAM, and torchvision's ``SqueezeExcitation``. Each becomes, in the same object, a
    subclass that computes the same with fewer passes over its map. Parameters, hooks, mode, device and ``state_dict``
    keys stay what they are, outputs and gradients too but for rounding. Subclasses that are not known here and modules
    whose ``forward`` was replaced are left alone. Where no kernels run (``CSHAM_KERNELS=reference``, other types
    and devices, an export), the original code does.

    Wrap in DDP before or after, compile after. A network that is pickled whole needs csham to be loaded; a
    ``state_dict`` does not. Gradients of gradients need ``CSHAM_KERNELS=reference``. torch.jit.script cannot read what
    this makes.

    Args:
        model: Any network, or a single attention.

    Returns:
        Attentions that now run on the kernels, in the order of the network's modules; not those that did before.

    Raises:
        UserError: The network is scripted or compiled.

    Examples:
        >>> import csham, timm
        >>> model = timm.create_model("mobilenetv3_small_100")
        >>> [module.name for module in csham.accelerate(model)][:2]
        ['blocks.0.0.se', 'blocks.2.0.se']
    """
    _check_model(model)
    from csham.layers.accelerated import accelerate_layer  # noqa: PLC0415  timm takes seconds to import

    changed = {name: with_plain_class(module, accelerate_layer) for name, module in model.named_modules()}
    told = {name: attention for name, attention in changed.items() if attention is not None}
    # A part is not told beside its whole.
    return [
        AcceleratedModule(name, attention)
        for name, attention in told.items()
        if not name or name.rpartition(".")[0] not in told
    ]


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise UserError(f"accelerate: expected a network, an nn.Module, got {type(model).__name__}.")
    for name, module in model.named_modules():
        what = name or "this network"
        if isinstance(module, torch.jit.ScriptModule):
            raise UserError(f"accelerate: {what} is scripted and cannot be changed.")
        if is_compiled(module):
            raise UserError(f"accelerate: {what} is compiled already. Accelerate, then compile.")

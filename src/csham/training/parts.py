"""Parts of a network under training: its backbone, its head and its attention; and holding the backbone still."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from csham.attach.installed.attached import Attached
from csham.backbones.weights import classifiers

__all__ = ["PARTS", "Backbone", "parts_of"]

PARTS = ("backbone", "head", "attention")


def parts_of(network: nn.Module, new: Iterable[str] = ()) -> dict[str, str]:
    """Return which of :data:`PARTS` each parameter belongs to, by its name.

    Args:
        network: Attention may be attached.
        new: Modules of the backbone that did not get the trained weights it started from, such as a stem for small
            images. They have to learn as the head does, and belong to it.
    """
    modules = _parts_of_modules(network, new)
    return {name: modules[name.rpartition(".")[0]] for name, _ in network.named_parameters()}


class Backbone:
    """Holds what a network started from still, or lets it go on.

    Parameters that take no gradient when it is made never do. Batch norms that are held normalise by their running
    statistics, and these stay.

    Args:
        network: In which attention may be attached.
        new: See :func:`parts_of`.
    """

    def __init__(self, network: nn.Module, new: Iterable[str] = ()) -> None:
        parts, modules = parts_of(network, new), _parts_of_modules(network, new)
        parameters = network.named_parameters()
        self._parameters = [p for name, p in parameters if parts[name] == "backbone" and p.requires_grad]
        self._norms = [
            module
            for name, module in network.named_modules()
            if isinstance(module, _NormBase) and modules[name] == "backbone"
        ]

    def hold(self, still: bool) -> None:
        """Hold it still or let it go; the network is in training mode."""
        for parameter in self._parameters:
            parameter.requires_grad_(not still)
        for norm in self._norms:
            norm.train(not still)


def _parts_of_modules(network: nn.Module, new: Iterable[str]) -> dict[str, str]:
    heads, parts = {*new, *classifiers(network)}, dict[str, str]()
    for name, module in network.named_modules():
        above = parts.get(name.rpartition(".")[0], "backbone")
        parts[name] = "attention" if isinstance(module, Attached) else "head" if name in heads else above
    return parts
